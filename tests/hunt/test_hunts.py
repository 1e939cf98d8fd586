"""A small sample of each hunt, the same cases every time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hunt.report import Budget
from hunt.run import hunts

from kneo.settings import process_environment

SAMPLES = {"workflows": 300, "people": 2, "histories": 2, "expressions": 40, "grants": 2}
"""Cases of each hunt that every run of the tests goes through; a hunt that is not named here has its own test."""

BY_CHANCE = {"succeeded", "published"}
"""What is counted and depends on who was quicker."""


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_breaks_no_law(name: str) -> None:
    report = hunts()[name](Budget(seed=20261122, cases=SAMPLES[name]))
    assert report.findings == []
    assert report.cases == SAMPLES[name]
    assert all(number for what, number in report.counts.items() if what not in BY_CHANCE)


def test_the_command_lists_its_options() -> None:
    folder = Path(__file__).parents[1]
    command = [sys.executable, "-m", "hunt.run", "--help"]
    env = {**process_environment("PATH", "HOME"), "PYTHONPATH": str(folder / "support")}
    shown = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=True)
    assert "--seconds" in shown.stdout
