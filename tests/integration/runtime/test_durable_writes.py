"""What a driver tells others of is on disk first; what it only notes for itself need not be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from engine import Engine, step
from sqlalchemy import Connection, event

from kneo.records.run import RunStatus
from kneo.store.connections import WRITE
from kneo.store.engine import Store

FULL, NORMAL = 2, 1
STEPS = """
def first(text): return text + "1"
def second(text): return text + "2"
"""
FLOW = {
    "type": "sequential",
    "steps": [step("first"), {"id": "ask", "kind": "human", "ref": "ann"}, step("second")],
}


@pytest.fixture
def engine(store: Store, tmp_path: Path) -> Engine:
    if not store.is_sqlite:
        pytest.skip("a server is told of every commit in the same way")
    return Engine(store, tmp_path / "code", STEPS)


@pytest.fixture
def levels(engine: Engine) -> Iterator[list[int]]:
    """How durable each write was, in order."""
    found: list[int] = []

    def look(connection: Connection) -> None:
        if connection.get_execution_options().get(WRITE):
            found.append(connection.exec_driver_sql("PRAGMA synchronous").scalar_one())

    event.listen(engine.store.engine, "commit", look)
    yield found
    event.remove(engine.store.engine, "commit", look)


def test_taking_a_run_is_not_waited_for_and_its_steps_are(engine: Engine, levels: list[int]) -> None:
    run = engine.run(FLOW)
    assert run.status is RunStatus.PAUSED
    assert levels == [FULL, NORMAL, FULL]  # started, taken, first step and question


@pytest.mark.parametrize(
    ("answer", "status", "written"),
    [
        # Answered, taken with its effect, second step.
        ("approved", RunStatus.SUCCEEDED, [FULL, NORMAL, FULL]),
        # The effect ends the run, which whoever waits for it is told.
        ("rejected", RunStatus.CANCELLED, [FULL, FULL]),
    ],
)
def test_an_answer_that_ends_the_run_is_on_disk_before_anybody_hears_of_it(
    engine: Engine, levels: list[int], answer: str, status: RunStatus, written: list[int]
) -> None:
    driver = engine.driver()
    run = engine.drive_with(driver, engine.start(FLOW))
    levels.clear()
    engine.answer(engine.open(run)[0], answer)
    assert engine.drive_with(driver, run).status is status
    assert levels == written
