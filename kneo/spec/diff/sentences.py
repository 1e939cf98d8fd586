"""Which sentence is said of a change, and which are left out because another one has said it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kneo.spec.diff import agents, components, humans
from kneo.spec.diff.context import LOW, ChangeContext, Sentence
from kneo.spec.diff.locations import Owner, location_of
from kneo.spec.diff.tree import Difference

DESCRIBE: dict[Owner, Callable[[ChangeContext], Sentence]] = {
    "agent": agents.agent,
    "workflow": components.workflow,
    "function": components.function,
    "human": humans.human,
    "tool": components.tool,
    "skill": components.skill,
    "server": components.server,
    "step": components.step,
    "gate": humans.gate,
    "edge": components.edge,
    "other": components.other,
}
"""Who speaks of what."""

_ORDER_IS_FREE: frozenset[Owner] = frozenset({"agent", "tool", "function", "human", "gate", "skill"})


def describe_difference(event: Difference, before: object, after: object) -> Sentence | None:
    """Say what happened; None where a sentence about something around it has said it.

    Args:
        event: What differs.
        before: The old spec as plain values, its lists by name.
        after: The new one.
    """
    spot = ChangeContext(event, location_of(event.keys), before, after)
    words = DESCRIBE[spot.place.owner](spot)
    if event.kind == "moved" and spot.place.owner in _ORDER_IS_FREE:
        words = replace(words, danger=LOW)
    if not event.within:
        return words
    if event.after in ([], {}):
        return None
    # Of a thing that is new, what it may do is said; of one that is gone, only the questions that went with it.
    said = words.area == "gates" and words.danger > LOW if event.kind == "removed" else words.danger > LOW
    return words if said else None
