"""Events of a run as they happen: read from a stream, or polled."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

from cli import render
from cli.backend import Json
from kneo.clock import sleep

POLL_SECONDS = 0.2

FINAL = frozenset({"succeeded", "completed", "failed", "cancelled", "expired", "timed_out"})
PAUSED = frozenset({"paused", "blocked"})


def poll(look: Callable[[int], tuple[str, Sequence[Json]]], run_id: str, *, until_pause: bool) -> Iterator[Json]:
    """Yield the events of a run by polling.

    Args:
        look: Returns the status of the run and its trace events after the first ``n``. The run is read before the
            events, so that a run that has ended shows all of them.
        run_id: The run.
        until_pause: Whether to stop when the run pauses.
    """
    seen, last = 0, ""
    while True:
        status, events = look(seen)
        yield from events
        seen += len(events)
        if status in FINAL:
            yield {"type": "end", "run_id": run_id, "status": status}
            return
        if status != last:
            yield {"type": "status", "run_id": run_id, "status": status}
            last = status
        if until_pause and status in PAUSED:
            return
        if not events:
            sleep(POLL_SECONDS)


def read_stream(lines: Iterable[str], *, until_pause: bool) -> Iterator[Json]:
    """Yield the events of a run from the lines of a stream of server-sent events; ``sequence`` is the id of an event."""
    name, data = "", ""
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data += value
        elif not line and name:
            event = {"type": name, **cast("Json", json.loads(data or "{}"))}
            yield event
            if name == "end" or (until_pause and name == "status" and event.get("status") in PAUSED):
                return
            name, data = "", ""


def show_event(event: Json) -> None:
    """Print one event as a line."""
    kind = str(event["type"])
    place = event.get("step_id") or event.get("agent_name") or ""
    detail = event.get("error") or event.get("output_preview") or event.get("status") or ""
    if isinstance(detail, dict):
        detail = detail.get("message", "")
    mark = render.FAILED if kind.endswith("_failed") else render.DONE if kind.endswith("completed") else render.OPEN
    render.line(mark, f"{kind:<28} {place!s:<20} {' '.join(str(detail).split())[:100]}".rstrip())
