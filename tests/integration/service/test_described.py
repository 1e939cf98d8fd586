"""What the service describes is what it does: a sample of ``make schemathesis``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from service_bench import Bench

sys.path.insert(0, str(Path(__file__).parents[2] / "schemathesis"))

from contract_hunt import hunt


@pytest.mark.parametrize("role", ["operator"])
def test_no_answer_contradicts_the_description(bench: Bench, tmp_path: Path, role: str) -> None:
    bench.paused()
    sample = (
        "--phases",
        "fuzzing",
        "--max-examples",
        "1",
        "--generation-deterministic",
        "--no-shrink",
        "--max-time",
        "5",
    )
    done = hunt(bench, role, *sample, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
