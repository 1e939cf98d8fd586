"""The conversation that every system has: so many rounds of one tool call, then an answer. The model is a loopback server."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
ANSWER = "All rounds are done."
DESCRIPTION = "Look a number up."
PARAMETERS = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def model_name(turns: int) -> str:
    """Return the model of the scripted server that asks for so many tool calls."""
    return f"turns-{turns}"


@contextlib.contextmanager
def served(lengths: list[int], *, delay: float = 0.0, together: int = 0) -> Iterator[str]:
    """Serve the conversations in a process of its own, whose time counts for nobody; yields the URL of its OpenAI API.

    Args:
        lengths: Tool calls of each conversation.
        delay: Seconds before the last reply of one without tool calls.
        together: So many of those have to wait at the same time before the first gets its reply.
    """
    script = {
        model_name(turns): [
            *({"calls": [{"name": "look", "arguments": {"n": n}}], "usage": [50, 10]} for n in range(turns)),
            {"text": ANSWER, **({} if turns else {"delay": delay, "together": together})},
        ]
        for turns in lengths
    }
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "script.json")
        path.write_text(json.dumps(script))
        command = [sys.executable, str(ROOT / "tests" / "support" / "model_server.py"), str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                yield f"{process.stdout.readline().strip()}/v1"
            finally:
                process.kill()


def measure(work: Callable[[int], None], lengths: list[int], count: int) -> dict[str, dict[str, float]]:
    """Have conversations of each length, one at a time; return what one turn of each costs."""
    found: dict[str, dict[str, float]] = {}
    for turns in lengths:
        work(turns)
    for turns in lengths:
        times = max(1, count * 20 // turns)
        started, cpu = time.perf_counter(), time.process_time()
        for _ in range(times):
            work(turns)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        found[f"{turns} turns"] = {"cpu_ms": cpu / times / turns * 1000, "ms": seconds / times / turns * 1000}
    return found
