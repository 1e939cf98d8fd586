"""Passing deltas from the process that receives a reply to its readers: in memory, and through PostgreSQL between processes.

Deltas are hints. Those that find a full queue, a lost connection or no reader are dropped; the journal has every reply.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Callable, Iterator
from functools import partial
from secrets import token_hex
from typing import TypeAlias

from kneo.records.conversation import ModelDelta
from kneo.store.listening import RETRY_SECONDS, receive, reconnect

CHANNEL = "kneo_deltas"

MAX_PAYLOAD_BYTES = 7_900
"""Bytes of one notification; PostgreSQL refuses 8,000 and more."""

PIECE_CHARS = 1_200
"""Characters of one notification, which fit into its bytes however they are encoded."""

MAX_OUTGOING = 500
"""Notifications that wait to be sent; further ones are dropped."""

Listener: TypeAlias = Callable[[ModelDelta], None]
"""Receives the deltas of a run in any thread; it must be quick and not raise."""


class DeltaHub:
    """Passes on deltas by their runs.

    Args:
        conninfo: Returns the URL of the PostgreSQL server, whose other clients send and receive deltas too; ``None`` where
            there is only this process.
    """

    def __init__(self, conninfo: Callable[[], str] | None = None) -> None:
        self._conninfo = conninfo
        self._origin = token_hex(8)
        """Marks the notifications of this process, which has delivered them itself."""
        self._listeners: dict[str, list[Listener]] = {}
        self._outgoing: queue.Queue[str | None] = queue.Queue(MAX_OUTGOING)
        self._threads: dict[str, threading.Thread] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.listening = threading.Event()
        """Set while the deltas of other processes are received."""

    @property
    def spans_processes(self) -> bool:
        """Whether readers may be in other processes."""
        return self._conninfo is not None

    def has_listener(self, run_id: str) -> bool:
        """Return whether this process has a reader of a run."""
        return run_id in self._listeners

    @contextlib.contextmanager
    def listen(self, run_id: str, listener: Listener) -> Iterator[None]:
        """Call a listener with the deltas of a run until the block ends."""
        if self._conninfo is not None:
            self._start("delta-receiver", self._receive)
        with self._lock:
            self._listeners.setdefault(run_id, []).append(listener)
        try:
            yield
        finally:
            with self._lock:
                self._listeners[run_id].remove(listener)
                if not self._listeners[run_id]:
                    del self._listeners[run_id]

    def publish(self, delta: ModelDelta) -> None:
        """Pass on a delta without waiting."""
        self._deliver(delta)
        if self._conninfo is None:
            return
        self._start("delta-sender", self._send)
        for payload in payloads(delta, self._origin):
            with contextlib.suppress(queue.Full):
                self._outgoing.put_nowait(payload)

    def close(self) -> None:
        """End the threads."""
        self._closed.set()
        with contextlib.suppress(queue.Full):
            self._outgoing.put_nowait(None)
        with self._lock:
            threads = tuple(self._threads.values())
        for thread in threads:
            thread.join(2 * RETRY_SECONDS)

    def _deliver(self, delta: ModelDelta) -> None:
        with self._lock:
            listeners = tuple(self._listeners.get(delta.run_id, ()))
        for listener in listeners:
            listener(delta)

    def _start(self, name: str, work: Callable[[str], None]) -> None:
        assert self._conninfo is not None
        with self._lock:
            if name not in self._threads and not self._closed.is_set():
                target = self._until_closed
                self._threads[name] = threading.Thread(
                    target=target, args=(work, self._conninfo()), name=name, daemon=True
                )
                self._threads[name].start()

    def _until_closed(self, work: Callable[[str], None], conninfo: str) -> None:
        reconnect(partial(work, conninfo), "deltas", closed=self._closed, listening=self.listening)

    def _send(self, conninfo: str) -> None:
        import psycopg

        with psycopg.connect(conninfo, autocommit=True) as connection:
            while not self._closed.is_set() and (payload := self._outgoing.get()) is not None:
                connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, payload))

    def _receive(self, conninfo: str) -> None:
        def accept(payload: str) -> None:
            delta = read_payload(payload, self._origin)
            if delta is not None:
                self._deliver(delta)

        receive(conninfo, CHANNEL, accept, closed=self._closed, listening=self.listening)


def payloads(delta: ModelDelta, origin: str) -> Iterator[str]:
    """Yield the notifications of a delta; a piece that does not fit is left out."""
    for start in range(0, len(delta.text), PIECE_CHARS):
        piece = {"offset": delta.offset + start, "text": delta.text[start : start + PIECE_CHARS]}
        payload = json.dumps({**vars(delta), **piece, "origin": origin}, ensure_ascii=False, separators=(",", ":"))
        # The server takes no half of a surrogate pair, with which a model's piece may end.
        body = payload.encode(errors="replace")
        if len(body) <= MAX_PAYLOAD_BYTES and "\\u0000" not in payload:
            yield body.decode()


def read_payload(payload: str, origin: str) -> ModelDelta | None:
    """Read a notification; ``None`` for one of this process, and for one that is no delta of this version."""
    try:
        values = json.loads(payload)
        if values.pop("origin") == origin:
            return None
        return ModelDelta(**values)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
