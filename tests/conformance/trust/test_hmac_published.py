"""HMAC bundles of the published tool, both ways: what it made is read, and ours are what it makes.

The files in ``recorded/`` were made by kneo-serv 1.2.0 from ``announcement.yaml``, with and without ``--env prod``:

    KNEO_SERV_SPEC_SIGNING_KEY='a shared secret ü' kneo spec bundle sign announcement.yaml --approved-by ann --output …
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
from conformance.clients.published import Missing, environment

from cli.main import run
from kneo.spec.load import load_tree
from kneo.trust.hmac_bundle import check_hmac_bundle, sign_hmac_bundle

HERE = Path(__file__).parent
KEY = "a shared secret ü"
KEY_ID = "KNEO_SERV_SPEC_SIGNING_KEY"
RECORDED = sorted((HERE / "recorded").glob("*.json"))


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_what_it_made_is_read(file: Path) -> None:
    report = check_hmac_bundle(file.read_bytes(), KEY)
    assert (report.valid, report.errors) == (True, ())
    assert not check_hmac_bundle(file.read_bytes(), "a shared secret u").valid
    changed = file.read_bytes().replace(b"Publish", b"Polish!")
    assert not check_hmac_bundle(changed, KEY).valid


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_from_the_same_spec_at_the_same_time_ours_are_the_same_bytes(file: Path) -> None:
    made = json.loads(file.read_bytes())
    metadata = made["metadata"]
    ours = sign_hmac_bundle(
        made["spec"],
        approved_by=metadata["approved_by"],
        environment=metadata["environment"],
        created_at=datetime.fromisoformat(metadata["created_at"]),
        key=KEY,
        key_id=KEY_ID,
    )
    assert ours.rstrip() == file.read_bytes().rstrip()


def test_our_command_reads_what_its_command_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(RECORDED[0], tmp_path / "bundle.json")
    monkeypatch.chdir(tmp_path)
    for key, status in ((KEY, 0), ("another", 1)):
        monkeypatch.setenv(KEY_ID, key)
        assert run(["spec", "bundle", "verify", "bundle.json"]) == status


def test_our_command_makes_what_its_command_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours writes the spec in its normal form, so what both mean is compared, and everything around it exactly."""
    ours = _sign(tmp_path, monkeypatch)
    theirs = json.loads((HERE / "recorded/kneo-serv-1.2.0-prod.json").read_bytes())
    assert load_tree(ours.pop("spec")).tree == load_tree(theirs.pop("spec")).tree
    for bundle in (ours, theirs):
        del bundle["signature"]["value"], bundle["metadata"]["created_at"], bundle["digest"]["value"]
    assert ours == theirs


def test_it_reads_what_we_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--other-tools", default=False):
        pytest.skip("fetches packages: make interop")
    try:
        python = environment(("kneo-serv==1.2.0", "fastapi==0.136.3"))
    except Missing as error:
        pytest.skip(str(error))
    _sign(tmp_path, monkeypatch)
    command = [str(python.with_name("kneo")), "spec", "bundle", "verify", "bundle.json", "--json"]
    for key, valid in ((KEY, True), ("another", False)):
        env = {"PATH": os.defpath, "HOME": str(tmp_path), KEY_ID: key}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert json.loads(done.stdout)["valid"] is valid


def _sign(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, object]]:
    shutil.copy(HERE / "announcement.yaml", folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv(KEY_ID, KEY)
    words = ["announcement.yaml", "--output", "bundle.json", "--approved-by", "ann", "--env", "prod"]
    assert run(["spec", "bundle", "sign", *words]) == 0
    return json.loads((folder / "bundle.json").read_bytes())
