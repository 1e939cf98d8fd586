"""Hooks of Claude Code: people approve the calls of its own tools, which a bundle declares with ``external: {human: caller}``.

Before a call, the hook makes a call and waits for people; after it, the hook reports the result. What goes wrong denies the call.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from starlette.concurrency import run_in_threadpool

from kneo.api.calls import (
    CallCreate,
    CallReport,
    CallView,
    begin_call,
    report_call,
    start_call,
    wait_for_call,
)
from kneo.api.operation import Context, Json, Principal, Waiting
from kneo.clock import new_id
from kneo.digest import digest_of_json
from kneo.errors import Invalid, KneoError, NotFound
from kneo.runtime.engine.calls import ServedBundle
from kneo.runtime.engine.wait import SettledRun
from kneo.service.context import Service, settled_after
from kneo.store import idempotency, tasks
from kneo.store.idempotency import KeyedRequest, KeyOf

BEFORE, AFTER, FAILED = "PreToolUse", "PostToolUse", "PostToolUseFailure"
"""The events of hooks that concern calls."""

TOOL_USE = "claude-code"
"""The scope of the bindings of tool uses to the tasks of their calls."""

MAX_REASON = 4_000
"""Characters of a reason."""


class ToolUse:
    """One use of a tool by Claude Code, on behalf of a caller.

    Args:
        service: The parts of the service.
        principal: The caller.
        environment: The environment.
        served: The release whose tools it serves to the caller.
        seconds: How long to wait for people.
        event: The event, as Claude Code sends it.
        is_gone: Returns whether the client has gone: a call is then neither begun nor its result taken for returned.
    """

    def __init__(
        self,
        service: Service,
        principal: Principal,
        environment: str,
        served: ServedBundle,
        seconds: float,
        event: Mapping[str, object],
        is_gone: Callable[[], Awaitable[bool]],
    ) -> None:
        self._service, self._principal, self._seconds = service, principal, seconds
        self._environment, self._served, self._event, self._is_gone = environment, served, event, is_gone

    async def answer(self) -> Json:
        """Return the response to the event."""
        name = self._event.get("hook_event_name")
        if name == BEFORE:
            try:
                return await self._before()
            except KneoError as error:
                return _denied(error.message)
        if name not in {AFTER, FAILED}:
            return {}
        try:
            return await self._after()
        except KneoError as error:
            return {"systemMessage": f"Kneo: {error.message}"}

    async def _before(self) -> Json:
        use = self._use_id
        if await run_in_threadpool(self._find_task, use) is not None:
            return _denied(f"The call {use[:80]} was begun before.")
        arguments = self._event.get("tool_input")
        body = CallCreate(
            environment=self._environment,
            bundle=self._served.bundle,
            tool=self._text("tool_name"),
            arguments=dict(arguments) if isinstance(arguments, Mapping) else {},
            session_id=self._text("session_id"),
        )
        run, joined = await run_in_threadpool(partial(start_call, self._context, body, protocol="claude-code"))
        start = partial(wait_for_call, self._context, run, self._seconds, joined=joined)
        waiting, settled = await self._settle(start)
        if await self._is_gone():
            return _denied("The client has gone.")
        call = await run_in_threadpool(waiting.view, settled)
        match call.status:
            case "allowed":
                begun = await run_in_threadpool(self._begin, use, call.id)
                allowed = {"permissionDecision": "allow", "updatedInput": begun}
                return {"hookSpecificOutput": {"hookEventName": BEFORE, **allowed}}
            case "ended":
                made = "was made by Kneo" if call.outcome == "success" else f"was {call.outcome}"
                reason = call.error.message if call.error is not None else json.dumps(call.result, ensure_ascii=False)
                return _denied(f"The call {made}: {reason}")
            case "begun":
                return _denied(f"{call.id} was begun before, and its result was not reported.")
            case _:
                links = ", ".join(question.url for question in call.questions)
                return _denied(f"Waiting for approval, try again. {links}")

    async def _after(self) -> Json:
        task_id = await run_in_threadpool(self._find_task, self._use_id)
        if task_id is None:
            return {}
        failed = self._event.get("hook_event_name") == FAILED
        report = (
            CallReport(error=str(self._event.get("error") or "The tool failed.")[:20_000])
            if failed
            else CallReport(result=self._event.get("tool_response"))
        )
        run_id = await run_in_threadpool(self._run_of, task_id)
        waiting, settled = await self._settle(partial(report_call.begin, self._context, run_id, report))
        call = await run_in_threadpool(waiting.view, settled)
        if failed or call.outcome == "success":
            return {}
        return {"decision": "block", "reason": f"The result was {call.outcome}: {json.dumps(call.result)}"[:MAX_REASON]}

    async def _settle(self, start: Callable[[], Waiting[CallView] | CallView]) -> tuple[Waiting[CallView], SettledRun]:
        mark = self._service.store.notifier.mark()
        waiting = await run_in_threadpool(start)
        assert isinstance(waiting, Waiting)
        return waiting, await settled_after(self._service.changes, waiting, mark)

    @property
    def _context(self) -> Context:
        return self._service.context(self._principal)

    def _begin(self, use: str, call_id: str) -> Json:
        """Begin a call; its task is bound to the tool use in the same transaction."""
        token = idempotency.current.set(self._binding(use))
        try:
            return begin_call(self._context, call_id).arguments
        finally:
            idempotency.current.reset(token)

    def _find_task(self, use: str) -> str | None:
        with self._service.store.read() as tx:
            known = idempotency.look(tx, self._binding(use))
        return known.subject if known is not None else None

    def _run_of(self, task_id: str) -> str:
        with self._service.store.read() as tx:
            run_id = tasks.run_of(tx, task_id)
        if run_id is None:
            msg = f"There is no task {task_id}."
            raise NotFound(msg, code="call_not_found")
        return run_id

    def _binding(self, use: str) -> KeyedRequest:
        return KeyedRequest(
            key=KeyOf(principal=self._principal.name, scope=TOOL_USE, key=use),
            request_digest=digest_of_json([self._environment, self._served.bundle, self._text("session_id")]),
            attempt=new_id("req", self._service.store.clock.now()),
        )

    @property
    def _use_id(self) -> str:
        return self._text("tool_use_id")

    def _text(self, name: str) -> str:
        value = self._event.get(name)
        if not isinstance(value, str) or not 0 < len(value) <= 200:
            msg = f"The event has no {name}."
            raise Invalid(msg, code="invalid_event")
        return value


def _denied(reason: str) -> Json:
    decision = {"permissionDecision": "deny", "permissionDecisionReason": reason[:MAX_REASON]}
    return {"hookSpecificOutput": {"hookEventName": BEFORE, **decision}}
