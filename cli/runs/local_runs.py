"""Runs on the database beside us: starting them, and driving them to where they pause or end."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from cli.compose import make_starter
from kneo.api.spec_loader import SpecSelection
from kneo.records.run import Run
from kneo.runtime.engine.assemble import drive_or_wait
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import ForkRequest, continue_run, fork, read_record
from kneo.runtime.engine.start import StartRequest
from kneo.runtime.engine.views import RunRecord
from kneo.runtime.engine.wait import SettledRun, read_settled_run
from kneo.runtime.steps.code import CodeUnavailable
from kneo.settings import Settings
from kneo.store.engine import Store

Order = Mapping[str, object]


class Driver:
    """Executes steps, but only while nobody else does; otherwise it waits for whoever does."""

    def __init__(self, settings: Settings, store: Store, actor: str) -> None:
        self.settings = settings
        self.store = store
        self.actor = actor

    def start(self, order: Order) -> Run:
        """Start a run and drive it; takes what ``POST /v1/runs`` does."""
        return self.drive(self._start(order).id)

    def begin(self, order: Order) -> Run:
        """Start a run and drive it beside whatever else happens here."""
        run = self._start(order)
        self.drive_aside(run.id)
        return run

    def drive_aside(self, run_id: str) -> None:
        """Drive a run in a thread of its own. The thread ends with this process, as it would in a crash."""
        threading.Thread(target=self.drive, args=(run_id,), daemon=True).start()

    def go_on(self, run_id: str) -> Run:
        """Let a run that ended go on where it stopped."""
        return self.drive(continue_run(self.store, ProgramLoader(self.store), run_id, actor=self.actor).id)

    def fork(self, run_id: str, order: Order) -> Run:
        """Start a run from another one's past; takes what ``POST /v1/runs/{id}/fork`` does."""
        checkpoint = order.get("checkpoint")
        wanted = ForkRequest(
            run_id=run_id,
            step=_text(order, "step"),
            checkpoint=int(str(checkpoint)) if checkpoint is not None else None,
            input=_text(order, "input"),
            requester=self.actor,
            answers=_map(order, "answers"),
            ask=_list(order, "ask"),
        )
        return self.drive(fork(make_starter(self.settings, self.store), ProgramLoader(self.store), wanted).id)

    def drive(self, run_id: str) -> Run:
        """Drive a run to its next pause or end, or wait for the process that executes steps on this database to do it.

        A run whose code is in a Python program stays running: that program continues it.
        """
        return self.settle(run_id).run

    def settle(self, run_id: str) -> SettledRun:
        """Drive a run as ``drive`` does; return it with what it asks."""
        try:
            return drive_or_wait(self.settings, self.store, run_id, self.settings.client_timeout_seconds)
        except CodeUnavailable:
            return read_settled_run(self.store, run_id)

    def record(self, run_id: str) -> RunRecord:
        """Read everything that is known of a run's past."""
        return read_record(self.store, run_id)

    def _start(self, order: Order) -> Run:
        spec = order.get("spec")
        assert spec is None or isinstance(spec, Mapping)
        timeout = order.get("timeout_seconds")
        environment = _text(order, "environment")
        wanted = StartRequest(
            input=str(order["input"]),
            requester=self.actor,
            target=str(order.get("target") or "workflow"),
            environment=environment,
            bundle=_text(order, "bundle"),
            spec=spec,
            timeout_seconds=timeout if isinstance(timeout, int) and timeout else None,
            # What a request to the service would have said.
            origin=SpecSelection(spec=spec, environment=environment).origin()
            | {"async_mode": False, "session_id": _text(order, "session_id")},
            asked={"overrides": {}, "skills_overlay": None},
        )
        return make_starter(self.settings, self.store).start(wanted)


def _map(values: Order, name: str) -> Mapping[str, object]:
    found = values.get(name) or {}
    assert isinstance(found, Mapping)
    return found


def _list(values: Order, name: str) -> tuple[str, ...]:
    found = values.get(name) or ()
    assert isinstance(found, list | tuple)
    return tuple(map(str, found))


def _text(values: Order, name: str) -> str | None:
    value = values.get(name)
    return str(value) if value is not None else None
