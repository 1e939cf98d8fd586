"""The flows that every system runs, written for Kneo."""

from __future__ import annotations

from collections.abc import Mapping

Json = dict[str, object]

MODULE = "bench_steps"
"""Name of the module that the steps' functions are written to."""

SOURCE = """
def draft(text):
    return text + " (draft)"


def polish(text):
    return text + " (polished)"


def publish(text):
    return text + " (published)"


def same(text):
    return text


def wait(text):
    import time
    time.sleep(float(text))
    return text


async def wait_async(text):
    import asyncio
    await asyncio.sleep(float(text))
    return text
"""


def step(name: str, function: str) -> Json:
    return {"id": name, "kind": "function", "ref": function}


HUMAN: Json = {"id": "approve", "kind": "human", "ref": "editor"}


def spec(*steps: Mapping[str, object]) -> Json:
    """A sequential spec of some steps."""
    return {
        "version": "v1",
        "agent": {"name": "root", "model": {"provider": "dummy", "name": "dummy"}},
        "workflow": {"type": "sequential", "name": "bench", "steps": list(steps)},
        "components": {
            "functions": {
                name: {"implementation": f"{MODULE}.{name}"}
                for name in ("draft", "polish", "publish", "wait", "wait_async", "same")
            },
            "humans": {"editor": {"description": "Publish it?"}},
        },
    }


def plain() -> Json:
    """Three steps."""
    return spec(step("draft", "draft"), step("polish", "polish"), step("publish", "publish"))


def asking() -> Json:
    """A draft, a person, a publication."""
    return spec(step("draft", "draft"), HUMAN, step("publish", "publish"))


def chain(length: int) -> Json:
    """Steps one after the other whose text does not grow."""
    return spec(*(step(f"s{number}", "same") for number in range(length)))


def waiting() -> Json:
    """One async step that waits for as many seconds as its input says."""
    return spec(step("wait", "wait_async"))
