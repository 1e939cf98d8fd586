"""What is wrong with a declaration, said so that a person finds the spot and a machine can sort it.

A rule knows a path and a reason; the file, line and column are added where the documents are known
(:func:`locate`). The shape of the JSON form is the published one (``code``, ``severity``, ``message``, ``path``,
``suggestion``) with the position beside it.
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
        code: Stable word for machines; ``E_``, ``W_`` or ``I_`` and what it is about.
        path: Keys and indexes from the root of the spec; None where the finding is about the whole.
        suggestion: What to change, where that is known.
        aliases: Codes that other versions of the language use for the same finding.
        at_key: Whether the place is where the last key is written rather than where its value begins.
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
    """Say that something must be changed before the spec can be used."""
    return Diagnostic(code, Severity.ERROR, message, path, suggestion, aliases=aliases)


def warning(code: str, message: str, path: Path | None = None, *, suggestion: str | None = None) -> Diagnostic:
    """Say that something is allowed and should be looked at."""
    return Diagnostic(code, Severity.WARNING, message, path, suggestion)


def unreadable(refusal: Unreadable, code: str = "E_SCHEMA") -> Diagnostic:
    """Turn a refusal to read into a finding with the same place."""
    found = Diagnostic(code, Severity.ERROR, refusal.reason, None, refusal.hint)
    return replace(found, file=refusal.file, line=refusal.line, column=refusal.column)


def format_path(path: Path) -> str:
    """Spell a path: ``("steps", 0, "ref")`` is ``steps[0].ref``."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return "".join(parts).removeprefix(".")


def locate(found: Diagnostic, documents: Sequence[Document]) -> Diagnostic:
    """Add the file, line and column.

    Args:
        found: The finding; one that has a place keeps it.
        documents: The spec and then its overlays in the order they were applied: what a later one says at the path
            is what counts, so the last document that knows the longest part of the path is the place to look.
    """
    if found.file is not None or not documents:
        return found
    path = found.path or ()
    best = max(enumerate(documents), key=lambda pair: (known_depth(pair[1], path), pair[0]))[1]
    line, column = best.locate(path, key=found.at_key)
    return replace(found, file=best.file, line=line, column=column)


def known_depth(document: Document, path: Path) -> int:
    """Count how many parts of a path a document says."""
    place = document.places()
    for depth, part in enumerate(path):
        child = place.children.get(part)
        if child is None:
            return depth
        place = child
    return len(path)


def reading_order(findings: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Sort by file and place, as a person reads; findings without a place come first."""
    return sorted(findings, key=lambda d: (d.file or "", d.line or 0, d.column or 0, d.code))


def has_errors(findings: Iterable[Diagnostic]) -> bool:
    """Tell whether any finding forbids the use of the spec."""
    return any(found.is_error for found in findings)
