"""Evaluation of conditions; pure, over the facts of a run that the caller passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from kneo.errors import Invalid
from kneo.spec.expression import ExpressionInvalid, evaluate, parse
from kneo.spec.models.human import Condition


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts of a run that conditions compare: the current text, status, metadata and variables.

    ``names`` has the values of expressions by the first names of their paths.
    """

    text: str
    status: str = "completed"
    metadata: Mapping[str, object] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, object] = field(default_factory=dict)


def holds(condition: Condition, facts: Facts) -> bool:
    """Tell whether a condition holds.

    Raises:
        Invalid: ``condition_error``: a field that this type needs is missing, or an expression is unknown.
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
        case "expression":
            return _is_true(condition, facts)
        case _:
            raise _broken(condition, "has an unknown type")


def _is_true(condition: Condition, facts: Facts) -> bool:
    try:
        result = evaluate(parse(_needed(condition)), facts.names)
    except ExpressionInvalid as error:
        raise Invalid(error.message, code="condition_error") from error
    if result is None:
        raise _broken(condition, "is unknown: a value that it compares is missing or has another type")
    return result


def _same(actual: object, expected: object) -> bool:
    # Variables are texts, while a spec may have the value 3 or true.
    return actual == expected or (isinstance(actual, str) and expected is not None and actual == str(expected))


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
    """Tell whether a gate asks a person.

    A gate without ``when`` and ``sample`` always asks. ``when`` asks where it holds and where it cannot be evaluated.
    ``sample`` asks a share of the remaining cases, chosen by ``seed`` alone: equal cases have equal results.
    """
    if when is None and sample is None:
        return True
    try:
        if when is not None and holds(when, facts):
            return True
    except Invalid:
        return True
    return sample is not None and draw(seed) < sample


def draw(seed: str) -> float:
    """Map a text to a number from 0 up to, not including, 1; equal texts to equal numbers."""
    return int.from_bytes(sha256(seed.encode()).digest()[:8]) / 2**64
