"""The list of runs, and the usage of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from kneo.api.run_views import RunView
from kneo.api.runs import list_runs
from kneo.api.usage import get_usage
from kneo.clock import parse_time
from kneo.errors import InvalidValue
from kneo.records.run import RunStatus
from kneo.service.console.page import MenuEntry, Page, PageRequest, Pages
from kneo.service.console.render import count, peek, span
from kneo.spec.tool_kinds import CALL_TARGET

MENU = MenuEntry("runs", "Runs", "/runs", "runs:read")
"""The place of every page about runs."""

pages = Pages(MENU)

PAGE_SIZE = 50

CHIPS: Mapping[str, tuple[str, str]] = {
    RunStatus.RUNNING: ("run", "running"),
    RunStatus.PAUSED: ("wait", "waits for people"),
    RunStatus.SUCCEEDED: ("ok", "succeeded"),
    RunStatus.FAILED: ("bad", "failed"),
    RunStatus.TIMED_OUT: ("bad", "timed out"),
    RunStatus.EXPIRED: ("bad", "expired"),
    RunStatus.CANCELLED: ("off", "cancelled"),
}

FILTERS = ("status", "kind", "environment", "bundle", "requester", "waiting_for", "q", "from", "to")
"""The fields of the filter form; in the query, so that a filtered list has an address."""

GROUPS: Mapping[str, str] = {
    f"{RunStatus.RUNNING},{RunStatus.PAUSED}": "under way",
    f"{RunStatus.FAILED},{RunStatus.TIMED_OUT},{RunStatus.EXPIRED}": "failed, timed out or expired",
}
"""Several statuses at once, as the filter offers them."""

KINDS: Mapping[str, str] = {"workflow": "workflows", "agent": "agents", CALL_TARGET: "calls"}
"""What runs execute, as the filter offers it."""

By = Literal["day", "model", "agent"]


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A run as a row of a list."""

    id: str
    name: str
    chip: tuple[str, str]
    input: str
    error: str
    question: str
    release: str
    environment: str
    by: str
    created_at: str
    took: str

    @classmethod
    def of(cls, run: RunView, request: PageRequest) -> RunRow:
        """Build the row of a run."""
        release = release_of(run)
        question = run.pending_human_request or {}
        return cls(
            id=run.id,
            name=name_of(run),
            chip=CHIPS[run.status],
            input=peek(run.input_text),
            error=peek(run.error.message) if run.error is not None else "",
            question=peek(str(question.get("headline") or "")),
            release=f"{release.get('bundle')} {release.get('version')}" if release else "",
            environment=environment_of(run),
            by=str(run.metadata.get("requester") or ""),
            created_at=run.created_at,
            took=span(seconds_of(run, request)),
        )


def name_of(run: RunView) -> str:
    """Return the name of the workflow of a run, else of its agent."""
    return run.workflow_name or run.agent_name or run.id


def release_of(run: RunView) -> Mapping[str, object]:
    """Return the release that a run executes; empty where it has a spec of its own."""
    release = run.metadata.get("release")
    return release if isinstance(release, Mapping) else {}


def environment_of(run: RunView) -> str:
    """Return the environment of a run; empty where it has none."""
    return str(release_of(run).get("environment") or run.metadata.get("environment") or "")


def seconds_of(run: RunView, request: PageRequest) -> float:
    """Return the time from the creation of a run to its end, or to now."""
    end = parse_time(run.completed_at) if run.completed_at is not None else request.now
    return (end - parse_time(run.created_at)).total_seconds()


@pages.get("/runs", scope="runs:read")
def show_runs(request: PageRequest) -> Page:
    """List runs, the newest first."""
    status = ",".join(filter(None, request.query.all("status")))
    filters = {name: status if name == "status" else request.query.get(name).strip() for name in FILTERS}
    after = request.query.get("after") or None
    listed = request.call(
        list_runs,
        status=_bounded("status", status),
        environment=filters["environment"] or None,
        bundle=filters["bundle"] or None,
        workflow_kind=_bounded("kind", filters["kind"]),
        requester=_bounded("requester", filters["requester"]),
        waiting_for=_bounded("waiting_for", filters["waiting_for"]),
        q=_bounded("q", filters["q"]),
        created_after=request.query.time("from"),
        created_before=request.query.time("to"),
        limit=PAGE_SIZE,
        after=after,
        sort_by="created_at",
    )
    return Page(
        "runs.html",
        {
            "runs": [RunRow.of(run, request) for run in listed.runs],
            "filters": filters,
            "searched": listed.searched,
            "is_filtered": any(filters.values()),
            "status": status,
            "kinds": KINDS.items(),
            "statuses": [*GROUPS.items(), *((one.value, CHIPS[one][1]) for one in RunStatus)],
            "may_read_tasks": request.may("human:read"),
            "lead": f"{count(listed.total, 'run')}." if listed.total else "",
            "next_url": request.query.with_values(after=listed.next_after) if listed.next_after else "",
            "shown": f"{len(listed.runs)} of {listed.total:,}",
        },
        live="runs",
    )


def _bounded(name: str, text: str) -> str | None:
    """Return the text of a filter; ``None`` for an empty one.

    Raises:
        InvalidValue: the text is longer than the operation accepts.
    """
    if len(text) > 200:
        msg = f"The filter {name} is {len(text)} characters long; at most 200 are accepted."
        raise InvalidValue(msg, field=name)
    return text or None


@pages.get("/usage", scope="runs:read")
def show_usage(request: PageRequest) -> Page:
    """Sum up requests to models, their tokens and cost."""
    by = request.query.get("by") or "day"
    if by not in get_args(By):
        msg = f"Usage is summed up by {', '.join(get_args(By))}, not by {by[:40]!r}."
        raise InvalidValue(msg, field="by")
    environment = request.query.get("environment").strip()
    report = request.call(
        get_usage,
        by=cast("By", by),
        environment=environment or None,
        since=request.query.get("since") or None,
        until=request.query.get("until") or None,
    )
    return Page(
        "usage.html",
        {
            "report": report,
            "groups": get_args(By),
            "environment": environment,
            "is_filtered": any(value for _, value in request.query.fields),
        },
    )
