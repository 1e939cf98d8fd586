"""Operations on the history of a run: compared checkpoints, timeline, and position in its workflow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import Field, TypeAdapter

from kneo.api.operation import Context, Json, operation
from kneo.api.run_views import RunErrorView, StatusWord, clean
from kneo.api.specs import SpecGraphView
from kneo.api.subjects import RUN
from kneo.errors import NotFound
from kneo.records.run import Run
from kneo.runtime.engine import views
from kneo.runtime.engine.recover import read_record, refusal_to_continue
from kneo.runtime.engine.wait import find_run, read_settled_run
from kneo.spec.coverage.policy import policy_report
from kneo.spec.graph import spec_graph
from kneo.spec.lint import check
from kneo.spec.models.environment import read_spec
from kneo.spec.models.spec import Spec
from kneo.spec.modules import NOTHING_KNOWN
from kneo.store import audit, runs

V = TypeVar("V")

Number = Annotated[int, Field(ge=1, le=2**31 - 1)]


@dataclass(frozen=True, kw_only=True)
class AddedView:
    """A value of one checkpoint that the other one lacks."""

    path: str
    value: object


@dataclass(frozen=True, kw_only=True)
class ChangedView:
    """A value that differs between two checkpoints."""

    path: str
    before: object
    after: object


@dataclass(frozen=True, kw_only=True)
class CheckpointDiffView:
    """The differences between two checkpoints."""

    run_id: str
    from_checkpoint: Json
    to_checkpoint: Json
    change_count: int
    added: list[AddedView]
    removed: list[AddedView]
    changed: list[ChangedView]
    truncated: bool


@dataclass(frozen=True, kw_only=True)
class ReplayContextView:
    """The completed steps of a run, and its next step."""

    run_id: str
    status: StatusWord
    workflow_type: str | None
    completed_steps: list[str]
    completed_nodes: list[str]
    failed_step: str | None
    failed_node: str | None
    next_step_index: int
    resume_input: str
    checkpoint_count: int
    can_continue: bool
    can_replay: bool


@dataclass(frozen=True, kw_only=True)
class RunReplayView:
    """The checkpoints of a run as a timeline; for a repeated run also the reused answers."""

    run_id: str
    status: StatusWord
    workflow_name: str | None
    workflow_kind: str | None
    agent_name: str | None
    checkpoint_count: int
    timeline: list[Json]
    answers: list[Json]
    replay_context: ReplayContextView


@dataclass(frozen=True, kw_only=True)
class RunRecoveryView:
    """The position of a run, and whether the run can be continued."""

    run_id: str
    status: StatusWord
    workflow_name: str | None
    workflow_kind: str | None
    current_step_index: int | None
    current_node_id: str | None
    visited_steps: list[str]
    visited_nodes: list[str]
    checkpoint_count: int
    pending_human_request: Json | None
    continuation_id: str | None
    error: RunErrorView | None
    replay_context: ReplayContextView
    refusal: Annotated[str | None, Field(description="Why the run cannot be continued; null where it can.")]


@dataclass(frozen=True, kw_only=True)
class RunGraphView(SpecGraphView):
    """The workflow that a run executes, and the run's position in it."""

    run_id: str
    status: StatusWord
    current: str | None
    visited: list[str]


@dataclass(frozen=True, kw_only=True)
class RunPolicyReportView:
    """The report on the spec of a run."""

    run_id: str
    valid: bool
    report: Json


def _built(view: type[V], values: Json) -> V:
    """Build a view and its nested views."""
    return TypeAdapter(view).validate_python(values)


@operation("GET", "/runs/{run_id}/checkpoints/diff", scope="runs:read", about=RUN)
def diff_run_checkpoints(
    context: Context, run_id: str, from_sequence: Number | None = None, to_sequence: Number | None = None
) -> CheckpointDiffView:
    """Compare two checkpoints; by default the last two."""
    record = read_record(context.store, run_id)
    changes = views.checkpoint_diff(record.run, record.checkpoints, from_sequence, to_sequence)
    return _built(CheckpointDiffView, clean(changes))


@operation("GET", "/runs/{run_id}/replay", scope="runs:read", about=RUN)
def get_run_replay(context: Context, run_id: str) -> RunReplayView:
    """Read a run's checkpoints as a timeline."""
    return _built(RunReplayView, clean(views.replay_view(read_record(context.store, run_id))))


@operation("GET", "/runs/{run_id}/recovery", scope="runs:read", about=RUN)
def get_run_recovery(context: Context, run_id: str) -> RunRecoveryView:
    """Read the position of a run and whether it can be continued."""
    record = read_record(context.store, run_id)
    return _built(RunRecoveryView, clean(views.recovery_view(record)) | {"refusal": _refusal(record.run)})


def find_refusal_to_continue(context: Context, run_id: str) -> str | None:
    """Return why a run cannot be continued, ``None`` where it can, without its steps and checkpoints.

    Raises:
        NotFound: there is no such run.
    """
    return _refusal(find_run(context.store, run_id))


def _refusal(run: Run) -> str | None:
    refused = refusal_to_continue(run)
    return f"{refused.message} {refused.hint}" if refused is not None else None


@operation("GET", "/runs/{run_id}/graph", scope="runs:read", about=RUN)
def get_run_graph(context: Context, run_id: str) -> RunGraphView:
    """Draw the workflow of a run with its position."""
    now = read_settled_run(context.store, run_id)
    visited = list(now.run.visited_steps)
    position: Json = {
        "run_id": run_id,
        "status": now.run.status,
        "current": now.task.step_id if now.task is not None else visited[-1] if visited else None,
        "visited": visited,
    }
    return _built(RunGraphView, spec_graph(_spec_of(context, now.run)).as_json() | position)


@operation("GET", "/runs/{run_id}/policy-report", scope="runs:read", about=RUN)
def report_run_policy(context: Context, run_id: str) -> RunPolicyReportView:
    """Report on the spec of a run: tools, memory, guardrails, human gates."""
    run = find_run(context.store, run_id)
    spec = _spec_of(context, run)
    report = policy_report(spec, check(spec, NOTHING_KNOWN))
    facts = {"valid": report.valid, "source": "run"}
    with context.store.write() as tx:
        audit.record(tx, "spec.policy_reported", actor=context.actor, run_id=run.id, metadata=facts)
    return RunPolicyReportView(run_id=run.id, valid=report.valid, report=report.flat())


def _spec_of(context: Context, run: Run) -> Spec:
    with context.store.read() as tx:
        body = runs.load_spec(tx, run.spec_digest)
    if body is None:
        msg = f"The spec of {run.id} is no longer kept."
        raise NotFound(msg, code="spec_not_found")
    return read_spec(body)
