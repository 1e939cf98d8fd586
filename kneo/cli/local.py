"""The backend on the local database: the same results as those of a service."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from queue import Empty, SimpleQueue
from typing import cast

from kneo import registry
from kneo.api.operation import Context, Operation, Principal, Waiting
from kneo.api.run_views import TraceEventView
from kneo.api.runs import get_run
from kneo.api.task_views import TaskEventView
from kneo.cli import compose
from kneo.cli.backend import Json, P, V
from kneo.cli.watch import POLL_SECONDS, poll
from kneo.clock import monotonic, sleep
from kneo.errors import Usage
from kneo.names import person_key, person_name
from kneo.project import read_config
from kneo.records.conversation import ModelDelta
from kneo.records.run import Run
from kneo.roles import EVERYTHING
from kneo.runtime.engine.wait import SettledRun, read_settled_run
from kneo.service.published import expects_published_words, in_published_words
from kneo.settings import Settings, user_name
from kneo.store import history, task_feed
from kneo.store.engine import Store, Tx
from kneo.trust.keys import KeyId

LOOK_SECONDS = 0.5
"""Seconds between two polls for new events."""


class LocalBackend:
    """The operations on the local database. Steps are executed here unless another process executes them."""

    url = None

    def __init__(self, settings: Settings, *, existing: bool = False) -> None:
        self.settings = settings
        self.store = compose.find_store(settings) if existing else compose.make_store(settings)
        self.actor = user_name()
        self.on_behalf: str | None = None
        self.published = expects_published_words(settings.status_words)

    def close(self) -> None:
        self.store.close()

    @cached_property
    def driver(self) -> LocalDriver:
        """The driver of runs."""
        return LocalDriver(self.settings, self.store)

    @cached_property
    def context(self) -> Context:
        """The context of operations in this process."""
        return Context(
            store=self.store,
            settings=self.settings,
            principal=Principal(self.actor, frozenset({EVERYTHING})),
            project=read_config(self.settings),
            make_starter=lambda: compose.make_starter(
                self.settings, self.store, executes=lambda: compose.executes_runs(self.store)
            ),
            settle=self._settle,
            drive=self._drive,
            on_behalf=self.on_behalf,
            find_caller=self._find_caller,
        )

    def _find_caller(self, _tx: Tx, name: str) -> Principal | None:
        # Its import takes a fifth of a second, and one command needs it.
        from kneo.service.auth import configured, hash_keys

        return next(
            (one for one in hash_keys(configured(self.settings)).values() if person_key(one.name) == person_key(name)),
            None,
        )

    def _drive(self, run_id: str) -> Run:
        return self.driver.settle(run_id).run

    def _settle(self, waiting: Waiting[object]) -> SettledRun:
        run_id = waiting.settling.run_id
        if waiting.settled is not None and waiting.seconds <= 0:
            self.driver.drive_aside(run_id)
            return waiting.settled
        return self.driver.settle(run_id)

    def call(self, operation: Operation[P, V], /, *args: P.args, **kwargs: P.kwargs) -> V:
        view = operation(self.context, *args, **kwargs)
        return in_published_words(view) if self.published else view

    def follow(self, run_id: str, *, until_pause: bool, deltas: bool = False) -> Iterator[Json]:
        def look(known: int) -> tuple[str, Sequence[Json]]:
            status = self.call(get_run, run_id).status
            with self.store.read() as tx:
                events = history.list_trace(tx, run_id, limit=1000, offset=known)
            return str(status), [vars(TraceEventView.of(one)) for one in events]

        if not deltas:
            yield from poll(look, run_id, until_pause=until_pause)
            return
        arrived = ArrivedDeltas()
        with self.store.deltas.listen(run_id, arrived.queue.put):
            for event in poll(look, run_id, until_pause=until_pause, pause=arrived.until_next_look):
                yield from arrived.of_reply(event)
                yield event

    def as_signer(self, keyid: str | None) -> LocalBackend:
        if keyid is None:
            return self
        with self.store.read() as tx:
            key = registry.trust_root(tx, self.settings.trust_root).keys.get(KeyId(keyid))
        signer = copy.copy(self)
        signer.__dict__.pop("context", None)
        signer.actor = key.principal if key is not None else self.actor
        return signer

    def with_key(self, key: str | None) -> LocalBackend:
        if key is not None:
            msg = "--key needs a service, which requests may reach twice."
            raise Usage(msg, hint="Add --service-url URL or --profile NAME.")
        return self

    def as_person(self, name: str) -> LocalBackend:
        other = copy.copy(self)
        other.__dict__.pop("context", None)
        other.actor, other.on_behalf = person_name(name, "The name after --as"), self.actor
        return other

    def follow_tasks(self, after: str | None) -> Iterator[Json]:
        position = task_feed.find_cursor(self.store, after).position
        while True:
            events = task_feed.events_after(self.store, position)
            for at, item in events:
                position = at
                yield vars(TaskEventView.of(item))
            if not events:
                sleep(LOOK_SECONDS)


class LocalDriver:
    """Executes the steps of runs, unless another process does; otherwise it waits for that process."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings = settings
        self.store = store
        self._driving = threading.Lock()
        """Held while a run is driven: two runs of one process follow each other, because one process executes steps."""

    def drive_aside(self, run_id: str) -> None:
        """Drive a run in a thread of its own. The thread ends with this process, as it would in a crash."""
        threading.Thread(target=self.settle, args=(run_id,), daemon=True).start()

    def settle(self, run_id: str) -> SettledRun:
        """Drive a run to its next pause or end, or wait for the process that executes steps on this database to do it.

        A run whose code is in a Python program stays running: that program continues it.
        """
        # The engine is imported on first use, because commands that read do without it.
        from kneo.cli.project import registered_tools
        from kneo.runtime.engine.assemble import drive_or_wait
        from kneo.runtime.steps.code import CodeUnavailable

        tools = registered_tools(self.settings)
        try:
            with self._driving:
                return drive_or_wait(self.settings, self.store, run_id, self.settings.client_timeout_seconds, tools)
        except CodeUnavailable:
            return read_settled_run(self.store, run_id)


class ArrivedDeltas:
    """The deltas that arrive between two looks for events."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[ModelDelta] = SimpleQueue()
        self._held: list[ModelDelta] = []

    def of_reply(self, event: Json) -> Iterator[Json]:
        """Yield the deltas of the reply that an event completes: they arrived before it was recorded, and stand before it."""
        if event["type"] != "model_completed":
            return
        while not self.queue.empty():
            self._held.append(self.queue.get())
        reply = event["step_id"], cast("Json", event["metadata"]).get("request")
        theirs = [delta for delta in self._held if (delta.step_id, delta.request) == reply]
        self._held = [delta for delta in self._held if delta not in theirs]
        yield from map(_event_of, theirs)

    def until_next_look(self) -> Iterator[Json]:
        """Yield deltas until the next look is due: at the first one of a reply, which stands behind the events before it."""
        until = monotonic() + POLL_SECONDS
        held, self._held = self._held, []
        yield from map(_event_of, held)
        while (left := until - monotonic()) > 0:
            try:
                delta = self.queue.get(timeout=left)
            except Empty:
                return
            if delta.offset == 0:
                self._held.append(delta)
                return
            yield _event_of(delta)


def _event_of(delta: ModelDelta) -> Json:
    return {"type": "model_delta", **vars(delta)}
