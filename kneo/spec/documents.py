"""Documents: the plain value of a file, the location of each part in it, and the findings about it.

A finding is a :class:`Diagnostic` with a stable code, a message, a path and a position. A rule reports a path and a message;
:func:`locate` adds the file, line and column where the documents are known. The JSON form has the published keys (``code``,
``severity``, ``message``, ``path``, ``suggestion``) and the position. Other forms are text with the line and a caret, SARIF 2.1.0,
and annotations of GitHub workflows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from kneo.errors import Invalid
from kneo.names import visible

Path: TypeAlias = tuple[str | int, ...]


MAX_INTEGER = 2**53 - 1
"""Beyond this, JSON readers disagree about the number (RFC 8259 section 6), and RFC 8785 has no form for it."""


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Bounds on a text that is read.

    Attributes:
        max_bytes: Size of the text, in bytes.
        max_depth: Lists and maps inside each other.
        max_nodes: Keys, values, lists and maps together.
        max_integer: The largest integer that is read, and the smallest one without its sign.
        aliases: Whether YAML anchors and aliases are read. What an alias repeats counts against ``max_nodes``.
    """

    max_bytes: int = 1_048_576
    max_depth: int = 64
    max_nodes: int = 100_000
    max_integer: int = MAX_INTEGER
    aliases: bool = False


DEFAULT_LIMITS = ReadLimits()


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


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding.

    Attributes:
        code: Stable identifier: ``E_``, ``W_`` or ``I_`` and the subject.
        path: Keys and indexes from the root of the spec; None for a finding about the whole file.
        suggestion: The change to make, where it is known.
        aliases: Codes that other versions of the language use for the same finding.
        at_key: Whether the position is that of the last key rather than of its value.
    """

    code: str
    severity: Severity
    message: str
    path: Path | None = None
    suggestion: str | None = None
    file: str | None = None
    line: int | None = None
    column: int | None = None
    aliases: tuple[str, ...] = ()
    at_key: bool = False

    @property
    def path_text(self) -> str | None:
        """The path as people write it: ``workflow.steps[0].ref``."""
        return None if self.path is None else format_path(self.path)

    @property
    def is_error(self) -> bool:
        return self.severity is Severity.ERROR

    def as_json(self) -> dict[str, object]:
        """Return the JSON form; ``aliases`` is left out where there are none."""
        shape: dict[str, object] = {
            "code": self.code,
            "severity": self.severity.value,
            "message": self.message,
            "path": self.path_text,
            "suggestion": self.suggestion,
            "file": self.file,
            "line": self.line,
            "column": self.column,
        }
        if self.aliases:
            shape["aliases"] = list(self.aliases)
        return shape


def error(
    code: str, message: str, path: Path | None = None, *, suggestion: str | None = None, aliases: tuple[str, ...] = ()
) -> Diagnostic:
    """Report a mistake that makes the spec unusable."""
    return Diagnostic(code, Severity.ERROR, message, path, suggestion, aliases=aliases)


def warning(code: str, message: str, path: Path | None = None, *, suggestion: str | None = None) -> Diagnostic:
    """Report a value that is allowed and needs attention."""
    return Diagnostic(code, Severity.WARNING, message, path, suggestion)


def unreadable(refusal: Unreadable) -> Diagnostic:
    """Turn a refusal to read into a finding at the same position."""
    found = Diagnostic("E_SCHEMA", Severity.ERROR, refusal.reason, None, refusal.hint)
    return replace(found, file=refusal.file, line=refusal.line, column=refusal.column)


def format_path(path: Path) -> str:
    """Format a path: ``("steps", 0, "ref")`` is ``steps[0].ref``."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return "".join(parts).removeprefix(".")


def locate(found: Diagnostic, documents: Sequence[Document]) -> Diagnostic:
    """Add the file, line and column.

    Args:
        found: The finding; one with a position keeps it.
        documents: The spec and then its overlays in the order they were applied. A later overlay overrides an earlier
            one, so the position is in the last document that has the longest part of the path.
    """
    if found.file is not None or not documents:
        return found
    path = found.path or ()
    best = max(enumerate(documents), key=lambda pair: (known_depth(pair[1], path), pair[0]))[1]
    line, column = best.locate(path, key=found.at_key)
    return replace(found, file=best.file, line=line, column=column)


def known_depth(document: Document, path: Path) -> int:
    """Count the parts of a path that a document has."""
    location = document.locations()
    for depth, part in enumerate(path):
        child = location.children.get(part)
        if child is None:
            return depth
        location = child
    return len(path)


def has_errors(findings: Iterable[Diagnostic]) -> bool:
    """Tell whether any finding forbids the use of the spec."""
    return any(found.is_error for found in findings)


MAX_LINE = 160  # characters of a source line that are shown

_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_SARIF_LEVEL = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}
_GITHUB_LEVEL = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "notice"}


def as_text(found: Diagnostic, sources: Mapping[str, str]) -> str:
    """Render one finding for a terminal.

    Args:
        found: The finding.
        sources: The text of each file by the name that diagnostics use.
    """
    position = ":".join(str(part) for part in (found.file, found.line, found.column) if part is not None)
    head = f"{position}: " if position else ""
    # Names and keys of a file may have line breaks, which would begin a line of their own.
    lines = [visible(f"{head}{found.severity.value} {found.code}: {found.message}")]
    lines += _excerpt(found, sources)
    if found.path_text:
        lines.append(f"    at {visible(found.path_text)}")
    if found.suggestion:
        lines.append(f"    → {visible(found.suggestion)}")
    return "\n".join(lines)


def _excerpt(found: Diagnostic, sources: Mapping[str, str]) -> list[str]:
    if found.file is None or found.line is None or found.column is None or found.file not in sources:
        return []
    written = _LINE_BREAK.split(sources[found.file])
    if not 0 < found.line <= len(written):
        return []
    shown = written[found.line - 1][:MAX_LINE].replace("\t", " ")
    # Control characters of a file must not reach the terminal.
    gutter = str(found.line)
    caret = " " * len(visible(shown[: found.column - 1])) + "^"
    return [f"    {gutter} | {visible(shown)}", f"    {' ' * len(gutter)} | {caret}"]


def as_github(findings: Iterable[Diagnostic]) -> str:
    """Render findings as the workflow commands that GitHub shows at the lines of a pull request."""
    return "".join(_github_command(found) + "\n" for found in findings)


def _github_command(found: Diagnostic) -> str:
    properties = {
        "file": found.file,
        "line": found.line,
        "col": found.column,
        "title": found.code,
    }
    encoded = ",".join(f"{name}={_property(value)}" for name, value in properties.items() if value is not None)
    where = f" (at {found.path_text})" if found.path_text else ""
    todo = f"\n{found.suggestion}" if found.suggestion else ""
    lines = (found.message + where + todo).split("\n")
    text = "\n".join(map(visible, lines))
    return f"::{_GITHUB_LEVEL[found.severity]} {encoded}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(value: object) -> str:
    return _data(str(value)).replace(":", "%3A").replace(",", "%2C")


def as_sarif(findings: Sequence[Diagnostic], *, tool_version: str) -> dict[str, object]:
    """Render findings as one SARIF 2.1.0 run."""
    codes = list(dict.fromkeys(found.code for found in findings))
    driver = {"name": "kneo", "version": tool_version, "rules": [{"id": code} for code in codes]}
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": driver},
                "columnKind": "unicodeCodePoints",
                "results": [_sarif_result(found, codes.index(found.code)) for found in findings],
            }
        ],
    }


def _sarif_result(found: Diagnostic, rule: int) -> dict[str, object]:
    text = f"{found.message} {found.suggestion}" if found.suggestion else found.message
    location: dict[str, object] = {}
    if found.file is not None:
        region = {"startLine": found.line or 1, "startColumn": found.column or 1}
        location["physicalLocation"] = {"artifactLocation": {"uri": found.file}, "region": region}
    if found.path_text:
        location["logicalLocations"] = [{"fullyQualifiedName": found.path_text}]
    return {
        "ruleId": found.code,
        "ruleIndex": rule,
        "level": _SARIF_LEVEL[found.severity],
        "message": {"text": text},
        "locations": [location] if location else [],
    }
