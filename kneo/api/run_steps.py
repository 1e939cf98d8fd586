"""Operations on the steps of a run: what each one did and used, and the conversations of its agents."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import unquote

from pydantic import Field

from kneo.api.operation import Context, Json, operation
from kneo.api.page import Limit, Offset, PageView, page_fields, view_of
from kneo.api.run_views import RunErrorView, UsageView, readable
from kneo.api.subjects import RUN
from kneo.clock import parse_time
from kneo.errors import Invalid, Untrusted
from kneo.records.conversation import ConversationEntry, EntryKind
from kneo.records.run import AgentUsage, Run, RunStatus
from kneo.records.task import HumanTask, TaskStatus
from kneo.redaction import LOOKAHEAD, redact_start
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import steps_under_way
from kneo.runtime.engine.wait import find_run
from kneo.runtime.interpreter.node import Execute
from kneo.store import agent_journal, history, tasks
from kneo.store.engine import Tx
from kneo.store.history import StoredStep
from kneo.store.task_filter import TaskFilter

MAX_GATES = 500
"""Gates of a response, the latest."""

MAX_TEXT_CHARS = 100_000
"""Characters after which texts can be cut."""

MAX_CALLS = 200
"""Tool calls of one step in a response."""

SANDBOX_FIELD = Field(
    description="The sandbox of the function, script or server: its level, the digest of its profile, and up to ten hosts with "
    "ports that were denied. Absent where none was used."
)


@dataclass(frozen=True, kw_only=True)
class StepModelView:
    """The model that answered last."""

    provider: str
    name: str

    @classmethod
    def of(cls, facts: Mapping[str, object], entries: Sequence[ConversationEntry]) -> StepModelView | None:
        """Return the model of a step by its journal, else by the facts of its turn."""
        for entry in reversed(entries):
            if "model" in entry.facts and "provider" in entry.facts:
                return cls(provider=str(entry.facts["provider"]), name=str(entry.facts["model"]))
        if "model_name" in facts:
            return cls(provider=str(facts.get("model_provider")), name=str(facts["model_name"]))
        return None


@dataclass(frozen=True, kw_only=True)
class StepCallView:
    """A tool call of an agent's step. Its arguments and result are in the run's conversation."""

    key: str
    tool: str | None
    status: str
    started_at: str
    completed_at: str | None
    sandbox: Annotated[Json | None, SANDBOX_FIELD] = None

    @classmethod
    def of(cls, entry: ConversationEntry) -> StepCallView:
        """Build the view of the journal entry of a call."""
        tool = entry.facts.get("tool")
        return cls(
            key=entry.name.partition(":")[2],
            tool=str(tool) if tool is not None else None,
            status=entry.status.value,
            started_at=entry.started_at,
            completed_at=entry.completed_at,
            sandbox=_object(entry.facts, "sandbox"),
        )

    @classmethod
    def list_of(cls, entries: Sequence[ConversationEntry]) -> list[StepCallView]:
        """Build the views of the calls among these entries."""
        calls = [entry for entry in entries if entry.kind is EntryKind.TOOL]
        return [cls.of(entry) for entry in calls[:MAX_CALLS]]


@dataclass(frozen=True, kw_only=True)
class GateVoteView:
    """A person's vote at a gate."""

    actor: str
    decision: str
    at: str
    comment: str | None


@dataclass(frozen=True, kw_only=True)
class StepGateView:
    """A gate of a run: the question, the votes, and the decision where there is one."""

    continuation_id: str
    path: str
    key: str
    kind: str
    position: str
    attempt: int
    status: str
    headline: str
    prompt: str
    opened_at: str
    resolved_at: str | None
    decision: str | None
    actor: Annotated[str | None, Field(description="The person whose vote was the last, or policy:timeout.")]
    comment: str | None
    approvals: Annotated[int, Field(description="The approvals that the gate needs.")]
    votes: Annotated[list[GateVoteView], Field(description="In their order; empty where a deadline decided.")]
    grant: Annotated[Json | None, Field(description="The standing grant that decided, and the number of its use.")]

    @classmethod
    def of(cls, task: HumanTask) -> StepGateView:
        """Build the view of a task, without its subject."""
        decision = task.decision
        return view_of(
            cls,
            task,
            continuation_id=task.id,
            path=task.step_path or task.step_id,
            status=task.status.value,
            headline=readable(task.headline) or "",
            prompt=readable(task.prompt or task.title) or "",
            opened_at=task.created_at,
            decision=decision.kind.value if decision is not None else None,
            actor=decision.actor if decision is not None else None,
            comment=readable(decision.remark) if decision is not None else None,
            approvals=task.quorum.approvals,
            votes=[
                view_of(GateVoteView, vote, decision=vote.decision.value, comment=readable(vote.comment))
                for vote in task.votes
            ],
            grant=dict(task.granted_use) if task.granted_use is not None else None,
        )


_WITHOUT_END: Mapping[str, None] = dict.fromkeys(("completed_at", "milliseconds", "output", "error", "code_digest"))
"""What is not known of a step before its end."""


@dataclass(frozen=True, kw_only=True)
class StepView:
    """One attempt at a step. A step that is under way has no end; without a journal its beginning is not recorded either."""

    path: str
    kind: str
    attempt: int | None
    status: str
    agent_name: str | None
    started_at: str | None
    completed_at: str | None
    milliseconds: Annotated[int | None, Field(description="From the start to the end of a finished attempt.")]
    input: str | None
    output: str | None
    error: RunErrorView | None
    model: StepModelView | None
    usage: UsageView | None
    code_digest: str | None
    code: Annotated[
        Json | None,
        Field(description="The code that the step could execute: its digest, and bundle, project or program."),
    ] = None
    sandbox: Annotated[Json | None, SANDBOX_FIELD] = None
    tool_calls: list[StepCallView]

    @classmethod
    def of(cls, stored: StoredStep, entries: Sequence[ConversationEntry], text_chars: int | None) -> StepView:
        """Build the view of a finished step and of the journal entries that it wrote."""
        step = stored.record
        agent = step.facts.get("agent_name")
        return view_of(
            cls,
            step,
            path=step.step_id,
            agent_name=str(agent) if agent is not None else None,
            milliseconds=_milliseconds(step.started_at, step.completed_at),
            input=_shown(step.input_text, stored.input_chars, text_chars),
            output=_shown(step.output_text, stored.output_chars, text_chars),
            error=RunErrorView.of(step.error),
            model=StepModelView.of(step.facts, entries),
            usage=_usage(entries),
            code=_object(step.facts, "code"),
            sandbox=_object(step.facts, "sandbox"),
            tool_calls=StepCallView.list_of(entries),
        )

    @classmethod
    def of_unfinished(cls, run: Run, location: str, entries: Sequence[ConversationEntry]) -> StepView:
        """Build the view of an agent's step without a result: it is under way, waits, or ended with its run."""
        status = {RunStatus.RUNNING: "running", RunStatus.PAUSED: "waiting"}.get(run.status, "stopped")
        agent = next((entry.facts["agent"] for entry in entries if "agent" in entry.facts), None)
        return cls(
            path=path_of(location),
            kind="agent",
            attempt=None,
            status=status,
            agent_name=str(agent) if agent is not None else None,
            started_at=entries[0].started_at,
            input=None,
            model=StepModelView.of({}, entries),
            usage=_usage(entries),
            tool_calls=StepCallView.list_of(entries),
            **_WITHOUT_END,
        )

    @classmethod
    def of_running(cls, action: Execute, text_chars: int | None) -> StepView:
        """Build the view of a step that a worker executes or will execute next."""
        text = action.value.text
        return cls(
            path=action.activity.path,
            kind=action.activity.kind,
            attempt=action.attempt,
            status="running",
            agent_name=None,
            started_at=None,
            input=_shown(text, len(text), text_chars),
            model=None,
            usage=None,
            tool_calls=[],
            **_WITHOUT_END,
        )


@dataclass(frozen=True, kw_only=True)
class StepPageView(PageView):
    """One page of a run's steps, and the gates of the whole run, oldest first."""

    run_id: str
    steps: list[StepView]
    gates: list[StepGateView]


def _shown(text: str | None, length: int, text_chars: int | None) -> str | None:
    """Return a text without secrets, or its beginning with a note of its length."""
    if text is None or text_chars is None or length <= text_chars:
        return readable(text)
    return f"{redact_start(text, text_chars, personal=False)}[cut: {length} characters in all]"


def path_of(location: str) -> str:
    """Return the path of a step from its location: without the numbers of rounds and attempts; a router's agent has its path."""
    return unquote(re.sub(r"[#@]\d+|:select", "", location))


def _usage(entries: Iterable[ConversationEntry]) -> UsageView | None:
    total = sum((AgentUsage.of(entry) for entry in entries), AgentUsage())
    return UsageView.of(total) if total != AgentUsage() else None


@operation("GET", "/runs/{run_id}/steps", scope="runs:read", about=RUN)
def list_run_steps(
    context: Context,
    run_id: str,
    limit: Limit = 100,
    offset: Offset = 0,
    text_chars: Annotated[
        int | None, Field(ge=1, le=MAX_TEXT_CHARS, description="Cut inputs and outputs after this many characters.")
    ] = None,
) -> StepPageView:
    """List the steps of a run in the order in which they finished, then those that are under way; with the run's gates."""
    run = find_run(context.store, run_id)
    with context.store.read() as tx:
        read_chars = text_chars + LOOKAHEAD if text_chars is not None else None
        finished, total = history.page_of_steps(tx, run_id, limit=limit, offset=offset, text_chars=read_chars)
        by_step = _entries_by_step(tx, run_id)
        of_run = TaskFilter(run_id=run_id, statuses=frozenset(TaskStatus))
        gates = tasks.list_tasks(tx, of_run, sort_by="id", descending=True, limit=MAX_GATES, offset=0, after=None)
    views = [StepView.of(step, by_step.finished.get(step.record.sequence, []), text_chars) for step in finished]
    begun = [
        StepView.of_unfinished(run, location, entries)
        for location, entries in sorted(by_step.unfinished.items(), key=lambda item: item[1][0].started_at)
    ]
    if run.status is RunStatus.RUNNING:
        known = {view.path for view in begun}
        begun += [
            StepView.of_running(action, text_chars)
            for action in _executing(context, run)
            if action.activity.path not in known
        ]
    first = max(offset - total, 0)
    views += begun[first : first + limit - len(views)]
    return StepPageView(
        run_id=run_id,
        steps=views,
        gates=[StepGateView.of(task) for task in reversed(gates)],
        **page_fields(views, total + len(begun), limit=limit, offset=offset, sort_by="sequence", sort_order="asc"),
    )


def _executing(context: Context, run: Run) -> tuple[Execute, ...]:
    try:
        return steps_under_way(ProgramLoader(context.store, context.settings.trust_root), run)
    except (Invalid, Untrusted):
        # The worker fails the run with this reason; its history can still be read.
        return ()


def _object(facts: Mapping[str, object], name: str) -> Json | None:
    found = facts.get(name)
    return dict(found) if isinstance(found, Mapping) else None


def _milliseconds(started_at: str, completed_at: str) -> int:
    return max(round((parse_time(completed_at) - parse_time(started_at)).total_seconds() * 1000), 0)


@dataclass(frozen=True, kw_only=True)
class _EntriesByStep:
    """The journal entries of a run, without bodies, by the step that wrote them.

    Attributes:
        finished: By the sequence number of the step.
        unfinished: By the location of a step without a result.
    """

    finished: Mapping[int, list[ConversationEntry]]
    unfinished: Mapping[str, list[ConversationEntry]]


def _entries_by_step(tx: Tx, run_id: str) -> _EntriesByStep:
    """Divide the journal among the steps: of several attempts at one location, the first that ended after the entry began."""
    ends: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for sequence, key, completed_at in history.step_ends(tx, run_id):
        ends[key.partition(":")[2].rpartition(":")[0]].append((sequence, completed_at))
    finished: dict[int, list[ConversationEntry]] = defaultdict(list)
    unfinished: dict[str, list[ConversationEntry]] = defaultdict(list)
    for entry in agent_journal.list_facts(tx, run_id):
        later = (sequence for sequence, end in ends.get(entry.location, ()) if end >= entry.started_at)
        step = next(later, None)
        if step is None:
            unfinished[entry.location].append(entry)
        else:
            finished[step].append(entry)
    return _EntriesByStep(finished=finished, unfinished=unfinished)
