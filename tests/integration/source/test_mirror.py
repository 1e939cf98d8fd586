"""The mirror against real repositories, some of them hostile."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from raw_git import RawObjects

from kneo.controller.source.git import SourceLimits
from kneo.controller.source.mirror import AllowedRewrite, Mirror
from kneo.controller.source.snapshot import Blob, SourceSnapshot
from kneo.errors import Conflict, Invalid, KneoError, NotFound, Transient

BUNDLE = "bundles/research/1.0.0.dsse.json"


class Origin:
    """A repository somebody else controls, down to the bytes of its objects."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.git("init", "--quiet", "--initial-branch=main", "--template=")

    def git(self, *arguments: str, stdin: bytes = b"") -> str:
        env = {
            "PATH": os.defpath,
            "HOME": "/nonexistent",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a@example.org",
            "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a@example.org",
        }
        done = subprocess.run(["git", *arguments], cwd=self.path, env=env, input=stdin, capture_output=True, check=True)
        return done.stdout.decode().strip()

    def write(self, **files: str) -> str:
        for name, content in files.items():
            file = self.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        return self.commit()

    def put(self, name: str, content: str = "{}") -> str:
        return self.write(**{name: content})

    def commit(self) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message=change")
        return self.git("rev-parse", "HEAD")

    @property
    def objects(self) -> RawObjects:
        return RawObjects(self.path / ".git")

    def raw(self, kind: str, content: bytes) -> str:
        return self.objects.put(kind, content)

    def tree(self, *entries: tuple[str, bytes, str]) -> str:
        return self.objects.tree(*entries)

    def point(self, tree: str) -> str:
        """Make main a commit of this tree, on top of what it is."""
        heads = self.git("for-each-ref", "--format=%(objectname)", "refs/heads/main")
        return self.objects.point(tree, [heads] if heads else [])


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    return Origin(tmp_path / "origin")


@pytest.fixture
def mirror(origin: Origin, tmp_path: Path) -> Mirror:
    return Mirror(str(origin.path), "main", tmp_path / "state")


def refusal(mirror: Mirror, **arguments: object) -> KneoError:
    with pytest.raises(KneoError) as refused:
        mirror.fetch(**arguments)  # type: ignore[arg-type]
    return refused.value


def test_a_snapshot_is_the_files_that_matter(origin: Origin, mirror: Mirror) -> None:
    commit = origin.write(**{BUNDLE: "{1}", "environments/dev.yaml": "dev", "README.md": "x", "specs/a.yaml": "y"})
    snapshot = mirror.fetch()
    assert snapshot.commit == commit == mirror.poll()
    assert snapshot.revision == f"main@sha1:{commit}"
    assert list(snapshot.files) == [BUNDLE, "environments/dev.yaml"]
    assert snapshot.read(["environments/dev.yaml", BUNDLE]) == {BUNDLE: b"{1}", "environments/dev.yaml": b"dev"}
    with pytest.raises(NotFound):
        snapshot.read(["README.md"])


def test_a_repository_without_our_files_is_an_empty_snapshot(origin: Origin, mirror: Mirror) -> None:
    origin.put("README.md")
    snapshot = mirror.fetch()
    assert snapshot.files == {}
    assert snapshot.read([]) == {}


def test_nothing_is_accepted_until_it_is(origin: Origin, mirror: Mirror) -> None:
    origin.put(BUNDLE)
    assert mirror.accepted() is None
    first = mirror.fetch()
    assert mirror.accepted() is None
    mirror.accept(first)
    assert mirror.accepted() == first
    origin.put("bundles/research/1.1.0.dsse.json")
    second = mirror.fetch()
    assert mirror.accepted() == first
    mirror.accept(second)
    assert mirror.accepted() == second
    kept = mirror.path / "refs/kneo/keep"
    assert {file.name for file in kept.iterdir()} == {first.commit, second.commit}


def test_a_snapshot_stays_what_it_was(origin: Origin, mirror: Mirror) -> None:
    origin.put(BUNDLE, "{1}")
    first = mirror.fetch()
    origin.put(BUNDLE, "{2}")
    mirror.fetch()
    assert first.read([BUNDLE]) == {BUNDLE: b"{1}"}


# -- history -------------------------------------------------------------------------------------------------------


def accepted_then_rewritten(origin: Origin, mirror: Mirror) -> tuple[SourceSnapshot, str]:
    origin.put("environments/dev.yaml", "first")
    origin.put(BUNDLE, "{1}")
    snapshot = mirror.fetch()
    mirror.accept(snapshot)
    origin.git("reset", "--quiet", "--hard", "HEAD~1")
    return snapshot, origin.put(BUNDLE, "{evil}")


def test_a_forced_push_is_refused_and_what_was_accepted_stays(origin: Origin, mirror: Mirror) -> None:
    before, _ = accepted_then_rewritten(origin, mirror)
    refused = refusal(mirror)
    assert isinstance(refused, Invalid)
    assert refused.code == "HistoryRewritten"
    origin.git("reflog", "expire", "--expire=now", "--all")
    origin.git("gc", "--quiet", "--prune=now")
    assert mirror.accepted() == before
    assert before.read([BUNDLE]) == {BUNDLE: b"{1}"}


def test_going_back_to_an_earlier_commit_is_a_rewriting(origin: Origin, mirror: Mirror) -> None:
    origin.put(BUNDLE, "{1}")
    origin.put(BUNDLE, "{2}")
    mirror.accept(mirror.fetch())
    origin.git("reset", "--quiet", "--hard", "HEAD~1")
    assert refusal(mirror).code == "HistoryRewritten"


def test_a_rewriting_that_was_agreed_to_passes_once(origin: Origin, mirror: Mirror) -> None:
    before, commit = accepted_then_rewritten(origin, mirror)
    agreed = AllowedRewrite(before.commit, commit)
    assert refusal(mirror, rewrite=AllowedRewrite(before.commit, "0" * 40)).code == "HistoryRewritten"
    after = mirror.fetch(rewrite=agreed)
    with pytest.raises(Invalid):
        mirror.accept(after)
    mirror.accept(after, rewrite=agreed)
    assert mirror.accepted() == after
    assert before.read([BUNDLE]) == {BUNDLE: b"{1}"}


def test_a_lost_mirror_does_not_lose_history(origin: Origin, mirror: Mirror, tmp_path: Path) -> None:
    before, _ = accepted_then_rewritten(origin, mirror)
    again = Mirror(str(origin.path), "main", tmp_path / "other-state")
    assert refusal(again, base=before.commit).code == "HistoryRewritten"
    assert refusal(again, base="not a commit").code == "HistoryRewritten"
    assert again.fetch(base=origin.git("rev-parse", "HEAD~1"))


def test_two_who_accept_at_once_do_not_overwrite_each_other(origin: Origin, mirror: Mirror, tmp_path: Path) -> None:
    origin.put(BUNDLE, "{1}")
    mirror.accept(mirror.fetch())
    other = Mirror(str(origin.path), "main", tmp_path / "state")
    origin.put(BUNDLE, "{2}")
    stale = mirror.fetch()
    origin.put(BUNDLE, "{3}")
    other.accept(other.fetch())
    with pytest.raises((Invalid, Conflict)):
        mirror.accept(stale)


def test_the_branch_that_is_not_there_may_come_later(origin: Origin, mirror: Mirror) -> None:
    with pytest.raises(Transient) as refused:
        mirror.poll()
    assert refused.value.code == "FetchFailed"
    assert refusal(mirror).code == "FetchFailed"


# -- other refs ----------------------------------------------------------------------------------------------------


def test_peeking_accepts_nothing(origin: Origin, mirror: Mirror) -> None:
    main = origin.put(BUNDLE, "{1}")
    mirror.accept(mirror.fetch())
    origin.git("checkout", "--quiet", "--orphan", "proposal")
    proposal = origin.put(BUNDLE, "{2}")
    origin.git("update-ref", "refs/pull/7/head", proposal)
    for ref in ("proposal", "refs/pull/7/head", proposal):
        peeked = mirror.peek(ref)
        assert peeked.commit == proposal
        assert peeked.read([BUNDLE]) == {BUNDLE: b"{2}"}
    assert peeked.revision == f"sha1:{proposal}"
    assert mirror.poll() == main
    assert mirror.accepted() is not None
    assert mirror.accepted().commit == main  # type: ignore[union-attr]


@pytest.mark.parametrize("ref", ["unknown", "refs/tags/unknown", "0123456789" * 4])
def test_a_ref_that_the_host_does_not_have_is_not_found(origin: Origin, mirror: Mirror, ref: str) -> None:
    origin.put(BUNDLE)
    with pytest.raises(NotFound, match=ref) as refused:
        mirror.peek(ref)
    assert refused.value.code == "ref_not_found"
    assert mirror.fetch()


def test_an_annotated_tag_names_its_commit(origin: Origin, mirror: Mirror) -> None:
    commit = origin.put(BUNDLE)
    origin.git("tag", "--annotate", "--message=x", "v1")
    assert mirror.peek("refs/tags/v1").commit == commit


@pytest.mark.parametrize("kind", ["tree", "blob"])
def test_a_branch_that_names_no_commit_is_refused(origin: Origin, mirror: Mirror, kind: str) -> None:
    origin.put(BUNDLE)
    name = origin.git("rev-parse", "HEAD^{tree}" if kind == "tree" else f"HEAD:{BUNDLE}")
    (origin.path / ".git/refs/pull").mkdir()
    (origin.path / ".git/refs/pull/x").write_text(name + "\n")
    with pytest.raises(KneoError):
        mirror.peek("refs/pull/x")
    assert mirror.fetch()


# -- hostile trees -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"..", b".", b".git", b"a/../../x", b"", b".GIT", b"git~1"])
def test_names_that_leave_the_tree_are_refused(origin: Origin, mirror: Mirror, name: bytes) -> None:
    blob = origin.raw("blob", b"evil")
    bundles = origin.tree(("100644", name, blob))
    origin.point(origin.tree(("40000", b"bundles", bundles)))
    refused = refusal(mirror)
    # A tree with an empty name cannot even be sent by the git on the other side.
    assert refused.code == ("UnsafeTree" if name else "FetchFailed"), refused
    assert mirror.accepted() is None


def test_a_name_listed_twice_is_refused(origin: Origin, mirror: Mirror) -> None:
    one, two = origin.raw("blob", b"good"), origin.raw("blob", b"evil")
    origin.point(origin.tree(("40000", b"bundles", origin.tree(("100644", b"a", one), ("100644", b"a", two)))))
    assert refusal(mirror).code == "UnsafeTree"


def test_a_malformed_object_is_refused_wherever_it_stands(origin: Origin, mirror: Mirror) -> None:
    docs = origin.tree(("40000", b"..", origin.tree(("100644", b"x", origin.raw("blob", b"evil")))))
    origin.point(origin.tree(("40000", b"docs", docs)))
    assert refusal(mirror).code == "UnsafeTree"


@pytest.mark.parametrize("mode", ["120000", "160000", "100755", "100666", "100664"])
def test_only_plain_files_are_read(origin: Origin, mirror: Mirror, mode: str) -> None:
    blob = origin.raw("blob", b"../../../etc/passwd")
    if mode == "160000":
        blob = "1" * 40
    origin.point(origin.tree(("40000", b"bundles", origin.tree((mode, b"link", blob)))))
    refused = refusal(mirror)
    assert refused.code == "UnsafeTree", refused
    assert mirror.accepted() is None


@pytest.mark.parametrize("mode", ["120000", "160000"])
def test_a_folder_of_ours_that_is_a_link_or_a_submodule_is_refused(origin: Origin, mirror: Mirror, mode: str) -> None:
    target = origin.raw("blob", b"/etc") if mode == "120000" else "1" * 40
    origin.point(origin.tree((mode, b"environments", target)))
    assert refusal(mirror).code == "UnsafeTree"


def test_links_elsewhere_are_nobodys_business(origin: Origin, mirror: Mirror) -> None:
    target = origin.raw("blob", b"/etc/passwd")
    origin.point(origin.tree(("120000", b"docs", target), ("160000", b"vendor", "1" * 40)))
    assert mirror.fetch().files == {}


@pytest.mark.parametrize(
    "name", ["ä.json", "a b.json", "a\nb", "-rf", "a\\b", "a;b", "\u202egpj", "a" * 250, "con\x7f", "%2e%2e"]
)
def test_odd_names_are_refused(origin: Origin, mirror: Mirror, name: str) -> None:
    blob = origin.raw("blob", b"{}")
    origin.point(origin.tree(("40000", b"bundles", origin.tree(("100644", name.encode(), blob)))))
    refused = refusal(mirror)
    assert refused.code == "UnsafeTree", refused
    assert str(refused).isprintable()


def test_names_that_differ_in_case_only_are_refused(origin: Origin, mirror: Mirror) -> None:
    blob = origin.raw("blob", b"{}")
    folder = origin.tree(("100644", b"1.json", blob))
    other = origin.tree(("100644", b"2.json", blob))
    origin.point(
        origin.tree(("40000", b"bundles", origin.tree(("40000", b"Agent", folder), ("40000", b"agent", other))))
    )
    assert refusal(mirror).code == "UnsafeTree"


def test_a_deep_tree_is_refused(origin: Origin, mirror: Mirror) -> None:
    tree = origin.tree(("100644", b"x", origin.raw("blob", b"{}")))
    for _ in range(20):
        tree = origin.tree(("40000", b"d", tree))
    origin.point(origin.tree(("40000", b"bundles", tree)))
    assert refusal(mirror).code == "UnsafeTree"


# -- too much ------------------------------------------------------------------------------------------------------


def test_a_large_file_of_ours_is_refused_and_named(origin: Origin, mirror: Mirror) -> None:
    origin.put(BUNDLE, "x" * 3_145_728)
    assert mirror.fetch()
    origin.put(BUNDLE, "x" * 3_145_730)
    refused = refusal(mirror)
    assert refused.code == "LimitExceeded"
    assert BUNDLE in str(refused)


def test_a_bomb_elsewhere_is_not_even_fetched(origin: Origin, mirror: Mirror) -> None:
    (origin.path / "bomb").write_bytes(b"\0" * 50_000_000)
    (origin.path / "noise").write_bytes(os.urandom(4_000_000))
    origin.put(BUNDLE)
    assert list(mirror.fetch().files) == [BUNDLE]
    assert sum(file.stat().st_size for file in mirror.path.rglob("*") if file.is_file()) < 100_000


def test_git_cannot_write_more_than_the_limit(origin: Origin, tmp_path: Path) -> None:
    for i in range(40):
        (origin.path / f"noise{i}").write_bytes(os.urandom(100_000))
    origin.put(BUNDLE)
    mirror = Mirror(str(origin.path), "main", tmp_path / "state", limits=SourceLimits(pack_bytes=1_000_000))
    assert refusal(mirror).code == "LimitExceeded"
    assert not list(mirror.path.glob("objects/pack/tmp_*"))
    assert mirror.accepted() is None


def test_too_many_files_are_refused(origin: Origin, tmp_path: Path) -> None:
    origin.write(**{f"bundles/a/{i}.json": "{}" for i in range(6)})
    mirror = Mirror(str(origin.path), "main", tmp_path / "state", limits=SourceLimits(files=5))
    assert refusal(mirror).code == "LimitExceeded"


def test_too_much_at_once_is_refused(origin: Origin, tmp_path: Path) -> None:
    origin.put(BUNDLE, "x" * 100)
    mirror = Mirror(str(origin.path), "main", tmp_path / "state", limits=SourceLimits(read_bytes=50))
    with pytest.raises(Invalid) as refused:
        mirror.fetch().read([BUNDLE])
    assert refused.value.code == "LimitExceeded"


# -- what must not run ---------------------------------------------------------------------------------------------


def test_nothing_the_repository_or_the_surroundings_bring_is_run(
    origin: Origin, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    config = tmp_path / "config"
    config.write_text(
        f"[core]\n\thooksPath = {tmp_path}\n\tfsmonitor = {program}\n\tsshCommand = {program}\n"
        f"[uploadpack]\n\tpackObjectsHook = {program}\n[credential]\n\thelper = {program}\n"
        f'[filter "x"]\n\tsmudge = {program}\n[protocol]\n\tallow = always\n'
    )
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG"):
        monkeypatch.setenv(name, str(config))
    for name in ("GIT_SSH_COMMAND", "GIT_PROXY_COMMAND", "GIT_EXTERNAL_DIFF", "GIT_ASKPASS", "GIT_EXEC_PATH"):
        monkeypatch.setenv(name, str(program))
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".gitconfig").write_text(config.read_text())
    for hook in ("post-checkout", "reference-transaction", "post-merge", "pre-auto-gc"):
        (origin.path / ".git/hooks").mkdir(exist_ok=True)
        (origin.path / ".git/hooks" / hook).write_bytes(program.read_bytes())
        (origin.path / ".git/hooks" / hook).chmod(0o755)
        (tmp_path / hook).write_bytes(program.read_bytes())
        (tmp_path / hook).chmod(0o755)
    monkeypatch.undo()
    origin.write(**{BUNDLE: "{}", ".gitattributes": "* filter=x\n", ".gitmodules": ""})
    ran.unlink(missing_ok=True)
    for name in ("GIT_CONFIG_GLOBAL", "GIT_SSH_COMMAND", "GIT_ASKPASS", "GIT_EXEC_PATH"):
        monkeypatch.setenv(name, str(config if name == "GIT_CONFIG_GLOBAL" else program))
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    snapshot = mirror.fetch()
    mirror.accept(snapshot)
    assert snapshot.read([BUNDLE]) == {BUNDLE: b"{}"}
    assert not ran.exists()


def test_reading_never_makes_git_go_out_and_fetch(origin: Origin, mirror: Mirror) -> None:
    origin.write(**{BUNDLE: "{}", "large": "x" * 4_000_000})
    mirror.accept(mirror.fetch())
    left_out = origin.git("rev-parse", "HEAD:large")
    mirror._git.local("config", "remote.source.url", str(origin.path))
    origin.git("config", "uploadpack.allowAnySHA1InWant", "true")
    origin.git("config", "uploadpack.allowFilter", "true")
    with pytest.raises(KneoError):
        mirror.read_blobs([Blob(left_out, 4_000_000)])


def test_replaced_objects_are_not_believed(origin: Origin, mirror: Mirror) -> None:
    origin.put(BUNDLE, "{good}")
    mirror.accept(mirror.fetch())
    good = origin.git("rev-parse", f"HEAD:{BUNDLE}")
    evil = mirror._git.local("hash-object", "-w", "--stdin", stdin=b"{evil}").stdout.decode().strip()
    mirror._git.local("update-ref", f"refs/replace/{good}", evil)
    assert mirror.accepted().read([BUNDLE]) == {BUNDLE: b"{good}"}  # type: ignore[union-attr]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_folder_of_another_user_is_read_because_the_operator_named_it(origin: Origin, mirror: Mirror) -> None:
    commit = origin.put(BUNDLE)
    for file in [origin.path, *origin.path.rglob("*")]:
        os.chown(file, 65534, 65534)
    assert mirror.poll() == commit
    assert mirror.fetch().commit == commit


def test_a_mirror_is_tidied_without_losing_anything(
    origin: Origin, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not mirror.maintain()
    before, _ = accepted_then_rewritten(origin, mirror)
    monkeypatch.setattr("kneo.controller.source.mirror.PACKS", 1)
    assert mirror.maintain()
    assert mirror.accepted() == before
    assert before.read([BUNDLE]) == {BUNDLE: b"{1}"}


@pytest.mark.parametrize("bare", [False, True])
def test_a_shallow_clone_is_refused_before_git_fetches_from_it(origin: Origin, tmp_path: Path, bare: bool) -> None:
    origin.put(BUNDLE, "{1}")
    origin.put(BUNDLE, "{2}")
    clone = tmp_path / "shallow"
    origin.git("clone", "--quiet", "--depth=1", *["--bare"][:bare], f"file://{origin.path}", str(clone))
    mirror = Mirror(str(clone), "main", tmp_path / "state", limits=SourceLimits(fetch_seconds=5))
    error = refusal(mirror)
    assert (error.code, error.exit_code) == ("shallow_repository", 1)
    assert "git fetch --unshallow" in (error.hint or "")
    origin.git("-C", str(clone), "fetch", "--quiet", "--unshallow")
    assert mirror.fetch().read([BUNDLE]) == {BUNDLE: b"{2}"}
