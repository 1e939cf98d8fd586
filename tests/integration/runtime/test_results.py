"""What functions return, as the next step gets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engine import Engine, step

from kneo.records.run import RunStatus
from kneo.store.engine import Store

SOURCE = """
def table(text): return {"name": text, "parts": [1, None, True], "ä": {"b": 1.5}}
def listed(text): return (text, 2)
async def later(text): return {"later": text}
def broken(text): return {"at": object()}
def endless(text): return [float("nan")]
def same(text): return text
"""


@pytest.fixture
def engine(store: Store, tmp_path: Path) -> Engine:
    return Engine(store, tmp_path / "code", SOURCE)


@pytest.mark.parametrize("more", [{}, {"timeout_seconds": 30}])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("table", {"name": "in", "parts": [1, None, True], "ä": {"b": 1.5}}),
        ("listed", ["in", 2]),
        ("later", {"later": "in"}),
    ],
)
def test_maps_and_lists_are_json_for_the_next_step(engine: Engine, name: str, value: object, more: dict) -> None:
    run = engine.run([step(name, **more), step("same")])
    assert run.output_text is not None
    assert json.loads(run.output_text) == value
    assert "ä" in run.output_text or name != "table"


@pytest.mark.parametrize("name", ["broken", "endless"])
def test_what_json_cannot_say_fails_the_step(engine: Engine, name: str) -> None:
    run = engine.run([step(name), step("same")])
    assert (run.status, run.error.type) == (RunStatus.FAILED, "function_output_invalid")
