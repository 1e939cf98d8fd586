"""Runs of specs that were written in Python: the same start, the same interpreter, the same rows, the same tasks."""

from __future__ import annotations

import asyncio
import getpass
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from kneo.errors import Invalid, NotFound
from kneo.records.run import Run, StepRecord
from kneo.records.task import HumanTask, TaskStatus
from kneo.runtime.engine.driver import Driver
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import ForkRequest, fork
from kneo.runtime.engine.start import Starter, StartRequest
from kneo.runtime.engine.timers import tick
from kneo.runtime.engine.wait import Settling, find_run, wait_until_settled
from kneo.runtime.interpreter.node import Activity
from kneo.runtime.steps.context import StepContext
from kneo.sdk.code import InProcess, Work
from kneo.sdk.db import Database
from kneo.sdk.seat import seat
from kneo.spec.lint import check
from kneo.spec.models import Spec
from kneo.spec.reading.load import load_tree
from kneo.store import history, journal, tasks
from kneo.store.engine import Store
from kneo.store.journal import JournalEntry
from kneo.tasks.decisions import DecisionRequest
from kneo.tasks.inbox import decide

T = TypeVar("T")

SETTLE_SECONDS = 3600.0
"""How long somebody waits for a run that another thread drives."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A run with its finished steps and everything it asked, in order."""

    run: Run
    steps: Sequence[StepRecord]
    tasks: Sequence[HumanTask]
    parts: Sequence[JournalEntry]


@dataclass(frozen=True)
class Host:
    """One database, and the code of one program.

    Attributes:
        database: Where its runs are.
        work: What its steps do, by the implementation that the spec names.
        began: Told of every step that begins.
    """

    database: Database
    work: Mapping[str, Work]
    began: Callable[[Activity, StepContext], None] = lambda _leaf, _context: None

    @property
    def store(self) -> Store:
        return self.database.store

    def start(
        self, tree: Mapping[str, object], text: str, metadata: Mapping[str, object], *, session_id: str | None = None
    ) -> Run:
        """Record a run; whoever drives it executes it.

        Raises:
            Invalid, Forbidden: it may not run; nothing did.
            Conflict: ``worker_running``: another process executes steps here.
        """
        origin = {"inline_spec": True, **({"session_id": session_id} if session_id else {})}
        order = StartRequest(input=text, requester=actor(), spec=tree, metadata=metadata, origin=origin)
        with seat(self.store):  # nothing is recorded that this process could not go on with
            return Starter(self.store, check_spec, pin=None).start(order)

    async def drive(self, run_id: str) -> Standing:
        """Execute a run until it waits for people or has ended.

        Raises:
            Conflict: ``worker_running``: another process executes steps here, or took over.
        """
        await asyncio.to_thread(self.catch_up)
        driver = Driver(self.store, ProgramLoader(self.store), InProcess(self.work, self.began, self.store))
        place = seat(self.store)
        lock = await asyncio.to_thread(place.__enter__)
        try:
            await driver.drive_alone(run_id, lock)
        finally:
            await asyncio.to_thread(place.__exit__, None, None, None)
        await asyncio.to_thread(wait_until_settled, self.store, Settling(run_id), SETTLE_SECONDS)
        return await asyncio.to_thread(self.look, run_id)

    def look(self, run_id: str) -> Standing:
        """Read how a run stands.

        Raises:
            NotFound: there is no such run.
        """
        run = find_run(self.store, run_id)
        with self.store.read() as tx:
            steps = history.list_steps(tx, run_id)
            asked = tasks.of_run(tx, run_id, tuple(TaskStatus))
            done = journal.list_entries(tx, run_id)
        return Standing(run=run, steps=steps, tasks=asked, parts=done)

    def decide(self, task: HumanTask, answer: DecisionRequest) -> HumanTask:
        """Record what somebody says.

        Raises:
            Conflict, NotAllowed: it does not fit, or somebody else said something; nothing was written.
        """
        return decide(self.store, task.id, answer, actor=actor())

    def fork(self, order: ForkRequest, done: Sequence[JournalEntry] = ()) -> Run:
        """Record a run with another run's past.

        Args:
            order: The other run, and where in it this one begins.
            done: Parts of the other run that are not done again.

        Raises:
            NotFound, Conflict, Forbidden: there is no such past, or it may not run again.
        """
        starter = Starter(self.store, check_spec, pin=None)
        order = replace(order, requester=actor())
        programs = ProgramLoader(self.store)
        return fork(starter, programs, order, lambda tx, run: journal.copy_entries(tx, done, run.id))

    def begin_again(self, order: ForkRequest, before: str | None) -> str:
        """Record a run with another run's past and what was done in it before a part; return its id.

        Args:
            order: The other run, and where in it this one begins.
            before: A part by its name, or by name and number: ``draft``, ``draft:2``; None for nothing done.

        Raises:
            NotFound, Conflict, Forbidden: as ``fork``; or there is no such part.
        """
        done = self._done_before(order.run_id, before) if before is not None else ()
        return self.fork(order, done).id

    def _done_before(self, run_id: str, before: str) -> Sequence[JournalEntry]:
        done = self.look(run_id).parts
        anchor = next((part for part in done if before in {part.name, part.name.rpartition(":")[0]}), None)
        if anchor is None:
            known = ", ".join(part.name for part in done) or "none"
            msg = f"{run_id} has no checkpoint {before[:80]}; it has {known}."
            raise NotFound(msg, code="checkpoint_not_found", hint="Left out, a replay begins at the flow.")
        return [part for part in done if part.sequence < anchor.sequence]

    def catch_up(self) -> None:
        """Let deadlines that have passed take effect: no process may have been there to do it."""
        tick(self.store)


def actor() -> str:
    """Name who runs this program."""
    return getpass.getuser()


def check_spec(tree: Mapping[str, object]) -> Spec:
    """Check a spec that a program built, by the rules for every spec.

    Raises:
        Invalid: ``spec_invalid``; the diagnostics are in its details.
    """
    loaded = load_tree(dict(tree), rules=check)
    if loaded.spec is None or not loaded.valid:
        errors = [found for found in loaded.diagnostics if found.is_error]
        said = "; ".join(f"{found.code}: {found.message}" for found in errors[:3])
        raise Invalid(said, code="spec_invalid", diagnostics=[found.as_json() for found in loaded.diagnostics])
    return loaded.spec


def run_sync(work: Coroutine[object, object, T]) -> T:
    """Run something async to its end, whether or not this thread has an event loop already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    results: list[T] = []
    errors: list[BaseException] = []

    def inner() -> None:
        try:
            results.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001 - raised again where it was asked for
            errors.append(error)

    thread = threading.Thread(target=inner, name="kneo-sdk")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
