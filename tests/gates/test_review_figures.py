"""Figures about reviewing, from questions that were really asked and answered."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta

import pytest
from gates.asking import answer, ask, declare
from operation_context import operation_context

from kneo.api import tasks as operations
from kneo.api.tasks import get_human_task_stats
from kneo.clock import ManualClock
from kneo.errors import KneoError
from kneo.store.engine import Store
from kneo.tasks.lifecycle import process_due

Json = dict[str, object]


@pytest.fixture(autouse=True)
def _people(store: Store) -> None:
    declare(store)


def figures(store: Store, since: str = "30d", environment: str | None = None, workflow: str | None = None) -> Json:
    view = get_human_task_stats(operation_context(store), since, environment, workflow)
    return asdict(view)


def only(told: Json) -> Json:
    (found,) = told["gates"]  # type: ignore[misc]
    return found  # type: ignore[no-any-return]


def test_what_people_did_is_what_the_figures_say(store: Store, clock: ManualClock) -> None:
    for seconds, kind, more in (
        (10, "approved", {}),
        (20, "edited", {"content": "a better"}),
        (30, "rejected", {}),
        (40, "approved", {"comment": "fine"}),
    ):
        task = ask(store, key=f"q@{seconds}.step")
        clock.advance(timedelta(seconds=seconds))
        answer(store, task, "ann", kind, **more)
    agreed, split = (ask(store, key="q.step", quorum={"approvals": 2}) for _ in range(2))
    for task, last in ((agreed, "approved"), (split, "rejected")):
        answer(store, task, "ann")
        answer(store, task, "ben", last)
    ask(store, key="q.step", timeout_seconds=60, on_timeout="approve")
    ask(store, key="q.step", timeout_seconds=60, on_timeout="fail")
    clock.advance(timedelta(seconds=61))
    process_due(store)
    ask(store, key="q.step")  # nobody has answered this one yet
    told = figures(store)
    assert (told["tasks"], told["truncated"]) == (8, False)
    found = only(told)
    assert (found["gate"], found["environment"], found["workflow_name"]) == ("q.step", "prod", "publish")
    assert [found[name] for name in ("decided", "by_people", "by_deadline", "expired")] == [7, 6, 1, 1]
    assert found["decisions"] == {"approved": 3, "edited": 1, "rejected": 2}
    assert (found["median_seconds"], found["p90_seconds"]) == (15.0, 40.0)
    assert (found["edited_share"], found["rejected_share"]) == (0.1667, 0.3333)
    assert (found["edit_distance"], found["edits_compared"]) == (0.5, 1)
    assert (found["voted"], found["agreement"], found["rubber_stamp"]) == (2, 0.5, False)


def test_only_what_was_asked_in_that_time_and_place_counts(store: Store, clock: ManualClock) -> None:
    answer(store, ask(store), "ann")
    clock.advance(timedelta(days=2))
    answer(store, ask(store, key="r.step"), "ann")
    assert only(figures(store, "1d"))["gate"] == "r.step"
    assert figures(store, "3d")["tasks"] == 2
    assert figures(store, "3d", environment="prod", workflow="publish")["tasks"] == 2
    assert figures(store, "3d", environment="dev")["gates"] == []
    assert figures(store, "3d", workflow="other")["gates"] == []
    for wrong in ("0d", "367d", "-1d", "soon"):
        with pytest.raises(KneoError):
            figures(store, wrong)


def test_more_than_is_looked_at_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "MAX_TASKS", 2)
    for number in range(3):
        answer(store, ask(store, key=f"q{number}.step"), "ann")
    told = figures(store)
    assert (told["tasks"], told["truncated"]) == (2, True)
    assert {gate["gate"] for gate in told["gates"]} == {"q1.step", "q2.step"}  # type: ignore[attr-defined]
