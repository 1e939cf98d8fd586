"""Recovery and cancellation: a run is cancelled, a failed one is continued, or another run is forked from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from kneo.clock import isoformat, new_id, parse_time
from kneo.errors import Conflict, NotFound
from kneo.records.run import STATE_VERSION, AgentUsage, Checkpoint, NewTrace, Run, RunError, RunStatus, StepRecord
from kneo.records.task import UNRESOLVED
from kneo.runtime.engine.passed_gates import FORK, ForkPoint, find_passed, fork_gates, lapsed_gates, questions_in
from kneo.runtime.engine.programs import ProgramLoader, migrate_state
from kneo.runtime.engine.questions import SAMPLING_INPUT, input_digest, run_facts, sampling_seed_of
from kneo.runtime.engine.record import snapshot
from kneo.runtime.engine.start import Starter, find_rules, no_extra_writes
from kneo.runtime.engine.views import RunRecord, can_continue
from kneo.runtime.engine.wait import find_run
from kneo.runtime.interpreter.fork_gates import with_fork_gates
from kneo.runtime.interpreter.node import Action, Execute
from kneo.runtime.interpreter.program import Program, actions, prepare_retry, replace_input, reset_questions
from kneo.spec.tool_kinds import CALL_TARGET
from kneo.store import agent_journal, audit, history, idempotency, runs, tasks
from kneo.store.engine import Store, Tx
from kneo.store.history import CheckpointLimits, History, NewCheckpoint
from kneo.tasks.lifecycle import cancel_tasks
from kneo.tasks.reuse import REPLAY, Reuse, reuse_report


def read_record(store: Store, run_id: str) -> RunRecord:
    """Read a run with its steps and checkpoints.

    Raises:
        NotFound: there is no such run.
    """
    run = find_run(store, run_id)
    with store.read() as tx:
        waiting = tasks.of_run(tx, run_id, UNRESOLVED) if run.status is RunStatus.PAUSED else ()
        return RunRecord(
            run=run,
            steps=history.list_steps(tx, run_id),
            checkpoints=history.list_checkpoints(tx, run_id),
            task=waiting[0] if waiting else None,
            answers=reuse_report(tx, run_id) if REPLAY in run.metadata else (),
        )


def steps_under_way(programs: ProgramLoader, run: Run) -> tuple[Execute, ...]:
    """List the steps of a running run that a worker executes, or executes next.

    Raises:
        Untrusted: the stored spec is missing or is not the one that the run was started with.
        Invalid: this version cannot execute it.
    """
    state = migrate_state(run.state, run.state_version)
    return tuple(action for action in actions(programs.load(run), state) if isinstance(action, Execute))


def continue_run(store: Store, programs: ProgramLoader, run_id: str, *, actor: str) -> Run:
    """Continue a failed run: succeeded steps are not repeated, the failed one begins another attempt.

    Raises:
        NotFound: there is no such run.
        Conflict: ``run_state_conflict``: the run did not fail, or cannot be continued.
    """
    run = find_run(store, run_id)
    if (refused := refusal_to_continue(run)) is not None:
        raise refused
    program = programs.load(run)
    before = prepare_retry(program, migrate_state(run.state, run.state_version))
    with store.read() as tx:
        passed = find_passed(tx, programs, run, None)

    def work(tx: Tx) -> Run:
        idempotency.bind(tx, run.id)
        state = with_fork_gates(before, lapsed_gates(tx, passed, questions_in(program, before)))
        if not runs.revive(tx, run, state=state, state_version=STATE_VERSION):
            raise _not_continuable(run)
        history.add_trace(tx, run.id, "workflow_resumed", continued=True)
        kept = snapshot(replace(run, status=RunStatus.RUNNING, state=state, error=None), tx)
        history.add_checkpoint(tx, run.id, "replay_context", step_id=None, state=kept, metadata={"continued": True})
        audit.record(
            tx,
            "run.continued",
            actor=actor,
            run_id=run.id,
            environment=run.environment,
            metadata={"status": RunStatus.RUNNING.value},
        )
        after = runs.get(tx, run.id)
        assert after is not None
        return after

    return store.transact(work)


def refusal_to_continue(run: Run) -> Conflict | None:
    """Return why a run cannot be continued; None for one that can."""
    if run.target == CALL_TARGET:
        return _not_repeatable(run)
    return None if can_continue(run) else _not_continuable(run)


def _not_continuable(run: Run) -> Conflict:
    if run.is_imported:
        return _imported(run, "continued")
    msg = f"The run {run.id} is {run.status} and cannot be continued."
    hint = "Only a run that failed in a step can be continued. Start another run from any point of this one: kneo runs fork."
    return Conflict(msg, code="run_state_conflict", hint=hint, run_id=run.id, status=run.status)


def _not_repeatable(run: Run) -> Conflict:
    msg = "A call is not continued or forked. Make a new one."
    return Conflict(msg, code="call_not_repeatable", run_id=run.id)


def _imported(run: Run, what: str) -> Conflict:
    msg = f"The run {run.id} was imported from another platform and cannot be {what}."
    return Conflict(msg, code="run_imported", hint="Start a new run of its spec: kneo run.", run_id=run.id)


MAX_REPEATS = 100
"""Repeated steps that a fork's metadata list; the count is of all of them."""


# ---- fork -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ForkRequest:
    """A request to start a run from a checkpoint of another one."""

    run_id: str
    step: str | None = None
    """The first step: its path, with ``#n`` for the n-th visit."""
    checkpoint: int | None = None
    """Or the number of the checkpoint."""
    input: str | None = None
    """A new input of the first step."""
    requester: str = ""
    answers: Mapping[str, object] = field(default_factory=dict)
    """Answers instead of the recorded ones, by the keys of their questions."""
    ask: tuple[str, ...] = ()
    """Questions to ask again, by their keys, or ``all``."""


def fork(
    starter: Starter, programs: ProgramLoader, order: ForkRequest, also: Callable[[Tx, Run], None] = no_extra_writes
) -> Run:
    """Start a run with another run's past, after the checks of a new run.

    Args:
        starter: Checks that the run may start.
        programs: Programs of runs.
        order: The request.
        also: Writes in the transaction that records the run.

    Raises:
        NotFound: there is no such run, step or checkpoint.
        Conflict: ``checkpoint_incomplete``: the checkpoint was truncated and has no state. ``run_imported``: another platform
            executed the run.
        Forbidden: the run's spec may no longer run.
    """
    store = starter.store
    parent = find_run(store, order.run_id)
    if parent.is_imported:
        raise _imported(parent, "forked")
    if parent.target == CALL_TARGET:
        raise _not_repeatable(parent)
    program = programs.load(parent)
    with store.read() as tx:
        checkpoints = history.list_checkpoints(tx, parent.id)
        point, ticket, state = _point(program, parent, checkpoints, order)
        passed = find_passed(tx, programs, parent, point.sequence)
        steps = history.list_steps(tx, parent.id)
    if order.input is not None:
        changed = replace_input(program, state, ticket, order.input) if ticket is not None else state
        if ticket is None or _input_of(program, changed, ticket) != order.input:
            msg = f"No step of {parent.id} takes an input at checkpoint {point.sequence}."
            raise Conflict(msg, code="fork_input_unused", hint="Fork from a step: --from STEP --input TEXT.")
        state = changed
    done = point.state.get("step_count", 0)
    assert isinstance(done, int)
    gates = fork_gates(
        program,
        passed,
        [step.step_id for step in steps if step.sequence <= done],
        ForkPoint(
            state=state,
            ticket=ticket,
            input=order.input,
            case=sampling_seed_of(parent, new_input=order.input),
            run=run_facts(order.requester, parent.environment, parent.workflow_name),
        ),
    )
    past = ForkPast(
        point=point,
        state=with_fork_gates(state, gates, ticket=ticket if order.input is not None else None),
        steps=[step for step in steps if step.sequence <= done],
        gates=[gate.key for gate in gates],
        repeats=[step for step in steps if step.sequence > done and step.kind != "human"],
        conversations=_conversations([step for step in steps if step.sequence <= done], actions(program, state)),
    )

    def work(tx: Tx) -> Run:
        starter.check_still_allowed(tx, parent)
        starter.quotas.check(tx, find_rules(tx, parent.environment), parent.input_text)
        run = _insert(tx, parent, past, order)
        also(tx, run)
        return run

    return starter.quotas.transact(work)


@dataclass(frozen=True, kw_only=True)
class ForkPast:
    """The past that a fork takes over from its parent, and the steps that it repeats."""

    point: Checkpoint
    state: Mapping[str, object]
    steps: Sequence[StepRecord]
    """The parent's steps before the point."""
    gates: Sequence[str]
    """The keys of the gates before the point; the fork needs an answer to each."""
    repeats: Sequence[StepRecord]
    """The parent's steps from the point on; the fork repeats the effects of those that it reaches."""
    conversations: Collection[str]
    """The locations of the agents' steps before the point, whose conversations the fork has too."""

    def as_json(self, run_id: str, order: ForkRequest) -> dict[str, object]:
        """Return the fork's metadata and trace event."""
        listed = self.repeats[:MAX_REPEATS]
        return {
            "run_id": run_id,
            "checkpoint": self.point.sequence,
            "step": order.step,
            "input_changed": order.input is not None,
            "gates": list(self.gates),
            "repeats": [
                {
                    "step": step.step_id,
                    "kind": step.kind,
                    "status": step.status,
                    "idempotency_key": step.idempotency_key,
                }
                for step in listed
            ],
            "repeat_count": len(self.repeats),
        }


def _conversations(done: Sequence[StepRecord], ahead: Sequence[Action]) -> frozenset[str]:
    """Return the locations of the steps whose conversations have ended.

    A step that the fork executes begins another conversation, also where an earlier attempt of it failed.
    """
    # A ticket is the step's location and attempt; the idempotency key is the run and the ticket.
    tickets = [step.idempotency_key.partition(":")[2] for step in done if step.kind in {"agent", "guardrail"}]
    again = {action.ticket.rpartition(":")[0] for action in ahead if isinstance(action, Execute)}
    return frozenset(ticket.rpartition(":")[0] for ticket in tickets) - again


def _input_of(program: Program, state: Mapping[str, object], ticket: str) -> str | None:
    action = next((one for one in actions(program, state) if one.ticket == ticket), None)
    return None if action is None else (action.value if isinstance(action, Execute) else action.subject).text


def _point(
    program: Program, parent: Run, checkpoints: tuple[Checkpoint, ...], order: ForkRequest
) -> tuple[Checkpoint, str | None, Mapping[str, object]]:
    for item in checkpoints:
        if order.checkpoint is not None and item.sequence != order.checkpoint:
            continue
        kept = item.state
        if "state" not in kept:
            if order.checkpoint is None:
                continue
            msg = f"Checkpoint {item.sequence} of {parent.id} was too large to be kept whole."
            raise Conflict(msg, code="checkpoint_incomplete", hint="Fork from an earlier one.")
        if not kept["state"]:
            continue
        inner, version = kept["state"], kept["state_version"]
        assert isinstance(inner, Mapping)
        assert isinstance(version, int)
        state = reset_questions(program, migrate_state(inner, version))
        ready = {action.ticket: action for action in actions(program, state)}
        if order.step is None:
            return item, next(iter(ready), None), state
        for ticket in ready:
            if ticket.rpartition(":")[0] == order.step or ticket.split(":")[0] == order.step:
                return item, ticket, state
    what = f"step {order.step}" if order.step is not None else f"checkpoint {order.checkpoint}"
    msg = f"The run {parent.id} has no checkpoint before {what}."
    raise NotFound(msg, code="fork_point_not_found", hint="List its checkpoints: kneo runs replay RUN.")


def _insert(tx: Tx, parent: Run, past: ForkPast, order: ForkRequest) -> Run:
    point, forked = past.point, past.as_json(parent.id, order)
    origin = {
        "run_id": parent.id,
        "checkpoint": point.sequence,
        "step": order.step,
        "input_changed": order.input is not None,
    }
    reuse = Reuse(source=parent.id, answers=order.answers, ask=order.ask)
    run = replace(
        parent,
        id=new_id("run", tx.now),
        status=RunStatus.RUNNING,
        output_text=None,
        error=None,
        state=past.state,
        state_version=STATE_VERSION,
        visited_steps=(),
        requester=order.requester,
        metadata={
            **{key: value for key, value in parent.metadata.items() if key != "outputs"},
            "forked_from": origin,
            FORK: forked,
            REPLAY: reuse.as_json(),
            **({SAMPLING_INPUT: input_digest(order.input)} if order.input is not None else {}),
        },
        deadline_at=_deadline(tx, parent),
        step_count=0,
        checkpoint_count=0,
        trace_count=0,
        usage=AgentUsage(),
    )
    begun = NewCheckpoint(type="run_started", step_id=None, state={}, metadata={"forked_from": origin})
    new = History(
        steps=[replace(step, run_id=run.id) for step in past.steps],
        checkpoints=[begun],
        trace=[
            NewTrace(type="workflow_started", data={"forked_from": origin}),
            NewTrace(type="workflow_forked", data={FORK: forked}),
        ],
    )
    run = history.counted(run, new)
    idempotency.bind(tx, run.id)
    begun = replace(begun, state=snapshot(run, tx))
    new.checkpoints = [begun]
    runs.insert_run(tx, run)
    agent_journal.copy(tx, parent.id, run.id, past.conversations)
    history.append(tx, replace(run, step_count=0, checkpoint_count=0, trace_count=0), new, CheckpointLimits())
    audit.record(
        tx,
        "run.forked",
        actor=order.requester,
        run_id=run.id,
        environment=run.environment,
        metadata={
            "parent_run_id": parent.id,
            "checkpoint": point.sequence,
            "step": order.step,
            "input_changed": order.input is not None,
            "gates": forked["gates"],
            "repeat_count": forked["repeat_count"],
        },
    )
    after = runs.get(tx, run.id)
    assert after is not None
    return after


def _deadline(tx: Tx, parent: Run) -> str | None:
    """Return a deadline with the time that the parent had."""
    if parent.deadline_at is None or parent.started_at is None:
        return None
    allowed: timedelta = parse_time(parent.deadline_at) - parse_time(parent.started_at)
    return isoformat(tx.now + allowed)


def cancel_run(store: Store, run_id: str, *, actor: str) -> Run:
    """Cancel a run and withdraw its tasks; a run that has ended stays as it is.

    A running step loses its lease: its result is discarded.

    Raises:
        NotFound: there is no such run.
    """
    with store.write() as tx:
        run = runs.get(tx, run_id)
        if run is None:
            msg = f"There is no run {run_id[:80]}."
            raise NotFound(msg)
        if idempotency.made() is not None:
            return run
        idempotency.bind(tx, run_id)
        error = RunError(type="cancelled", message=f"{actor} cancelled the run.")
        if runs.end(tx, run_id, RunStatus.CANCELLED, error, allowed=[RunStatus.RUNNING, RunStatus.PAUSED]):
            cancel_tasks(tx, run_id, reason="run_cancelled", actor=actor)
            audit.record(tx, "run.cancelled", actor=actor, run_id=run_id, environment=run.environment)
        after = runs.get(tx, run_id)
        assert after is not None
        return after
