"""The legal transitions of runs and human tasks, which the store enforces at every change of a status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from kneo.errors import Conflict
from kneo.records.run import RunStatus
from kneo.records.task import TaskStatus

Status = TypeVar("Status", RunStatus, TaskStatus)

_ENDINGS = frozenset({RunStatus.CANCELLED, RunStatus.FAILED, RunStatus.EXPIRED, RunStatus.TIMED_OUT})

RUN_TRANSITIONS: Mapping[RunStatus, frozenset[RunStatus]] = {
    RunStatus.RUNNING: _ENDINGS | {RunStatus.PAUSED, RunStatus.SUCCEEDED},
    RunStatus.PAUSED: _ENDINGS | {RunStatus.RUNNING},
    RunStatus.SUCCEEDED: frozenset(),
    RunStatus.FAILED: frozenset({RunStatus.RUNNING}),
    RunStatus.CANCELLED: frozenset(),
    RunStatus.EXPIRED: frozenset(),
    RunStatus.TIMED_OUT: frozenset(),
}
"""The statuses that follow each status of a run. A failed run has ended, and runs again when it is continued."""

_RESOLUTIONS = frozenset({TaskStatus.DECIDED, TaskStatus.EXPIRED, TaskStatus.CANCELLED})

TASK_TRANSITIONS: Mapping[TaskStatus, frozenset[TaskStatus]] = {
    TaskStatus.OPEN: _RESOLUTIONS | {TaskStatus.CLAIMED, TaskStatus.SNOOZED},
    TaskStatus.CLAIMED: _RESOLUTIONS | {TaskStatus.OPEN, TaskStatus.SNOOZED},
    TaskStatus.SNOOZED: _RESOLUTIONS | {TaskStatus.OPEN, TaskStatus.CLAIMED},
    TaskStatus.DECIDED: frozenset({TaskStatus.APPLIED, TaskStatus.CANCELLED}),
    TaskStatus.APPLIED: frozenset(),
    TaskStatus.EXPIRED: frozenset(),
    TaskStatus.CANCELLED: frozenset(),
}
"""The statuses that follow each status of a human task."""


class IllegalTransition(Conflict):
    """The status does not follow the present one; nothing was written."""

    default_code = "run_transition_illegal"


def check_transition(before: Status, after: Status) -> None:
    """Check that a status follows another one.

    Raises:
        IllegalTransition: ``run_transition_illegal`` or ``task_transition_illegal``: it does not.
    """
    kind, following = (
        ("run", RUN_TRANSITIONS[before]) if isinstance(before, RunStatus) else ("task", TASK_TRANSITIONS[before])
    )
    if after not in following:
        msg = f"A {kind} that is {before} cannot become {after}."
        raise IllegalTransition(msg, code=f"{kind}_transition_illegal", before=before.value, after=after.value)
