"""Operations on the steps of a run: what each one did and used, and the conversations of its agents."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from kneo.api.context import Context
from kneo.api.operation import operation
from kneo.api.page import Limit, Offset, PageView, page_fields
from kneo.api.run_views import RunErrorView, UsageView, readable
from kneo.records.conversation import ConversationEntry
from kneo.records.run import Run, RunStatus, StepRecord
from kneo.records.usage import AgentUsage
from kneo.runtime.engine.wait import find_run
from kneo.store import agent_journal, history
from kneo.store.engine import Tx


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
class StepView:
    """One attempt at a step; a step that an agent has begun and not finished has neither output nor end."""

    path: str
    kind: str
    attempt: int | None
    status: str
    agent_name: str | None
    started_at: str
    completed_at: str | None
    input: str | None
    output: str | None
    error: RunErrorView | None
    model: StepModelView | None
    usage: UsageView | None
    code_digest: str | None

    @classmethod
    def of(cls, step: StepRecord, entries: Sequence[ConversationEntry]) -> StepView:
        """Build the view of a finished step and of the journal entries that it wrote."""
        agent = step.facts.get("agent_name")
        return cls(
            path=step.step_id,
            kind=step.kind,
            attempt=step.attempt,
            status=step.status,
            agent_name=str(agent) if agent is not None else None,
            started_at=step.started_at,
            completed_at=step.completed_at,
            input=readable(step.input_text),
            output=readable(step.output_text),
            error=RunErrorView.of_error(step.error),
            model=StepModelView.of(step.facts, entries),
            usage=_usage(entries),
            code_digest=step.code_digest,
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
            completed_at=None,
            input=None,
            output=None,
            error=None,
            model=StepModelView.of({}, entries),
            usage=_usage(entries),
            code_digest=None,
        )


@dataclass(frozen=True, kw_only=True)
class StepPageView(PageView):
    """One page of a run's steps."""

    run_id: str
    steps: list[StepView]


def path_of(location: str) -> str:
    """Return the path of a step from its location: without the numbers of rounds and attempts; a router's agent has its path."""
    return unquote(re.sub(r"[#@]\d+|:select", "", location))


def _usage(entries: Iterable[ConversationEntry]) -> UsageView | None:
    total = sum((AgentUsage.of(entry) for entry in entries), AgentUsage())
    return UsageView.of(total) if total != AgentUsage() else None


@operation("GET", "/runs/{run_id}/steps", scope="runs:read")
def list_run_steps(context: Context, run_id: str, limit: Limit = 100, offset: Offset = 0) -> StepPageView:
    """List the steps of a run in the order in which they finished, then those that agents have begun."""
    run = find_run(context.store, run_id)
    with context.store.read() as tx:
        finished, total = history.page_of_steps(tx, run_id, limit=limit, offset=offset)
        by_step = _entries_by_step(tx, run_id)
    views = [StepView.of(step, by_step.finished.get(step.sequence, [])) for step in finished]
    begun = sorted(by_step.unfinished.items(), key=lambda item: item[1][0].started_at)
    first = max(offset - total, 0)
    left = limit - len(views)
    views += [StepView.of_unfinished(run, location, entries) for location, entries in begun[first : first + left]]
    return StepPageView(
        run_id=run_id,
        steps=views,
        **page_fields(views, total + len(begun), limit=limit, offset=offset, sort_by="sequence", sort_order="asc"),
    )


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
