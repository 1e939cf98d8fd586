"""Diff of two specs: the changes in sentences for approvers, the most dangerous first.

The JSON form has the same content. The diff is complete: specs that differ anywhere have a change, and a change without
a sentence of its own is named by its path.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from kneo.names import visible
from kneo.spec.diff import agents, components
from kneo.spec.diff.locations import (
    LOW,
    SPEC,
    ChangeContext,
    Danger,
    Difference,
    Owner,
    Sentence,
    by_name,
    compare,
    location_of,
)
from kneo.spec.models.spec import Spec
from kneo.spec.reading.load import load_tree

MAX_LINES = 60  # lines of a changed text that are shown
MAX_WIDTH = 200  # characters of one of them
MAX_COMPARED = 2_000  # lines of a text that are looked at
MAX_CHANGES = 200  # changes that are kept and shown
MAX_CHARS = 200_000  # characters of their sentences and lines together

_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#+!|~@&])")


def text_lines(before: str, after: str) -> tuple[str, ...]:
    """Return the removed and added lines of a text with one line of context, shortened."""
    old, new = before.splitlines()[:MAX_COMPARED], after.splitlines()[:MAX_COMPARED]
    compared: Sequence[str] = [*difflib.unified_diff(old, new, n=1, lineterm="")][2:]
    if not before or not after:
        compared = compared[1:]  # a text that is all new or gone needs no line numbers
    shown = tuple(_shortened(visible(line)) for line in compared[:MAX_LINES])
    more = len(compared) - len(shown)
    return (*shown, f"… {more} more lines") if more > 0 else shown


def _shortened(line: str) -> str:
    return line if len(line) <= MAX_WIDTH else line[: MAX_WIDTH - 1] + "…"


def escaped(text: str) -> str:
    """Return a text as Markdown that shows it."""
    return _MARKUP.sub(r"\\\1", text)


def fenced(lines: Sequence[str]) -> tuple[str, ...]:
    """Return lines in a fence that none of them can end."""
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return (f"{fence}diff", *lines, fence)


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


def describe_difference(difference: Difference, before: object, after: object) -> Sentence | None:
    """Return the sentence about a difference; None where a sentence about its container covers it.

    Args:
        difference: The difference.
        before: The old spec as plain values, its lists by name.
        after: The new one.
    """
    change = ChangeContext(difference, location_of(difference.keys), before, after)
    words = DESCRIBE[change.location.owner](change)
    if difference.kind == "moved" and change.location.owner in _ORDER_IS_FREE:
        words = replace(words, danger=LOW)
    if not difference.within:
        return words
    if difference.after in ([], {}):
        return None
    # A new part reports its permissions, a removed part only its gates.
    reported = words.area == "gates" and words.danger > LOW if difference.kind == "removed" else words.danger > LOW
    return words if reported else None


__all__ = ["Danger", "SpecChange", "SpecDiff", "diff"]

MAX_SHOWN = 200  # changes that a text lists


@dataclass(frozen=True, slots=True)
class SpecChange:
    """One change.

    Attributes:
        danger: The level of attention that the change needs.
        area: The subject: permissions, domains, tools, gates, humans, prompts, models, steps, …
        message: One sentence.
        path: The path, by names.
        lines: The lines of a changed text: removed ones begin with ``-``, added ones with ``+``.
    """

    danger: Danger
    area: str
    message: str
    path: str
    lines: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """Return the JSON form."""
        return {
            "danger": self.danger.name.lower(),
            "area": self.area,
            "message": self.message,
            "path": self.path,
            "lines": list(self.lines),
        }


@dataclass(frozen=True, slots=True)
class SpecDiff:
    """All changes, the most dangerous first.

    Attributes:
        is_new: Whether there was no spec before.
    """

    changes: tuple[SpecChange, ...]
    is_new: bool = False

    def __bool__(self) -> bool:
        return bool(self.changes)

    @property
    def summary(self) -> str:
        """The number of changes by level: ``2 to check, 1 to read``."""
        counts = [(danger, sum(change.danger is danger for change in self.changes)) for danger in reversed(Danger)]
        return ", ".join(f"{count} {danger.words}" for danger, count in counts if count) or "no changes"

    def as_json(self) -> dict[str, object]:
        """Return the JSON form."""
        return {"new": self.is_new, "summary": self.summary, "changes": [change.as_json() for change in self.changes]}

    def to_text(self) -> str:
        """Return the changes for a terminal."""
        lines = [f"New spec: {self.summary}" if self.is_new else self.summary]
        for change in self.changes[:MAX_SHOWN]:
            lines.append(f"{change.danger.sign} {change.area}: {change.message}")
            lines.extend(f"      {line}" for line in change.lines)
        return "\n".join((*lines, *self._rest()))

    def to_markdown(self) -> str:
        """Return the changes for a comment on a pull request."""
        lines = [f"**{'New spec: ' if self.is_new else ''}{self.summary}**", ""]
        for change in self.changes[:MAX_SHOWN]:
            lines.append(f"- {change.danger.sign} **{change.area}**: {escaped(change.message)}")
            if change.lines:
                lines.extend(f"  {line}" for line in fenced(change.lines))
        return "\n".join((*lines, *self._rest()))

    def _rest(self) -> tuple[str, ...]:
        more = len(self.changes) - MAX_SHOWN
        return ("", f"And {more} more.") if more > 0 else ()


def diff(old: Spec | None, new: Spec) -> SpecDiff:
    """Compare two specs in normal form.

    Args:
        old: The spec that is in use; None where there is none, and everything is new.
        new: The spec that is to take its location.
    """
    before = {} if old is None else _tree(old)
    after = _tree(new)
    old_names, new_names = by_name(before), by_name(after)
    changes = []
    for difference in compare(before, after, SPEC):
        words = describe_difference(difference, old_names, new_names)
        if words is not None:
            changes.append(_change(difference, words))
    changes.sort(key=lambda change: -change.danger)  # stable: otherwise as one reads
    return SpecDiff(tuple(changes), is_new=old is None)


def _tree(spec: Spec) -> dict[str, object]:
    return spec.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _change(difference: Difference, words: Sentence) -> SpecChange:
    lines: tuple[str, ...] = ()
    if words.is_text:
        lines = text_lines(_as_text(difference.before), _as_text(difference.after))
    return SpecChange(words.danger, words.area, visible(words.message), visible(".".join(difference.keys)), lines)


def _as_text(value: object) -> str:
    """Return a text, a structure as JSON, or an empty text."""
    if isinstance(value, dict | list):
        return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
    return value if isinstance(value, str) else ""


def compare_specs(old: Mapping[str, object] | None, new: Mapping[str, object]) -> SpecDiff:
    """Return the changes of a spec in words, the most dangerous first; without an old spec, of a new one."""
    before, after = load_tree(dict(old)).spec if old is not None else None, load_tree(dict(new)).spec
    assert after is not None, "the spec of an accepted bundle was verified"
    return diff(before, after)


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
