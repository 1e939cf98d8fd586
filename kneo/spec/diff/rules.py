"""Sentences about changes of an environment's rules: people, humans, gates and limits, each in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from kneo.names import visible
from kneo.spec.diff.components import gate as gate_sentence
from kneo.spec.diff.components import human as human_sentence
from kneo.spec.diff.locations import (
    HIGH,
    LOW,
    ChangeContext,
    Difference,
    Keys,
    Location,
    Sentence,
    TreeShape,
    by_name,
    compare,
    start,
    value_change,
)
from kneo.spec.diff.summary import gate_words, human_words
from kneo.spec.diff.texts import Rows, as_text, shorten, text_rows
from kneo.spec.models.human import Gate, Human

Map = Mapping[str, object]

WHOLE = "kneo plan --whole --env NAME"
"""The command that shows changed rules whole."""

_SHAPE = TreeShape(
    holds=lambda keys: len(keys) <= 1 or keys[-1] in {"candidates", "match", "mcp", "connections", "prices"},
    is_one=lambda keys: keys[-1:] == ("when",),
)


@dataclass(frozen=True, slots=True)
class RuleChange:
    """One changed rule.

    Attributes:
        message: Its sentences.
        lines: The lines of long values, removed ones with ``-`` and added ones with ``+``.
    """

    message: str
    lines: Rows = ()


def describe_rule(field: str, before: object, after: object, humans: Mapping[str, Human]) -> RuleChange:
    """Describe the change of one rule.

    Args:
        field: The field, by its path in the file: ``people``, ``gates``, ``tools.deny``.
        before: The plain value in force, without what its file leaves out; None where it is left out.
        after: The new one.
        humans: The humans of the new file, whom gates ask.
    """
    keys = tuple(field.split("."))
    old, new = (_nested(keys, _calls_as_text(_gates_by_name(field, value))) for value in (before, after))
    sentences, lines = [], Rows()
    covered: Keys | None = None
    for difference in compare(old, new, _SHAPE):
        if difference.within and covered is not None and difference.keys[: len(covered)] == covered:
            continue  # the sentence about what is new or gone says it
        covered = difference.keys if difference.kind in {"added", "removed"} else None
        words = _sentence(ChangeContext(difference, _location(difference.keys), by_name(old), by_name(new), humans))
        sentences.append(words.message)
        if words.is_text:
            lines += text_rows(as_text(difference.before), as_text(difference.after))
    return RuleChange(visible(" ".join(sentences)), lines)


def shown_rule(lines: Rows, command: str = WHOLE) -> Rows:
    """Return the lines of a changed rule as reviews show them."""
    return shorten(lines).with_note(command)


def _gates_by_name(field: str, value: object) -> object:
    if field == "gates" and isinstance(value, list):
        return {
            str(each["name"]): {k: v for k, v in each.items() if k != "name"}
            for each in value
            if isinstance(each, dict)
        }
    return value


def _calls_as_text(value: object) -> object:
    """Return rules about calls as texts, which are compared as entries of a list."""
    if not isinstance(value, list):
        return value
    return [
        f"{', '.join(each['tools'])} when {each['when']}"
        if isinstance(each, dict) and each.keys() == {"tools", "when"}
        else each
        for each in value
    ]


def _nested(keys: Keys, value: object) -> dict[str, object]:
    inner: object = value
    for key in reversed(keys):
        inner = {} if inner is None else {key: inner}
    return inner if isinstance(inner, dict) else {}


def _location(keys: Keys) -> Location:
    match keys:
        case ("gates", name, ("before" | "after") as position, *rest):
            inner = rest[1:] if rest[:1] == ["human"] and len(rest) > 1 else rest
            where = "" if position == "before" else " (after)"
            return Location("gate", f"the gate {name}{where}", keys[:3], tuple(inner))
        case ("gates", name, *rest):
            return Location("gate", f"the gate {name}", keys[:2], tuple(rest))
        case ("humans", name, *rest):
            return Location("human", f"the human {name}", keys[:2], tuple(rest))
    return Location("other", ".".join(keys), keys, ())


def _sentence(change: ChangeContext) -> Sentence:
    match change.difference.keys:
        case ("people", *_):
            words = _person(change.difference)
        case ("gates", _, "match", *_):
            words = value_change(change, HIGH, "gates", f"{'.'.join(change.location.rest)} of {change.name}")
        case ("gates", _) | ("gates", _, "before" | "after"):
            words = _gate(change)
        case ("gates", *_):
            words = gate_sentence(change)
        case ("humans", _) if change.added:
            asks = human_words(Human.model_validate(change.difference.after))
            words = Sentence(LOW, "humans", f"{start(change.name)} is new: {asks}.", is_text=True)
        case ("humans", *_):
            words = human_sentence(change)
        case keys:
            words = _limit(change, keys)
    return words


def _limit(change: ChangeContext, keys: Keys) -> Sentence:
    difference, name = change.difference, keys[-1]
    if difference.kind in {"added", "removed"} and name in (difference.before, difference.after):
        return Sentence(HIGH, "rules", f"{'.'.join(keys[:-1])} {'gets' if change.added else 'loses'} {name}.")
    words = value_change(change, HIGH, "rules", ".".join(keys))
    return replace(words, message=keys[0][:1] + words.message[1:])


def _gate(change: ChangeContext) -> Sentence:
    if change.removed:
        return Sentence(HIGH, "gates", f"{start(change.name)} is gone.", is_text=True)
    gates = [(change.difference.keys[2], change.difference.after)] if len(change.difference.keys) == 3 else []
    if not gates and isinstance(change.difference.after, dict):
        gates = [(key, value) for key, value in change.difference.after.items() if key in {"before", "after"}]
    asks = [f"{key}: {gate_words(Gate.model_validate(each), 'before', change.humans)}" for key, each in gates]
    return Sentence(LOW, "gates", f"{start(change.name)} is new: {'; '.join(asks)}.", is_text=True)


def _person(difference: Difference) -> Sentence:
    name = difference.keys[1] if len(difference.keys) > 1 else "people"
    gone = difference.kind == "removed"
    match difference.keys[2:]:
        case ():
            roles = list(_memberships(difference.before if gone else difference.after))
            text = f"{name} is {'no longer' if gone else 'now'} in people"
            return Sentence(HIGH, "people", f"{text}: {', '.join(roles)}." if roles else f"{text}.")
        case (kind, member):
            verb = "loses" if gone else "gets"
            return Sentence(HIGH, "people", f"{name} {verb} the {kind.removesuffix('s')} {member}.")
        case rest:
            return Sentence(HIGH, "people", f"{'.'.join(rest)} of {name} changes.", is_text=True)


def _memberships(person: object) -> Iterator[str]:
    for kind, members in person.items() if isinstance(person, dict) else ():
        yield from (f"{kind.removesuffix('s')} {each}" for each in (members if isinstance(members, list) else ()))
