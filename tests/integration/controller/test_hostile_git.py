"""Repositories that should not be followed: trees no honest git makes, histories that were rewritten, refs that stand still."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from raw_git import RawObjects
from siege import Siege

from kneo.controller.reconcile import Reconciler
from kneo.controller.source.git import SourceLimits
from kneo.controller.source.mirror import Mirror
from kneo.errors import Invalid, Transient
from kneo.records.release import ConditionType, SourceRecord
from kneo.store import requests
from kneo.store.engine import Store
from kneo.store.requests import ControllerRequest

Plan = Callable[[Siege, RawObjects], str]
"""Makes the tree of a commit and returns its id."""

TREES: dict[str, tuple[str, Plan]] = {}


def refused(reason: str) -> Callable[[Plan], Plan]:
    def keep(plan: Plan) -> Plan:
        TREES[plan.__name__] = (reason, plan)
        return plan

    return keep


@pytest.fixture(scope="module")
def siege(shared_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Siege:
    return Siege(shared_store, tmp_path_factory.mktemp("siege"))


@pytest.fixture
def raw(siege: Siege) -> Iterator[RawObjects]:
    """The objects of the repository, which is as it was again afterwards."""
    head = siege.repo.head()
    yield RawObjects(siege.repo.folder / ".git")
    siege.repo.git("update-ref", "refs/heads/main", head)
    siege.repo.git("read-tree", "-u", "--reset", head)
    siege.repo.git("clean", "-fdq")


def _with(siege: Siege, raw: RawObjects, *entries: tuple[str, bytes, str]) -> str:
    """The good tree with these entries among the bundles."""
    environments = siege.repo.git("rev-parse", "main:environments")
    bundles = raw.tree(*entries, ("40000", b"mail", siege.repo.git("rev-parse", "main:bundles/mail")))
    return raw.tree(("40000", b"bundles", bundles), ("40000", b"environments", environments))


def _blob(raw: RawObjects) -> str:
    return raw.put("blob", b"evil")


# ---- names -----------------------------------------------------------------------------------------------------------


@refused("UnsafeTree")
def a_name_that_leads_out(siege: Siege, raw: RawObjects) -> str:
    return _with(siege, raw, ("40000", b"..", raw.tree(("100644", b"passwd", _blob(raw)))))


@refused("UnsafeTree")
def a_name_with_a_path_in_it(siege: Siege, raw: RawObjects) -> str:
    return _with(siege, raw, ("100644", b"a/../../x", _blob(raw)))


@refused("UnsafeTree")
def a_repository_inside(siege: Siege, raw: RawObjects) -> str:
    hook = raw.tree(("100755", b"post-checkout", raw.put("blob", b"#!/bin/sh\ntouch /tmp/owned\n")))
    return _with(siege, raw, ("40000", b".git", raw.tree(("40000", b"hooks", hook))))


@refused("UnsafeTree")
def a_repository_inside_spelled_otherwise(siege: Siege, raw: RawObjects) -> str:
    return _with(siege, raw, ("40000", b".GIT", raw.tree(("100644", b"config", _blob(raw)))))


@refused("UnsafeTree")
def a_name_given_twice(siege: Siege, raw: RawObjects) -> str:
    return _with(siege, raw, ("100644", b"a", raw.put("blob", b"good")), ("100644", b"a", _blob(raw)))


@refused("UnsafeTree")
def two_names_that_some_disks_take_for_one(siege: Siege, raw: RawObjects) -> str:
    return _with(siege, raw, ("40000", b"MAIL", raw.tree(("100644", b"x.dsse.json", _blob(raw)))))


@refused("UnsafeTree")
def a_name_that_reads_backwards(siege: Siege, raw: RawObjects) -> str:
    return _with(siege, raw, ("100644", "\u202egpj.exe".encode(), _blob(raw)))


@refused("UnsafeTree")
def a_name_that_is_an_option(siege: Siege, raw: RawObjects) -> str:
    return _with(siege, raw, ("100644", b"--upload-pack=true", _blob(raw)))


@refused("UnsafeTree")
def something_malformed_in_a_corner_nobody_reads(siege: Siege, raw: RawObjects) -> str:
    good = _with(siege, raw)
    bundles, environments = (siege.repo.git("rev-parse", f"{good}:{name}") for name in ("bundles", "environments"))
    docs = raw.tree(("40000", b"..", raw.tree(("100644", b"x", _blob(raw)))))
    return raw.tree(("40000", b"bundles", bundles), ("40000", b"docs", docs), ("40000", b"environments", environments))


@refused("UnsafeTree")
def a_submodule_that_brings_a_command(siege: Siege, raw: RawObjects) -> str:
    modules = raw.put("blob", b'[submodule "x"]\n\tpath = x\n\turl = -u./evil\n\tupdate = !touch owned\n')
    bundles, environments = (siege.repo.git("rev-parse", f"main:{name}") for name in ("bundles", "environments"))
    folders = (("40000", b"bundles", bundles), ("40000", b"environments", environments))
    return raw.tree(("100644", b".gitmodules", modules), *folders)


# ---- modes -----------------------------------------------------------------------------------------------------------


@refused("UnsafeTree")
def a_link_for_a_bundle(siege: Siege, raw: RawObjects) -> str:
    return _with(siege, raw, ("120000", b"link", raw.put("blob", b"../../../etc/passwd")))


@refused("UnsafeTree")
def a_link_for_a_folder(siege: Siege, raw: RawObjects) -> str:
    target = raw.put("blob", b"/etc")
    return raw.tree(
        ("40000", b"bundles", siege.repo.git("rev-parse", "main:bundles")), ("120000", b"environments", target)
    )


@refused("UnsafeTree")
def a_submodule_for_a_bundle(siege: Siege, raw: RawObjects) -> str:
    return _with(siege, raw, ("160000", b"ext", "1" * 40))


@refused("UnsafeTree")
def a_submodule_for_a_folder(siege: Siege, raw: RawObjects) -> str:
    return raw.tree(
        ("40000", b"bundles", siege.repo.git("rev-parse", "main:bundles")), ("160000", b"environments", "1" * 40)
    )


@refused("UnsafeTree")
def a_program_for_a_bundle(siege: Siege, raw: RawObjects) -> str:
    return _with(siege, raw, ("100755", b"a.dsse.json", _blob(raw)))


@refused("UnsafeTree")
def a_mode_that_git_mends_when_it_shows_it(siege: Siege, raw: RawObjects) -> str:
    return _with(siege, raw, ("100664", b"a.dsse.json", _blob(raw)))


# ---- sizes -----------------------------------------------------------------------------------------------------------


@refused("UnsafeTree")
def folders_in_folders_in_folders(siege: Siege, raw: RawObjects) -> str:
    tree = raw.tree(("100644", b"x", _blob(raw)))
    for _ in range(200):
        tree = raw.tree(("40000", b"d", tree))
    return _with(siege, raw, ("40000", b"d", tree))


@refused("LimitExceeded")
def a_file_of_many_megabytes(siege: Siege, raw: RawObjects) -> str:
    return _with(siege, raw, ("100644", b"huge.dsse.json", raw.put("blob", os.urandom(4_000_000))))


@refused("LimitExceeded")
def a_file_that_is_small_until_it_is_unpacked(siege: Siege, raw: RawObjects) -> str:
    return _with(siege, raw, ("100644", b"bomb.dsse.json", raw.put("blob", b"\0" * 30_000_000)))


@pytest.mark.parametrize("name", TREES)
def test_a_tree_is_refused_for_the_right_reason_and_nothing_changes(siege: Siege, raw: RawObjects, name: str) -> None:
    reason, plan = TREES[name]
    before = siege.served()
    raw.point(plan(siege, raw), [siege.repo.head()])
    with pytest.raises(Invalid) as caught:
        siege.bench.reconcile()
    assert caught.value.code == reason
    for environment in ("dev", "pair", "prod"):
        assert siege.bench.condition(ConditionType.STALLED, environment) == (True, reason)
        assert siege.bench.condition(ConditionType.READY, environment) == (False, reason)
    assert siege.served() == before


def test_a_repository_is_followed_again_when_it_is_mended(siege: Siege, raw: RawObjects) -> None:
    raw.point(a_link_for_a_bundle(siege, raw), [siege.good])
    with pytest.raises(Invalid):
        siege.bench.reconcile()
    siege.repo.git("update-ref", "refs/heads/main", siege.good)
    assert siege.bench.reconcile().outcomes["prod"].state == "Ready"
    assert siege.bench.condition(ConditionType.STALLED) is None


def test_too_many_files_are_refused(siege: Siege, raw: RawObjects) -> None:
    before, blob = siege.served(), _blob(raw)
    raw.point(_with(siege, raw, *(("100644", b"f%03d" % i, blob) for i in range(60))), [siege.repo.head()])
    mirror = Mirror(str(siege.repo.folder), "main", siege.bench.folder / "small", limits=SourceLimits(files=50))
    with pytest.raises(Invalid) as caught:
        Reconciler(siege.bench.store, mirror, siege.repo.pin).reconcile(siege.bench.lease())
    assert caught.value.code == "LimitExceeded"
    assert siege.served() == before


def test_of_many_refs_one_is_taken(siege: Siege, raw: RawObjects) -> None:
    blobs = [raw.put("blob", b"spam %d" % number) for number in range(300)]
    for number, blob in enumerate(blobs):
        raw.point(raw.tree(("120000", b"bundles", blob)), [], f"refs/heads/spam-{number}")
    assert siege.bench.reconcile().outcomes["prod"].state == "Ready"
    git = siege.bench.reconciler().mirror._git
    names = git.local("for-each-ref", "--format=%(refname)").stdout.decode().split()
    assert {name.split("/")[2] for name in names} <= {"accepted", "candidate", "keep", "peeked"}
    assert git.local("cat-file", "-e", blobs[0], accept=(0, 1, 128)).status != 0


HOOKS = ("post-checkout", "reference-transaction", "pre-receive", "post-update")


def test_nothing_that_a_repository_brings_is_run(siege: Siege, tmp_path: Path) -> None:
    ran, before, git_dir = tmp_path / "ran", siege.served(), siege.repo.folder / ".git"
    siege.repo.git("read-tree", "-u", "--reset", siege.good)
    siege.repo.write(".gitattributes", b"* filter=evil diff=evil merge=evil -text\nbundles/** export-subst\n")
    siege.repo.write(".lfsconfig", b"[lfs]\n\turl = http://127.0.0.1:9/\n")
    siege.repo.write(".gitmodules", b'[submodule "x"]\n\tpath = x\n\turl = https://127.0.0.1:9/x\n')
    siege.repo.commit("Bring programs")
    config = git_dir / "config"
    kept = config.read_text()
    evil = f'[filter "evil"]\n\tsmudge = touch {ran}\n[uploadpack]\n\tpackObjectsHook = touch {ran}\n'
    config.write_text(kept + evil)
    (git_dir / "hooks").mkdir(exist_ok=True)
    for name in HOOKS:
        (git_dir / "hooks" / name).write_text(f"#!/bin/sh\ntouch {ran}\n")
        (git_dir / "hooks" / name).chmod(0o755)
    assert siege.bench.reconcile().outcomes["prod"].state == "Ready"
    assert not ran.exists()
    for name in HOOKS:
        (git_dir / "hooks" / name).unlink()
    config.write_text(kept)
    assert siege.served() == before


@pytest.mark.parametrize(
    "ref",
    ["--upload-pack=touch owned", "-c core.sshCommand=x", "ext::sh -c id", "main:../x", "HEAD@{1}", "a b", "a\nb"],
)
def test_a_plan_for_something_that_is_no_ref_is_refused(siege: Siege, ref: str) -> None:
    before, lease = siege.served(), siege.bench.lease()
    asked = {"ref": ref, "environment": "prod"}
    request = ControllerRequest(id="ask_1", kind="plan", payload=asked, actor="eve", status="open", result=None)
    with pytest.raises(Invalid) as caught:
        siege.bench.reconciler().handlers["plan"](request, lease)
    assert caught.value.code == "invalid_ref"
    assert siege.served() == before


# ---- history ---------------------------------------------------------------------------------------------------------


def test_a_ref_that_goes_back_is_history_rewritten(siege: Siege, raw: RawObjects) -> None:
    before = siege.served()
    for place in (f"{siege.good}~1", f"{siege.good}~2"):
        siege.repo.git("update-ref", "refs/heads/main", siege.repo.git("rev-parse", place))
        with pytest.raises(Invalid) as caught:
            siege.bench.reconcile()
        assert caught.value.code == "HistoryRewritten"
        assert siege.bench.condition(ConditionType.STALLED) == (True, "HistoryRewritten")
        assert siege.served() == before


def test_a_ref_of_another_history_is_history_rewritten(siege: Siege, raw: RawObjects) -> None:
    before = siege.served()
    raw.point(siege.repo.git("rev-parse", f"{siege.good}^{{tree}}"), [])
    with pytest.raises(Invalid) as caught:
        siege.bench.reconcile()
    assert caught.value.code == "HistoryRewritten"
    assert siege.served() == before


def test_a_ref_that_is_gone_is_tried_again_and_only_the_failure_is_recorded(siege: Siege, raw: RawObjects) -> None:
    siege.bench.reconcile()
    before, accepted = siege.bench.rows(), _source(siege)
    commit = siege.repo.git("rev-parse", "refs/heads/main")
    siege.repo.git("update-ref", "-d", "refs/heads/main")
    for _ in range(2):
        with pytest.raises(Transient) as caught:
            siege.bench.reconcile()
        assert caught.value.code == "FetchFailed"
    assert siege.bench.rows(but=("leases", "sources")) == {
        name: rows for name, rows in before.items() if name != "sources"
    }
    failed = _source(siege)
    assert (failed.failed_code, failed.failed_message) == ("FetchFailed", str(caught.value))
    assert replace(failed, failed_at=None, failed_code=None, failed_message=None) == accepted
    siege.repo.git("update-ref", "refs/heads/main", commit)
    siege.bench.reconcile()
    assert siege.bench.rows() == before


def _source(siege: Siege) -> SourceRecord:
    with siege.bench.store.read() as tx:
        record = requests.source(tx)
    assert record is not None
    return record


def test_a_host_that_withholds_commits_is_stopped_by_the_roots_expiry(siege: Siege) -> None:
    """A frozen ref cannot be told from a quiet one, but it ends: nothing new is admitted, what runs keeps running."""
    before = siege.served()
    siege.bench.store.clock.advance(timedelta(days=366))
    try:
        made = siege.signed(siege.payload(version="1.9.0"))
        outcomes = siege.attempt(lambda siege: siege.plant(made, at=("mail", "1.9.0"))).outcomes
        assert outcomes["prod"].state == "Expired"
        assert siege.bench.condition(ConditionType.DRIFT_DETECTED) == (False, "InSync")
        assert siege.served() == before
    finally:
        siege.bench.store.clock.advance(-timedelta(days=366))


def test_a_clock_that_was_set_back_lets_nothing_in_and_throws_nothing_out(siege: Siege) -> None:
    before = siege.served()
    made = siege.signed(siege.payload(version="1.9.0"))
    siege.bench.store.clock.advance(-timedelta(hours=1))
    try:
        outcomes = siege.attempt(lambda siege: siege.plant(made, at=("mail", "1.9.0"))).outcomes
        assert outcomes["prod"].state == "NotYetValid"
        assert siege.bench.condition(ConditionType.DRIFT_DETECTED) == (False, "InSync")
        assert siege.served() == before
    finally:
        siege.bench.store.clock.advance(timedelta(hours=1))
