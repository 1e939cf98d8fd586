"""Calls of served agents on behalf of an authenticated caller, whatever the protocol.

A call is an operation of the API: the same scopes, limits, audit events and checks of people. The key that a protocol gives a
message binds it to the run that it starts, or to the task that it answers; the same message again gets that run.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import ParamSpec, TypeVar

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from kneo.api.agents import AgentView
from kneo.api.decisions import TaskDecision, resume_human_task
from kneo.api.operation import Context, Operation, Principal, Waiting
from kneo.api.run_start import RunCreate, cancel_run, create_run
from kneo.api.runs import get_run, list_runs
from kneo.clock import new_id
from kneo.digest import digest_of_json
from kneo.errors import Invalid, InvalidValue, KneoError, NotFound
from kneo.records.run import RunStatus
from kneo.records.task import DecisionKind, HumanTask
from kneo.runtime.engine.wait import SettledRun, list_settled_runs, read_settled_run
from kneo.service.admission import MAX_KEY_CHARS
from kneo.service.context import Service, settled_after
from kneo.service.event_streams import ReaderAccess, run_events, trace_events, while_readable
from kneo.service.events import Event
from kneo.store import idempotency, tasks
from kneo.store.idempotency import KeyedRequest, KeyOf, Known
from kneo.store.run_filter import RunFilter
from kneo.tasks.decisions import DecisionNotAllowed, check_unnamed, decision_from_value, find_pending

P = ParamSpec("P")
V = TypeVar("V")
T = TypeVar("T")

ANSWER_SCOPES = resume_human_task.scopes


PROGRESS = ("step_", "tool_call_")
"""Beginnings of the names of trace events that protocols report."""

CHANGES = frozenset({"status", "end", "human_intervention_requested"})
"""Events at which a run may have settled."""


def is_settled(settled: SettledRun) -> bool:
    """Return whether a run has ended or asks a question; one that is paused without a question waits for a clock."""
    return bool(settled.tasks) or settled.run.status not in {RunStatus.RUNNING, RunStatus.PAUSED}


@dataclass(frozen=True, kw_only=True)
class AgentMessage:
    """A message that starts a run.

    Attributes:
        text: The input of the run.
        session_id: The conversation; ``None`` begins one.
        metadata: Metadata of the caller.
        key: The name that the caller gave this message; ``None`` where it has none.
    """

    text: str
    session_id: str | None
    metadata: Mapping[str, object]
    key: str | None


@dataclass(frozen=True)
class AgentCalls:
    """Calls of one served agent by one caller.

    Args:
        service: The parts of the service.
        principal: The authenticated caller.
        agent: The agent, which the environment serves by the protocol.
        protocol: The name of the protocol.
    """

    service: Service
    principal: Principal
    agent: AgentView
    protocol: str

    @property
    def context(self) -> Context:
        """The context of operations for the caller."""
        return self.service.context(self.principal)

    async def start(self, message: AgentMessage, *, wait: bool) -> SettledRun:
        """Start a run of the agent, once per message key; with ``wait`` until it pauses or ends, for two minutes at most."""
        session = message.session_id or new_id("ses", self.service.store.clock.now())
        try:
            body = RunCreate(
                input=message.text,
                bundle=self.agent.digest,
                environment=self.agent.environment,
                target=self.agent.target,
                session_id=session,
                metadata={**message.metadata, "protocol": self.protocol},
                async_mode=not wait,
            )
        except ValidationError as error:
            raise _invalid(error) from error
        digest = digest_of_json(["start", message.text, message.session_id, dict(message.metadata)])
        view = await self._once(message.key, digest, lambda: self._call(True, create_run, body))
        return await self.find(view.run_id)

    async def answer(
        self, run_id: str, task_key: str | None, value: object, key: str | None, *, wait: bool
    ) -> SettledRun:
        """Answer an open task of a run of the agent, once per message key.

        Args:
            run_id: The run.
            task_key: The key or the id of the task, or the id of its request; ``None`` for the first question of a run, and
                for a text that a question asks for.
            value: The fields of a decision, as HTTP takes them; or a text, see ``decision_of_text``.
            key: The name that the caller gave this answer.
            wait: Whether to wait until the run pauses or ends, for two minutes at most.
        """
        digest = digest_of_json(["answer", run_id, task_key, value])

        async def execute() -> object:
            paused = await self.find(run_id)
            # An answer that was given before is looked up by its key, not by its task.
            made = idempotency.made()
            if made is not None:
                return await self._call(wait, resume_human_task, made, TaskDecision(decision=DecisionKind.APPROVED))
            task = find_pending(run_id, paused.tasks, task_key)
            body = _decision(task, value)
            is_requested_text = isinstance(value, str) and body.decision is DecisionKind.PROVIDED
            if task_key is None and body.expect_digest is None and not is_requested_text:
                check_unnamed(task, await run_in_threadpool(self._asked_before, run_id))
            return await self._call(wait, resume_human_task, task.id, body)

        await self._once(key, digest, execute)
        return await self.find(run_id)

    async def follow(self, run_id: str, after: int) -> AsyncGenerator[Event | SettledRun, None]:
        """Yield the completed steps and tool calls of a run, without their content, and at last the run as it ends or asks.

        Args:
            run_id: The run.
            after: The sequence number of the last trace event that the caller knows; 0 for a run that the caller has started,
                because its first steps may have ended by now.
        """
        service = self.service
        heartbeat = service.settings.http.stream_heartbeat_seconds
        events = run_events(service.reads, run_id, after, heartbeat=heartbeat, published=False)
        access = ReaderAccess(service.changes, self.principal, ())
        async with aclosing(while_readable(events, access, self.agent.environment)) as events:
            async for event in events:
                if event is not None and event.name.startswith(PROGRESS):
                    yield event
                after = int(event.id or after) if event is not None else after
                # Also at a heartbeat: a run that continues and pauses again between two looks has the same status.
                is_change = event is None or event.name in CHANGES
                if is_change and is_settled(now := await self.find(run_id)):
                    async for rest in trace_events(service.store, run_id, after):
                        if rest.name.startswith(PROGRESS):
                            yield rest
                    yield now
                    return

    async def cancel(self, run_id: str) -> SettledRun:
        """Cancel a run of the agent."""
        await self.find(run_id)
        await self._call(True, cancel_run, run_id)
        return await self.find(run_id)

    async def read(self, run_id: str) -> SettledRun:
        """Read a run of the agent, with its open tasks."""
        self._require(get_run.scopes)
        await run_in_threadpool(get_run.check, self.context, {"run_id": run_id})
        return await self.find(run_id)

    async def list_runs(self, where: RunFilter, *, limit: int, offset: int) -> tuple[Sequence[SettledRun], int]:
        """Return a page of the runs of the agent that the caller has started, and the number of runs on all pages."""
        self._require(list_runs.scopes)
        own = replace(where, environment=self.agent.environment, bundle=self.agent.bundle, requester=self.context.actor)
        store = self.context.within(list_runs.scopes).store
        return await run_in_threadpool(list_settled_runs, store, own, limit=limit, offset=offset)

    async def find(self, run_id: str) -> SettledRun:
        """Return a run of the agent.

        Raises:
            NotFound: there is no such run, or it is another agent's or another environment's.
        """
        settled = await run_in_threadpool(read_settled_run, self.context.store, run_id)
        release = settled.run.release
        if release is None or (release.environment, release.bundle) != (self.agent.environment, self.agent.bundle):
            msg = f"There is no run {run_id[:80]} of {self.agent.bundle} in {self.agent.environment}."
            raise NotFound(msg, run_id=run_id[:80])
        return settled

    def _asked_before(self, run_id: str) -> int:
        with self.service.store.read() as tx:
            return len(tasks.resolved_steps(tx, run_id))

    def _require(self, scopes: tuple[str, ...]) -> None:
        for scope in scopes:
            self.principal.require(scope)

    async def _call(self, wait: bool, operation: Operation[P, V], /, *args: P.args, **kwargs: P.kwargs) -> V:
        """Call an operation as HTTP does; without ``wait`` an answer returns the run as it is after it."""
        self._require(operation.scopes)
        mark = self.service.store.notifier.mark()
        result = await run_in_threadpool(operation.begin, self.context, *args, **kwargs)
        if not isinstance(result, Waiting):
            return result
        if not wait:
            return result.view(await run_in_threadpool(read_settled_run, self.service.store, result.settling.run_id))
        return result.view(await settled_after(self.service.changes, result, mark))

    async def _once(self, key: str | None, digest: str, execute: Callable[[], Awaitable[T]]) -> T:
        scope = f"{self.protocol}:{self.agent.environment}/{self.agent.bundle}"
        return await execute_once(self.service, self.principal, scope, key, digest, execute)


async def execute_once(
    service: Service,
    principal: Principal,
    scope: str,
    key: str | None,
    digest: str,
    execute: Callable[[], Awaitable[T]],
) -> T:
    """Execute a message, unless an execution of the same message has made its changes.

    Args:
        service: The parts of the service.
        principal: The caller.
        scope: The scope of the key.
        key: The name that the caller gave the message; ``None`` where it has none.
        digest: The digest of the message.
        execute: Executes it.
    """
    if key is None:
        return await execute()
    if not 0 < len(key) <= MAX_KEY_CHARS:
        msg = f"The id of a message has 1 to {MAX_KEY_CHARS} characters."
        raise Invalid(msg, code="invalid_idempotency_key")
    named = KeyOf(principal=principal.name, scope=scope, key=key)
    attempt = new_id("req", service.store.clock.now())
    request = KeyedRequest(key=named, request_digest=digest, attempt=attempt)
    look = partial(run_in_threadpool, _look, service, request)
    known = await look()
    if known is None:
        try:
            return await _execute(request, execute)
        except KneoError:
            known = await look()
            if known is None or known.attempt == attempt:
                raise
    # Another execution of the same message came first.
    return await _execute(replace(request, subject=known.subject), execute)


def _look(service: Service, request: KeyedRequest) -> Known | None:
    with service.store.read() as tx:
        return idempotency.look(tx, request)


async def _execute(request: KeyedRequest, execute: Callable[[], Awaitable[T]]) -> T:
    token = idempotency.current.set(request)
    try:
        return await execute()
    finally:
        idempotency.current.reset(token)


def _invalid(error: ValidationError) -> InvalidValue:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"])[:80]
    return InvalidValue(f"{field}: {first['msg']}", code="validation_error", field=field)


def _decision(task: HumanTask, value: object) -> TaskDecision:
    """Return the decision that the answer of a protocol makes; see ``AgentCalls.answer``."""
    if isinstance(value, Mapping):
        try:
            return TaskDecision.model_validate(value)
        except ValidationError as error:
            raise _invalid(error) from error
    return decision_of_text(task, str(value))


def decision_of_text(task: HumanTask, text: str) -> TaskDecision:
    """Return the decision that a text makes on a task.

    ``approved`` and ``rejected`` are those decisions, an option selects itself, and a question for a text is answered by it.
    No other text decides: what a model writes about a gate is not an approval.

    Raises:
        DecisionNotAllowed: the text is no answer to this task.
    """
    word = text.strip().lower()
    if word in {DecisionKind.APPROVED, DecisionKind.REJECTED} and word in task.decisions:
        return TaskDecision(request_id=task.request_id, decision=DecisionKind(word))
    asks_for_text = DecisionKind.PROVIDED in task.decisions and DecisionKind.APPROVED not in task.decisions
    if asks_for_text or text.strip() in (task.options or ()):
        request = decision_from_value(task, text.strip())
        return TaskDecision(
            request_id=request.request_id,
            decision=request.decision,
            content=request.content,
            selected_option=request.selected_option,
        )
    msg = f"{task.id} is not answered by this text; it takes: {', '.join(task.decisions)}."
    hint = 'Send data such as {"decision": "approved"}, with the fields that the task takes over HTTP.'
    raise DecisionNotAllowed(msg, hint=hint, allowed=list(task.decisions))
