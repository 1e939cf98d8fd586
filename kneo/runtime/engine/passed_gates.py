"""Gates that a run passed before a checkpoint, and those that a fork or a continued run asks again.

A fork executes no input that a person has not seen. With a changed input every gate before the checkpoint asks about the new
input; else each gate asks about the value that it passed on, and an earlier answer counts under the rules of
``kneo.tasks.reuse``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kneo.errors import Conflict, Invalid
from kneo.records.run import Checkpoint, Run
from kneo.records.task import HumanTask, TaskStatus
from kneo.runtime.engine.programs import ProgramLoader, migrate_state
from kneo.runtime.interpreter.fork_gates import PassedGate, passed_gates
from kneo.runtime.interpreter.gate import CompiledGate
from kneo.runtime.interpreter.node import Ask, Execute
from kneo.runtime.interpreter.program import Program, actions, waiting
from kneo.runtime.interpreter.values import Value
from kneo.spec.gates import positions_of
from kneo.store import history, runs, tasks
from kneo.store.engine import Tx
from kneo.tasks.reuse import task_output, why_invalid

FORK = "fork"
"""The key of a run's metadata with the past that a fork takes over and repeats."""

ALWAYS_BEFORE, WHEN_DONE = positions_of("input"), positions_of("result")

MAX_GENERATIONS = 100
"""The longest chain of forks that is followed."""


@dataclass(frozen=True, kw_only=True)
class AnsweredGate:
    """A passed gate with its decided task; without a task where the gate was still to be asked."""

    gate: PassedGate
    task: HumanTask | None = None


def find_passed(tx: Tx, programs: ProgramLoader, run: Run, upto: int | None) -> Mapping[object, AnsweredGate]:
    """Find the gates that a run passed, the latest answer of each, in the order in which they were first passed.

    Args:
        tx: The transaction.
        programs: Loads the run's program.
        run: The run.
        upto: The number of the last checkpoint; None for all gates that the run has passed.

    Raises:
        Conflict: ``checkpoint_incomplete``: the question of a task is no longer kept.
    """
    return _passed(tx, programs.load(run), run, upto, 0)


def _passed(tx: Tx, program: Program, run: Run, upto: int | None, depth: int) -> dict[object, AnsweredGate]:
    found = _inherited(tx, program, run, depth)
    checkpoints = history.list_checkpoints(tx, run.id)
    past = [item for item in checkpoints if upto is None or item.sequence <= upto]
    questions = {item.metadata.get("continuation_id"): item for item in checkpoints if item.type == "human_pause"}
    # Gates that the run itself still had to ask count like passed ones.
    for item in past[-1:]:
        for gate in passed_gates(_state(item, run)):
            found[gate.location] = AnsweredGate(gate=replace(gate, source=run.id))
    later = {
        item.metadata.get("continuation_id")
        for item in checkpoints
        if item.type == "human_resume" and upto is not None and item.sequence > upto
    }
    applied = tasks.of_run(tx, run.id, [TaskStatus.APPLIED])
    _check_complete(run, past, {task.id for task in applied})
    # Decisions without a kept checkpoint are older than the kept ones.
    for task in applied:
        if task.id in later:
            continue
        asked = questions.get(task.id)
        ask = waiting(program, _state(asked, run)).get(task.id) if asked is not None else None
        if ask is None:
            raise _unknown(run, task)
        if ask.of_call:
            # The fork has the result of the call, and does not make it again.
            continue
        gate = _of_ask(ask, task)
        found[gate.location] = AnsweredGate(gate=gate, task=task)
    return found


def _check_complete(run: Run, past: Sequence[Checkpoint], tasks_: Collection[str]) -> None:
    """Check that the task of each answer that the run continued with is kept: without it a gate would count as not asked.

    Raises:
        Conflict: ``checkpoint_incomplete``.
    """
    for item in past:
        task_id = item.metadata.get("continuation_id")
        if item.type == "human_resume" and task_id not in tasks_:
            msg = f"The questions of {run.id} cannot be read: {task_id}, which was answered before checkpoint {item.sequence}, is not kept."
            raise Conflict(msg, code="checkpoint_incomplete", hint="Fork from an earlier one, or start a new run.")


def _inherited(tx: Tx, program: Program, run: Run, depth: int) -> dict[object, AnsweredGate]:
    """Return the gates before a fork of an earlier version, which did not ask them again."""
    origin = run.metadata.get("forked_from")
    if not isinstance(origin, Mapping) or FORK in run.metadata:
        return {}
    parent = runs.get(tx, str(origin["run_id"]))
    if parent is None or depth > MAX_GENERATIONS:
        msg = f"{run.id} was forked from {origin['run_id']}, which is no longer kept."
        raise Conflict(msg, code="checkpoint_incomplete", hint="Start a new run.")
    found = _passed(tx, program, runs.check(tx, parent), int(origin["checkpoint"]), depth + 1)
    if origin.get("input_changed"):
        return {location: AnsweredGate(gate=replace(one.gate, source=None)) for location, one in found.items()}
    return found


def _state(item: Checkpoint, run: Run) -> Mapping[str, object]:
    kept, version = item.state.get("state"), item.state.get("state_version")
    if "state" not in item.state:
        raise _unknown(run, item)
    assert isinstance(kept, Mapping)
    assert isinstance(version, int)
    return migrate_state(kept, version) if kept else kept


def _unknown(run: Run, item: Checkpoint | HumanTask) -> Conflict:
    what = f"checkpoint {item.sequence}" if isinstance(item, Checkpoint) else f"the checkpoint of {item.key}"
    msg = f"The questions of {run.id} cannot be read: {what} is not kept whole."
    return Conflict(msg, code="checkpoint_incomplete", hint="Fork from an earlier one, or start a new run.")


def _of_ask(ask: Ask, task: HumanTask) -> PassedGate:
    decision = task.decision
    chosen = (
        decision.selected_options or ((decision.selected_option,) if decision.selected_option else ())
        if decision
        else ()
    )
    answer = {
        "decision": decision.kind.value if decision else None,
        "actor": decision.actor if decision else None,
        "content": decision.content if decision else None,
        "selected_options": list(chosen) or None,
        "values": dict(decision.values) if decision and decision.values else None,
    }
    facts = {name: value for name, value in ask.facts.items() if name != "answered"}
    return PassedGate(
        path=ask.path,
        spot=ask.gate.position_id,
        step_id=ask.step_id,
        key=ask.key,
        subject=task_output(task),
        human=ask.human or "",
        source=task.run_id,
        prompt=ask.prompt,
        options=ask.options or (),
        chosen=tuple(chosen),
        facts={**facts, "answered": {name: value for name, value in answer.items() if value is not None}},
    )


# ---- which are asked ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ForkPoint:
    """The state at which a fork begins, with its changed input."""

    state: Mapping[str, object]
    ticket: str | None
    input: str | None
    """The new input; None where the input is unchanged."""
    case: str
    run: Mapping[str, object] = field(default_factory=dict)
    """The facts of the fork that expressions compare."""


def fork_gates(
    program: Program, passed: Mapping[object, AnsweredGate], visited: Collection[str], point: ForkPoint
) -> tuple[PassedGate, ...]:
    """List the gates that a fork asks before it continues. Pure."""
    asked = questions_in(program, point.state)
    gates = [one.gate for one in passed.values()]
    if point.input is not None:
        gates += [gate for gate in _newly_triggered(program, visited, point) if gate.location not in passed]
        gates = [replace(gate, subject=point.input) for gate in gates]
    return tuple(gate for gate in gates if question_of(gate) not in asked)


def lapsed_gates(
    tx: Tx, passed: Mapping[object, AnsweredGate], asked: Collection[QuestionAt]
) -> tuple[PassedGate, ...]:
    """List the gates of a continued run whose answers are no longer valid."""
    found = []
    for one in passed.values():
        why = why_invalid(tx, one.task) if one.task is not None else "it is still to be answered"
        if why is not None and question_of(one.gate) not in asked:
            found.append(replace(one.gate, source=None, facts={**one.gate.facts, "asked_because": why}))
    return tuple(found)


QuestionAt = tuple[str, str, str, str]
"""The key of a question, and the location of its gate: several gates may have one key."""


def questions_in(program: Program, state: Mapping[str, object]) -> frozenset[QuestionAt]:
    """Return the questions that a state asks by itself."""
    asks = (action for action in actions(program, state) if isinstance(action, Ask))
    return frozenset((ask.key, ask.path, ask.gate.position_id, ask.human or "") for ask in asks)


def question_of(gate: PassedGate) -> QuestionAt:
    return gate.key, *gate.location


def _newly_triggered(program: Program, visited: Collection[str], point: ForkPoint) -> Sequence[PassedGate]:
    """List gates before the point that were not asked, and that the new input would trigger by condition or by sample."""
    action = next((one for one in actions(program, point.state) if one.ticket == point.ticket), None)
    if action is None:
        return ()
    path = action.activity.path if isinstance(action, Execute) else action.path
    value = action.value if isinstance(action, Execute) else action.subject
    inside, found = _enclosing(path), []
    ahead = {*inside, *(outer for one in visited for outer in _enclosing(one))}
    for (location, _, _), gate in program.gates.items():
        if location not in ahead or (gate.when is None and gate.sample is None):
            continue
        if isinstance(action, Ask) and location == path:
            continue  # gates around the point itself are asked there
        position = gate.position
        done = location not in inside
        if (position in ALWAYS_BEFORE or (done and position in WHEN_DONE)) and _asks(gate, value, location, point):
            found.append(_of_gate(gate, location))
    return found


def _asks(gate: CompiledGate, value: Value, location: str, point: ForkPoint) -> bool:
    try:
        return gate.asks(value, location, point.case, point.run)
    except Invalid:
        return True


def _of_gate(gate: CompiledGate, location: str) -> PassedGate:
    options = tuple(gate.human.options or ())
    return PassedGate(
        path=location,
        spot=gate.position_id,
        step_id=location.rpartition("/")[2],
        key=gate.key(location),
        subject="",
        options=options,
    )


def _enclosing(path: str) -> frozenset[str]:
    """Return the paths of a step and of everything around it."""
    parts = path.split("/")
    return frozenset("/".join(parts[: number + 1]) for number in range(len(parts)))
