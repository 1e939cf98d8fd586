"""Diff of two specs: the changes in sentences for approvers, the most dangerous first.

The JSON form has the same content. The diff is complete: specs that differ anywhere have a change, and a change without
a sentence of its own is named by its path.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kneo.names import visible
from kneo.spec.code import BundleCode
from kneo.spec.diff import agents, components
from kneo.spec.diff.code import CODE, code_changes, code_facts
from kneo.spec.diff.locations import (
    HIGH,
    LOW,
    SPEC,
    ChangeContext,
    Danger,
    Difference,
    Owner,
    Sentence,
    SpecChange,
    by_name,
    compare,
    location_of,
)
from kneo.spec.diff.summary import TEXTS, new_words, summarize
from kneo.spec.diff.texts import Rows, as_text, bounded_comment, count, shorten, text_rows, value_lines, without_secrets
from kneo.spec.models.environment import Environment
from kneo.spec.models.human import Human
from kneo.spec.models.spec import Spec
from kneo.spec.reading.load import load_tree

WHOLE = "kneo spec diff --whole OLD NEW"
"""The command that shows a change whole."""

COMMENTED_CHARS = 50_000  # characters of the changes in a comment: the rest of it has other facts
MAX_CHANGES = 10_000  # changes that are kept
MAX_CHARS = 4_000_000  # characters of their sentences and lines together: twice the size of a spec and more

_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#+!|~@&])")


def escaped(text: str) -> str:
    """Return a text as Markdown that shows it."""
    return _MARKUP.sub(r"\\\1", text)


def fenced(lines: Sequence[str], kind: str = "diff") -> tuple[str, ...]:
    """Return lines in a fence that none of them can end."""
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return (f"{fence}{kind}", *lines, fence)


DESCRIBE: dict[Owner, Callable[[ChangeContext], Sentence]] = {
    "agent": agents.agent,
    "workflow": components.workflow,
    "function": components.function,
    "human": components.human,
    "tool": components.tool,
    "skill": components.skill,
    "server": components.server,
    "step": components.step,
    "gate": components.gate,
    "edge": components.edge,
    "other": components.other,
}
"""The sentences of each owner."""

_ORDER_IS_FREE: frozenset[Owner] = frozenset({"agent", "tool", "function", "human", "gate", "skill"})


_AREAS = (
    "gates",
    "permissions",
    "domains",
    "tools",
    "mcp",
    "functions",
    CODE,
    "humans",
    "guardrails",
    "models",
    "prompts",
)
"""The order of changes of one danger: gates and capabilities first."""

_LISTED = 8
"""Inner changes that the sentence about a new part repeats; its lines show all."""


def describe_difference(
    difference: Difference, before: object, after: object, humans: Mapping[str, Human] | None = None
) -> Sentence:
    """Return the sentence about a difference.

    Args:
        difference: The difference.
        before: The old spec as plain values, its lists by name.
        after: The new one.
        humans: The humans of the new one, whom new gates ask.
    """
    change = ChangeContext(difference, location_of(difference.keys), before, after, humans or {})
    words = DESCRIBE[change.location.owner](change)
    if difference.kind == "moved" and change.location.owner in _ORDER_IS_FREE:
        words = replace(words, danger=LOW)
    if change.added and not change.location.rest and not difference.within:
        what = new_words(change.location.owner, difference.after, change.humans)
        words = replace(words, message=f"{words.message.removesuffix('.')}: {what}.") if what else words
        words = replace(words, is_text=not _is_said(difference.after))
    return words


def _is_said(value: object) -> bool:
    """Return whether the sentence about a new part repeats all of it: a plain step, or the ends of an edge."""
    return isinstance(value, dict) and value.keys() <= {"id", "kind", "ref", "from", "to"}


Map = dict[str, object]

__all__ = ["WHOLE", "Danger", "SpecChange", "SpecDiff", "diff"]


@dataclass(frozen=True, slots=True)
class SpecDiff:
    """All changes, the most dangerous first; of a first version its facts.

    Attributes:
        is_new: Whether there was no spec before.
        command: The command that shows what a text leaves out.
    """

    changes: tuple[SpecChange, ...]
    is_new: bool = False
    command: str = WHOLE

    def __bool__(self) -> bool:
        return bool(self.changes)

    @property
    def summary(self) -> str:
        """The number of changes by level: ``2 to check, 1 to read``."""
        counts = [(danger, sum(change.danger is danger for change in self.changes)) for danger in reversed(Danger)]
        return ", ".join(f"{count} {danger.words}" for danger, count in counts if count) or "no changes"

    def items(self, changes: Sequence[SpecChange] | None = None, *, whole: bool) -> list[Map]:
        """Return all changes, or some, as reviews show them, or whole."""
        items = [change.as_json() for change in (self.changes if changes is None else changes)]
        return items if whole else [shortened(item, self.command) for item in items]

    @property
    def is_cut(self) -> bool:
        """Whether a review leaves out lines."""
        return self.items(whole=True) != self.items(whole=False)

    def as_json(self) -> dict[str, object]:
        """Return the JSON form."""
        return {"new": self.is_new, "summary": self.summary, "changes": [change.as_json() for change in self.changes]}

    def to_text(self, *, whole: bool = False) -> str:
        """Return the changes for a terminal."""
        items = self.items(whole=whole)
        return "\n".join(fact_lines(items) if self.is_new else (self.summary, *change_lines(items)))

    def to_markdown(self, *, whole: bool = False) -> str:
        """Return the changes for a comment on a pull request."""
        items = self.items(whole=whole)
        if self.is_new:
            return bounded_comment(fenced(list(fact_lines(items)), "text"), self.command)
        return bounded_comment((f"**{self.summary}**", "", *change_markdown(items, self.command)), self.command)


def shortened(change: Map, command: str) -> Map:
    """Return a change as reviews show it; the fact about the texts of a first version names the command itself."""
    lines = _strings(change["lines"])
    is_fact = change["area"] == TEXTS or (change["area"] == CODE and not change["path"])
    shown = () if is_fact else shorten(tuple(lines)).with_note(command)
    return {**change, "lines": list(shown)}


_COLUMN = 11

_WIDTH = 75


def fact_lines(facts: Iterable[Map]) -> Iterator[str]:
    """Yield the facts of a first version: in columns of a screen, none shortened."""
    area = ""
    for fact in facts:
        label = "" if fact["area"] == area else str(fact["area"])
        area = str(fact["area"])
        message, _, command = str(fact["message"]).rpartition(": ") if area == TEXTS else (str(fact["message"]), "", "")
        wrapped = textwrap.wrap(message, _WIDTH - _COLUMN - 2, break_on_hyphens=False, break_long_words=False)
        wrapped += [command] if command else []
        for number, line in enumerate(wrapped or [""]):
            yield f"{'' if number else label:<{_COLUMN}} {' ' if number else ''}{line}"
        yield from (f"{'':<{_COLUMN}}   {line}" for line in _strings(fact["lines"]))


def change_lines(changes: Iterable[Map]) -> Iterator[str]:
    """Yield the changes of a spec for a terminal."""
    for change in changes:
        yield f"{Danger[str(change['danger']).upper()].sign} {change['area']}: {change['message']}"
        yield from (f"      {line}" for line in _strings(change["lines"]))


def change_markdown(changes: Iterable[Map], command: str, most: int = COMMENTED_CHARS) -> Iterator[str]:
    """Yield the changes of a spec for a comment, up to a number of characters; the others are counted."""
    items, chars = list(changes), 0
    for number, change in enumerate(items):
        sign = Danger[str(change["danger"]).upper()].sign
        lines = [f"- {sign} **{escaped(str(change['area']))}**: {escaped(str(change['message']))}"]
        if change["lines"]:
            lines.extend(f"  {line}" for line in fenced(_strings(change["lines"])))
        chars += sum(map(len, lines)) + len(lines)
        if chars > most:
            left_out = items[number:]
            high = sum(each["danger"] == "high" for each in left_out)
            yield f"- ‼ … {count(len(left_out), 'more change')}, {high:,} to check: {escaped(command)}"
            return
        yield from lines


def _strings(lines: object) -> list[str]:
    return [str(line) for line in lines] if isinstance(lines, list | tuple) else []


CodePair = tuple[BundleCode | None, BundleCode | None]
"""The code of the old bundle and of the new one."""

NO_CODE: CodePair = (None, None)


def diff(
    old: Spec | None,
    new: Spec,
    *,
    environment: Environment | None = None,
    command: str = WHOLE,
    code: CodePair = NO_CODE,
) -> SpecDiff:
    """Compare two specs in normal form.

    Args:
        old: The spec that is in use; None where there is none, and the facts of the new one are returned.
        new: The spec that is to take its location.
        environment: The environment of a first version.
        command: The command that shows what a review leaves out.
        code: The code of the old and the new bundle.
    """
    after = _tree(new)
    if old is None:
        whole = tuple(f" {visible(line)}" for line in value_lines(without_secrets(after, ())))
        facts = [
            SpecChange(each.danger, each.area, visible(each.message), "", whole if each.area == TEXTS else ())
            for each in summarize(new, environment, command, len(whole))
        ]
        if code[1] is not None:
            facts.append(code_facts(code[1], command))
        return SpecDiff(tuple(facts), is_new=True, command=command)
    before = _tree(old)
    found = [
        *_changes(list(compare(before, after, SPEC)), by_name(before), by_name(after), new.components.humans),
        *code_changes(*code),
    ]
    rank = {area: number for number, area in enumerate(_AREAS)}
    changes = sorted(found, key=lambda change: (-change.danger, rank.get(change.area, len(rank))))
    return SpecDiff(tuple(changes), command=command)


def _changes(
    differences: Sequence[Difference], old: object, new: object, humans: Mapping[str, Human]
) -> Iterator[SpecChange]:
    """Yield the changes in the order of the spec; what is new is one change, with all that is new in it."""
    number = 0
    while number < len(differences):
        outer = differences[number]
        words = describe_difference(outer, old, new, humans)
        number += 1
        if outer.kind != "added":
            if not outer.within or (outer.kind == "removed" and words.area == "gates" and words.danger > LOW):
                yield _change(outer, words)
            continue
        inner = []
        while number < len(differences) and differences[number].within and differences[number].kind != "removed":
            inner.append(describe_difference(differences[number], old, new, humans))
            number += 1
        yield _change(outer, _with_inner(outer, words, inner))


def _with_inner(outer: Difference, words: Sentence, inner: Sequence[Sentence]) -> Sentence:
    """Return the sentence about a new part, with what is dangerous in it."""
    danger = max((words.danger, *(each.danger for each in inner)))
    said = (
        new_words(location_of(outer.keys).owner, outer.after, {}) is not None
        if not location_of(outer.keys).rest
        else False
    )
    notes = [each.message for each in inner if each.danger is HIGH or (each.area == "gates" and each.danger > LOW)]
    if said or not notes:
        return replace(words, danger=danger)
    more = f" And {len(notes) - _LISTED} more." if len(notes) > _LISTED else ""
    return replace(words, danger=danger, message=f"{words.message} {' '.join(notes[:_LISTED])}{more}", is_text=True)


def _tree(spec: Spec) -> dict[str, object]:
    return spec.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _change(difference: Difference, words: Sentence) -> SpecChange:
    lines: Rows = ()
    danger = words.danger
    if words.is_text:
        values = (without_secrets(value, difference.keys) for value in (difference.before, difference.after))
        before, after = map(as_text, values)
        lines = text_rows(before, after)
        if shorten(lines).hides:
            danger = HIGH  # what cannot be shown whole is to be checked
    return SpecChange(danger, words.area, visible(words.message), visible(".".join(difference.keys)), lines)


def compare_specs(
    old: Mapping[str, object] | None,
    new: Mapping[str, object],
    *,
    environment: Environment | None = None,
    command: str = WHOLE,
    code: CodePair = NO_CODE,
) -> SpecDiff:
    """Return the changes of a spec and its code in words, the most dangerous first; without an old spec, the facts of the new one."""
    before, after = load_tree(dict(old)).spec if old is not None else None, load_tree(dict(new)).spec
    assert after is not None, "the spec of an accepted bundle was verified"
    return diff(before, after, environment=environment, command=command, code=code)


def whole_command(bundle: str, before: str | None, after: str) -> str:
    """Return the command that shows a change of a bundle whole, in a clone of the config repository."""
    paths = [f"bundles/{bundle}/{version}.dsse.json" for version in (before, after) if version is not None]
    return f"kneo spec diff --whole {shlex.join(paths)}"


def bounded_changes(found: SpecDiff) -> tuple[tuple[SpecChange, ...], int]:
    """Return the first changes, and the number of the others."""
    shown: list[SpecChange] = []
    chars = 0
    for change in found.changes[:MAX_CHANGES]:
        chars += len(change.message) + len(change.path) + sum(map(len, change.lines))
        if shown and chars > MAX_CHARS:
            break
        shown.append(change)
    return tuple(shown), len(found.changes) - len(shown)
