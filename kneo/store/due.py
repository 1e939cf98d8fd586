"""What the timers have to do now: found by one statement, which is all that they execute while nothing is due."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import Any, cast

from sqlalchemy import BindParameter, ColumnElement, Select, bindparam, exists, select

from kneo.records.run import RunStatus
from kneo.store.engine import Store
from kneo.store.prepared import Prepared
from kneo.store.tables import audit_pending, grants, runs, task_count_changes, task_events, tasks
from kneo.store.task_statistics import FOLD_ABOVE


class Due(StrEnum):
    """The kinds of due work."""

    TASKS = "tasks"
    """A deadline, reminder or escalation of a human task, or counts of tasks that are to be folded."""
    RUNS = "runs"
    """A deadline of a run."""
    GRANTS = "grants"
    """A standing grant whose time is over."""
    AUDIT = "audit"
    """Events of the audit log that are to be sealed."""
    FEED = "feed"
    """Events of tasks without a position."""


_NOW: BindParameter[str] = bindparam("now")
_ACTIVE = (runs.c.status == RunStatus.RUNNING.value) | (runs.c.status == RunStatus.PAUSED.value)
_MANY_CHANGES = select(task_count_changes.c.id).offset(FOLD_ABOVE).limit(1)

_CONDITIONS: dict[Due, ColumnElement[bool]] = {
    Due.TASKS: exists(select(tasks.c.id).where(tasks.c.next_at.is_not(None), tasks.c.next_at <= _NOW))
    | exists(_MANY_CHANGES),
    Due.RUNS: exists(select(runs.c.id).where(_ACTIVE, runs.c.deadline_at <= _NOW)),
    Due.GRANTS: exists(select(grants.c.id).where(grants.c.ended_at.is_(None), grants.c.expires_at <= _NOW)),
    Due.AUDIT: exists(select(audit_pending.c.event_id).where(audit_pending.c.unsealable.is_(False))),
    Due.FEED: exists(select(task_events.c.id).where(task_events.c.seq.is_(None))),
}

_EACH = cast("Select[Any]", select(*(condition.label(kind) for kind, condition in _CONDITIONS.items())))
_FIND = Prepared(_EACH)


def find_due(store: Store) -> Collection[Due]:
    """Return the kinds of work that are due.

    Raises:
        Transient: the database cannot be reached.
    """
    with store.look() as tx:
        row = _FIND.first(tx, {"now": tx.at})
    assert row is not None
    return [kind for kind, is_due in zip(_CONDITIONS, row, strict=True) if is_due]
