"""The program of the runs under load: two functions that log their effects, and a person's decision between them.

Beside it a program whose step kills the worker that executes it, as the kernel kills a process that takes all memory.
"""

from __future__ import annotations

MODULE = "effect_steps"
"""The module of the functions; the log is next to it."""

SOURCE = """
import json, os, time
from pathlib import Path
LOG = Path(__file__).with_name("effects.jsonl")
def effect(text, context):
    line = {"run_id": context.run_id, "step": context.step_id, "key": context.idempotency_key, "at": time.time(), "pid": os.getpid()}
    log = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(log, (json.dumps(line) + chr(10)).encode())
    finally:
        os.close(log)
    time.sleep(0.02)
    return f"{text} > {context.step_id}"
def poison(text):
    os.kill(os.getpid(), 9)
"""

POISONOUS = "poisonous"
"""The beginning of the inputs of runs that kill their workers."""


def poisonous_spec() -> dict[str, object]:
    """Return the spec of a run that kills its workers: its function is executed in the worker."""
    function = {"implementation": f"{MODULE}.poison", "sandbox": {"level": "none"}}
    return {
        "version": "v1",
        "agent": {"name": POISONOUS, "model": {"provider": "dummy", "name": "dummy"}},
        "workflow": {
            "type": "sequential",
            "name": POISONOUS,
            "steps": [{"id": "die", "kind": "function", "ref": "poison"}],
        },
        "components": {"functions": {"poison": function}},
    }


def spec(name: str) -> dict[str, object]:
    """Return the spec of the program under a name."""
    return {
        "version": "v1",
        "agent": {"name": name, "model": {"provider": "dummy", "name": "dummy"}},
        "workflow": {
            "type": "sequential",
            "name": name,
            "steps": [
                {"id": "prepare", "kind": "function", "ref": "effect"},
                {"id": "approve", "kind": "human", "ref": "editor"},
                {"id": "publish", "kind": "function", "ref": "effect"},
            ],
        },
        "components": {
            "functions": {"effect": {"implementation": f"{MODULE}.effect"}},
            "humans": {"editor": {"description": "Publish this?"}},
        },
    }
