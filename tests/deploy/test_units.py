"""The systemd units: systemd reads them without a complaint, and their processes have few rights."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from deploy_files import program, units

INSTANCES = {
    "kneo-flows@.service": "kneo-flows@myapp.flows.service",
    "kneo-service@.service": "kneo-service@8001.service",
    "kneo-worker@.service": "kneo-worker@9101.service",
}
SERVICES = [unit for unit in units() if unit.suffix == ".service"]
STAYING = [unit for unit in SERVICES if "Type=exec" in unit.read_text()]


def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    for unit in units():
        # systemd checks that the program exists.
        text = unit.read_text().replace("/opt/kneo/bin/kneo", sys.executable)
        (tmp_path / unit.name).write_text(text)
    names = [tmp_path / INSTANCES.get(unit.name, unit.name) for unit in units()]
    analyze = program("systemd-analyze")
    done = subprocess.run([analyze, "verify", "--man=no", *names], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)
def test_a_process_has_few_rights_and_its_secrets_from_credentials(unit: Path) -> None:
    lines = unit.read_text().splitlines()
    for wanted in (
        "DynamicUser=yes",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "PrivateTmp=yes",
        "CapabilityBoundingSet=",
        "StateDirectory=kneo",
        "LoadCredential=database-url:/etc/kneo/database-url",
        "Environment=KNEO_SERV_DATABASE_URL_FILE=%d/database-url",
    ):
        assert wanted in lines
    loaded = set(re.findall(r"^LoadCredential=([\w-]+):", unit.read_text(), re.MULTILINE))
    assert set(re.findall(r"^Environment=\w+_FILE=%d/([\w-]+)$", unit.read_text(), re.MULTILINE)) == loaded


@pytest.mark.parametrize("unit", STAYING, ids=lambda unit: unit.name)
def test_a_process_that_stays_is_restarted_and_may_drain(unit: Path) -> None:
    text = unit.read_text()
    for wanted in ("Restart=always", "KillMode=mixed", "WantedBy=multi-user.target", "KNEO_SERV_MIGRATE=never"):
        assert wanted in text
    assert int(re.search(r"TimeoutStopSec=(\d+)", text)[1]) >= 30
    assert "Requires=kneo-migrate.service" in text


def test_four_kinds_of_processes_stay() -> None:
    assert [unit.name for unit in STAYING] == ["kneo-controller.service", *INSTANCES]
