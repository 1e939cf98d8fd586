"""Fields of every log line of a piece of work: the request that is answered, the run that is driven."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType

from kneo.telemetry.spans import current_trace_id

_fields: ContextVar[Mapping[str, str]] = ContextVar("kneo_log_fields", default=MappingProxyType({}))


@contextlib.contextmanager
def log_fields(**fields: str | None) -> Iterator[None]:
    """Add fields to the log lines of a block, also in tasks and threads that are started with its context."""
    token = _fields.set({**_fields.get(), **{name: value for name, value in fields.items() if value is not None}})
    try:
        yield
    finally:
        _fields.reset(token)


def current_fields() -> Mapping[str, str]:
    """Return the fields of the current work, with the id of its trace where one is recorded."""
    trace_id = current_trace_id()
    return {**_fields.get(), "trace_id": trace_id} if trace_id is not None else _fields.get()
