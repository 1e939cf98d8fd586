"""Scheduled events of a task, and their times. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

from kneo.clock import isoformat, parse_time
from kneo.records.task import Decision, DecisionKind, Escalation, HumanTask, TaskStatus


@dataclass(frozen=True, kw_only=True)
class ScheduledEvent:
    """A scheduled event of a task: ``wake``, ``remind``, ``escalate`` or ``deadline``."""

    at: str
    what: str


_ORDER = ("wake", "remind", "escalate", "deadline")
"""The order of events that are due at the same time: notifications come before the deadline."""


def scheduled_events(task: HumanTask) -> list[ScheduledEvent]:
    """List the scheduled events, the earliest first."""
    return sorted(_events(task), key=lambda one: (one.at, _ORDER.index(one.what)))


def _events(task: HumanTask) -> Iterator[ScheduledEvent]:
    if task.status is TaskStatus.SNOOZED and task.snoozed_until is not None:
        yield ScheduledEvent(at=task.snoozed_until, what="wake")
    for seconds in sorted(task.plan.remind)[task.plan.reminded :]:
        yield ScheduledEvent(at=add_seconds(task.created_at, seconds), what="remind")
    for step in remaining_escalations(task):
        yield ScheduledEvent(at=add_seconds(task.created_at, step.after), what="escalate")
    if task.deadline_at is not None:
        yield ScheduledEvent(at=task.deadline_at, what="deadline")


def remaining_escalations(task: HumanTask) -> tuple[Escalation, ...]:
    """Return the escalations that have not happened yet, in order."""
    return tuple(sorted(task.plan.escalate, key=lambda one: one.after)[task.escalation :])


def next_at(task: HumanTask) -> str | None:
    """Return the time of the next scheduled event of a task."""
    events = scheduled_events(task)
    return events[0].at if events else None


def add_seconds(at: str, seconds: int) -> str:
    return isoformat(parse_time(at) + timedelta(seconds=seconds))


TIMEOUT_POLICY = "policy:timeout"


@dataclass(frozen=True, kw_only=True)
class TimeoutPolicy:
    """The parts of a question that define the effect of its deadline."""

    on_timeout: str
    decisions: Collection[DecisionKind]
    options: Collection[str] = ()
    default_option: str | None = None

    def decision(self, at: str) -> Decision | None:
        """Return the decision of the deadline at a time; ``None`` where it ends the run, or only escalates."""
        word, _, option = self.on_timeout.partition(":")
        kind, effect = _AT_DEADLINE.get(word, (None, None))
        chosen = None
        if word == "select" or (word in {"continue", "approve"} and self.options and self.default_option):
            kind, chosen = DecisionKind.SELECTED, option or self.default_option
        fits = kind in self.decisions or kind is DecisionKind.REJECTED
        if kind is None or not fits or (kind is DecisionKind.SELECTED and chosen not in self.options):
            return None
        return Decision(
            kind=kind,
            content=None,
            selected_option=chosen,
            comment="decided at its deadline",
            actor=TIMEOUT_POLICY,
            by=TIMEOUT_POLICY,
            at=at,
            effect=effect,
        )


_AT_DEADLINE: Mapping[str, tuple[DecisionKind, str | None]] = {
    "continue": (DecisionKind.APPROVED, None),
    "approve": (DecisionKind.APPROVED, None),
    "reject": (DecisionKind.REJECTED, None),
    "skip": (DecisionKind.REJECTED, "skip"),
    "cancel": (DecisionKind.REJECTED, "cancel"),
}
"""``on_timeout`` as a decision and its effect; ``fail`` ends the run and ``escalate`` leaves the task open."""
