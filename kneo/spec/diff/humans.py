"""What a change to a question means: whether it is still asked, of whom, and what no answer or a no does."""

from __future__ import annotations

from typing import get_args

from kneo.spec.diff.context import HIGH, LOW, MEDIUM, ChangeContext, Danger, Sentence, field, said, start, text
from kneo.spec.diff.tree import ABSENT
from kneo.spec.models.receipts import Receipt, strongest

_TEXTS = frozenset({"description", "prompt", "title"})
_WHO = frozenset({"human", "assignee", "candidates", "quorum", "escalate"})
_EFFECT = frozenset({"on_timeout", "on_reject", "decisions", "when", "sample", "max_retries", "grants", "key"})
_ANSWER = frozenset({"fields", "schema", "options", "default_option", "multiple", "request_type", "response_role"})


def human(spot: ChangeContext) -> Sentence:
    """Speak of somebody who is asked."""
    if not spot.place.rest:
        danger = MEDIUM if spot.gone else LOW
        return Sentence(danger, "humans", f"{start(spot.name)} is {'gone' if spot.gone else 'new'}.")
    return _asked(spot, "humans")


def gate(spot: ChangeContext) -> Sentence:
    """Speak of a question at a step or a tool."""
    if not spot.place.rest:
        if spot.gone:
            return Sentence(HIGH, "gates", f"{start(spot.name)} is no longer asked.")
        return Sentence(MEDIUM, "gates", f"{start(spot.name)} is asked from now on.")
    return _asked(spot, "gates")


def _asked(spot: ChangeContext, area: str) -> Sentence:
    key = spot.place.rest[0]
    if spot.place.rest in {(name,) for name in _TEXTS}:
        return text(spot, MEDIUM, area, key)
    if key in _WHO:
        return _who(spot, area)
    if key == "receipt":
        before, after = _proof(spot.old("receipt")), _proof(spot.new("receipt"))
        return field(spot, LOW if strongest(before, after) == after else HIGH, area)
    if key in _EFFECT:
        danger: Danger = LOW if spot.event.within else HIGH
        return said(spot, danger, area, f"{'.'.join(spot.place.rest)} of {spot.name}")
    if key in _ANSWER:
        return field(spot, MEDIUM, area)
    return field(spot, MEDIUM if key == "timeout_seconds" else LOW, area)


def _who(spot: ChangeContext, area: str) -> Sentence:
    match spot.place.rest:
        case ("candidates", "exclude", name):
            if spot.gone:
                return Sentence(HIGH, area, f"{start(name)} may now answer {spot.name}.")
            return Sentence(LOW, area, f"{start(name)} may not answer {spot.name}.")
        case ("candidates", ("users" | "groups" | "roles") as kind, name):
            verb = "may no longer" if spot.gone else "may"
            nobody_else = spot.gone and spot.new("candidates", kind) in (ABSENT, [])
            danger = LOW if spot.gone and not nobody_else else MEDIUM if spot.event.within else HIGH
            return Sentence(danger, area, f"{start(kind[:-1])} {name} {verb} answer {spot.name}.")
        case ("quorum", *_):
            return field(spot, LOW if _more(spot) else HIGH, area)
        case _:
            return field(spot, LOW if spot.event.within else HIGH, area)


def _proof(value: object) -> str | None:
    return value if isinstance(value, str) and value in get_args(Receipt) else None


def _more(spot: ChangeContext) -> bool:
    before, after = spot.event.before, spot.event.after
    if isinstance(before, int) and isinstance(after, int):
        return after > before
    return spot.came
