"""One driver's time with one run: take it, begin what is due, record what ends, until the run is let go of.

A session has a thread to itself. A plain function that is all there is to do is called there and recorded by the same
thread: handing it to another one would take longer than most functions do. Everything else is begun beside it, on an
event loop or in threads of its own, and the session waits for whatever ends first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeVar

from kneo.clock import isoformat, parse_time, sleep
from kneo.errors import KneoError, Transient
from kneo.records import replace
from kneo.runtime import record
from kneo.runtime.attempt import Trial, pins_of
from kneo.runtime.code import Elsewhere
from kneo.runtime.decide import Action, Ask, Execute, actions, waiting
from kneo.runtime.load import ProgramLoader
from kneo.runtime.migrate_state import migrate_state
from kneo.runtime.program import Program
from kneo.runtime.steps import Call, Executor
from kneo.runtime.steps.base import CancelToken
from kneo.runtime.steps.threads import Beside
from kneo.state.run import STATE_VERSION, Run, RunError, RunStatus
from kneo.store import runs
from kneo.store.engine import Store, Tx
from kneo.store.history import CheckpointLimits
from kneo.telemetry.spans import span

log = logging.getLogger("kneo.runtime")

T = TypeVar("T")

LOOK_SECONDS = 0.5
"""How often a session whose steps take long looks whether the run is still its own and whether somebody answered."""

RETRY_SECONDS = (0.2, 0.4, 0.8, 1.6, 3.2)
"""Pauses before a write is tried again while the database is away: what a step has returned is worth waiting for."""


class _EndsError(Exception):
    """What was about to be written ends the run or lets it wait."""


@dataclass(frozen=True)
class Means:
    """What all sessions of a process share."""

    store: Store
    programs: ProgramLoader
    executor: Executor
    limits: CheckpointLimits
    draining: threading.Event = field(default_factory=threading.Event)
    """Set when no further steps are to begin."""


class Session:
    """One driver's time with one run.

    Args:
        means: What to do it with.
        run_id: Which run.
        claim: Who drives it. Whoever comes with the claim of a driver that crashed takes over from it.
        loop: Where steps are executed that are not plain functions. It must run for as long as the session does.
    """

    def __init__(self, means: Means, run_id: str, claim: str, loop: asyncio.AbstractEventLoop) -> None:
        self.run_id = run_id
        self._means = means
        self._store = means.store
        self._claim = claim
        self._loop = loop
        self._epoch: int | None = None
        """The one it took the run in, once it has."""
        self._over = False
        """Whether nothing that this session still does counts; asked in every transaction."""
        self._busy: dict[str, Beside[record.Attempt]] = {}
        self._ended: SimpleQueue[tuple[str, Beside[record.Attempt]] | None] = SimpleQueue()
        """Steps that ended, as they end; ``None`` when there is another reason to look up."""
        self._calling: CancelToken | None = None
        """Of the function that this thread is in."""
        self._seen: CancelToken | None = None

    # ---- for whoever started it -----------------------------------------------------------------------------------

    def go(self) -> None:
        """Advance the run until it waits or ends; do nothing when somebody else has it.

        Raises:
            Transient: the database went away. The run is let go of when it can be; else the next start frees it.
            Elsewhere: its code is in another process; it has been let go of.
        """
        try:
            run = self._take()
            if run is None:
                return
            self._epoch = run.epoch
            with span("kneo.worker.lease", kind="consumer", kneo_run__id=run.id, kneo_workflow=run.workflow_name):
                self._advance(run)
        except runs.Fenced:
            log.info("run was taken over or ended elsewhere", extra={"run_id": self.run_id})
        except Elsewhere:
            self._let_go(again=False)
            raise
        except Transient:
            self._let_go()
            raise

    @property
    def is_calling(self) -> bool:
        """Whether a function keeps its thread from looking up, so that somebody else has to ``look``."""
        return self._calling is not None

    def look(self) -> bool:
        """Say whether the run is still this session's, or may be; else what it does is stopped and does not count.

        Every ``LOOK_SECONDS`` while ``is_calling``, from any thread. It asks the database about functions that were under
        way the last time already.
        """
        calling, seen = self._calling, self._seen
        self._seen = calling
        if calling is None or calling is not seen:
            return True
        try:
            self._check_ours()
        except runs.Fenced:
            self._stop()
            return False
        except Transient as error:
            log.warning("could not look after a run: %s", error, extra={"run_id": self.run_id})
        return True

    def cut(self) -> None:
        """Stop what is under way and let go of the run, for somebody else to begin it again. From any thread."""
        self._stop()
        self._let_go()

    def _stop(self) -> None:
        self._over = True
        calling = self._calling
        if calling is not None:
            calling.cancel()
        self._ended.put(None)

    # ---- taking it and letting go of it ---------------------------------------------------------------------------

    def _take(self) -> Run | None:
        """Take a run and let the answer it was woken for take effect; ``None`` when there is nothing left to do for it.

        Neither has to be on disk before the run goes on: who drives it dies with the machine, and the answer, which is
        there, would take the same effect again. What ends the run or lets it wait is told to others, and has to be.
        """
        try:
            return self._write(lambda tx: self._taken(tx, may_end=False), durable=False)
        except _EndsError:
            return self._write(lambda tx: self._taken(tx, may_end=True))
        except (runs.Fenced, Transient):
            raise
        except Exception:
            # Whatever is wrong with it comes up again, and is recorded, when it is driven.
            log.info("an answer could not take effect at once", extra={"run_id": self.run_id}, exc_info=True)
            return self._write(lambda tx: runs.acquire(tx, self.run_id, self._claim))

    def _taken(self, tx: Tx, *, may_end: bool) -> Run | None:
        run = runs.acquire(tx, self.run_id, self._claim)
        program = self._means.programs.cached(run) if run is not None and run.state_version == STATE_VERSION else None
        if run is None or program is None:
            return run
        after = record.answer_applied(tx, record.Desk(program=program, limits=self._means.limits), run)
        if after is None and not may_end:
            raise _EndsError
        return after

    def _let_go(self, *, again: bool = True) -> None:
        def work(tx: Tx) -> None:
            # Whoever takes over from a driver that seemed dead has its claim, and another epoch.
            runs.let_go(tx, self.run_id, self._claim, epoch=self._epoch, again=again)

        self._patiently(lambda: self._store.transact(work))

    def _write(self, work: Callable[[Tx], T], *, durable: bool = True) -> T:
        self._check_counts()

        def fenced(tx: Tx) -> T:
            # In here again, because it is here that a session that was cut short has let go of the run, or has not yet.
            self._check_counts()
            return work(tx)

        return self._patiently(lambda: self._store.transact(fenced, durable=durable))

    def _check_counts(self) -> None:
        if self._over:
            raise runs.Fenced(self.run_id)

    def _patiently(self, write: Callable[[], T]) -> T:
        """Wait a while for a database that is away."""
        for pause in RETRY_SECONDS:
            try:
                return write()
            except Transient as error:
                log.warning("will try to write again: %s", error)
                sleep(pause)
        return write()

    def _check_ours(self) -> None:
        with self._store.read() as tx:
            now = runs.standing(tx, self.run_id)
        if now is None or now.epoch != self._epoch or now.status is not RunStatus.RUNNING:
            raise runs.Fenced(self.run_id)

    # ---- turn by turn ---------------------------------------------------------------------------------------------

    def _advance(self, run: Run) -> None:
        program: Program | None = None
        try:
            self._run = replace(run, state=migrate_state(run.state, run.state_version), state_version=STATE_VERSION)
            program = self._program = self._means.programs.load(run)
            self._desk = record.Desk(program=program, limits=self._means.limits)
            try:
                while self._turn():
                    pass
            finally:
                self._stop_busy()
        except (runs.Fenced, Transient):
            raise
        except Exception as error:
            log.exception("run cannot go on", extra={"run_id": run.id})
            self._give_up(run, program, error)

    def _give_up(self, run: Run, program: Program | None, error: Exception) -> None:
        if isinstance(error, KneoError):
            why = RunError(type=error.code, message=str(error))
        else:
            why = RunError(type="internal_error", message=f"{type(error).__name__} in the runtime; see its log.")
        desk = record.Desk(program=program, limits=self._means.limits) if program is not None else None
        now = run if program is None else self._write(lambda tx: runs.get(tx, run.id))
        if now is not None and now.epoch == run.epoch:
            self._write(lambda tx: record.failed(tx, desk, now, why))

    def _turn(self) -> bool:
        """Do the next thing; false when the run has been let go of."""
        self._check_counts()
        if self._means.draining.is_set():
            return self._drain()
        asks = waiting(self._program, self._run.state)
        if asks and self._is_answered():
            return self._record(lambda tx, busy: record.answer_applied(tx, self._desk, self._run, busy=busy))
        todo = actions(self._program, self._run.state)
        self._drop_stale(todo)
        if not todo or any(isinstance(action, Ask) for action in todo):
            return self._record(lambda tx, busy: record.questions_asked(tx, self._desk, self._run, busy=busy))
        due = [action for action in todo if isinstance(action, Execute)]
        call = self._plain(due[0]) if len(due) == 1 and not asks and not self._busy else None
        if call is not None:
            return self._finish(self._call(due[0], call))
        return self._wait(self._begin(due))

    def _drain(self) -> bool:
        """Record what is under way when it ends, then leave the run to another process."""
        if self._busy:
            return self._wait(LOOK_SECONDS)
        self._let_go()
        return False

    def _is_answered(self) -> bool:
        with self._store.read() as tx:
            return bool(record.decided(tx, self._run))

    def _drop_stale(self, todo: Sequence[Action]) -> None:
        if self._busy:
            current = {action.ticket for action in todo}
            for ticket in [ticket for ticket in self._busy if ticket not in current]:
                self._busy.pop(ticket).cancel()

    def _plain(self, action: Execute) -> Call | None:
        """Find what a step calls, where it may be called in this thread and now."""
        if action.not_before is not None:
            return None
        return self._means.executor.plain(self._program, action.leaf, pins_of(self._run))

    def _call(self, action: Execute, call: Call) -> record.Attempt:
        trial = Trial(self._run, action, self._store.clock)
        self._calling = trial.context.token
        try:
            with trial.under_way():
                trial.output = call(action.value.text, trial.context)
        finally:
            self._calling = None
        return trial.attempt

    def _begin(self, due: Sequence[Execute]) -> float:
        """Begin what is due beside this thread; return how long to wait for news at most."""
        now = self._store.clock.now()
        pause = LOOK_SECONDS
        for action in due:
            if action.ticket in self._busy:
                continue
            if action.not_before is not None and action.not_before > isoformat(now):
                left = (parse_time(action.not_before) - now) / timedelta(seconds=1)
                pause = min(pause, max(left, 0.001))
                continue
            if self._loop.is_closed():
                raise self._abandoned()
            ended = partial(self._has_ended, action.ticket)
            self._busy[action.ticket] = Beside(self._loop, self._execute(action), ended)
        return pause

    def _has_ended(self, ticket: str, task: Beside[record.Attempt]) -> None:
        self._ended.put((ticket, task))

    async def _execute(self, action: Execute) -> record.Attempt:
        trial = Trial(self._run, action, self._store.clock)
        with trial.under_way():
            text = action.value.text
            trial.output = await self._means.executor.execute(self._program, action.leaf, text, trial.context)
        return trial.attempt

    def _wait(self, pause: float) -> bool:
        """Record the first step that ends; look around when none does."""
        try:
            ended = self._ended.get(timeout=pause)
        except Empty:
            self._check_ours()
            return True
        self._check_counts()
        task = self._off_the_list(*ended) if ended is not None else None
        if task is None:
            return True
        if task.was_stopped:
            raise self._abandoned()
        return self._finish(task.result())

    def _abandoned(self) -> Transient:
        """Whoever ran the loop has ended it without a word; somebody else will go on."""
        msg = f"The event loop that executes the steps of {self.run_id} has ended."
        return Transient(msg, code="worker_stopped", hint="The run is free; the next worker goes on with it.")

    def _off_the_list(self, ticket: str, task: Beside[record.Attempt]) -> Beside[record.Attempt] | None:
        """Take what has ended off the list, if it is what is on it."""
        if self._busy.get(ticket) is not task:
            return None
        return self._busy.pop(ticket)

    def _stop_busy(self) -> None:
        """Stop what is still under way, and wait for it to clean up after itself."""
        for task in self._busy.values():
            task.cancel()
        while self._busy and not self._loop.is_closed():
            with contextlib.suppress(Empty):
                ended = self._ended.get(timeout=LOOK_SECONDS)
                if ended is not None:
                    self._off_the_list(*ended)

    def _finish(self, attempt: record.Attempt) -> bool:
        return self._record(lambda tx, busy: record.step_done(tx, self._desk, self._run, attempt, busy=busy))

    def _record(self, work: Callable[[Tx, Sequence[str]], Run | None]) -> bool:
        busy = tuple(self._busy)
        after = self._write(lambda tx: work(tx, busy))
        if after is None:
            return False
        self._run = after
        return True
