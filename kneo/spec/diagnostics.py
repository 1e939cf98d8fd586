"""Diagnostics: findings about a file, with a stable code, a message, a path and a position.

A rule reports a path and a message; :func:`locate` adds the file, line and column where the documents are known. The
JSON form has the published keys (``code``, ``severity``, ``message``, ``path``, ``suggestion``) and the position.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from kneo.spec.documents import Document, Path, Unreadable


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


def unreadable(refusal: Unreadable, code: str = "E_SCHEMA") -> Diagnostic:
    """Turn a refusal to read into a finding at the same position."""
    found = Diagnostic(code, Severity.ERROR, refusal.reason, None, refusal.hint)
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
