"""Views of a run while an operation waits for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from kneo.api.context import Waiting
from kneo.api.run_views import Json, RunErrorView, readable, run_metadata
from kneo.api.status_words import StatusWord
from kneo.api.task_views import votes_of
from kneo.records.run import Run
from kneo.records.task import UNRESOLVED, HumanTask
from kneo.runtime.engine.wait import RunSettled, SettledRun, find_run
from kneo.store import idempotency
from kneo.store.engine import Store
from kneo.tasks.inbox import find

DEFAULT_WAIT = 120.0
"""Seconds that a request waits for its run by default."""


@dataclass(frozen=True, kw_only=True)
class RunStartedView:
    """The state of a run after its start or continuation."""

    run_id: str
    status: StatusWord
    output_text: str | None
    human_intervention_required: bool
    continuation_id: str | None
    metadata: Json
    error: RunErrorView | None

    @classmethod
    def of(cls, settled: SettledRun) -> RunStartedView:
        """Build the view of a run and of the first question that it asks."""
        run, task = settled.run, settled.task
        return cls(
            run_id=run.id,
            status=run.status,
            output_text=readable(run.output_text),
            human_intervention_required=task is not None,
            continuation_id=task.id if task else None,
            metadata=run_metadata(run, task),
            error=RunErrorView.of(run),
        )


@dataclass(frozen=True, kw_only=True)
class RunResumedView(RunStartedView):
    """The state of a run after an answer. A vote below the quorum shows the votes."""

    quorum: Json | None = None
    votes: list[Json] | None = None

    @classmethod
    def after(cls, answered: HumanTask, settled: SettledRun) -> RunResumedView:
        """Build the view of a run after an answer to one of its tasks."""
        started = RunStartedView.of(settled)
        votes = dict(votes_of(answered)) if answered.status in UNRESOLVED else {}
        metadata = {**started.metadata, "resumed_from_continuation_id": answered.id}
        return cls(**{**vars(started), "metadata": metadata, **votes})


def wait_for_run(store: Store, begin: Callable[[], Run], seconds: float) -> Waiting[RunStartedView]:
    """Start work on a run, unless an earlier execution of the same request has done so; then wait for that run."""
    run_id = idempotency.made()
    run = begin() if run_id is None else find_run(store, run_id)
    return Waiting(RunSettled(run.id, epoch=run.epoch), RunStartedView.of, seconds, SettledRun(run))


def wait_after_answer(store: Store, answer: Callable[[], HumanTask]) -> Waiting[RunResumedView]:
    """Answer a task, unless an earlier execution of the same request has done so; then wait for the task's run."""
    task_id = idempotency.made()
    task = answer() if task_id is None else _find(store, task_id)
    return Waiting(
        RunSettled(task.run_id, answered=task.id),
        partial(RunResumedView.after, task),
        DEFAULT_WAIT,
        notified=task.status not in UNRESOLVED,
    )


def _find(store: Store, task_id: str) -> HumanTask:
    with store.read() as tx:
        return find(tx, task_id)
