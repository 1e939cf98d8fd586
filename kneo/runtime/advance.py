"""Driving a run: do what ``decide`` lists, let ``record`` write each outcome in one fenced transaction.

A driver that is killed leaves a run whose last transaction is whole. One that was only slow finds its epoch gone and
what it has is discarded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from kneo.clock import isoformat, new_id
from kneo.errors import KneoError, Transient
from kneo.runtime import record
from kneo.runtime.decide import Ask, Execute, StepFailed, Succeeded, actions, gate_of_task
from kneo.runtime.load import ProgramLoader
from kneo.runtime.program import Program
from kneo.runtime.steps import Executor
from kneo.runtime.steps.base import StepContext, StepOutput
from kneo.state.run import Run, RunError
from kneo.state.task import HumanTask, TaskStatus
from kneo.store import runs, tasks
from kneo.store.engine import Store, Tx

log = logging.getLogger("kneo.runtime")

T = TypeVar("T")


class Driver:
    """Drives runs to their next pause or end. One per process; safe for many runs at once."""

    def __init__(self, store: Store, programs: ProgramLoader, executor: Executor) -> None:
        self.store = store
        self.programs = programs
        self.executor = executor

    async def drive(self, run_id: str) -> None:
        """Advance a run until it waits or ends; does nothing when somebody else has it.

        Raises:
            Transient: the database went away. The run is let go of when it can be; else the next start frees it.
        """
        claim = new_id("claim", self.store.clock.now())
        run = await self._write(lambda tx: runs.acquire(tx, run_id, claim))
        try:
            while run is not None:
                run = await self._advance(run)
        except runs.Fenced:
            log.info("run was taken over or ended elsewhere", extra={"run_id": run_id})
        except Transient:
            await self._write(lambda tx: runs.let_go(tx, run_id, claim))
            raise

    async def _advance(self, run: Run) -> Run | None:
        """Do the next thing; ``None`` when the driver has let go of the run."""
        try:
            program = await asyncio.to_thread(self.programs.load, run)
        except KneoError as error:
            reason = RunError(type=error.code, message=str(error))
            await self._write(lambda tx: record.failed(tx, run, reason))
            return None
        decided = await self._write(lambda tx: tasks.of_run(tx, run.id, [TaskStatus.DECIDED]))
        if decided:
            return await self._apply(program, run, decided[0])
        todo = actions(program, run.state)
        if not todo:
            return await self._write(lambda tx: record.paused(tx, run))
        match todo[0]:
            case Ask() as ask:
                return await self._write(lambda tx: record.task_opened(tx, program, run, ask))
            case Execute() as execute:
                attempt = await self._attempt(program, run, execute)
                return await self._write(lambda tx: record.step_done(tx, program, run, attempt))

    async def _apply(self, program: Program, run: Run, task: HumanTask) -> Run | None:
        path = gate_of_task(program, run.state, task.id)
        return await self._write(lambda tx: record.decision_applied(tx, program, run, path, task))

    async def _attempt(self, program: Program, run: Run, action: Execute) -> record.Attempt:
        """Do a step's work. Whatever it raises is the step's outcome, not this driver's."""
        leaf = action.leaf
        context = StepContext(
            run_id=run.id,
            step_id=leaf.path,
            attempt=action.attempt,
            idempotency_key=f"{run.id}:{leaf.path}:{action.attempt}",
        )
        started_at = isoformat(self.store.clock.now())
        output: StepOutput | None = None
        outcome: Succeeded | StepFailed
        try:
            output = await self.executor.execute(program, leaf, action.input, context)
            outcome = Succeeded(output.text)
        except TimeoutError:
            message = f"{leaf.path} did not finish within {leaf.timeout_seconds} s."
            outcome = StepFailed(RunError(type="step_timeout", message=message))
        except Exception as error:
            log.info("step failed", extra={"run_id": run.id, "step_id": leaf.path}, exc_info=True)
            kind = error.code if isinstance(error, KneoError) else type(error).__name__
            outcome = StepFailed(RunError(type=kind, message=str(error) or kind))
        return record.Attempt(action=action, context=context, started_at=started_at, outcome=outcome, output=output)

    async def _write(self, work: Callable[[Tx], T]) -> T:
        """Hop to a thread for one transaction."""

        def transaction() -> T:
            with self.store.write() as tx:
                return work(tx)

        return await asyncio.to_thread(transaction)
