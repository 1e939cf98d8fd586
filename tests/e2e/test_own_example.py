"""This repository is a config repository: its environments are served from a clone, and its bundle runs."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "guards")]

from example_repository import PIN, README, renew  # noqa: E402

from kneo.cli.main import run  # noqa: E402
from kneo.cli.repository import ConfigRepository  # noqa: E402
from kneo.cli.specs.trust_roots import TrustFiles  # noqa: E402
from kneo.clock import SystemClock, parse_time  # noqa: E402
from kneo.trust.dsse import parse_envelope  # noqa: E402

RENEW = "The example of this repository expires. Renew it: make example-renew, then commit."


def git(folder: Path, *words: str) -> None:
    identity = ("-c", "user.name=Ann", "-c", "user.email=ann@example.org")
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "clone"
    folder.mkdir()
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", "HEAD"], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    git(folder, "init", "-q", "-b", "main")
    commit(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    return folder


def commit(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "As released")


def pin() -> str:
    found = PIN.search(README.read_text())
    assert found, "the README shows how to serve the example"
    return found[2]


def served(digest: str, capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """Reconcile once; return the releases of each environment."""
    assert run(["controller", "run", "--once", "--repo", ".", "--ref", "main", "--trust-root", digest]) == 0
    capsys.readouterr()
    assert run(["status", "--json"]) == 0
    environments = json.loads(capsys.readouterr().out)["environments"]
    return {each["name"]: [release["bundle"] for release in each["releases"]] for each in environments}


def test_a_clone_serves_every_environment_and_runs_the_bundle(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert served(pin(), capsys) == {name: ["announcement"] for name in ("dev", "prod", "staging")}
    assert run(["run", "--bundle", "announcement", "--env", "prod", "--input", "We ship", "--json"]) == 0
    paused = json.loads(capsys.readouterr().out)
    assert paused["status"] == "paused"
    request = paused["metadata"]["pending_human_request"]["request_id"]
    assert run(["human", "resume", paused["continuation_id"], "--request-id", request, "--approve", "--json"]) == 0
    assert "We ship" in json.loads(capsys.readouterr().out)["output_text"]


def test_a_renewed_example_is_served_from_an_empty_database(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = renew(clone)
    commit(clone)
    assert set(served(digest, capsys)) == {"dev", "prod", "staging"}


def test_the_example_does_not_expire_within_thirty_days() -> None:
    until = SystemClock().now() + timedelta(days=30)
    newest = TrustFiles(ConfigRepository(ROOT).trust_file).read().newest
    assert newest.digest == pin()
    assert newest.document.expires > until, RENEW
    approvals = [*ROOT.glob("bundles/*/*.approvals/*.json"), *ROOT.glob("environments/*.approvals/*.json")]
    assert len(approvals) == 4
    for file in approvals:
        predicate = json.loads(parse_envelope(file.read_bytes()).payload)["predicate"]
        assert parse_time(predicate["expires"]) > until, RENEW


def test_no_private_key_is_in_the_repository() -> None:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], check=True, capture_output=True, text=True).stdout
    for name in listed.splitlines():
        if name.startswith(("specs/", "bundles/", "environments/")):
            assert b"PRIVATE" not in (ROOT / name).read_bytes()
