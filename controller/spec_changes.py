"""What changed between two specs, as short lines for people. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

LINES = 100
"""Most lines of one comparison; what comes after is counted only."""

TEXT_CHARS = 80


def spec_changes(old: Mapping[str, object] | None, new: Mapping[str, object]) -> list[str]:
    """Say what is added, removed and changed, deepest place first named."""
    if old is None:
        return ["new"]
    lines = list(_changes(old, new, ""))
    more = [f"… and {len(lines) - LINES} more"] if len(lines) > LINES else []
    return lines[:LINES] + more


def _changes(old: object, new: object, path: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}, key=str):
            place = f"{path}.{key}" if path else str(key)
            if key not in new:
                yield f"- {place}: {_short(old[key])}"
            elif key not in old:
                yield f"+ {place}: {_short(new[key])}"
            else:
                yield from _changes(old[key], new[key], place)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _changes(one, other, f"{path}[{index}]")
    elif old != new:
        yield f"~ {path}: {_short(old)} → {_short(new)}"


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= TEXT_CHARS else f"{text[: TEXT_CHARS - 1]}…"
