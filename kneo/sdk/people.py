"""The people of a question in a program: who is asked, how many agree, until when. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from kneo.sdk.builder import Json


class OnTimeout(StrEnum):
    """The effect of a missed deadline."""

    approve = "approve"
    reject = "reject"
    skip = "skip"
    cancel = "cancel"
    fail = "fail"
    proceed = "continue"
    escalate = "escalate"


@dataclass(frozen=True, kw_only=True)
class QuestionPeople:
    """The people, the deadlines and the notifications of a question.

    Attributes:
        timeout: Seconds until the deadline of each question.
        on_timeout: The effect of a missed deadline.
        assignee: The person who is asked first.
        candidates: The people who may answer, as in a spec: ``{"groups": ["ops"], "exclude": ["requester"]}``.
        quorum: The approvals that a decision needs: a number, or a map as in a spec.
        escalate: The escalation chain: ``(seconds, to)`` each.
        remind: Seconds after which candidates are reminded.
        due: Seconds until an answer is overdue.
        priority: From 0 to 100.
        notify: Channels for notifications.
    """

    timeout: int | None = None
    on_timeout: OnTimeout = OnTimeout.cancel
    assignee: str | None = None
    candidates: Mapping[str, object] | None = None
    quorum: int | Mapping[str, object] | None = None
    escalate: Sequence[tuple[int, str]] = ()
    remind: Sequence[int] = ()
    due: int | None = None
    priority: int | None = None
    notify: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "on_timeout", member_of("on_timeout", self.on_timeout, OnTimeout))

    @property
    def people(self) -> Json:
        """The people of each question, their deadlines and notifications, as keys of a human or a gate."""
        quorum = {"approvals": self.quorum} if isinstance(self.quorum, int) else self.quorum
        values: Json = {
            "assignee": self.assignee,
            "candidates": dict(self.candidates) if self.candidates is not None else None,
            "quorum": dict(quorum) if quorum is not None else None,
            "escalate": [{"after": after, "to": to} for after, to in self.escalate],
            "remind": list(self.remind),
            "due": self.due,
            "priority": self.priority,
            "notify": list(self.notify),
        }
        if self.timeout is not None:
            values |= {"timeout_seconds": self.timeout, "on_timeout": self.on_timeout.value}
        return {name: value for name, value in values.items() if value not in (None, [])}


def member_of(name: str, value: object, enum: type[StrEnum]) -> StrEnum:
    """Return the member of an enumeration that a parameter names.

    Raises:
        ValueError: the value is none of its members.
    """
    try:
        return enum(str(getattr(value, "value", value)) if value != "else_branch" else "else")
    except ValueError as error:
        msg = f"{name}={value!r} is none of {', '.join(member.name for member in enum)}."
        raise ValueError(msg) from error
