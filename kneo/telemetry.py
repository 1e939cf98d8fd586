"""Telemetry: logs as one JSON object per line on standard error, and spans for OpenTelemetry.

Disabled, OpenTelemetry is not imported and a span costs a function call. A span has the names of the run and the step. Inputs
and outputs are added only where an operator enables them, redacted and truncated.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING

from kneo.distribution import install_extra
from kneo.errors import Invalid
from kneo.names import plain
from kneo.redaction import redact_text
from kneo.settings import Tracing, unknown_variables

if TYPE_CHECKING:
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import Tracer

Value = str | int | float | bool | Sequence[str]

CONTENT_CHARS = 2_000
"""Characters of an input or output that a span carries at most."""


@dataclass(frozen=True)
class Span:
    """One recorded operation; without a tracer nothing is recorded."""

    _span: OtelSpan | None = None

    @property
    def trace_id(self) -> str | None:
        """The trace's id in hexadecimal; None where nothing is recorded."""
        return format(self._span.get_span_context().trace_id, "032x") if self._span is not None else None

    @property
    def has_arguments(self) -> bool:
        """Whether inputs and arguments are recorded."""
        return self._span is not None and _state.tracing.record_arguments

    @property
    def has_results(self) -> bool:
        """Whether outputs and results are recorded."""
        return self._span is not None and _state.tracing.record_results

    def note(self, **facts: Value | None) -> None:
        """Add attributes; underscores in names stand for dots."""
        if self._span is not None:
            self._span.set_attributes(_named(facts))

    def add_input(self, text: str) -> None:
        """Add the input, where arguments are recorded."""
        if self._span is not None and self.has_arguments:
            self._span.set_attribute("kneo.input", redact_text(text[:CONTENT_CHARS]))

    def add_output(self, text: str) -> None:
        """Add the output, where results are recorded."""
        if self._span is not None and self.has_results:
            self._span.set_attribute("kneo.output", redact_text(text[:CONTENT_CHARS]))

    def failed(self, kind: str) -> None:
        """Mark the span as failed."""
        if self._span is not None:
            trace = importlib.import_module("opentelemetry.trace")
            self._span.set_attribute("error.type", kind)
            self._span.set_status(trace.StatusCode.ERROR)


@dataclass
class _State:
    tracer: Tracer | None = None
    tracing: Tracing = field(default_factory=Tracing)


_state = _State()

NO_SPAN = Span()


def configure_tracing(tracing: Tracing, *, version: str) -> contextlib.AbstractContextManager[None]:
    """Record spans if tracing is enabled; at the end of the block the remaining ones are sent.

    The standard ``OTEL_…`` variables name the receiver, unless the embedding program has a provider of its own. The provider that
    this makes is not the global one: libraries of protocols and models would record spans with the messages of errors, which have
    content.

    Raises:
        Invalid: ``invalid_setting``: tracing is enabled and OpenTelemetry is not installed.
    """
    if not tracing.enabled:
        return contextlib.nullcontext()
    try:
        trace = importlib.import_module("opentelemetry.trace")
        sdk = importlib.import_module("opentelemetry.sdk.trace")
        export = importlib.import_module("opentelemetry.sdk.trace.export")
        otlp = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        resources = importlib.import_module("opentelemetry.sdk.resources")
    except ImportError as error:
        msg = "KNEO_SERV_OTEL_ENABLED is set, and OpenTelemetry is not installed."
        raise Invalid(msg, code="invalid_setting", hint=install_extra("telemetry")) from error
    provider = trace.get_tracer_provider()
    made = None
    if not isinstance(provider, sdk.TracerProvider):
        # Attributes of the environment win over Kneo's own.
        resource = resources.Resource({"service.name": "kneo"}).merge(resources.OTELResourceDetector().detect())
        provider = made = sdk.TracerProvider(resource=resource)
        made.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter()))
    _state.tracer = provider.get_tracer("kneo", version)
    _state.tracing = tracing
    return _sending(made)


@contextlib.contextmanager
def _sending(provider: object) -> Iterator[None]:
    try:
        yield
    finally:
        _state.tracer = None
        shutdown = getattr(provider, "shutdown", None)
        if shutdown is not None:
            shutdown()


def current_trace_id() -> str | None:
    """Return the id of the trace that this code is part of; None where nothing is recorded."""
    if _state.tracer is None:
        return None
    trace = importlib.import_module("opentelemetry.trace")
    context = trace.get_current_span().get_span_context()
    return format(context.trace_id, "032x") if context.is_valid else None


@contextlib.contextmanager
def span(
    name: str,
    *,
    kind: str = "internal",
    headers: Mapping[str, str] | None = None,
    expected: tuple[type[BaseException], ...] = (),
    **facts: Value | None,
) -> Iterator[Span]:
    """Record how long a block takes.

    Args:
        name: The operation.
        kind: ``internal``, ``server``, ``client``, ``producer`` or ``consumer``.
        headers: Request headers; ``traceparent`` names the parent span.
        expected: Exceptions that leave the block and are no failure of the operation.
        facts: Attributes; an underscore in a name stands for a dot, two stand for an underscore.
    """
    tracer = _state.tracer
    if tracer is None:
        yield NO_SPAN
        return
    trace = importlib.import_module("opentelemetry.trace")
    context = None
    if headers is not None:
        propagate = importlib.import_module("opentelemetry.propagate")
        context = propagate.extract({key: headers[key] for key in ("traceparent", "tracestate") if key in headers})
    with tracer.start_as_current_span(
        name,
        context=context,
        kind=trace.SpanKind[kind.upper()],
        attributes=_named(facts),
        # The message of an exception may contain user data; its class does not.
        record_exception=False,
        set_status_on_exception=False,
    ) as recorded:
        current = Span(recorded)
        try:
            yield current
        except BaseException as error:
            if not isinstance(error, expected):
                current.failed(type(error).__name__)
            raise


def _named(facts: Mapping[str, Value | None]) -> dict[str, Value]:
    return {key.replace("_", ".").replace("..", "_"): value for key, value in facts.items() if value is not None}


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


_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


_write = json.JSONEncoder(ensure_ascii=False, default=str).encode


class JsonLines(logging.Formatter):
    """Formats a record with its ``extra`` fields and those of the current work as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= current_fields()
        entry |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return plain(_write(entry))


def configure_logging(level: str = "INFO") -> None:
    """Send every logger of this process to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("watchdog", "uvicorn.access", "httpx", "alembic", "procrastinate"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def log_unknown_variables() -> None:
    """Log a warning for each variable with Kneo's prefix that no setting reads: a typing error would have no effect."""
    log = logging.getLogger("kneo.settings")
    for text in unknown_variables():
        log.warning(text)
