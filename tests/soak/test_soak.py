"""A short soak breaks no law: with ``make crash``, because it takes a minute and all of a machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kneo.settings import process_environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]


def test_a_short_soak_breaks_no_law(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--every-write", default=False):
        pytest.skip("make crash")
    command = [sys.executable, "-m", "soak.run", "--seconds", "20", "--json"]
    tests = Path(__file__).parents[1]
    env = {**process_environment("PATH", "HOME"), "PYTHONPATH": f"{tests}:{tests / 'support'}"}
    done = subprocess.run(command, check=False, cwd=tests, env=env, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    result = json.loads(done.stdout)
    assert result["runs"] == result["acknowledged"] > 0
    assert result["decisions"] > 0
    assert result["faults"]
