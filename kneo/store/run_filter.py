"""Which runs somebody wants to see."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, or_

from kneo.state.run import RunStatus
from kneo.store.tables import runs

LIKE_ESCAPE = "\\"


@dataclass(frozen=True, kw_only=True)
class RunFilter:
    """Conditions that all hold; ``None`` asks for nothing. Times are ISO-8601 texts, the later one excluded."""

    status: RunStatus | None = None
    environment: str | None = None
    bundle: str | None = None
    target: str | None = None
    """``workflow`` or ``agent``; on the wire ``workflow_kind``."""
    workflow_name: str | None = None
    session_id: str | None = None
    has_error: bool | None = None
    created_after: str | None = None
    created_before: str | None = None
    text: str | None = None
    """Somewhere in what went in or came out, whatever its case."""

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return what a row of ``runs`` must satisfy."""
        equal = {
            "status": self.status,
            "environment": self.environment,
            "bundle": self.bundle,
            "target": self.target,
            "workflow_name": self.workflow_name,
            "session_id": self.session_id,
        }
        wanted: list[ColumnElement[bool]] = [
            runs.c[name] == value for name, value in equal.items() if value is not None
        ]
        if self.has_error is not None:
            wanted.append(runs.c.error.is_not(None) if self.has_error else runs.c.error.is_(None))
        if self.created_after is not None:
            wanted.append(runs.c.created_at >= self.created_after)
        if self.created_before is not None:
            wanted.append(runs.c.created_at < self.created_before)
        if self.text is not None:
            sought = f"%{escaped(self.text)}%"
            columns = (runs.c.input_text, runs.c.output_text)
            wanted.append(or_(*(column.ilike(sought, escape=LIKE_ESCAPE) for column in columns)))
        return wanted


EVERY_RUN = RunFilter()


def escaped(text: str) -> str:
    """Take the special meaning from what a person searches for."""
    for special in (LIKE_ESCAPE, "%", "_"):
        text = text.replace(special, LIKE_ESCAPE + special)
    return text
