"""Hostile functions at level kernel: none reaches anything, with the rights of root and of a user without capabilities."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import rfc8785
import sandbox_attacks
import sandbox_driver

from kneo.sandbox.levels import host_level

REPOSITORY = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(not host_level().gives("kernel"), reason=host_level().facts)


def attack(folder: Path, *prefix: str, python: str = sys.executable, outer: str = "none") -> dict[str, object]:
    packages = folder / "packages"
    shutil.copytree(Path(rfc8785.__file__).parent, packages / "rfc8785")
    secrets = folder / "secrets"
    secrets.mkdir()
    if prefix:
        os.chown(secrets, 10001, 10001)
    found = subprocess.run(
        [*prefix, python, sandbox_driver.__file__, str(secrets), outer],
        env={"PYTHONPATH": f"{REPOSITORY}:{packages}:{Path(sandbox_attacks.__file__).parent}"},
        capture_output=True,
        text=True,
        check=False,
        cwd=secrets,
    )
    assert found.returncode == 0, found.stderr
    answer: dict[str, object] = json.loads(found.stdout)
    return answer


def check(results: dict[str, object]) -> None:
    for each in ("call without net", "call with net", "import without net", "import with net"):
        assert results[each] == {"reached": [], "failed": []}, each
    assert "took its process down" in str(results["old"])
    assert results["unchanged"]
    assert results["left"] == []


def test_nothing_is_reached_as_the_user_of_the_tests(tmp_path: Path) -> None:
    check(attack(tmp_path))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_nothing_is_reached_by_a_user_without_capabilities_in_a_container(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    python = "/usr/bin/python3"  # which every user can read
    if not Path(python).exists() or "OK" not in subprocess.run(
        [python, "-c", "import sys; print('OK' if sys.version_info >= (3, 11) else '')"], capture_output=True, text=True, check=False
    ).stdout:  # fmt: skip
        pytest.skip("needs a Python 3.11 that every user can read")
    folder = Path("/var/tmp") / tmp_path_factory.mktemp("x").parent.name / os.urandom(4).hex()  # every user reaches it
    folder.mkdir(parents=True)
    try:
        check(attack(folder, *sandbox_driver.AS_USER, python=python, outer="docker"))
    finally:
        shutil.rmtree(folder.parent)
