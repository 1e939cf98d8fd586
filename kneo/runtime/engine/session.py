"""One driver's session with one run: acquire the run, begin what is due, record what ends, release the run.

A session is resumable and holds a thread only while there is something to do. A plain function that is all there is to do
is called in the thread that advances the session and recorded by the same thread: handing it to another one would take
longer than most functions do. Everything else is begun on an event loop or in threads of its own; the session is then
suspended, and resumed by whatever ends first.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeVar

from kneo.clock import isoformat, parse_time, sleep
from kneo.errors import KneoError, Transient
from kneo.records.run import STATE_VERSION, Run, RunError, RunStatus
from kneo.runtime.engine import record
from kneo.runtime.engine.attempt import Attempt, pins_of
from kneo.runtime.engine.programs import ProgramLoader, migrate_state
from kneo.runtime.interpreter.node import Action, Ask, Execute
from kneo.runtime.interpreter.program import Program, actions, waiting
from kneo.runtime.steps.code import CodeUnavailable
from kneo.runtime.steps.context import CancelToken
from kneo.runtime.steps.executor import Call, Executor
from kneo.runtime.steps.threads import BoundedThreads, LoopTask
from kneo.store import runs
from kneo.store.engine import Store, Tx
from kneo.store.history import CheckpointLimits
from kneo.telemetry.spans import span

log = logging.getLogger("kneo.runtime")

T = TypeVar("T")

LOOK_SECONDS = 0.5
"""How often sessions whose steps take long are checked: is the run still theirs, is there an answer for it."""

RETRY_SECONDS = (0.2, 0.4, 0.8, 1.6, 3.2)
"""Pauses before a write is tried again while the database is away: what a step has returned is worth waiting for."""


class _EndsError(Exception):
    """What was about to be written ends the run or lets it wait."""


@dataclass(frozen=True)
class SessionDeps:
    """What all sessions of a process share."""

    store: Store
    programs: ProgramLoader
    executor: Executor
    limits: CheckpointLimits
    threads: BoundedThreads
    """Where sessions are advanced."""
    draining: threading.Event = field(default_factory=threading.Event)
    """Set when no further steps are to begin."""


@dataclass(frozen=True)
class _Pause:
    """Nothing to do but wait for a step to end, for this many seconds at most; ``None``: for as long as it takes."""

    seconds: float | None = None


class RunSession:
    """One driver's session with one run.

    Args:
        deps: What to do it with.
        run_id: Which run.
        claim: Identity of the driver. A driver with the claim of one that crashed takes over from it.
        loop: Where steps are executed that are not plain functions. It must run for as long as the session does.
        resume: Called once, from any thread, when a suspended session has something to do: call ``advance`` again.
    """

    def __init__(
        self,
        deps: SessionDeps,
        run_id: str,
        claim: str,
        loop: asyncio.AbstractEventLoop,
        resume: Callable[[RunSession], object],
    ) -> None:
        self.run_id = run_id
        self._deps = deps
        self._store = deps.store
        self._claim = claim
        self._loop = loop
        self._resume = resume
        self._epoch: int | None = None
        """The epoch of the run since this session acquired it."""
        self._signal_seq = 0
        """The number of the last signal to the run that this session has seen."""
        self._over = False
        """Whether nothing that this session still does counts; checked in every transaction."""
        self._busy: dict[str, LoopTask[record.AttemptResult]] = {}
        self._ended: SimpleQueue[tuple[str, LoopTask[record.AttemptResult]] | None] = SimpleQueue()
        """Steps that ended, as they end; ``None`` when there is another reason to resume."""
        self._calling: CancelToken | None = None
        """The token of the function that this session's thread is in."""
        self._checked: CancelToken | None = None
        """The token that the last ``needs_check`` found."""
        self._lock = threading.Lock()
        self._is_suspended = False
        self._timer: asyncio.TimerHandle | None = None
        # A context of its own, entered by one thread after the other, so that spans stay nested across suspensions.
        self._context = contextvars.Context()
        self._pauses = self._drive()

    # ---- advancing and suspending ---------------------------------------------------------------------------------

    def advance(self) -> bool:
        """Advance the run until it waits or ends, or until there is nothing to do but wait for its steps.

        Does nothing when another driver has the run.

        Returns:
            Whether the session is over. If not, it is suspended, and ``resume`` is called when to call this again.

        Raises:
            Transient: the database went away. The run is released when it can be; else the next start frees it.
            Elsewhere: the run's code is in another process; the run has been released.
        """
        while True:
            try:
                pause = self._context.run(next, self._pauses)
            except StopIteration:
                return True
            if self._suspend(pause):
                return False

    def wake(self) -> None:
        """Have a suspended session look at its run again. From any thread."""
        self._ended.put(None)
        self._resume_if_suspended()

    def _suspend(self, pause: _Pause) -> bool:
        with self._lock:
            if not self._ended.empty():
                return False
            self._is_suspended = True
        if pause.seconds is not None and not self._on_loop(partial(self._set_timer, pause.seconds)):
            # Without its event loop nothing would wake it; it finds out when it begins its next step.
            self.wake()
        return True

    def _resume_if_suspended(self) -> None:
        with self._lock:
            suspended, self._is_suspended = self._is_suspended, False
            timer, self._timer = self._timer, None
        if timer is not None:
            self._on_loop(timer.cancel)
        if suspended:
            self._resume(self)

    def _set_timer(self, seconds: float) -> None:
        with self._lock:
            if self._is_suspended:
                self._timer = self._loop.call_later(seconds, self.wake)

    def _on_loop(self, work: Callable[[], object]) -> bool:
        try:
            self._loop.call_soon_threadsafe(work)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def _drive(self) -> Iterator[_Pause]:
        try:
            run = self._take()
            if run is None:
                return
            self._epoch, self._signal_seq = run.epoch, run.signal_seq
            with span("kneo.worker.lease", kind="consumer", kneo_run__id=run.id, kneo_workflow=run.workflow_name):
                yield from self._advance(run)
        except runs.Fenced:
            log.info("run was taken over or ended elsewhere", extra={"run_id": self.run_id})
        except CodeUnavailable:
            self._release(again=False)
            raise
        except Transient:
            self._release()
            raise

    # ---- checks from outside, while a function or a step takes long -----------------------------------------------

    @property
    def is_calling(self) -> bool:
        """Whether a function keeps this session's thread."""
        return self._calling is not None

    def needs_check(self) -> bool:
        """Say whether this session cannot look at its run itself: it is suspended, or still in the function of the last call."""
        calling, checked = self._calling, self._checked
        self._checked = calling
        return self._is_suspended or (calling is not None and calling is checked)

    def check(self, lease: runs.RunLease | None) -> bool:
        """Compare the run's lease with this session's; stop the session when another driver has it, resume it on a signal.

        Args:
            lease: The lease as it is in the database; ``None`` where there is no such run.

        Returns:
            False where the session's thread is in a function that may never return and nothing of it counts any more.
        """
        if lease is None or lease.epoch != self._epoch or lease.status is not RunStatus.RUNNING:
            self._stop()
            return self._calling is None
        if lease.signal_seq > self._signal_seq:
            self._signal_seq = lease.signal_seq
            self.wake()
        return True

    def cut(self) -> None:
        """Stop the session's steps and release the run, for another driver to begin them again. From any thread."""
        self._stop()
        self._release()

    def _stop(self) -> None:
        self._over = True
        calling = self._calling
        if calling is not None:
            calling.cancel()
        self.wake()

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
        program = self._deps.programs.cached(run) if run is not None and run.state_version == STATE_VERSION else None
        if run is None or program is None:
            return run
        after = record.answer_applied(tx, record.RunContext(program=program, limits=self._deps.limits), run)
        if after is None and not may_end:
            raise _EndsError
        return after

    def _release(self, *, again: bool = True) -> None:
        def work(tx: Tx) -> None:
            # Whoever takes over from a driver that seemed dead has its claim, and another epoch.
            runs.release(tx, self.run_id, self._claim, epoch=self._epoch, again=again)

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

    # ---- turn by turn ---------------------------------------------------------------------------------------------

    def _advance(self, run: Run) -> Iterator[_Pause]:
        program: Program | None = None
        try:
            self._run = replace(run, state=migrate_state(run.state, run.state_version), state_version=STATE_VERSION)
            program = self._program = self._deps.programs.load(run)
            self._run_context = record.RunContext(program=program, limits=self._deps.limits)
            yield from self._turns()
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
        context = record.RunContext(program=program, limits=self._deps.limits) if program is not None else None
        now = run if program is None else self._write(lambda tx: runs.get(tx, run.id))
        if now is not None and now.epoch == run.epoch:
            self._write(lambda tx: record.failed(tx, context, now, why))

    def _turns(self) -> Iterator[_Pause]:
        """Do one thing after the other until the run is released; yield where there is nothing to do but wait."""
        failure: Exception | None = None
        try:
            while (pause := self._turn()) is not False:
                if isinstance(pause, _Pause):
                    yield pause
        except Exception as error:  # noqa: BLE001 - raised again below
            failure = error
        yield from self._stop_busy()
        if failure is not None:
            raise failure

    def _turn(self) -> _Pause | bool:
        """Do the next thing; return false when the run has been released, or for how long there is nothing to do."""
        self._check_counts()
        attempt = self._next_ended()
        if attempt is not None:
            return self._finish(attempt)
        if self._deps.draining.is_set():
            return self._drain()
        asks = waiting(self._program, self._run.state)
        if asks and self._is_answered():
            return self._record(lambda tx, busy: record.answer_applied(tx, self._run_context, self._run, busy=busy))
        todo = actions(self._program, self._run.state)
        self._drop_stale(todo)
        if not todo or any(isinstance(action, Ask) for action in todo):
            return self._record(lambda tx, busy: record.questions_asked(tx, self._run_context, self._run, busy=busy))
        due = [action for action in todo if isinstance(action, Execute)]
        call = self._plain(due[0]) if len(due) == 1 and not asks and not self._busy else None
        if call is not None:
            return self._finish(self._call(due[0], call))
        return self._begin(due)

    def _drain(self) -> _Pause | bool:
        """Record what is under way when it ends, then leave the run to another process."""
        if self._busy:
            return _Pause()
        self._release()
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
        return self._deps.executor.plain(self._program, action.activity, pins_of(self._run))

    def _call(self, action: Execute, call: Call) -> record.AttemptResult:
        attempt = Attempt(self._run, action, self._store.clock)
        self._calling = attempt.context.token
        try:
            with self._deps.threads.blocking(), attempt.under_way():
                attempt.output = call(action.value.text, attempt.context)
        finally:
            self._calling = None
        return attempt.result

    def _begin(self, due: Sequence[Execute]) -> _Pause:
        """Begin what is due on the event loop; return for how long there is nothing else to do."""
        now = self._store.clock.now()
        pauses = []
        if self._loop.is_closed():
            raise self._abandoned()
        for action in due:
            if action.ticket in self._busy:
                continue
            if action.not_before is not None and action.not_before > isoformat(now):
                pauses.append(max((parse_time(action.not_before) - now) / timedelta(seconds=1), 0.001))
                continue
            ended = partial(self._has_ended, action.ticket)
            self._busy[action.ticket] = LoopTask(self._loop, self._execute(action), ended)
        return _Pause(min(pauses, default=None))

    def _has_ended(self, ticket: str, task: LoopTask[record.AttemptResult]) -> None:
        self._ended.put((ticket, task))
        self._resume_if_suspended()

    async def _execute(self, action: Execute) -> record.AttemptResult:
        attempt = Attempt(self._run, action, self._store.clock)
        with attempt.under_way():
            text = action.value.text
            attempt.output = await self._deps.executor.execute(self._program, action.activity, text, attempt.context)
        return attempt.result

    def _next_ended(self) -> record.AttemptResult | None:
        """Take the result of the first step that has ended; ``None`` where none has.

        Raises:
            Transient: the event loop ended before the step did.
        """
        while True:
            try:
                ended = self._ended.get_nowait()
            except Empty:
                return None
            task = self._off_the_list(*ended) if ended is not None else None
            if task is not None:
                if task.was_stopped:
                    raise self._abandoned()
                return task.result()

    def _abandoned(self) -> Transient:
        msg = f"The event loop that executes the steps of {self.run_id} has ended."
        return Transient(msg, code="worker_stopped", hint="The run is free; the next worker goes on with it.")

    def _off_the_list(self, ticket: str, task: LoopTask[record.AttemptResult]) -> LoopTask[record.AttemptResult] | None:
        """Take what has ended off the list, if it is what is on it."""
        if self._busy.get(ticket) is not task:
            return None
        return self._busy.pop(ticket)

    def _stop_busy(self) -> Iterator[_Pause]:
        """Stop the steps that are under way, and wait for them to clean up after themselves."""
        for task in self._busy.values():
            task.cancel()
        while self._busy and not self._loop.is_closed():
            try:
                ended = self._ended.get_nowait()
            except Empty:
                yield _Pause(LOOK_SECONDS)
                continue
            if ended is not None:
                self._off_the_list(*ended)

    def _finish(self, attempt: record.AttemptResult) -> bool:
        return self._record(lambda tx, busy: record.step_done(tx, self._run_context, self._run, attempt, busy=busy))

    def _record(self, work: Callable[[Tx, Sequence[str]], Run | None]) -> bool:
        busy = tuple(self._busy)
        after = self._write(lambda tx: work(tx, busy))
        if after is None:
            return False
        self._run = after
        return True
