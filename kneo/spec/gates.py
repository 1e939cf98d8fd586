"""Whether a condition holds and whether a gate asks. Pure: what happened so far is handed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from kneo.errors import Invalid
from kneo.spec.models.human import Condition


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What conditions look at: the text that flows here, and how it came about."""

    text: str
    status: str = "completed"
    metadata: Mapping[str, object] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)


def holds(condition: Condition, facts: Facts) -> bool:
    """Say whether a condition holds.

    Raises:
        Invalid: ``condition_error``: a part that this type needs is missing.
    """
    match condition.type:
        case "always" | "never":
            return condition.type == "always"
        case "all_of":
            return all(holds(part, facts) for part in _parts(condition))
        case "any_of":
            return any(holds(part, facts) for part in _parts(condition))
        case "not":
            return not holds(_inner(condition), facts)
        case _:
            return _compares(condition, facts)


def _compares(condition: Condition, facts: Facts) -> bool:
    match condition.type:
        case "output_contains":
            return _fold(condition, _needed(condition)) in _fold(condition, facts.text)
        case "output_equals":
            return _fold(condition, _needed(condition)) == _fold(condition, facts.text)
        case "metadata_equals":
            return _same(facts.metadata.get(_key(condition)), condition.value)
        case "variable_equals":
            return _same(facts.variables.get(_key(condition)), condition.value)
        case "status_is":
            return facts.status == _needed(condition)
        case _:
            raise _broken(condition, "is of a type nobody knows")


def _same(found: object, wanted: object) -> bool:
    # Variables hold texts, while a spec may well say 3 or true.
    return found == wanted or (isinstance(found, str) and wanted is not None and found == str(wanted))


def _fold(condition: Condition, text: str) -> str:
    return text if condition.case_sensitive else text.casefold()


def _needed(condition: Condition) -> str:
    if condition.value is None:
        raise _broken(condition, "has no value")
    return str(condition.value)


def _key(condition: Condition) -> str:
    if condition.key is None:
        raise _broken(condition, "has no key")
    return condition.key


def _parts(condition: Condition) -> tuple[Condition, ...]:
    if not condition.conditions:
        raise _broken(condition, "has no conditions")
    return condition.conditions


def _inner(condition: Condition) -> Condition:
    if condition.condition is None:
        raise _broken(condition, "has no condition")
    return condition.condition


def _broken(condition: Condition, what: str) -> Invalid:
    return Invalid(f"A condition of type {condition.type} {what}.", code="condition_error")


def asks(when: Condition | None, sample: float | None, facts: Facts, *, seed: str) -> bool:
    """Say whether a gate asks somebody.

    Without ``when`` and ``sample`` it always does. ``when`` asks where it holds, and where it cannot be evaluated.
    ``sample`` asks that share of the remaining cases, chosen by ``seed`` alone: the same case is always treated alike.
    """
    if when is None and sample is None:
        return True
    try:
        if when is not None and holds(when, facts):
            return True
    except Invalid:
        return True
    return sample is not None and draw(seed) < sample


def default_rejection(position: str, *, at_condition: bool = False) -> str:
    """Return what a rejection does where neither the gate nor its human says it.

    It stops the run. Two positions have another way to go: a condition its other branch, and whatever asks in its own
    middle (a tool, a function that waits) the answer itself, which it is told.

    Args:
        position: Where the question stands: ``step``, ``wait``, ``tool``, or a name under ``review``.
        at_condition: Whether it stands before a condition.
    """
    if position in {"wait", "tool"}:
        return "tell"
    return "else" if at_condition and position == "before" else "stop"


def draw(seed: str) -> float:
    """Turn a text into a number from 0 up to, not including, 1; the same text into the same number."""
    return int.from_bytes(sha256(seed.encode()).digest()[:8]) / 2**64
