"""HMAC bundles of the published tool, both ways: what it made is read, and ours are what it makes.

The files in ``recorded/`` were made by kneo-serv 1.2.0 from those of the same names in ``specs/``; one of them without ``--env``:

    KNEO_SERV_SPEC_SIGNING_KEY='a shared secret ü' kneo spec bundle sign SPEC --approved-by ann --env prod --output …
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

from kneo.cli.main import run
from kneo.clock import ManualClock
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
    changed = file.read_bytes().replace(b'kind": "agent', b'kind": "human')
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


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_our_command_makes_the_bytes_that_its_command_makes(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = json.loads(file.read_bytes())["metadata"]
    then = ManualClock(datetime.fromisoformat(metadata["created_at"]))
    monkeypatch.setattr("kneo.cli.specs.bundle_hmac.SystemClock", lambda: then)
    (spec,) = (HERE / "specs").glob(f"{file.stem.partition('-')[0]}.*")
    assert _sign(spec, tmp_path, monkeypatch, metadata["environment"]) == file.read_bytes()


def test_what_an_overlay_adds_is_signed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published tool would sign a spec that is not the one that runs."""
    (tmp_path / ".kneo").mkdir()
    (tmp_path / ".kneo/config.yaml").write_text("project: {name: p}\nspecs: {overlays: {prod: [prod.yaml]}}")
    (tmp_path / "prod.yaml").write_text("agent: {description: in prod}")
    spec = HERE / "specs/minimal.yaml"
    signed = json.loads(_sign(spec, tmp_path, monkeypatch, "prod"))["spec"]
    assert signed["agent"]["description"] == "in prod"
    (tmp_path / "prod.yaml").write_text("{}")
    assert "description" not in json.loads(_sign(spec, tmp_path, monkeypatch, "prod"))["spec"]["agent"]


def test_it_reads_what_we_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--other-tools", default=False):
        pytest.skip("fetches packages: make interop")
    try:
        python = environment(("kneo-serv==1.2.0", "fastapi==0.136.3"))
    except Missing as error:
        pytest.skip(str(error))
    _sign(HERE / "specs/announcement.yaml", tmp_path, monkeypatch, "prod")
    command = [str(python.with_name("kneo")), "spec", "bundle", "verify", "bundle.json", "--json"]
    for key, valid in ((KEY, True), ("another", False)):
        env = {"PATH": os.defpath, "HOME": str(tmp_path), KEY_ID: key}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240, check=False)
        assert json.loads(done.stdout)["valid"] is valid


def _sign(spec: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, environment: str | None) -> bytes:
    shutil.copy(spec, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv(KEY_ID, KEY)
    where = ["--env", environment] if environment else []
    assert run(["spec", "bundle", "sign", spec.name, "--output", "bundle.json", "--approved-by", "ann", *where]) == 0
    return (folder / "bundle.json").read_bytes()
