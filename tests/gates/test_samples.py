"""Questions that are asked by chance: who starts a run draws no second time."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from engine import Engine, step

from kneo.clock import ManualClock
from kneo.records.run import Run, RunStatus
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import ForkRequest, fork
from kneo.store.engine import Store

SOURCE = """
def draft(text): return text + " draft"
def pay(text): note(text); return f"paid {text}"
"""

TRIES = 24

FLOW = [step("draft"), {**step("pay"), "review": {"before": {"human": "ann", "sample": 0.5}}}]


@pytest.fixture
def engine(store: Store, tmp_path: Path) -> Engine:
    return Engine(store, tmp_path / "code", SOURCE)


def is_asked(engine: Engine, run: Run) -> bool:
    return engine.drive(run).status is RunStatus.PAUSED


def fork_of(engine: Engine, run: Run, **order: object) -> Run:
    made = ForkRequest(run_id=run.id, requester="rex", step="draft", **order)
    return fork(engine.starter, ProgramLoader(engine.store), made)


def test_starting_or_forking_again_draws_no_other_chance(engine: Engine) -> None:
    found = {}
    for number in range(TRIES):
        text = f"invoice {number}"
        run = engine.start(FLOW, text)
        found[text] = is_asked(engine, run)
        assert is_asked(engine, engine.start(FLOW, text)) is found[text]
        assert is_asked(engine, fork_of(engine, run)) is found[text]
    assert set(found.values()) == {True, False}


def test_a_fork_with_another_input_draws_the_chance_of_that_input(engine: Engine) -> None:
    asked = {text: is_asked(engine, engine.start(FLOW, text)) for text in (f"invoice {n}" for n in range(TRIES))}
    unasked = next(text for text, was in asked.items() if not was)
    run = engine.drive(engine.start(FLOW, unasked))
    for text, was in asked.items():
        forked = engine.drive(fork_of(engine, run, input=text))
        assert (forked.status is RunStatus.PAUSED) is was
        assert is_asked(engine, fork_of(engine, forked)) is was


def test_the_same_input_is_drawn_again_on_another_day(engine: Engine, clock: ManualClock) -> None:
    drawn = set()
    for _ in range(TRIES):
        drawn.add(is_asked(engine, engine.start(FLOW)))
        clock.advance(timedelta(days=1))
    assert drawn == {True, False}
