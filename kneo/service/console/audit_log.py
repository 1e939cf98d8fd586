"""The audit log: events with filters, exports, proofs, the signed checkpoint; and the provenance of runs and digests."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict

from starlette.responses import Response, StreamingResponse

from kneo.api.audit import AuditEventView, AuditPageView, get_audit_checkpoint, get_audit_proof, list_audit_events
from kneo.api.environments import trace
from kneo.errors import InvalidValue, NotFound
from kneo.service.console.page import MenuEntry, Page, PageRequest, Pages, download
from kneo.service.console.render import count

pages = Pages(MenuEntry("audit", "Audit", "/audit", "audit:read"))

PAGE_SIZE = 50

EXPORT_PAGE = 500

MAX_EXPORT = 100_000
"""Events of one export."""

MAX_DETAILS = 40
"""Details of one event on a page."""

FILTERS = ("event", "actor", "environment", "run", "from", "to")

COLUMNS = ("seq", "at", "event", "actor", "environment", "run", "task", "details", "id", "leaf")


def _list(request: PageRequest, limit: int, after: str | None) -> AuditPageView:
    filters = {name: request.query.get(name).strip() or None for name in FILTERS}
    return request.call(
        list_audit_events,
        event_type=filters["event"],
        actor=filters["actor"],
        environment=filters["environment"],
        run_id=filters["run"],
        created_after=request.query.time("from"),
        created_before=request.query.time("to"),
        limit=limit,
        after=after,
    )


@pages.get("/audit", scope="audit:read")
def show_audit(request: PageRequest) -> Page:
    """List audit events, the newest first."""
    after = request.query.get("after")[:40] or None
    listed = _list(request, PAGE_SIZE, after)
    exported = request.query.with_values(after=None)
    filters = {name: request.query.get(name) for name in FILTERS}
    return Page(
        "audit.html",
        {
            "events": [(event, details_of(event)) for event in listed.events],
            "filters": filters,
            "is_filtered": any(filters.values()),
            "lead": f"{count(listed.total, 'event')}." if listed.total else "",
            "csv_url": f"/console/audit.csv{exported}",
            "json_url": f"/console/audit.json{exported}",
            "next_url": request.query.with_values(after=listed.next_after) if listed.next_after else "",
            "shown": f"{len(listed.events)} of {listed.total:,}",
        },
    )


def details_of(event: AuditEventView) -> list[tuple[str, str]]:
    """Return the details of an event as names and values; names of nested ones are joined by dots."""
    found: list[tuple[str, str]] = []
    left: list[tuple[str, object]] = list(reversed(event.metadata.items()))
    while left and len(found) < MAX_DETAILS:
        name, value = left.pop()
        if isinstance(value, Mapping):
            left += [(f"{name}.{inner}", each) for inner, each in reversed(list(value.items()))]
        elif isinstance(value, list) and any(isinstance(each, Mapping | list) for each in value):
            left += [(f"{name}.{number}", each) for number, each in reversed(list(enumerate(value, 1)))]
        elif value not in (None, "", []):
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            found.append((name, text if len(text) <= 500 else f"{text[:500]}…"))
    if left:
        found.append(("…", "The proof has the whole event."))
    return found


@pages.get("/audit.csv", scope="audit:read")
def export_csv(request: PageRequest) -> Response:
    """Export the filtered events as CSV."""
    return _export(request, "audit.csv", "text/csv; charset=utf-8", _csv_rows)


@pages.get("/audit.json", scope="audit:read")
def export_json(request: PageRequest) -> Response:
    """Export the filtered events as JSON."""
    return _export(request, "audit.json", "application/json", _json_rows)


def _export(
    request: PageRequest, name: str, media_type: str, rows: Callable[[Iterator[AuditEventView]], Iterator[str]]
) -> Response:
    first = _list(request, EXPORT_PAGE, None)
    if first.total > MAX_EXPORT:
        msg = f"The filters select {first.total:,} events; one export has at most {MAX_EXPORT:,}."
        raise InvalidValue(msg, code="export_too_large", hint="Export one period after the other: set From and To.")
    return download(StreamingResponse(rows(_events(request, first)), media_type=media_type), name)


def _events(request: PageRequest, page: AuditPageView) -> Iterator[AuditEventView]:
    while True:
        yield from page.events
        if page.next_after is None:
            return
        page = _list(request, EXPORT_PAGE, page.next_after)


def _csv_rows(events: Iterator[AuditEventView]) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(COLUMNS)
    for event in events:
        details = json.dumps(event.metadata, ensure_ascii=False, sort_keys=True)
        values = [
            event.seq,
            event.created_at,
            event.event_type,
            event.actor,
            event.environment,
            event.run_id,
            event.continuation_id,
            details,
            event.id,
            event.leaf,
        ]
        writer.writerow([csv_cell(value) for value in values])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()


def csv_cell(value: object) -> str:
    """Return the text of a cell; one that a spreadsheet would calculate is marked as text."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _json_rows(events: Iterator[AuditEventView]) -> Iterator[str]:
    yield '{"events": ['
    for number, event in enumerate(events):
        yield ("," if number else "") + "\n" + json.dumps(asdict(event), ensure_ascii=False)
    yield "\n]}\n"


@pages.get("/audit/checkpoint", scope="audit:read")
def download_checkpoint(request: PageRequest) -> Response:
    """Download a signed checkpoint of the log as it is now."""
    note = request.call(get_audit_checkpoint).note
    return download(Response(note, media_type="text/plain; charset=utf-8"), "audit-checkpoint.txt")


@pages.get("/audit/{seq}/proof", scope="audit:read")
def download_proof(request: PageRequest) -> Response:
    """Download the proof that an event is in the log."""
    text = request.path["seq"]
    if not (text.isascii() and text.isdecimal() and len(text) < 19 and int(text)):
        msg = f"The audit log has no event {text[:20]!r}."
        raise NotFound(msg, code="audit_event_not_found")
    proof = request.call(get_audit_proof, int(text))
    body = json.dumps(asdict(proof), ensure_ascii=False, indent=2)
    return download(Response(body, media_type="application/json"), f"audit-{int(text)}-proof.json")


@pages.get("/trace/{reference}", scope=("runs:read", "releases:read"))
def show_trace(request: PageRequest) -> Page:
    """Show the way from a run or digest to its commit and signers, with the command that checks each link."""
    reference = request.path["reference"]
    return Page("trace.html", {"reference": reference, "found": request.call(trace, reference)})
