"""Operations on calls: one tool call each, which another program states and people may have to approve first.

A call is a run with the target ``call`` of a released bundle, in an environment that serves the tool to the caller. A caller reads,
begins, reports and cancels its own calls only; everything else about a call is what it is about a run.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from kneo import registry
from kneo.agents.tool_calls.denials import find_call_denial
from kneo.agents.tools.kinds import schema_of
from kneo.api.operation import DONE, Body, Context, Json, Name, Waiting, check_size, operation, run_operation
from kneo.api.page import Limit, Word
from kneo.api.run_start import Wait, seconds_of
from kneo.api.run_views import RunErrorView
from kneo.api.subjects import CALL, ENVIRONMENT, NAMED_ENVIRONMENT
from kneo.errors import Conflict, KneoError
from kneo.names import person_key
from kneo.records.conversation import ConversationEntry
from kneo.records.run import Run, RunStatus
from kneo.records.task import TAKES_OVER, UNRESOLVED, HumanTask, TaskStatus
from kneo.runtime.engine.call_metrics import CallOutcome, outcome_of, output_of
from kneo.runtime.engine.calls import ServedBundle, StatedCall, find_served, join_key, start
from kneo.runtime.engine.questions import run_facts
from kneo.runtime.engine.recover import cancel_run as end_run
from kneo.runtime.engine.wait import CallAsks, CallSettled, SettledRun, open_tasks, read_settled_run
from kneo.spec.models.environment import read_spec
from kneo.spec.models.human import CALLER
from kneo.spec.models.spec import Tool
from kneo.spec.tool_kinds import CALL_TARGET
from kneo.store import agent_journal, idempotency, runs, tasks
from kneo.store.engine import Store, Tx
from kneo.store.run_filter import RunFilter
from kneo.tasks import inbox, people
from kneo.tasks.decisions import DecisionRequest
from kneo.tasks.served_calls import find_refusal_in

CallStatus: TypeAlias = Literal["running", "waiting", "allowed", "begun", "ended"]
"""``waiting`` for people; ``allowed``: all agree, and the caller makes the call itself; ``begun``: the caller has taken it."""

MAKE = "calls:make"
"""The scope of callers."""

FINAL = tuple(status for status in RunStatus if status.is_final)

STATUSES: Mapping[CallStatus, Sequence[RunStatus]] = {
    "running": (RunStatus.RUNNING,),
    "waiting": (RunStatus.PAUSED,),
    "allowed": (RunStatus.PAUSED,),
    "begun": (RunStatus.PAUSED,),
    "ended": FINAL,
}
"""The statuses of runs among which calls of a status are."""


class CallCreate(Body):
    """One call of a tool."""

    environment: Name
    bundle: Name
    tool: Name
    arguments: dict[str, object] = Field(default_factory=dict)
    session_id: str | None = Field(default=None, max_length=200, description="Groups the calls of one conversation.")


class CallReport(Body):
    """The result of a call that its caller made: either ``result`` or ``error``."""

    result: object = None
    error: Annotated[str, Field(min_length=1, max_length=20_000)] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if ("result" in self.model_fields_set) == (self.error is not None):
            message = "a report has either result or error"
            raise ValueError(message)
        return self


@dataclass(frozen=True, kw_only=True)
class CallQuestionView:
    """A question that a call waits for, and the link at which people answer it."""

    id: str
    prompt: str
    url: str


@dataclass(frozen=True, kw_only=True)
class CallView:
    """A call."""

    id: str
    status: CallStatus
    outcome: Annotated[CallOutcome | None, Field(description="Set once the call has ended.")]
    result: object
    arguments: Annotated[
        Json | None, Field(description="The arguments as people decided them, once the call has ended.")
    ]
    joined: Annotated[bool, Field(description="Whether an earlier call was the same, and this is that one.")]
    questions: list[CallQuestionView]
    tool: str
    environment: str
    bundle: str
    version: str
    digest: str
    error: RunErrorView | None
    created_at: str
    ended_at: str | None


@dataclass(frozen=True, kw_only=True)
class CallListView:
    """Calls, the newest first."""

    calls: list[CallView]
    next_after: str | None


@dataclass(frozen=True, kw_only=True)
class CallBegunView:
    """The call that its caller makes now: the decided arguments, and the key to pass to what it calls."""

    arguments: Json
    idempotency_key: str


@dataclass(frozen=True, kw_only=True)
class CallToolView:
    """A tool that a caller may call, as the signed bundle declares it."""

    name: str
    title: str | None
    description: str
    parameters: Json
    has_effects: bool
    made_by_caller: Annotated[bool, Field(description="Whether the caller makes the call itself, after `begin`.")]


@dataclass(frozen=True, kw_only=True)
class CallToolListView:
    """The tools that a caller may call."""

    tools: list[CallToolView]
    description: str
    version: str
    digest: str


def read_served(context: Context, environment: str, bundle: str) -> ServedBundle:
    """Return the release of a bundle with the tools that its environment serves to the caller.

    Raises:
        NotFound, Untrusted, Transient: as ``find_served``.
    """
    with context.within((MAKE,)).store.read() as tx:
        return find_served(tx, context.make_starter(), context.actor, environment, bundle)


@operation("GET", "/calls/tools", scope=MAKE, errors=(404,), about=NAMED_ENVIRONMENT)
def list_call_tools(context: Context, environment: Word, bundle: Word) -> CallToolListView:
    """List the tools of a bundle that the caller may call."""
    served = read_served(context, environment, bundle)
    tools = [
        CallToolView(
            name=name,
            title=tool.title,
            description=tool.description,
            parameters=dict(schema_of(tool)),
            has_effects=tool.has_effects,
            made_by_caller=is_made_by_caller(tool),
        )
        for name, tool in served.tools.items()
    ]
    about = served.spec.agent.description or f"Tools of {served.bundle} in {environment}."
    return CallToolListView(tools=tools, description=about, version=served.version, digest=served.digest)


def is_made_by_caller(tool: Tool) -> bool:
    """Return whether the caller of a tool makes the call itself."""
    external = tool.review.external if tool.review is not None else None
    return external is not None and external.human == CALLER


@run_operation("POST", "/calls", scope=MAKE, statuses=DONE, errors=(404,), is_live=True, about=ENVIRONMENT)
def create_call(context: Context, body: CallCreate, wait: Wait = None) -> Waiting[CallView]:
    """Make a call, and wait until it has ended or, where the caller makes it itself, is allowed.

    A call without an idempotency key that is the same as a call of the caller that has not ended, or whose result was not
    returned, is that call.
    """
    seconds = seconds_of(wait, context.settings.http.call_wait_seconds)
    run, joined = start_call(context, body, protocol="http")
    return wait_for_call(context, run, seconds, joined=joined)


def start_call(context: Context, body: CallCreate, *, protocol: str) -> tuple[Run, bool]:
    """Start the run of a call, or find the one that an earlier request has started; see ``start``."""
    stated = StatedCall(
        environment=body.environment,
        bundle=body.bundle,
        tool=body.tool,
        arguments=body.arguments,
        session_id=body.session_id,
        protocol=protocol,
    )
    if context.over_http:
        check_size("arguments", len(stated.text), context.settings.limits.input_chars)
    return start(context.make_starter(), context.actor, stated)


@run_operation("GET", "/calls/{call_id}", scope=MAKE, statuses=DONE, about=CALL)
def get_call(context: Context, call_id: str, wait: Wait = None) -> Waiting[CallView]:
    """Read a call of the caller; with `wait`, when it has ended or is allowed."""
    seconds = seconds_of(wait, 0)
    return wait_for_call(context, find_own_call(context, call_id), seconds)


@operation("GET", "/calls", scope=MAKE, about=CALL)
def list_calls(
    context: Context,
    environment: Word | None = None,
    bundle: Word | None = None,
    status: CallStatus | None = None,
    limit: Limit = 100,
    after: Annotated[str | None, Field(description="`next_after` of the previous page.")] = None,
) -> CallListView:
    """List the calls of the caller, the newest first. With `status` a page may have fewer calls than `limit`."""
    where = RunFilter(
        statuses=STATUSES[status] if status is not None else (),
        environment=environment,
        bundle=bundle,
        target=CALL_TARGET,
        requester=context.actor,
    )
    with context.store.read() as tx:
        page = runs.list_runs(tx, where, sort_by="id", limit=limit, after=after or None)
        settled = [SettledRun(run, open_tasks(tx, run)) for run in page]
    calls = [_view(context, each, {}) for each in settled]
    return CallListView(
        calls=[call for call in calls if status in {None, call.status}],
        next_after=page[-1].id if len(page) == limit else None,
    )


@operation("POST", "/calls/{call_id}/begin", scope=MAKE, about=CALL)
def begin_call(context: Context, call_id: str) -> CallBegunView:
    """Begin a call that the caller makes itself: once, with the arguments as people decided them."""
    run, task = _task_of(context, call_id)
    begun = inbox.begin_call(context.store, task.id, actor=context.actor, first=partial(_check_denials, run))
    facts = _facts(begun)
    arguments = facts["arguments"]
    assert isinstance(arguments, Mapping)
    return CallBegunView(arguments=dict(arguments), idempotency_key=str(facts["idempotency_key"]))


@run_operation("POST", "/calls/{call_id}/result", scope=MAKE, statuses=DONE, about=CALL)
def report_call(context: Context, call_id: str, body: CallReport) -> Waiting[CallView]:
    """Report the result of a call that the caller has begun, and wait until the call has ended."""
    report = {"error": body.error} if body.error is not None else {"result": body.result}
    made = idempotency.made()
    if made is None:
        run, task = _task_of(context, call_id)
        inbox.report_call(context.store, task.id, report, actor=context.actor)
    else:
        run = find_own_call(context, call_id)
    return wait_for_call(context, run, context.settings.http.call_wait_seconds)


@operation("POST", "/calls/{call_id}/cancel", scope=MAKE, about=CALL)
def cancel_call(context: Context, call_id: str) -> CallView:
    """End a call now, and withdraw its questions."""
    run = find_own_call(context, call_id)
    if run.status.is_final and idempotency.made() is None:
        raise _ended(run)
    end_run(context.store, run.id, actor=context.actor)
    return _delivered(context, read_settled_run(context.store, run.id), joined=False)


# ---- runs as calls -----------------------------------------------------------------------------------------------


def find_own_call(context: Context, call_id: str) -> Run:
    """Return a call of the caller.

    Raises:
        NotFound: ``call_not_found``; also for a call of another caller.
    """
    with context.within((MAKE,)).store.read() as tx:
        run = runs.get(tx, call_id)
        is_call = run is not None and run.target == CALL_TARGET and run.release is not None
        if run is None or not is_call or person_key(run.requester) != person_key(context.actor):
            raise CALL.not_found(call_id)
        return runs.check(tx, run)


def list_input_questions(context: Context, settled: SettledRun) -> Sequence[HumanTask]:
    """List the questions of a call's own tool (MCP elicitation) that the caller may answer; questions of gates are none of them."""
    with context.store.read() as tx:
        return [task for task in settled.tasks if task.is_input and people.may_still_answer(tx, task, context.actor)]


def answer_input_question(context: Context, run: Run, task_id: str, answer: DecisionRequest) -> None:
    """Answer a question of a call's own tool as its caller; one that is not open to the caller, or not open, stays as it is.

    Raises:
        DecisionNotAllowed: the answer does not fit the form.
    """
    questions = list_input_questions(context, read_settled_run(context.store, run.id))
    if all(task.id != task_id for task in questions):
        return
    with contextlib.suppress(Conflict):  # it was answered meanwhile
        inbox.decide(context.store, task_id, answer, actor=context.actor)


def _task_of(context: Context, call_id: str) -> tuple[Run, HumanTask]:
    """Return a call with the task for its caller.

    Raises:
        NotFound: ``call_not_found``.
        Conflict: ``call_ended``; ``call_not_allowed``: it waits for people or is under way; ``call_begun``: its result was reported, or
            people have taken over.
    """
    run = find_own_call(context, call_id)
    if run.status.is_final:
        raise _ended(run)
    with context.store.read() as tx:
        asked = tasks.of_run(tx, run.id, TaskStatus)
    waiting = [each for each in asked if each.status in UNRESOLVED]
    task = next((each for each in (*waiting, *asked) if TAKES_OVER in each.metadata), None)
    if task is None:
        people = ", ".join(dict.fromkeys(name for each in waiting for name in _people(each)))
        msg = f"{run.id} waits for {people or 'people'}." if waiting else f"{run.id} is not decided yet."
        raise Conflict(msg, code="call_not_allowed", run_id=run.id)
    if task.status not in UNRESOLVED or not task.is_for_caller:
        raise inbox.call_begun(task)
    return run, task


def _people(task: HumanTask) -> Sequence[str]:
    candidates = task.candidates
    return (*candidates.users, *candidates.groups, *candidates.roles)


def _ended(run: Run) -> Conflict:
    return Conflict(f"{run.id} ended at {run.completed_at}.", code="call_ended", run_id=run.id)


def _check_denials(run: Run, tx: Tx, task: HumanTask) -> None:
    """Refuse to begin a call that is denied now, by the environment's rules for tools or because it is not served any more."""
    facts, body = _facts(task), runs.load_spec(tx, run.spec_digest)
    name, arguments = str(facts["tool"]), facts["arguments"]
    denial = find_refusal_in(tx, run, name)
    rules = registry.find_declared(tx, run.environment)
    if denial is None and body is not None and rules is not None:
        spec = read_spec(body)
        facts_of_run = run_facts(run.requester, run.environment, run.workflow_name)
        compared = {"run": facts_of_run, "values": {}, "args": arguments, "tool": name, "agent": run.agent_name}
        denial = find_call_denial(name, spec.tools[name], spec.agent, rules.spec.tools, run.environment, compared)
    if denial is not None:
        raise Conflict(denial, code="call_not_allowed", run_id=run.id)


def _facts(task: HumanTask) -> Mapping[str, object]:
    facts = task.metadata.get("facts")
    assert isinstance(facts, Mapping)
    return facts


def wait_for_call(
    context: Context, run: Run, seconds: float, *, joined: bool = False, shown: frozenset[str] | None = None
) -> Waiting[CallView]:
    """Return the wait for a call to end or to be allowed, at most this many seconds; with ``shown`` also for another question."""
    return Waiting(
        CallSettled(run.id) if shown is None else CallAsks(run.id, shown=shown),
        partial(_delivered, context, joined=joined),
        seconds,
        read_settled_run(context.store, run.id),
        notified=False,
        delivers=True,
    )


def _delivered(context: Context, settled: SettledRun, *, joined: bool) -> CallView:
    """Return the view of a call for its caller; the result of one that has ended is thereby returned."""
    view = _view(context, settled, _entry_body(context.store, settled.run), joined=joined)
    if view.status == "ended":
        run = settled.run
        context.store.transact(partial(idempotency.release, key=join_key(run), subject=run.id))
    return view


def _entry_body(store: Store, run: Run) -> Mapping[str, object]:
    """Return the journal entry of a call that has ended."""
    if not run.status.is_final:
        return {}
    with store.read() as tx:
        try:
            entries = [each for each in agent_journal.list_facts(tx, run.id) if each.name == CALL_ENTRY]
            return next((_body(tx, run, each) for each in entries), {})
        except KneoError:
            return {}


def _body(tx: Tx, run: Run, entry: ConversationEntry) -> Mapping[str, object]:
    loaded = agent_journal.load(tx, run.id, entry.conversation)
    return next(each.body for each in loaded if each.name == entry.name)


CALL_ENTRY = "tool:1.call"
"""The name of the journal entry of a call."""


def status_of(settled: SettledRun) -> CallStatus:
    """Return the status of a call."""
    if settled.run.status.is_final:
        return "ended"
    task = next((each for each in settled.tasks if each.is_for_caller), None)
    if task is not None:
        return "begun" if task.claimed_by is not None else "allowed"
    return "waiting" if settled.tasks else "running"


def _view(context: Context, settled: SettledRun, entry: Mapping[str, object], *, joined: bool = False) -> CallView:
    run, release, status = settled.run, settled.run.release, status_of(settled)
    assert release is not None
    stated = json.loads(run.input_text)
    arguments = entry.get("arguments")
    address = context.settings.public_url.rstrip("/")
    return CallView(
        id=run.id,
        status=status,
        outcome=outcome_of(run),
        result=output_of(run).get("result") if run.status is RunStatus.SUCCEEDED else None,
        arguments=dict(arguments) if isinstance(arguments, Mapping) else None,
        joined=joined,
        questions=[
            CallQuestionView(id=task.id, prompt=task.prompt, url=f"{address}/console/inbox/{task.id}")
            for task in settled.tasks
            if not task.is_for_caller
        ],
        tool=str(stated["tool"]),
        environment=release.environment,
        bundle=release.bundle,
        version=release.version,
        digest=release.digest,
        error=RunErrorView.of(run.error),
        created_at=run.created_at,
        ended_at=run.completed_at,
    )
