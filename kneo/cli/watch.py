"""Events of a run as they happen: read from a stream, or polled."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import cast

from kneo.cli import render
from kneo.cli.backend import Json
from kneo.clock import sleep
from kneo.records.run import RunStatus
from kneo.service.published import both_words

POLL_SECONDS = 0.2

FINAL = both_words(*(status for status in RunStatus if status.is_final))
PAUSED = both_words(RunStatus.PAUSED)


def _pause() -> Iterable[Json]:
    sleep(POLL_SECONDS)
    return ()


def poll(
    look: Callable[[int], tuple[str, Sequence[Json]]],
    run_id: str,
    *,
    until_pause: bool,
    pause: Callable[[], Iterable[Json]] = _pause,
) -> Iterator[Json]:
    """Yield the events of a run by polling.

    Args:
        look: Returns the status of the run and its trace events after the first ``n``. The run is read before the
            events, so that a run that has ended shows all of them.
        run_id: The run.
        until_pause: Whether to stop when the run pauses.
        pause: Waits before the next look, and returns events that are in no database.
    """
    count, last = 0, ""
    while True:
        status, events = look(count)
        yield from events
        count += len(events)
        if status in FINAL:
            yield {"type": "end", "run_id": run_id, "status": status}
            return
        if status != last:
            yield {"type": "status", "run_id": run_id, "status": status}
            last = status
        if until_pause and status in PAUSED:
            return
        if not events:
            yield from pause()


def read_stream(lines: Iterable[str]) -> Iterator[Json]:
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
            yield {"type": name, **cast("Json", json.loads(data or "{}"))}
            name, data = "", ""


def is_last(event: Json, *, until_pause: bool) -> bool:
    """Return whether an event ends the watch of a run: the end of the run, with ``until_pause`` also a pause."""
    return event["type"] == "end" or (until_pause and event["type"] == "status" and event.get("status") in PAUSED)


def show_event(event: Json) -> None:
    """Print one event as a line."""
    kind = str(event["type"])
    place = event.get("step_id") or event.get("agent_name") or ""
    mark = render.FAILED if kind.endswith("_failed") else render.DONE if kind.endswith("completed") else render.OPEN
    render.line(mark, f"{indent(kind)}{kind:<28} {place!s:<20} {details(event)[:100]}".rstrip())


_LEVELS: Mapping[str, int] = {"model": 1, "memory": 1, "guardrail": 1, "tool": 2}
"""The level of an event below its step, by the first word of its type: a tool is called by a reply of the model."""


def indent(kind: str) -> str:
    """Return what stands before the type of an event, so that requests and tool calls form a tree."""
    level = _LEVELS.get(kind.partition("_")[0], 0)
    return f"{'  ' * (level - 1)}└ " if level else ""


def details(event: Mapping[str, object]) -> str:
    """Return an event in one line: its error, its tool, its model with tokens and time, or the beginning of its output."""
    facts = event.get("metadata")
    facts = facts if isinstance(facts, Mapping) else {}
    error = event.get("error")
    message = error.get("message") if isinstance(error, Mapping) else error
    tokens = [count for name in ("input_tokens", "output_tokens") if isinstance(count := facts.get(name), int)]
    millis = facts.get("milliseconds")
    parts = [
        event.get("tool_name"),
        event.get("model_name") if str(event["type"]).startswith("model_") else None,
        f"{sum(tokens)} tokens" if tokens else None,
        f"{millis} ms" if isinstance(millis, int) else None,
        _sandbox(facts.get("sandbox")),
        message or event.get("output_preview") or event.get("input_preview") or event.get("status"),
    ]
    return " ".join(" ".join(str(part) for part in parts if part is not None).split())


def _sandbox(used: object) -> str | None:
    """Return the level of a sandbox in words, with the hosts that it denied."""
    if not isinstance(used, Mapping):
        return None
    denied = used.get("denied")
    hosts = f", denied {', '.join(map(str, denied))}" if isinstance(denied, list) and denied else ""
    return f"{used.get('level')} sandbox{hosts}"


class StreamPrinter:
    """Prints replies of models while they arrive, between the other events of a run."""

    def __init__(self) -> None:
        self._reply: tuple[object, object] | None = None
        self.text = ""
        """The text of the last reply, as far as it arrived."""
        self._printed = 0
        """Characters of the reply so far; 0 where the cursor is at the beginning of a line."""

    def show(self, event: Json) -> None:
        """Print one event."""
        if event["type"] != "model_delta":
            self.end_reply()
            show_event(event)
            return
        reply, offset, text = (event["step_id"], event["request"]), event["offset"], str(event["text"])
        if reply != self._reply or offset == 0:
            self.end_reply()
            self._reply, self.text = reply, ""
        if offset != self._printed:
            render.piece("[…]")
        render.piece(text)
        self.text += text
        self._printed = int(str(offset)) + len(text)

    def end_reply(self) -> None:
        """End the line of a reply that is being printed."""
        if self._reply is not None:
            render.text("")
        self._reply, self._printed = None, 0
