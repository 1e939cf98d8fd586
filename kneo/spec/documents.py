"""Documents: the plain value of a file, and the location of each part in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from kneo.errors import Invalid

Path: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Bounds on a text that is read.

    Attributes:
        max_bytes: Size of the text, in bytes.
        max_depth: Lists and maps inside each other.
        max_nodes: Keys, values, lists and maps together.
        aliases: Whether YAML anchors and aliases are read. What an alias repeats counts against ``max_nodes``.
    """

    max_bytes: int = 1_048_576
    max_depth: int = 64
    max_nodes: int = 100_000
    aliases: bool = False


DEFAULT_LIMITS = ReadLimits()

MAX_INTEGER = 2**53 - 1
"""Beyond this, JSON readers disagree about the number (RFC 8259 section 6), and RFC 8785 has no form for it."""


class SourceLocation(NamedTuple):
    """The line and column of a value, and of its parts; both count from 1."""

    line: int
    column: int
    children: Mapping[str | int, SourceLocation] = {}
    keys: Mapping[str, tuple[int, int]] = {}


class Unreadable(Invalid):
    """The bytes are not a document of this project; file, line and column locate the reason."""

    default_code = "unreadable"

    def __init__(
        self, message: str, *, file: str, line: int | None = None, column: int | None = None, hint: str | None = None
    ) -> None:
        position = ":".join(str(part) for part in (file, line, column) if part is not None)
        super().__init__(f"{position}: {message}", hint=hint, file=file, line=line, column=column)
        self.file = file
        self.line = line
        self.column = column
        self.reason = message


@dataclass(frozen=True, slots=True)
class Document:
    """One file's content as plain values: dict, list, str, int, float, bool and None.

    A diagnostic shows lines of ``text``. ``locations`` returns the positions; those of JSON are computed on the first
    call.
    """

    value: object
    file: str
    text: str = field(repr=False)
    locations: Callable[[], SourceLocation] = field(repr=False)

    def locate(self, path: Path, *, key: bool = False) -> tuple[int, int]:
        """Return the line and column of the value at a path, or of the nearest part that contains it.

        Args:
            path: Keys and indexes from the root.
            key: Return the position of the last key rather than of its value.
        """
        location = self.locations()
        for depth, part in enumerate(path):
            if key and depth == len(path) - 1 and isinstance(part, str) and part in location.keys:
                return location.keys[part]
            child = location.children.get(part)
            if child is None:
                break
            location = child
        return location.line, location.column


def too_large(value: object, limits: ReadLimits) -> str | None:
    """Return the bound that plain values exceed, which no reader has checked; None where they exceed none."""
    level: list[object] = [value]
    nodes = depth = 0
    while level:
        nodes += len(level)
        if nodes > limits.max_nodes:
            return f"It holds more than {limits.max_nodes} keys and values."
        containers = [part for part in level if isinstance(part, dict | list)]
        depth += bool(containers)
        if depth > limits.max_depth:
            return f"Lists and maps are nested more than {limits.max_depth} deep."
        level = []
        for part in containers:
            level.extend(part.values() if isinstance(part, dict) else part)
            nodes += len(part) if isinstance(part, dict) else 0
    return None
