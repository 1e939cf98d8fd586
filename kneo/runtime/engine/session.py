"""A driver's session with one run: acquire the run, begin due steps, record their results, release the run.

A session is resumable and holds a thread only while it has work. A single plain function is called in the thread that
advances the session, and recorded by the same thread: a hop to another thread would take longer than most functions do.
Every other step begins on an event loop or in a thread of its own; the session is then suspended, and the first step that
ends resumes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeAlias, TypeVar

from kneo.agents.guardrails import passed_input
from kneo.agents.turn import GIVEN_UP
from kneo.clock import isoformat, monotonic, parse_time, sleep
from kneo.errors import Invalid, KneoError, Transient
from kneo.function_context import CancelToken
from kneo.records.run import STATE_VERSION, Run, RunError, RunStatus, Suspicion
from kneo.runtime.engine import quotas, record
from kneo.runtime.engine.admission import StepAdmission
from kneo.runtime.engine.attempt import Attempt, code_of, open_deltas
from kneo.runtime.engine.call_metrics import count_call
from kneo.runtime.engine.journals import JournalAppend, RunJournal, session_history
from kneo.runtime.engine.programs import ProgramLoader, migrate_state
from kneo.runtime.engine.questions import run_facts, sampling_seed_of
from kneo.runtime.interpreter.node import Action, Ask, Execute
from kneo.runtime.interpreter.program import Program, actions, waiting
from kneo.runtime.steps.agents import Conversation, checks_input, served_to_all
from kneo.runtime.steps.code import CodeUnavailable
from kneo.runtime.steps.executor import Call, Executor
from kneo.runtime.steps.threads import BoundedThreads, LoopTask, in_thread
from kneo.spec.models.spec import tracing_policy
from kneo.spec.tool_kinds import CALL_TARGET
from kneo.store import runs
from kneo.store.change_feed import ReaderCache
from kneo.store.engine import Store, Tx
from kneo.store.history import CheckpointLimits
from kneo.tasks.served_calls import find_refusal
from kneo.telemetry import log_fields, span
from kneo.trust.record_mac import RecordTampered, RecordUnauthenticated

log = logging.getLogger("kneo.runtime")

T = TypeVar("T")

_Event: TypeAlias = tuple[str, LoopTask[record.AttemptResult]] | JournalAppend

LOOK_SECONDS = 0.5
"""The interval at which sessions with long steps check their lease and the signals of their run."""

PARK_SECONDS = 2.0
"""A run that has nothing to do for longer is released until then."""

RETRY_SECONDS = (0.2, 0.4, 0.8, 1.6, 3.2)
"""Pauses before a write is retried while the database is unavailable, so that no result of a step is lost."""


class _SettlesError(Exception):
    """The transaction would settle the run."""


@dataclass(frozen=True)
class SessionDeps:
    """The dependencies that all sessions of a process share."""

    store: Store
    programs: ProgramLoader
    executor: Executor
    limits: CheckpointLimits
    threads: BoundedThreads
    """The threads that advance sessions."""
    readers: ReaderCache
    """The readers of replies while they arrive."""
    delta_batch: timedelta
    """The shortest time between two deltas of one reply."""
    admission: StepAdmission = field(default_factory=StepAdmission)
    """Admits sessions to executing steps."""
    running_limits: quotas.KnownLimits = field(default_factory=quotas.KnownLimits)
    """The quotas ``running`` of environments."""
    draining: threading.Event = field(default_factory=threading.Event)
    """Set when no further steps may begin."""


@dataclass(frozen=True)
class _Pause:
    """The session waits for a step to end, this many seconds at most; ``None``: without a limit."""

    seconds: float | None = None


class RunSession:
    """One driver's session with one run.

    Args:
        deps: The process's dependencies.
        run_id: The run.
        claim: Identity of the driver. A driver with the claim of a crashed one takes the run over.
        loop: The event loop of steps that are not plain functions. It must outlive the session.
        resume: Called once, from any thread, when a suspended session has work: call ``advance`` again.
        parks: Whether a run that has nothing to do for a while is released until then, so that it holds no worker slot.
    """

    def __init__(
        self,
        deps: SessionDeps,
        run_id: str,
        claim: str,
        loop: asyncio.AbstractEventLoop,
        resume: Callable[[RunSession], object],
        *,
        parks: bool = False,
    ) -> None:
        self.run_id = run_id
        self._deps = deps
        self._store = deps.store
        self._claim = claim
        self._loop = loop
        self._resume = resume
        self._parks = parks
        self._epoch: int | None = None
        """The epoch of the run since this session acquired it."""
        self._signal_seq = 0
        """The number of the last signal to the run that this session has handled."""
        self._is_checked = False
        """Whether the bundle of the run was checked when the run was acquired."""
        self._tried = False
        """Whether a transaction that acquires the run was begun; the database may have become unreachable at its end."""
        self.since = monotonic()
        """The monotonic time of the session's beginning."""
        self.environment: str | None = None
        """The environment of the run, once the session has acquired it."""
        self.is_full = False
        """Whether the run was not acquired because its environment has as many driven runs as its file allows."""
        self._limited: str | None = None
        """The environment of the run, where its file limits the number of driven runs."""
        self._gives_way = False
        """Whether the run is released once its running steps have ended."""
        self._over = False
        """Whether the session was stopped; checked in every transaction."""
        self._busy: dict[str, LoopTask[record.AttemptResult]] = {}
        self._events: SimpleQueue[_Event | None] = SimpleQueue()
        """Steps that end and journal entries of running ones, in their order; ``None`` for every other reason to resume."""
        self._appends: list[JournalAppend] = []
        """Journal entries that are to be written next."""
        self._ended: deque[tuple[str, LoopTask[record.AttemptResult]]] = deque()
        """Ended steps that are to be recorded next."""
        self._calling: CancelToken | None = None
        """The token of the function that this session's thread executes."""
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
        """Advance the run until it settles, or until the session has to wait for steps.

        Does nothing when another driver holds the lease.

        Returns:
            Whether the session is over. If not, it is suspended, and calls ``resume`` when it has work.

        Raises:
            Transient: the database is unavailable. The run is released if possible; else the next start of a worker frees it.
            CodeUnavailable: the run's code is in another process; the run has been released.
        """
        while True:
            try:
                pause = self._context.run(next, self._pauses)
            except StopIteration:
                return True
            if self._suspend(pause):
                return False

    def give_way(self) -> None:
        """Release the run after its running steps, so that another one begins in its place. From any thread."""
        self._gives_way = True
        self.wake()

    def wake(self) -> None:
        """Resume a suspended session, for a signal to its run. From any thread."""
        self._put(None)

    def _put(self, event: _Event | None) -> None:
        """Give the session work, from any thread."""
        self._events.put(event)
        self._resume_if_suspended()

    def _suspend(self, pause: _Pause) -> bool:
        with self._lock:
            if not self._events.empty():
                return False
            self._is_suspended = True
        if pause.seconds is not None and not self._on_loop(partial(self._set_timer, pause.seconds)):
            # Without its event loop the session would never resume; its next step raises the error.
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
            with log_fields(run_id=self.run_id):
                yield from self._drive_leased()
        finally:
            self._deps.admission.remove(self)
            self._let_others_begin()

    def _drive_leased(self) -> Iterator[_Pause]:
        try:
            run = self._acquire()
            if run is None:
                return
            self._epoch, self._signal_seq, self.environment = run.epoch, run.signal_seq, run.environment
            with span("kneo.worker.lease", kind="consumer", kneo_run__id=run.id, kneo_workflow=run.workflow_name):
                yield from self._advance(run)
            if run.target == CALL_TARGET:
                with self._store.read() as tx:
                    count_call(runs.get(tx, run.id) or run)
        except runs.Fenced:
            log.info("the run was taken over or ended by another process", extra={"run_id": self.run_id})
        except RecordTampered as error:
            self._end_tampered(error)
        except CodeUnavailable:
            self._release(again=False)
            raise
        except Transient:
            self._release()
            raise

    # ---- checks by the worker, during long steps ------------------------------------------------------------------

    @property
    def is_calling(self) -> bool:
        """Whether a function keeps this session's thread."""
        return self._calling is not None

    def needs_check(self) -> bool:
        """Return whether this session cannot check its run itself: it is suspended, or in the same function as at the last call."""
        calling, checked = self._calling, self._checked
        self._checked = calling
        return self._is_suspended or (calling is not None and calling is checked)

    def check(self, lease: runs.RunLease | None) -> bool:
        """Compare the run's lease with this session's; stop the session when another driver has it, resume it on a signal.

        Args:
            lease: The lease in the database; ``None`` where there is no such run.

        Returns:
            False where the session was stopped while its thread is in a function that may never return.
        """
        if lease is None or lease.epoch != self._epoch or lease.status is not RunStatus.RUNNING:
            self._stop()
            return self._calling is None
        if lease.signal_seq > self._signal_seq:
            self._signal_seq = lease.signal_seq
            self.wake()
        return True

    def cut(self) -> None:
        """Stop the session's steps and release the run; another driver begins them again. From any thread."""
        self._stop()
        self._release()

    def _stop(self) -> None:
        self._over = True
        self._deps.admission.remove(self)
        calling = self._calling
        if calling is not None:
            calling.cancel()
        self.wake()

    # ---- lease --------------------------------------------------------------------------------------------------

    def _acquire(self) -> Run | None:
        """Acquire the run and apply its oldest decision; ``None`` when the run needs no driver.

        Neither has to be on disk before the run continues: both are repeated after a crash of the machine. A transaction
        that settles the run is durable, because other processes are notified of it.
        """
        try:
            return self._write(lambda tx: self._acquired(tx, may_settle=False), durable=False)
        except _SettlesError:
            self._tried = False
            return self._write(lambda tx: self._acquired(tx, may_settle=True))
        except (runs.Fenced, Transient, RecordTampered, RecordUnauthenticated):
            raise
        except Exception:
            # The same error comes up again, and is recorded, when the run is driven.
            log.info("a decision could not be applied at once", extra={"run_id": self.run_id}, exc_info=True)
            return self._write(self._claimed)

    def _acquired(self, tx: Tx, *, may_settle: bool) -> Run | None:
        self._is_checked = False
        tried, self._tried = self._tried, True
        run = self._claimed(tx, again=tried)
        program = self._deps.programs.cached(run) if run is not None and run.state_version == STATE_VERSION else None
        if run is None or program is None:
            return run
        self._deps.programs.check(tx, run)
        self._is_checked = True
        after = record.apply_decision(tx, record.RunContext(program=program, limits=self._deps.limits), run)
        if after is None and not may_settle:
            raise _SettlesError
        return after

    def _claimed(self, tx: Tx, *, again: bool = False) -> Run | None:
        """Claim the run, unless its environment has as many driven runs as its file allows."""
        self.is_full = False
        run = runs.acquire(tx, self.run_id, self._claim, again=again)
        limit = self._deps.running_limits.find(tx, run.environment) if run is not None else None
        self._limited = run.environment if run is not None and limit is not None else None
        if run is None or limit is None or quotas.admits(tx, run, limit):
            return run
        runs.release(tx, run.id, self._claim, again=False)
        self.is_full = True
        return None

    def _let_others_begin(self) -> None:
        """Let a waiting run of the environment begin, now that this one has ended or waits. The worker of SQLite finds it by itself."""
        environment = self._limited
        if environment is None or self.is_full or self._store.is_sqlite:
            return
        try:
            self._store.transact(lambda tx: quotas.enqueue_waiting(tx, environment))
        except Transient as error:
            # The search for runs without a job finds it.
            log.warning("could not let a waiting run begin: %s", error)

    def _end_tampered(self, error: RecordTampered) -> None:
        """End a run that something other than Kneo has changed; nothing of it was executed."""
        log.error("%s", error, extra={"event": "record_refused", "run_id": self.run_id, "code": error.code})
        cause = RunError(type=error.code, message=error.message)
        self._with_retries(lambda: self._store.transact(lambda tx: record.end_refused(tx, self.run_id, cause)))

    def _release(self, *, again: bool = True) -> None:
        def work(tx: Tx) -> None:
            # A driver that takes over from one that seemed dead has its claim, and another epoch.
            runs.release(tx, self.run_id, self._claim, epoch=self._epoch, again=again)

        self._with_retries(lambda: self._store.transact(work))

    def _write(self, work: Callable[[Tx], T], *, durable: bool = True) -> T:
        self._check_not_stopped()

        def fenced(tx: Tx) -> T:
            # Checked again inside the transaction: the session may have been stopped meanwhile.
            self._check_not_stopped()
            return work(tx)

        return self._with_retries(lambda: self._store.transact(fenced, durable=durable))

    def _check_not_stopped(self) -> None:
        if self._over:
            raise runs.Fenced(self.run_id)

    def _with_retries(self, write: Callable[[], T]) -> T:
        """Retry a write while the database is unavailable."""
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
            self._run = run
            if run.state_version != STATE_VERSION:
                state = migrate_state(run.state, run.state_version)
                self._run = replace(run, state=state, state_version=STATE_VERSION)
            program = self._program = self._deps.programs.load(run, is_checked=self._is_checked)
            self._traces = tracing_policy(program.spec).messages
            self._run_context = record.RunContext(program=program, limits=self._deps.limits)
            if run.suspicion is Suspicion.CONFIRMED:
                self._end_suspect()
                return
            yield from self._turns()
        except (runs.Fenced, Transient):
            raise
        except Exception as error:
            log.exception("the run cannot continue", extra={"run_id": run.id})
            self._fail(run, program, error)

    def _end_suspect(self) -> None:
        """End a run whose attempts ended several workers. It can be continued."""
        run = self._run
        due = (action.activity.path for action in actions(self._program, run.state) if isinstance(action, Execute))
        steps = ", ".join(dict.fromkeys(due)) or "no step"
        cause = RunError(
            type="worker_lost",
            message=f"Three workers died while they executed this run ({steps}), the last of them nothing else.",
        )
        log.error("%s", cause.message, extra={"event": "worker_lost", "run_id": run.id})
        self._write(lambda tx: record.fail_run(tx, self._run_context, run, cause))

    def _fail(self, run: Run, program: Program | None, error: Exception) -> None:
        if isinstance(error, KneoError):
            cause = RunError(type=error.code, message=str(error))
        else:
            cause = RunError(type="internal_error", message=f"{type(error).__name__} in the runtime; see its log.")
        context = record.RunContext(program=program, limits=self._deps.limits) if program is not None else None
        now = run if program is None else self._write(lambda tx: runs.get(tx, run.id))
        if now is not None and now.epoch == run.epoch:
            self._write(lambda tx: record.fail_run(tx, context, now, cause))

    def _turns(self) -> Iterator[_Pause]:
        """Take turns until the run is released; yield where the session has to wait."""
        failure: Exception | None = None
        try:
            while (pause := self._turn()) is not False:
                if not self._busy:
                    self._deps.admission.leave(self)
                if isinstance(pause, _Pause):
                    yield pause
        except Exception as error:  # noqa: BLE001 - raised again below
            failure = error
        yield from self._stop_busy()
        if failure is not None:
            raise failure

    def _turn(self) -> _Pause | bool:
        """Take one turn; return false when the run has been released, or how long to wait."""
        self._check_not_stopped()
        went_on = self._handle_received()
        if went_on is not None:
            return went_on
        if self._gives_way or self._deps.draining.is_set():
            return self._drain()
        asks = waiting(self._program, self._run.state)
        if asks and self._has_decision():
            return self._record(lambda tx, busy: record.apply_decision(tx, self._run_context, self._run, busy=busy))
        todo = actions(self._program, self._run.state)
        self._drop_stale(todo)
        if not todo or any(isinstance(action, Ask) for action in todo):
            return self._record(lambda tx, busy: record.open_questions(tx, self._run_context, self._run, busy=busy))
        due = self._admitted([action for action in todo if isinstance(action, Execute)])
        if not due:
            return _Pause(LOOK_SECONDS)
        call = self._plain(due[0]) if len(due) == 1 and not asks and not self._busy else None
        return self._finish(self._call(due[0], call)) if call is not None else self._begin(due)

    def _admitted(self, due: Sequence[Execute]) -> Sequence[Execute]:
        """Return the steps that may be executed now; of a suspected run one at a time, so that a death has one cause."""
        is_suspect = self._run.suspicion >= Suspicion.SUSPECT
        if not self._deps.admission.enter(self, self.wake, alone=is_suspect):
            return ()
        if not is_suspect:
            return due
        if self._run.suspicion is Suspicion.SUSPECT:
            self._run = self._write(lambda tx: record.begin_alone(tx, self._run))
        return [action for action in due if action.ticket in self._busy] or due[:1]

    def _handle_received(self) -> bool | None:
        """Write what running steps have to record, or the result of one that ended; ``None`` where there is nothing."""
        self._receive()
        if self._appends:
            return self._write_appends()
        attempt = self._next_ended()
        return self._finish(attempt) if attempt is not None else None

    def _drain(self) -> _Pause | bool:
        """Record the results of running steps, then release the run for another process."""
        if self._busy:
            return _Pause()
        self._release()
        return False

    def _has_decision(self) -> bool:
        with self._store.look() as tx:
            return bool(record.decided_tasks(tx, self._run))

    def _drop_stale(self, todo: Sequence[Action]) -> None:
        if self._busy:
            current = {action.ticket for action in todo}
            for ticket in [ticket for ticket in self._busy if ticket not in current]:
                self._busy.pop(ticket).cancel(GIVEN_UP)

    def _plain(self, action: Execute) -> Call | None:
        """Return the call of a plain function that may begin now."""
        if action.not_before is not None:
            return None
        return self._deps.executor.plain(self._program, action.activity, code_of(self._run), self._run.environment)

    def _call(self, action: Execute, call: Call) -> record.AttemptResult:
        attempt = Attempt(self._run, action, self._store.clock, traces=self._traces)
        self._calling = attempt.context.token
        try:
            with self._deps.threads.blocking(), attempt.running():
                attempt.output = call(action.value.text, attempt.context)
        finally:
            self._calling = None
        return attempt.result

    def _begin(self, due: Sequence[Execute]) -> _Pause | bool:
        """Begin due steps on the event loop; return how long to wait."""
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
            ended = partial(self._step_ended, action.ticket)
            self._busy[action.ticket] = LoopTask(self._loop, self._execute(action), ended)
        seconds = min(pauses, default=None)
        if self._parks and not self._busy and seconds is not None and seconds > PARK_SECONDS:
            return self._park(isoformat(now + timedelta(seconds=seconds)))
        return _Pause(seconds)

    def _park(self, until: str) -> bool:
        """Release the run until a time; return whether it has to be driven now, because it got a signal."""
        if self._write(lambda tx: runs.park(tx, self._run, until)):
            return False
        self._run = self._write(lambda tx: record.signalled(tx, self._run))
        return True

    def _step_ended(self, ticket: str, task: LoopTask[record.AttemptResult]) -> None:
        self._put((ticket, task))

    async def _execute(self, action: Execute) -> record.AttemptResult:
        is_checked = checks_input(self._program, action.activity)
        attempt = Attempt(self._run, action, self._store.clock, shows_input=not is_checked, traces=self._traces)
        with attempt.running():
            conversation = await self._conversation(action)
            attempt.output = await self._deps.executor.execute(
                self._program, action.activity, action.value.text, attempt.context, conversation
            )
        if is_checked:
            attempt.check_input(passed_input(self._journal(action).load()))
        return attempt.result

    def _journal(self, action: Execute) -> RunJournal:
        return RunJournal(store=self._store, run_id=self.run_id, conversation=action.conversation, submit=self._put)

    async def _conversation(self, action: Execute) -> Conversation:
        return Conversation(
            journal=self._journal(action),
            name=action.conversation,
            answers=action.call_answers,
            environment=self._run.environment,
            code=code_of(self._run),
            sampling_seed=f"{sampling_seed_of(self._run)}:{action.activity.path}",
            facts={
                "values": action.filled,
                "run": run_facts(self._run.requester, self._run.environment, self._run.workflow_name),
            },
            check_caller=self._check_caller if self._program.is_call else served_to_all,
            clock=self._store.clock,
            session=session_history(self._store, self._run),
            deltas=await open_deltas(
                self._store,
                self._deps.readers,
                self._program,
                self.run_id,
                action.activity,
                batch=self._deps.delta_batch,
            ),
        )

    async def _check_caller(self, tool: str) -> str | None:
        return await in_thread(partial(find_refusal, self._store, self._run, tool))

    def _receive(self) -> None:
        """Sort the events that have arrived."""
        while True:
            try:
                event = self._events.get_nowait()
            except Empty:
                return
            if isinstance(event, JournalAppend):
                self._appends.append(event)
            elif event is not None:
                self._ended.append(event)

    def _write_appends(self) -> bool:
        """Write the entries of running steps in one transaction, each step's alone where they cannot be written together."""
        appends, self._appends = self._appends, []
        try:
            self._append(appends)
        except Invalid as error:
            if len(appends) == 1:
                appends[0].resolve(error)
                return True
            for append in appends:
                self._appends = [append]
                self._write_appends()
        except BaseException:
            self._appends = appends
            raise
        return True

    def _append(self, appends: Sequence[JournalAppend]) -> None:
        entries = [entry for append in appends for entry in append.entries]
        trace = [event for append in appends for event in append.trace]
        self._run = self._write(
            lambda tx: record.record_entries(tx, self._run_context, self._run, entries, trace),
            durable=any(append.durable for append in appends),
        )
        for append in appends:
            append.resolve()

    def _next_ended(self) -> record.AttemptResult | None:
        """Take the result of the first step that has ended; ``None`` where none has.

        Raises:
            Transient: the event loop ended before the step did.
        """
        while self._ended:
            task = self._remove_busy(*self._ended.popleft())
            if task is not None:
                if task.was_stopped:
                    raise self._abandoned()
                return task.result()
        return None

    def _abandoned(self) -> Transient:
        msg = f"The event loop that executes the steps of {self.run_id} has ended."
        return Transient(msg, code="worker_stopped", hint="The run is released; the next worker continues it.")

    def _remove_busy(self, ticket: str, task: LoopTask[record.AttemptResult]) -> LoopTask[record.AttemptResult] | None:
        """Remove an ended step from the running ones, if it is one of them."""
        if self._busy.get(ticket) is not task:
            return None
        return self._busy.pop(ticket)

    def _stop_busy(self) -> Iterator[_Pause]:
        """Stop the running steps and wait until they have cleaned up; their journal entries are not written."""
        reason = GIVEN_UP if self._busy and self._has_ended() else None
        for task in self._busy.values():
            task.cancel(reason)
        while True:
            self._receive()
            for append in self._appends:
                append.cancel()
            self._appends = []
            while self._ended:
                self._remove_busy(*self._ended.popleft())
            if not self._busy or self._loop.is_closed():
                return
            yield _Pause(LOOK_SECONDS)

    def _has_ended(self) -> bool:
        """Return whether the run has ended, so that no process continues it."""
        with contextlib.suppress(Transient), self._store.look() as tx:
            now = runs.get(tx, self.run_id)
            return now is None or now.status.is_final
        return False

    def _finish(self, attempt: record.AttemptResult) -> bool:
        return self._record(
            lambda tx, busy: record.record_attempt(tx, self._run_context, self._run, attempt, busy=busy)
        )

    def _record(self, work: Callable[[Tx, Sequence[str]], Run | None]) -> bool:
        busy = tuple(self._busy)
        after = self._write(lambda tx: work(tx, busy))
        if after is None:
            return False
        self._run = after
        return True
