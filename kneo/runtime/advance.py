"""Driving a run: do what ``decide`` lists, let ``record`` write each outcome in one fenced transaction.

A driver that is killed leaves a run whose last transaction is whole. One that was only slow finds its epoch gone and
what it has is discarded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

from kneo.clock import isoformat, new_id, parse_time
from kneo.errors import KneoError, Transient
from kneo.runtime import record
from kneo.runtime.code import Elsewhere
from kneo.runtime.decide import Action, Ask, Execute, StepFailed, Succeeded, Waits, actions, waiting
from kneo.runtime.load import ProgramLoader
from kneo.runtime.migrate_state import migrate_state
from kneo.runtime.program import Program
from kneo.runtime.steps import Executor
from kneo.runtime.steps.base import StepContext, StepOutput, Waiting
from kneo.runtime.steps.children import ChildFailed
from kneo.state.run import STATE_VERSION, Run, RunError, RunStatus
from kneo.store import runs
from kneo.store.engine import Store, Tx
from kneo.store.history import CheckpointLimits
from kneo.telemetry.spans import span

log = logging.getLogger("kneo.runtime")

T = TypeVar("T")

DEFAULT_LIMITS = CheckpointLimits()

LOOK_SECONDS = 0.5
"""How often a driver whose steps take long looks whether the run is still its own and whether somebody answered."""

RETRY_SECONDS = (0.2, 0.4, 0.8, 1.6, 3.2)
"""Pauses before a write is tried again while the database is away: what a step has returned is worth waiting for."""


class _EndsError(Exception):
    """What was about to be written ends the run or lets it wait."""


class Driver:
    """Drives runs to their next pause or end. One per process; safe for many runs at once on one event loop."""

    def __init__(
        self,
        store: Store,
        programs: ProgramLoader,
        executor: Executor,
        limits: CheckpointLimits = DEFAULT_LIMITS,
    ) -> None:
        self.store = store
        self.programs = programs
        self.executor = executor
        self.limits = limits
        self.draining = False

    async def drive(self, run_id: str, *, claim: str | None = None) -> None:
        """Advance a run until it waits or ends; does nothing when somebody else has it.

        Args:
            run_id: Which run.
            claim: Who drives it. Whoever comes with the claim of a driver that crashed takes over from it.

        Raises:
            Transient: the database went away. The run is let go of when it can be; else the next start frees it.
        """
        claim = claim or new_id("claim", self.store.clock.now())
        run = await self._take(run_id, claim)
        if run is None:
            return
        try:
            with span("kneo.worker.lease", kind="consumer", kneo_run__id=run_id, kneo_workflow=run.workflow_name):
                await self._drive(run)
        except runs.Fenced:
            log.info("run was taken over or ended elsewhere", extra={"run_id": run_id})
        except Elsewhere:
            await self.write(lambda tx: runs.let_go(tx, run_id, claim, again=False))
            raise
        except (Transient, asyncio.CancelledError):
            await self.write(lambda tx: runs.let_go(tx, run_id, claim))
            raise

    async def _take(self, run_id: str, claim: str) -> Run | None:
        """Take a run and let the answer it was woken for take effect; ``None`` when there is nothing left to do for it.

        Neither has to be on disk before the run goes on: who drives it dies with the machine, and the answer, which is
        there, would take the same effect again. What ends the run or lets it wait is told to others, and has to be.
        """
        try:
            return await self.write(lambda tx: self._begin(tx, run_id, claim, may_end=False), durable=False)
        except _EndsError:
            return await self.write(lambda tx: self._begin(tx, run_id, claim, may_end=True))
        except (runs.Fenced, Transient):
            raise
        except Exception:
            # Whatever is wrong with it comes up again, and is recorded, when it is driven.
            log.info("an answer could not take effect at once", extra={"run_id": run_id}, exc_info=True)
            return await self.write(lambda tx: runs.acquire(tx, run_id, claim))

    def _begin(self, tx: Tx, run_id: str, claim: str, *, may_end: bool) -> Run | None:
        run = runs.acquire(tx, run_id, claim)
        program = self.programs.cached(run) if run is not None and run.state_version == STATE_VERSION else None
        if run is None or program is None:
            return run
        after = record.answer_applied(tx, record.Desk(program=program, limits=self.limits), run)
        if after is None and not may_end:
            raise _EndsError
        return after

    async def drive_alone(self, run_id: str) -> None:
        """Drive one run and end what was kept for further ones."""
        try:
            await self.drive(run_id)
        finally:
            await self.close()

    def drain(self) -> None:
        """Begin no further steps: runs are let go of when what is under way in them has ended."""
        self.draining = True

    async def close(self) -> None:
        await self.executor.close()

    async def _drive(self, run: Run) -> None:
        program: Program | None = None
        run = replace(run, state=migrate_state(run.state, run.state_version), state_version=STATE_VERSION)
        try:
            program = self.programs.cached(run)
            if program is None:
                program = await asyncio.to_thread(self.programs.load, run)
            await _Session(self, program, run).go()
        except (runs.Fenced, Transient):
            raise
        except Exception as error:
            log.exception("run cannot go on", extra={"run_id": run.id})
            code = error.code if isinstance(error, KneoError) else "internal_error"
            message = (
                str(error) if isinstance(error, KneoError) else f"{type(error).__name__} in the runtime; see its log."
            )
            desk = record.Desk(program=program, limits=self.limits) if program is not None else None
            now = run if program is None else await self.write(lambda tx: runs.get(tx, run.id))
            if now is not None and now.epoch == run.epoch:
                await self.write(lambda tx: record.failed(tx, desk, now, RunError(type=code, message=message)))

    async def write(self, work: Callable[[Tx], T], *, durable: bool = True) -> T:
        """Hop to a thread for one transaction; wait a while for a database that is away."""
        for pause in RETRY_SECONDS:
            try:
                return await asyncio.wrap_future(self.store.submit(work, durable=durable))
            except Transient as error:
                log.warning("will try to write again: %s", error)
                await asyncio.sleep(pause)
        return await asyncio.wrap_future(self.store.submit(work, durable=durable))

    async def read(self, work: Callable[[Tx], T]) -> T:
        def transaction() -> T:
            with self.store.read() as tx:
                return work(tx)

        return await asyncio.to_thread(transaction)


class _Session:
    """One driver's time with one run."""

    def __init__(self, driver: Driver, program: Program, run: Run) -> None:
        self.driver = driver
        self.program = program
        self.desk = record.Desk(program=program, limits=driver.limits)
        self.run = run
        self.busy: dict[str, asyncio.Task[record.Attempt]] = {}

    async def go(self) -> None:
        """Go on until the run is let go of. What is still under way then is stopped, and its outcome discarded."""
        try:
            while await self._turn():
                pass
        finally:
            for task in self.busy.values():
                task.cancel()
            if self.busy:
                await asyncio.wait(self.busy.values())

    async def _turn(self) -> bool:
        """Do the next thing; false when the run has been let go of."""
        if self.driver.draining:
            return await self._let_go()
        if await self._is_answered():
            return await self._write(lambda tx, busy: record.answer_applied(tx, self.desk, self.run, busy=busy))
        todo = actions(self.program, self.run.state)
        self._drop_stale(todo)
        if not todo or any(isinstance(action, Ask) for action in todo):
            return await self._write(lambda tx, busy: record.questions_asked(tx, self.desk, self.run, busy=busy))
        pause = self._begin([action for action in todo if isinstance(action, Execute)])
        return await self._wait(pause)

    async def _let_go(self) -> bool:
        """Record what is under way when it ends, then leave the run to another process."""
        if self.busy:
            return await self._wait(LOOK_SECONDS)
        claim = self.run.owner
        assert claim is not None
        await self.driver.write(lambda tx: runs.let_go(tx, self.run.id, claim))
        return False

    async def _is_answered(self) -> bool:
        if not waiting(self.program, self.run.state):
            return False
        return bool(await self.driver.read(lambda tx: record.decided(tx, self.run)))

    def _drop_stale(self, todo: Sequence[Action]) -> None:
        current = {action.ticket for action in todo}
        for ticket in [ticket for ticket in self.busy if ticket not in current]:
            self.busy.pop(ticket).cancel()

    def _begin(self, todo: Sequence[Execute]) -> float:
        """Begin what is due; return how long to wait for news at most."""
        now = self.driver.store.clock.now()
        pause = LOOK_SECONDS
        for action in todo:
            if action.ticket in self.busy:
                continue
            if action.not_before is not None and action.not_before > isoformat(now):
                left = (parse_time(action.not_before) - now) / timedelta(seconds=1)
                pause = min(pause, max(left, 0.001))
                continue
            self.busy[action.ticket] = asyncio.create_task(self._attempt(action))
        return pause

    async def _wait(self, pause: float) -> bool:
        """Record the first step that ends; look around when none does."""
        if not self.busy:
            await asyncio.sleep(pause)
            return await self._look()
        done, _ = await asyncio.wait(self.busy.values(), timeout=pause, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            return await self._look()
        for ticket in [ticket for ticket, task in self.busy.items() if task in done]:
            if not await self._finish(self.busy.pop(ticket).result()):
                return False
        return True

    async def _finish(self, attempt: record.Attempt) -> bool:
        return await self._write(lambda tx, busy: record.step_done(tx, self.desk, self.run, attempt, busy=busy))

    async def _look(self) -> bool:
        """Stop when the run is somebody else's or over."""
        now = await self.driver.read(lambda tx: runs.standing(tx, self.run.id))
        if now is None or now.epoch != self.run.epoch or now.status is not RunStatus.RUNNING:
            raise runs.Fenced(self.run.id)
        return True

    async def _write(self, work: Callable[[Tx, Sequence[str]], Run | None]) -> bool:
        busy = tuple(self.busy)
        after = await self.driver.write(lambda tx: work(tx, busy))
        if after is None:
            return False
        self.run = after
        return True

    async def _attempt(self, action: Execute) -> record.Attempt:
        """Do a step's work. Whatever it raises is the step's outcome, not this driver's."""
        leaf, review = action.leaf, action.value.review
        context = StepContext(
            run_id=self.run.id,
            step_id=leaf.path,
            attempt=action.attempt,
            idempotency_key=f"{self.run.id}:{action.ticket}",
            previous_output=review.previous_output if review else None,
            feedback=review.feedback if review else None,
            values=action.value.values,
            answers=action.answers,
            implementations=_pins(self.run),
        )
        started_at = isoformat(self.driver.store.clock.now())
        output: StepOutput | None = None
        outcome: Succeeded | StepFailed | Waits
        with span("kneo.step", kneo_run__id=self.run.id, kneo_step__id=leaf.path, kneo_step_kind=leaf.kind) as traced:
            traced.note(kneo_step_attempt=action.attempt)
            traced.given(action.value.text)
            try:
                output = await self.driver.executor.execute(self.program, leaf, action.value.text, context)
                outcome = Succeeded(text=output.text, metadata=output.metadata)
                traced.gave(output.text)
            except Waiting as waiting:
                outcome = Waits(wanted=waiting.wanted)
            except Elsewhere:
                raise
            except TimeoutError:
                message = f"{leaf.path} did not finish within {leaf.timeout_seconds} s."
                outcome = StepFailed(error=RunError(type="step_timeout", message=message))
            except Exception as error:
                log.info("step failed", extra={"run_id": self.run.id, "step_id": leaf.path}, exc_info=True)
                outcome = StepFailed(error=_error(error))
            if isinstance(outcome, StepFailed):
                traced.failed(outcome.error.type)
        return record.Attempt(action=action, context=context, started_at=started_at, outcome=outcome, output=output)


def _pins(run: Run) -> Mapping[str, str]:
    pins = run.metadata.get("implementations", {})
    return {str(name): str(digest) for name, digest in pins.items()} if isinstance(pins, Mapping) else {}


def _error(error: Exception) -> RunError:
    kind = type(error).__name__
    if isinstance(error, KneoError):
        kind = error.code
    if isinstance(error, ChildFailed):
        kind = error.kind
    return RunError(type=kind, message=(str(error) or kind)[:MAX_ERROR_CHARS])


MAX_ERROR_CHARS = 4_000
"""How much of what an exception says is kept."""
