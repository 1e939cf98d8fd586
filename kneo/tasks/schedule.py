"""What time does to a task, and when. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from kneo.clock import isoformat, parse_time
from kneo.records.task import Escalation, HumanTask, TaskStatus


@dataclass(frozen=True, kw_only=True)
class Occasion:
    """Something that is to happen to a task: ``wake``, ``remind``, ``escalate`` or ``deadline``."""

    at: str
    what: str
    escalation: Escalation | None = None


_ORDER = ("wake", "remind", "escalate", "deadline")
"""What comes first of what is due at the same moment: whoever is to hear of it, hears of it before it is over."""


def occasions(task: HumanTask) -> list[Occasion]:
    """List what is still to happen, the earliest first."""
    return sorted(_occasions(task), key=lambda one: (one.at, _ORDER.index(one.what)))


def _occasions(task: HumanTask) -> Iterator[Occasion]:
    if task.status is TaskStatus.SNOOZED and task.snoozed_until is not None:
        yield Occasion(at=task.snoozed_until, what="wake")
    for seconds in sorted(task.plan.remind)[task.plan.reminded :]:
        yield Occasion(at=later(task.created_at, seconds), what="remind")
    for step in remaining(task):
        yield Occasion(at=later(task.created_at, step.after), what="escalate", escalation=step)
    if task.deadline_at is not None:
        yield Occasion(at=task.deadline_at, what="deadline")


def remaining(task: HumanTask) -> tuple[Escalation, ...]:
    """Return whom nobody has turned to yet, in order."""
    return tuple(sorted(task.plan.escalate, key=lambda one: one.after)[task.escalation :])


def next_at(task: HumanTask) -> str | None:
    """Say when time next does something to a task."""
    found = occasions(task)
    return found[0].at if found else None


def later(at: str, seconds: int) -> str:
    return isoformat(parse_time(at) + timedelta(seconds=seconds))
