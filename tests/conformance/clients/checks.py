"""Runs the checks of a driver inside a published client's own environment; nothing of Kneo is imported here.

A driver is a script whose functions called ``check_…`` each take the scene; coroutines are run. Every result is one line of JSON, so that
what ran is known even when the driver dies.
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

SECONDS = 300


def run_checks(members: dict[str, object]) -> None:
    """Run every check of a driver, in the order they are written."""
    scene = SimpleNamespace(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    for name, check in list(members.items()):
        if name.startswith("check_"):
            print(json.dumps({"check": name, "problem": _problem(check, scene)}), flush=True)


def _problem(check: object, scene: SimpleNamespace) -> str | None:
    try:
        started = check(scene)
        if started is not None:
            asyncio.run(asyncio.wait_for(started, SECONDS))
    except Exception:  # noqa: BLE001 - a check may fail in any way, and the next one runs all the same
        return traceback.format_exc()
    return None


async def raises(kind: type[Exception], call: object) -> Exception:
    """Wait for a call that has to fail with exactly this class, and return the error."""
    try:
        answer = await call
    except kind as error:
        if type(error) is not kind:
            raise
        return error
    raise AssertionError(f"{kind.__name__} expected, answered {answer}")
