"""Operations that read runs: list them, get one, read its trace and its checkpoints."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from kneo.api.operation import Context, operation
from kneo.api.page import (
    Limit,
    Moment,
    Offset,
    Order,
    Word,
    limit_search,
    page_fields,
    search_period,
    stored_time,
    total_of,
)
from kneo.api.run_views import CheckpointPageView, CheckpointView, RunPageView, RunView, TraceEventView, TraceView
from kneo.api.subjects import RUN
from kneo.api.tasks import ME
from kneo.errors import InvalidValue
from kneo.records.run import RunStatus
from kneo.runtime.engine.wait import find_run, read_settled_run
from kneo.store import history, runs, tasks
from kneo.store.run_filter import LASTING, RunFilter
from kneo.tasks.people import identities_of

TARGETS = frozenset({"workflow", "agent", "call"})
"""The kinds of runs that are no family of workflows."""

RunSortField = Literal[
    "run_id",
    "id",
    "status",
    "created_at",
    "updated_at",
    "started_at",
    "completed_at",
    "deadline_at",
    "agent_name",
    "workflow_name",
    "environment",
    "session_id",
]


def parse_statuses(text: str) -> frozenset[RunStatus]:
    """Parse statuses of runs, separated by commas.

    Raises:
        InvalidValue: a word is no status.
    """
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in RunStatus.__members__.values():
            msg = f"{word[:40]!r} is not a run status; known: {', '.join(RunStatus)}."
            raise InvalidValue(msg)
    return frozenset(map(RunStatus, words))


@operation("GET", "/runs", scope="runs:read", about=RUN)
def list_runs(
    context: Context,
    *,
    status: Annotated[
        str | None, Field(max_length=200, description="A status, or several, separated by commas.")
    ] = None,
    environment: Word | None = None,
    bundle: Word | None = None,
    requester: Annotated[str | None, Field(max_length=200, description="The person who started the run.")] = None,
    waiting_for: Annotated[
        str | None,
        Field(max_length=200, description="A person who may decide an open task of the run; `me` is the caller."),
    ] = None,
    workflow_kind: Annotated[
        Word | None, Field(description="The family of the workflow, `agent` or `call`; `workflow` for every family.")
    ] = None,
    workflow_name: Word | None = None,
    session_id: Word | None = None,
    has_error: bool | None = None,
    created_after: Moment | None = None,
    created_before: Moment | None = None,
    q: Annotated[
        str | None,
        Field(
            max_length=200,
            description="A substring of the input or output of runs that were created in a period of up to 366 days; without "
            "created_after, in the 30 days before created_before or now. The answer's `searched` is the period.",
        ),
    ] = None,
    limit: Limit = 100,
    offset: Offset = 0,
    after: Annotated[
        str | None,
        Field(max_length=40, description="`next_after` of the previous page, sorted by created_at or run_id."),
    ] = None,
    sort_by: RunSortField = "updated_at",
    sort_order: Order = "desc",
) -> RunPageView:
    """List runs, the most recently changed first."""
    lasts = sort_by in LASTING
    if after is not None and not lasts:
        msg = f"The order of runs changes while they are sorted by {sort_by}, so no page can begin after one of them."
        hint = f"Sort by {', '.join(sorted(LASTING))}, or page with offset."
        raise InvalidValue(msg, field="after", hint=hint)
    searched = search_period(context.store.clock.now(), created_after, created_before) if q else None
    where = RunFilter(
        statuses=parse_statuses(status) if status is not None else (),
        environment=environment,
        bundle=bundle,
        target=workflow_kind if workflow_kind in TARGETS else None,
        workflow_type=workflow_kind.replace("_", "-")
        if workflow_kind is not None and workflow_kind not in TARGETS
        else None,
        workflow_name=workflow_name,
        session_id=session_id,
        requester=requester,
        has_error=has_error,
        created_after=searched.created_after if searched else stored_time(created_after),
        created_before=stored_time(created_before),
        text=q or None,
    )
    if waiting_for is not None:
        context.principal.require("human:read")
    with context.store.read() as tx:
        if waiting_for is not None:
            person = context.actor if waiting_for == ME else waiting_for
            where = replace(where, waiting_for=identities_of(tx, person))
        descending = sort_order == "desc"
        with limit_search(context, tx, q, searched):
            rows = runs.list_runs(
                tx, where, sort_by=sort_by, descending=descending, limit=limit, offset=offset, after=after
            )
            total = total_of(rows, lambda: runs.count_runs(tx, where), limit=limit, offset=offset, after=after)
        questions = tasks.first_of_runs(tx, [run.id for run in rows if run.status is RunStatus.PAUSED])
    return RunPageView(
        runs=[RunView.of(run, questions.get(run.id)) for run in rows],
        next_after=rows[-1].id if lasts and len(rows) == limit else None,
        searched=searched,
        **page_fields(rows, total, limit=limit, offset=offset, sort_by=sort_by, sort_order=sort_order),
    )


@operation("GET", "/runs/{run_id}", scope="runs:read", about=RUN)
def get_run(context: Context, run_id: str) -> RunView:
    """Read one run."""
    settled = read_settled_run(context.store, run_id)
    return RunView.of(settled.run, settled.task)


@operation("GET", "/runs/{run_id}/trace", scope="runs:read", about=RUN)
def get_run_trace(
    context: Context,
    run_id: str,
    event_type: Word | None = None,
    limit: Limit = 100,
    offset: Offset = 0,
    sort_by: Literal["timestamp", "sequence"] = "timestamp",
    sort_order: Order = "asc",
) -> TraceView:
    """Read the trace of a run: its events in order."""
    find_run(context.store, run_id)
    with context.store.read() as tx:
        events = history.list_trace(
            tx, run_id, event_type=event_type, descending=sort_order == "desc", limit=limit, offset=offset
        )
        total = history.count_trace(tx, run_id, event_type=event_type)
    return TraceView(
        run_id=run_id,
        events=[TraceEventView.of(event) for event in events],
        **page_fields(events, total, limit=limit, offset=offset, sort_by=sort_by, sort_order=sort_order),
    )


@operation("GET", "/runs/{run_id}/checkpoints", scope="runs:read", about=RUN)
def list_run_checkpoints(
    context: Context,
    run_id: str,
    type: Word | None = None,  # noqa: A002 - the name that clients use
    limit: Limit = 100,
    offset: Offset = 0,
    sort_by: Literal["sequence", "created_at"] = "sequence",
    sort_order: Order = "asc",
) -> CheckpointPageView:
    """Read a run's checkpoints, oldest first."""
    find_run(context.store, run_id)
    with context.store.read() as tx:
        checkpoints, total = history.page_of_checkpoints(
            tx, run_id, type_=type, descending=sort_order == "desc", limit=limit, offset=offset
        )
    return CheckpointPageView(
        run_id=run_id,
        checkpoints=[CheckpointView.of(item) for item in checkpoints],
        **page_fields(checkpoints, total, limit=limit, offset=offset, sort_by=sort_by, sort_order=sort_order),
    )
