"""The processor time of a local run of an agent, from the command to its first question, and of the imports in it."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from examples import demo_agent
from kneo.settings import process_environment

KNEO = (sys.executable, "-m", "kneo.cli.main")
SPEC = "specs/support.yaml"

IMPORTS = {
    "import typer": "typer",
    "import sqlalchemy, pydantic": "sqlalchemy, pydantic",
    "import openai, pydantic-ai": "openai.resources.chat.chat, pydantic_ai.models.openai, pydantic_ai.providers.openai",
}


def measure_start(rounds: int) -> dict[str, object]:
    """Return the seconds of processor time of each process, the least of some rounds: another process only adds to it."""
    with tempfile.TemporaryDirectory() as name, demo_agent.model_variables(demo_agent.SCRIPTED) as variables:
        folder = Path(name)
        environment = {**process_environment("PATH", "LANG"), **variables, "HOME": name, "PYTHONPATH": str(Path.cwd())}
        words = ("init", "acme", "--template", "agent", "--model", demo_agent.SCRIPTED)
        _seconds([*KNEO, *words], folder, environment)
        commands: Mapping[str, Sequence[str]] = {
            **{title: (sys.executable, "-c", f"import {modules}") for title, modules in IMPORTS.items()},
            "kneo --help": (*KNEO, "--help"),
            "kneo run, to its question": (*KNEO, "run", SPEC, "--target", "agent", "--input", "Refund order 8"),
        }
        measured: dict[str, list[float]] = {title: [] for title in commands}
        for _ in range(rounds + 1):
            for title, command in commands.items():
                measured[title].append(_seconds(command, folder / "acme", environment))
    return {title: round(min(seconds[1:]), 2) for title, seconds in measured.items()} | {
        "middle of the runs": round(statistics.median(measured["kneo run, to its question"][1:]), 2)
    }


def _seconds(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
