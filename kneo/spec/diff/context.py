"""A change in its surroundings, and the words that sentences about changes share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from kneo.spec.diff.locations import Location, look
from kneo.spec.diff.tree import Difference
from kneo.spec.messages import quote


class Danger(IntEnum):
    """How closely to look at a change, from least to most."""

    LOW = 1
    MEDIUM = 2
    HIGH = 3

    @property
    def words(self) -> str:
        """What to do with it."""
        return {Danger.HIGH: "to check", Danger.MEDIUM: "to read", Danger.LOW: "minor"}[self]

    @property
    def sign(self) -> str:
        """A mark for lists."""
        return {Danger.HIGH: "‼", Danger.MEDIUM: "•", Danger.LOW: "·"}[self]


MAX_NAMED = 20  # names of a new order that a sentence has

LOW, MEDIUM, HIGH = Danger.LOW, Danger.MEDIUM, Danger.HIGH


@dataclass(frozen=True, slots=True)
class Sentence:
    """What to say of a change.

    Attributes:
        is_text: Whether the values are worth showing line by line.
    """

    danger: Danger
    area: str
    message: str
    is_text: bool = False


@dataclass(frozen=True, slots=True)
class ChangeContext:
    """A change, what it belongs to, and the whole on both sides, with lists by name."""

    event: Difference
    place: Location
    before: object
    after: object

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def gone(self) -> bool:
        return self.event.kind == "removed"

    @property
    def came(self) -> bool:
        return self.event.kind == "added"

    def old(self, *rest: str) -> object:
        """Return what the old spec has below the thing."""
        return look(self.before, (*self.place.keys, *rest))

    def new(self, *rest: str) -> object:
        """Return what the new spec has below the thing."""
        return look(self.after, (*self.place.keys, *rest))


def start(text: str) -> str:
    """Begin a sentence with it."""
    return text[:1].upper() + text[1:]


def turned(spot: ChangeContext, what: str) -> str:
    """Say from what to what something turned."""
    event = spot.event
    if event.kind == "moved":
        names = event.after if isinstance(event.after, list) else []
        return f"{what} come in this order: {', '.join(map(str, names[:MAX_NAMED]))}."
    if event.kind == "changed" and not (_plain(event.before) and _plain(event.after)):
        return f"{what} changes."
    if event.kind == "changed":
        return f"{what} changes from {quote(event.before)} to {quote(event.after)}."
    if spot.came:
        return f"{what} is {quote(event.after)}."
    return f"{what} is no longer {quote(event.before)}."


def _plain(value: object) -> bool:
    return not isinstance(value, dict | list)


def said(spot: ChangeContext, danger: Danger, area: str, what: str) -> Sentence:
    """Say from what to what something turned, line by line where it has parts."""
    event = spot.event
    parts = event.kind == "changed" and not (_plain(event.before) and _plain(event.after))
    return Sentence(danger, area, start(turned(spot, what)), is_text=parts)


def field(spot: ChangeContext, danger: Danger, area: str) -> Sentence:
    """Say what became of one setting of a thing."""
    rest = spot.place.rest
    if len(rest) > 1 and rest[-1] in (spot.event.before, spot.event.after):  # an item of a list of names
        verb = "gets" if spot.came else "loses"
        return Sentence(danger, area, f"{start(spot.name)} {verb} {rest[-1]} in {'.'.join(rest[:-1])}.")
    if rest[-1] == "description":
        danger = LOW
    return said(spot, danger, area, f"{'.'.join(rest)} of {spot.name}")


def text(spot: ChangeContext, danger: Danger, area: str, what: str) -> Sentence:
    """Say that a text changed, whose lines are then shown."""
    verb = "is new" if spot.came else "is gone" if spot.gone else "changes"
    return Sentence(danger, area, f"The {what} of {spot.name} {verb}.", is_text=True)
