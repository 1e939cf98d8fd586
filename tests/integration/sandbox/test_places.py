"""Hostile code at every place of a spec at level kernel, run by the real engine: none reaches anything, as root and without capabilities."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

import pytest
import sandbox_attacks
import sandbox_places
from sandbox_driver import AS_USER

from kneo.sandbox.levels import host_level

REPOSITORY = Path(__file__).parents[3]
SUPPORT = Path(sandbox_attacks.__file__).parent
PYTHON = "/usr/bin/python3"
"""A Python that every user can read."""

pytestmark = pytest.mark.skipif(not host_level().gives("kernel"), reason=host_level().facts)


@cache
def reports(who: str) -> dict[str, object]:
    """Return what hostile code reached at each place. One process runs all of them, for all tests of this one."""
    is_user = who == "a user without capabilities"
    folder = Path("/var/tmp", f"kneo-places-{os.urandom(6).hex()}")  # every user reaches it
    folder.mkdir(mode=0o700)
    if is_user:
        os.chown(folder, 10001, 10001)
    command = [*(AS_USER if is_user else ()), PYTHON if is_user else sys.executable, sandbox_places.__file__]
    path = [REPOSITORY, SUPPORT, sysconfig.get_path("purelib")]
    try:
        done = subprocess.run(
            [*command, str(folder), "docker" if is_user else "none"],
            env={"PYTHONPATH": ":".join(map(str, path)), "PATH": os.defpath, "HOME": str(folder)},
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
        )
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def same_python() -> bool:
    version = "import sys; print(sys.version_info[:2])"
    done = subprocess.run([PYTHON, "-c", version], capture_output=True, text=True, check=False)
    return done.stdout.strip() == str(sys.version_info[:2])


WHO = [
    "the user of the tests",
    pytest.param(
        "a user without capabilities",
        marks=pytest.mark.skipif(
            os.geteuid() != 0 or not Path(PYTHON).exists() or not same_python(),
            reason=f"needs root, and {PYTHON} in the version of the tests",
        ),
    ),
]


@pytest.mark.xdist_group("sandbox_places")
@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("place", sandbox_places.PLACES)
def test_hostile_code_reaches_nothing(place: str, who: str) -> None:
    assert reports(who)[place] == "REACHED:;FAILED:;"
    assert reports(who)["unchanged"]
    assert reports(who)["left"] == []
