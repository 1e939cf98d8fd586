"""The comparison of two specs of a bundle, bounded for storage and pages."""

from __future__ import annotations

from collections.abc import Mapping

from kneo.spec.diff import SpecChange, SpecDiff, diff
from kneo.spec.reading.load import load_tree

MAX_CHANGES = 200
"""Changes that are kept and shown."""

MAX_CHARS = 200_000
"""Characters of their sentences and lines together."""


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
