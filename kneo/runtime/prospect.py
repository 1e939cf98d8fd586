"""A task as it stands now: what each answer leads to, beside everything that was answered since the question was opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from kneo.digest import digest_of
from kneo.errors import KneoError
from kneo.records.run import Run
from kneo.records.task import UNRESOLVED, HumanTask, TaskStatus
from kneo.runtime.case import case_of
from kneo.runtime.consequences import consequences
from kneo.runtime.decide import Answered, Ended, Frame, Moment, settle, waiting
from kneo.runtime.migrate_state import migrate_state
from kneo.runtime.program import Program, compile_program
from kneo.spec.models.environment_gates import read_spec
from kneo.store import runs, tasks
from kneo.store.engine import Tx

CACHED_PROGRAMS = 32


def as_it_stands(tx: Tx, task: HumanTask) -> HumanTask:
    """Return an open task with the consequences of each answer in the present state of its run.

    The row keeps what was found when the question was opened, which other answers make untrue. A resolved task keeps
    those; where the run's program cannot be read, there are none rather than old ones.
    """
    run = runs.get(tx, task.run_id) if task.status in UNRESOLVED else None
    if run is None:
        return task
    try:
        found = _found(tx, run, task)
    except KneoError:
        found = {}
    return replace(task, consequences=found)


def _found(tx: Tx, run: Run, task: HumanTask) -> Mapping[str, object]:
    body = runs.load_spec(tx, run.spec_digest)
    if body is None or digest_of(body) != run.spec_digest:
        return {}
    program = _program(body, run.target)
    moment = Moment(now=tx.now, seed=run.id, case=case_of(run))
    state = _decided(tx, run, program, moment)
    if isinstance(state, Ended):
        return {kind.value: {"next": [], "ends": state.status.value} for kind in task.decisions}
    ask = waiting(program, state).get(task.id)
    return consequences(program, state, ask, moment) if ask is not None else {}


def _decided(tx: Tx, run: Run, program: Program, moment: Moment) -> Frame | Ended:
    """Return the state of a run once the answers that are recorded and not applied yet have taken effect."""
    state: Frame | Ended = migrate_state(run.state, run.state_version)
    for answered in tasks.of_run(tx, run.id, [TaskStatus.DECIDED]):
        if isinstance(state, Ended):
            return state
        ask = waiting(program, state).get(answered.id)
        if ask is not None and answered.decision is not None:
            state = settle(program, state, ask.ticket, Answered(decision=answered.decision), moment)
    return state


@lru_cache(maxsize=CACHED_PROGRAMS)
def _program(body: bytes, target: str) -> Program:
    return compile_program(read_spec(body), target)
