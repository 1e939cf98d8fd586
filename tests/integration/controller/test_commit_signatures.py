"""Commits that have to be signed: with git's own signatures, over everything that came, by our clock."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from controller_bench import Bench
from cryptography.hazmat.primitives import serialization

from kneo.cli.main import run
from kneo.controller.preview import preview
from kneo.controller.source.snapshot import parse_commit
from kneo.controller.stages.verify import TrustConfig
from kneo.errors import Invalid
from kneo.store import requests
from kneo.store.engine import Store
from kneo.trust.keys import PrivateKey

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="git signs with ssh-keygen")


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    """A repository whose trust root gives carol the role that signs commits."""
    bench = Bench(store, tmp_path)
    bench.reconcile()
    bench.repo.person("carol", "commit")
    bench.repo.commit("Let commits be signed from now on")
    bench.reconcile()
    return bench


def sign_with(bench: Bench, key: PrivateKey | None) -> None:
    """Sign commits from now on, or no longer."""
    if key is None:
        bench.repo.git("config", "commit.gpgsign", "false")
        return
    file = bench.folder / f"{key.keyid[-8:]}.key"
    form = serialization.PrivateFormat.OpenSSH
    loaded = serialization.load_pem_private_key(key.dump(), None)
    file.write_bytes(loaded.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    file.chmod(0o600)
    for name, value in {"gpg.format": "ssh", "user.signingkey": str(file), "commit.gpgsign": "true"}.items():
        bench.repo.git("config", name, value)


def refusal(bench: Bench) -> str:
    with pytest.raises(Invalid) as refused:
        bench.reconcile()
    return refused.value.code


def test_signed_commits_are_followed(bench: Bench) -> None:
    sign_with(bench, bench.repo.people["carol"])
    bench.repo.release("prod", "mail", "1.0.0")
    assert bench.reconcile().outcomes["prod"].state == "Ready"
    assert bench.served() == {"mail": "1.0.0"}


def test_an_unsigned_commit_is_not_and_says_which(bench: Bench) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    assert refusal(bench) == "SignatureInvalid"
    assert bench.served() == {}
    with bench.store.read() as tx:
        found = requests.source(tx)
    assert found is not None
    assert (found.refused_commit, found.refused_code) == (bench.repo.head(), "SignatureInvalid")


def test_a_signed_tip_does_not_carry_an_unsigned_commit_in(bench: Bench) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    sign_with(bench, bench.repo.people["carol"])
    bench.repo.commit("Signed, on top of one that is not")
    assert refusal(bench) == "SignatureInvalid"


def test_a_signed_merge_vouches_for_what_it_merges(bench: Bench) -> None:
    bench.repo.git("checkout", "-q", "-b", "work")
    bench.repo.release("prod", "mail", "1.0.0")
    bench.repo.git("checkout", "-q", "main")
    sign_with(bench, bench.repo.people["carol"])
    bench.repo.git("merge", "-q", "--no-ff", "-m", "Merge", "work")
    assert bench.reconcile().outcomes["prod"].state == "Ready"


def test_somebody_elses_key_does_not_count_and_a_revoked_one_no_longer(bench: Bench) -> None:
    sign_with(bench, bench.repo.key)
    bench.repo.release("prod", "mail", "1.0.0")
    assert refusal(bench) == "SignatureInvalid"
    bench.repo.git("reset", "-q", "--hard", "HEAD~1")
    sign_with(bench, bench.repo.people["carol"])
    bench.repo.revoke("carol")
    bench.repo.commit("Carol lost her key")
    bench.reconcile()
    bench.repo.commit("By whoever found it, dated long ago")
    assert refusal(bench) == "KeyRevoked"


def test_the_commit_that_ends_it_has_to_be_signed_and_those_after_it_not(bench: Bench) -> None:
    bench.repo.drop("carol")
    bench.repo.commit("No more signatures")
    assert refusal(bench) == "SignatureInvalid"
    sign_with(bench, bench.repo.people["carol"])
    bench.repo.git("commit", "-q", "--amend", "--no-edit")
    assert bench.reconcile().outcomes["prod"].state == "Ready"
    sign_with(bench, None)
    bench.repo.release("prod", "mail", "1.0.0")
    assert bench.reconcile().outcomes["prod"].state == "Ready"


def test_a_plan_says_what_the_controller_would_say_of_the_commits(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    asked = bench.reconciler()
    plan = ["plan", "--repo", str(bench.repo.folder), "--trust-root", bench.repo.pin, "--base", "HEAD~1"]

    def said() -> list[object]:
        """Of a plan without a service, and of the controller's own."""
        status = run([*plan, "--json"])
        mine = json.loads(capsys.readouterr().out)
        with bench.store.read() as tx:
            theirs = preview(tx, asked.mirror.fetch(), asked.mirror, TrustConfig(bench.repo.pin), None)
        assert [item["name"] for item in mine["environments"]] == ["dev", "prod"]
        assert status == (0 if mine["commits"] is None or mine["commits"]["ok"] else 1)
        return [mine["commits"], theirs["commits"]]

    with pytest.raises(Invalid) as refused:
        bench.reconcile()
    assert said() == [{"ok": False, "reason": "SignatureInvalid", "message": str(refused.value)}] * 2
    assert run([*plan, "--markdown"]) == 1
    assert "**Would not be followed:** SignatureInvalid" in capsys.readouterr().out
    sign_with(bench, bench.repo.people["carol"])
    bench.repo.git("commit", "-q", "--amend", "--no-edit")
    assert said() == [{"ok": True, "reason": "Verified", "message": ""}] * 2
    bench.reconcile()
    bench.repo.drop("carol")
    bench.repo.commit("No more signatures")
    bench.reconcile()
    bench.repo.release("prod", "fax", "1.0.0")
    assert said() == [None, None]


def test_what_git_signed_is_what_we_check(bench: Bench) -> None:
    sign_with(bench, bench.repo.people["carol"])
    head = bench.repo.commit("Several\n\nlines\n\n and one that is indented")
    raw = (bench.repo.git("cat-file", "commit", head) + "\n").encode()
    commit = parse_commit(head, raw)
    assert commit.signature is not None
    assert commit.signature.startswith(b"-----BEGIN SSH SIGNATURE-----\n")
    assert b"gpgsig" not in commit.signed
    twice = raw.replace(b"gpgsig ", b"gpgsig-sha256 x\ngpgsig ", 1)
    with pytest.raises(Invalid):
        parse_commit(head, twice)
