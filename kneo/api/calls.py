"""Operations on calls: one tool call each, which another program states and people may have to approve first.

A call is a run with the target ``call`` of a released bundle, in an environment that serves the tool to the caller. A caller reads,
begins, reports and cancels its own calls only; everything else about a call is what it is about a run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from kneo import registry
from kneo.agents.tool_calls.denials import find_call_denial
from kneo.agents.tool_calls.questions import argument_misfits
from kneo.agents.tools.kinds import schema_of
from kneo.api.operation import DONE, Body, Context, Json, Name, Waiting, check_size, operation, run_operation
from kneo.api.page import Limit, Word
from kneo.api.run_start import Wait, seconds_of
from kneo.api.run_views import RunErrorView
from kneo.clock import new_id
from kneo.digest import canonical_json, digest_of_json
from kneo.errors import Conflict, Forbidden, InvalidValue, KneoError, NotFound
from kneo.names import person_key
from kneo.records.conversation import ConversationEntry
from kneo.records.run import Run, RunStatus
from kneo.records.task import TAKES_OVER, UNRESOLVED, HumanTask
from kneo.runtime.engine.questions import run_facts
from kneo.runtime.engine.recover import cancel_run as end_run
from kneo.runtime.engine.start import StartRequest
from kneo.runtime.engine.wait import CallSettled, SettledRun, open_tasks, read_settled_run
from kneo.spec.coverage.exposure import callable_tools
from kneo.spec.models.environment import read_spec
from kneo.spec.models.human import CALLER
from kneo.spec.models.spec import CALL_TARGET, Spec, Tool
from kneo.store import agent_journal, audit, idempotency, runs, tasks
from kneo.store.engine import Store, Tx
from kneo.store.idempotency import AlreadyExecuted, KeyedRequest, KeyOf
from kneo.store.run_filter import RunFilter
from kneo.tasks import inbox
from kneo.tasks.served_calls import find_refusal_in, served_tools

CallStatus: TypeAlias = Literal["running", "waiting", "allowed", "begun", "ended"]
"""``waiting`` for people; ``allowed``: all agree, and the caller makes the call itself; ``begun``: the caller has taken it."""

CallOutcome: TypeAlias = Literal["success", "failed", "denied"]

HUMAN_REJECTED = "human_rejected"

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


@dataclass(frozen=True, kw_only=True)
class ServedBundle:
    """A release whose tools an environment serves to a caller."""

    spec: Spec
    bundle: str
    version: str
    digest: str
    tools: Mapping[str, Tool]


def find_served(tx: Tx, context: Context, environment: str, bundle: str) -> ServedBundle:
    """Return the release of a bundle with the tools that its environment serves to the caller.

    Raises:
        NotFound: ``call_not_served``; also where there is no such environment or release.
        Untrusted, Transient: as ``registry.resolve``.
    """
    settings = context.settings
    try:
        rules = registry.declared(tx, environment)
        found = registry.resolve(tx, bundle, environment, pin=settings.trust_root, hmac_key=settings.spec_signing_key)
    except (NotFound, Forbidden):
        raise _not_served(environment, bundle, context.actor) from None
    release = found.release
    spec = Spec.model_validate(found.bundle.spec)
    declared = [name for name in callable_tools(spec.agent) if name in spec.tools]
    names = served_tools(tx, rules, release.bundle, context.actor, declared) if spec.allows(CALL_TARGET) else ()
    if not names:
        raise _not_served(environment, bundle, context.actor)
    tools = {name: spec.tools[name] for name in names}
    return ServedBundle(spec=spec, bundle=release.bundle, version=release.version, digest=release.digest, tools=tools)


def read_served(context: Context, environment: str, bundle: str) -> ServedBundle:
    """Do what ``find_served`` does, in a transaction of its own."""
    with context.store.read() as tx:
        return find_served(tx, context, environment, bundle)


def _not_served(environment: str, bundle: str, caller: str) -> NotFound:
    msg = f"{environment[:80]} serves no tools of {bundle[:200]} to {caller}."
    hint = "An environment serves tools under spec.protocols.calls, of bundles whose targets name call."
    return NotFound(msg, code="call_not_served", hint=hint)


def _tool_of(served: ServedBundle, environment: str, name: str, caller: str) -> Tool:
    if name not in served.tools:
        msg = f"{served.bundle} in {environment} has no tool {name[:80]} for {caller}."
        raise NotFound(msg, code="tool_not_found", hint="GET /v1/calls/tools lists the tools.")
    return served.tools[name]


@operation("GET", "/calls/tools", scope="calls:make", errors=(404,))
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


@run_operation("POST", "/calls", scope="calls:make", statuses=DONE, errors=(404,), is_live=True)
def create_call(context: Context, body: CallCreate, wait: Wait = None) -> Waiting[CallView]:
    """Make a call, and wait until it has ended or, where the caller makes it itself, is allowed.

    A call without an idempotency key that is the same as a call of the caller that has not ended, or whose result was not
    returned, is that call.
    """
    seconds = seconds_of(wait, context.settings.http.call_wait_seconds)
    run, joined = start_call(context, body, protocol="http")
    return wait_for_call(context, run, seconds, joined=joined)


def start_call(context: Context, body: CallCreate, *, protocol: str) -> tuple[Run, bool]:
    """Start the run of a call, or find the one that an earlier request has started.

    Args:
        context: The caller.
        body: The call.
        protocol: The way that the call came.

    Returns:
        The run, and whether the call joins one without an idempotency key.

    Raises:
        NotFound: ``call_not_served`` or ``tool_not_found``.
        InvalidValue: ``invalid_arguments``.
        KneoError: as ``Starter.start``.
    """
    made = idempotency.made()
    if made is not None:
        return read_settled_run(context.store, made).run, False
    served, tool = _check(context, body)
    text = canonical_json({"tool": body.tool, "arguments": body.arguments}).decode()
    if context.over_http:
        check_size("arguments", len(text), context.settings.limits.input_chars)
    order = StartRequest(
        input=text,
        requester=context.actor,
        target=CALL_TARGET,
        environment=body.environment,
        bundle=served.digest,
        metadata={"protocol": protocol},
        origin={"tool": body.tool, "session_id": body.session_id},
    )
    if idempotency.current.get() is not None or not (tool.has_effects or tool.review is not None):
        return context.make_starter().start(order), False
    digest = _digest(body.environment, served.digest, text, body.session_id)
    return _join(context, order, digest)


def _check(context: Context, body: CallCreate) -> tuple[ServedBundle, Tool]:
    """Check rule, caller, tool and arguments of a call; a refusal for lack of rights is audited."""
    try:
        served = read_served(context, body.environment, body.bundle)
        tool = _tool_of(served, body.environment, body.tool, context.actor)
    except NotFound as error:
        error.recorded = True
        facts = {"target": CALL_TARGET, "bundle": body.bundle[:200], "tool": body.tool[:200], "error": error.code}
        with context.store.write() as tx:
            audit.record(tx, "run.refused", actor=context.actor, metadata=facts | {"message": error.message})
        raise
    misfit = argument_misfits(schema_of(tool), body.arguments)
    if misfit is not None:
        raise InvalidValue(misfit, code="invalid_arguments", tool=body.tool)
    return served, tool


def _join(context: Context, order: StartRequest, digest: str) -> tuple[Run, bool]:
    attempt = new_id("req", context.store.clock.now())
    request = KeyedRequest(key=_join_key(context.actor, digest), request_digest=digest, attempt=attempt)
    while True:
        with context.store.read() as tx:
            known = idempotency.look(tx, request)
            run = runs.get(tx, known.subject) if known is not None and known.subject is not None else None
        if run is not None:
            return run, True
        if known is not None:  # retention has deleted the run
            context.store.transact(partial(idempotency.release, key=request.key))
        token = idempotency.current.set(request)
        try:
            return context.make_starter().start(order), False
        except AlreadyExecuted:
            continue  # the same call came at the same time
        finally:
            idempotency.current.reset(token)


def _join_key(caller: str, digest: str) -> KeyOf:
    return KeyOf(principal=caller, scope=idempotency.JOINED_CALL, key=f"call:{digest}")


def _digest(environment: str, bundle: str, text: str, session: str | None) -> str:
    return digest_of_json([environment, bundle, text, session])


@run_operation("GET", "/calls/{call_id}", scope="calls:make", statuses=DONE)
def get_call(context: Context, call_id: str, wait: Wait = None) -> Waiting[CallView]:
    """Read a call of the caller; with `wait`, when it has ended or is allowed."""
    seconds = seconds_of(wait, 0)
    return wait_for_call(context, find_own_call(context, call_id), seconds)


@operation("GET", "/calls", scope="calls:make")
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


@operation("POST", "/calls/{call_id}/begin", scope="calls:make")
def begin_call(context: Context, call_id: str) -> CallBegunView:
    """Begin a call that the caller makes itself: once, with the arguments as people decided them."""
    run, task = _task_of(context, call_id)
    begun = inbox.begin_call(context.store, task.id, actor=context.actor, first=partial(_check_denials, run))
    facts = _facts(begun)
    arguments = facts["arguments"]
    assert isinstance(arguments, Mapping)
    return CallBegunView(arguments=dict(arguments), idempotency_key=str(facts["idempotency_key"]))


@run_operation("POST", "/calls/{call_id}/result", scope="calls:make", statuses=DONE)
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


@operation("POST", "/calls/{call_id}/cancel", scope="calls:make")
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
    with context.store.read() as tx:
        run = runs.get(tx, call_id)
        if run is None or run.target != CALL_TARGET or person_key(run.requester) != person_key(context.actor):
            msg = f"There is no call {call_id[:80]} of {context.actor}."
            raise NotFound(msg, code="call_not_found")
        return runs.check(tx, run)


def _task_of(context: Context, call_id: str) -> tuple[Run, HumanTask]:
    """Return a call with the task for its caller.

    Raises:
        NotFound: ``call_not_found``.
        Conflict: ``call_ended``; ``call_not_allowed``: it waits for people or is under way; ``call_begun``: people have taken over.
    """
    run = find_own_call(context, call_id)
    if run.status.is_final:
        raise _ended(run)
    with context.store.read() as tx:
        waiting = tasks.of_run(tx, run.id, UNRESOLVED)
    task = next((each for each in waiting if TAKES_OVER in each.metadata), None)
    if task is None:
        people = ", ".join(dict.fromkeys(name for each in waiting for name in _people(each)))
        msg = f"{run.id} waits for {people or 'people'}." if waiting else f"{run.id} is not decided yet."
        raise Conflict(msg, code="call_not_allowed", run_id=run.id)
    if not task.is_for_caller:
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


def wait_for_call(context: Context, run: Run, seconds: float, *, joined: bool = False) -> Waiting[CallView]:
    """Return the wait for a call to end or to be allowed, at most this many seconds."""
    return Waiting(
        CallSettled(run.id),
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
        session = run.metadata.get("session_id")
        digest = _digest(view.environment, view.digest, run.input_text, session if isinstance(session, str) else None)
        context.store.transact(partial(idempotency.release, key=_join_key(run.requester, digest), subject=run.id))
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
    output: Mapping[str, object] = {}
    if run.status is RunStatus.SUCCEEDED and run.output_text is not None:
        output = json.loads(run.output_text)
    error = RunErrorView.of(run)
    outcome: CallOutcome | None = None
    if output:
        outcome = output["outcome"]  # type: ignore[assignment]
    elif status == "ended":
        outcome = "denied" if error is not None and error.type == HUMAN_REJECTED else "failed"
    arguments = entry.get("arguments")
    address = context.settings.public_url.rstrip("/")
    return CallView(
        id=run.id,
        status=status,
        outcome=outcome,
        result=output.get("result"),
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
        error=error,
        created_at=run.created_at,
        ended_at=run.completed_at,
    )
