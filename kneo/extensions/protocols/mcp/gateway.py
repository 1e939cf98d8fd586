"""The MCP server of the tools of one released bundle, for one caller: each call of a tool is a call of ``/v1/calls``.

What it lists is in the signed bundle, and it keeps nothing between two requests. Approvals never come through the client, which
could accept for its user: a call that waits is answered with the link where people sign in, with a task where the client takes one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from mcp.server.lowlevel import Server
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    InputRequiredResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from starlette.concurrency import run_in_threadpool

from kneo import __version__
from kneo.agents.tools.kinds import schema_of
from kneo.api.calls import CallCreate, CallView, find_own_call, start_call, wait_for_call
from kneo.api.operation import Principal, Waiting
from kneo.clock import monotonic
from kneo.digest import digest_of_json
from kneo.errors import Invalid, InvalidValue, KneoError, NotFound
from kneo.extensions.protocols.calls import execute_once
from kneo.extensions.protocols.mcp.call_inputs import (
    CallState,
    RequestContext,
    ask_now,
    asks_at,
    find_requests,
    required_inputs,
    take_responses,
)
from kneo.extensions.protocols.mcp.call_tasks import CallTasks, created_task, takes_tasks
from kneo.records.run import Run
from kneo.runtime.engine.calls import ServedBundle
from kneo.runtime.engine.wait import SettledRun, read_settled_run
from kneo.service.context import Service, next_change
from kneo.spec.models.agent import model_name
from kneo.spec.models.spec import Tool as SpecTool
from kneo.spec.tool_kinds import GET_CALL

PROGRESS_SECONDS = 15.0
"""Seconds between two reports of progress."""

TASK_SECONDS = 5.0
"""Seconds after which a client that takes tasks gets one."""

LISTED_MS = 60_000
"""Milliseconds for which a client may keep the list of tools."""

CALL_ID, SESSION_ID = "kneo/call_id", "kneo/session_id"
"""The names of the call and of the conversation in ``_meta``."""

ABOUT_GET_CALL = (
    "Wait for a call that an earlier request has made, and return its result or the link where people decide it."
)

CALL_SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"call_id": {"type": "string"}},
    "required": ["call_id"],
    "additionalProperties": False,
}


def stay() -> bool:
    """Return that the client has not gone, where its connection is not observed."""
    return False


@dataclass(frozen=True)
class BundleTools:
    """The tools of one bundle that an environment serves to a caller.

    Args:
        service: The parts of the service.
        principal: The caller.
        served: The release with these tools.
        environment: The environment.
        address: The address of the service, for links.
        seconds: How long a call waits for people.
        is_gone: Returns whether the client has gone; the result of a call is then not taken for returned.
    """

    service: Service
    principal: Principal
    served: ServedBundle
    environment: str
    address: str
    seconds: float
    is_gone: Callable[[], bool] = stay

    def server(self) -> Server[object]:
        """Return the server."""
        server: Server[object] = Server(
            "kneo",
            version=__version__,
            instructions=self.served.spec.agent.description,
            on_list_tools=self.list_tools,
            on_call_tool=self.call_tool,
            get_tool_input_schema=self._find_schema,
        )
        operations = self.service.context(self.principal)
        result_of, url_of = partial(_result, address=self.address), partial(_url, address=self.address)
        CallTasks(operations, result_of, url_of, self.is_gone).add_to(server)
        return server

    def _find_schema(self, called: str) -> Mapping[str, object] | None:
        found = self._find_tool(called)
        return schema_of(found[1]) if found is not None else None

    def _find_tool(self, called: str) -> tuple[str, SpecTool] | None:
        return next(((name, tool) for name, tool in self.served.tools.items() if model_name(name) == called), None)

    async def list_tools(self, _context: RequestContext, _params: PaginatedRequestParams | None) -> ListToolsResult:
        """List the tools as the signed bundle declares them."""
        tools = [
            Tool(
                name=model_name(name),
                description=tool.description,
                input_schema=dict(schema_of(tool)),
                annotations=ToolAnnotations(read_only_hint=not tool.has_effects, destructive_hint=tool.has_effects),
            )
            for name, tool in self.served.tools.items()
        ]
        reads = ToolAnnotations(read_only_hint=True, destructive_hint=False)
        about = Tool(name=GET_CALL, description=ABOUT_GET_CALL, input_schema=CALL_SCHEMA, annotations=reads)
        return ListToolsResult(tools=[*tools, about], ttl_ms=LISTED_MS, cache_scope="private")

    async def call_tool(
        self, context: RequestContext, params: CallToolRequestParams
    ) -> CallToolResult | InputRequiredResult:
        """Make a call, or join the one that an earlier request has made; an error is a result of the tool."""
        try:
            # The runner accepts results of extensions, which its signature does not name.
            return cast("CallToolResult | InputRequiredResult", await self._call(context, params))
        except KneoError as error:
            return _failure(error.code, f"{error.message} {error.hint}" if error.hint else error.message)

    async def _call(
        self, context: RequestContext, params: CallToolRequestParams
    ) -> CallToolResult | InputRequiredResult | dict[str, object]:
        meta, arguments = dict(context.meta or {}), params.arguments or {}
        operations, shown, waits, joined = self.service.context(self.principal), list[str](), True, False
        if params.request_state is not None:
            state = CallState.read(params.request_state)
            run, shown = await run_in_threadpool(find_own_call, operations, state.call_id), state.shown
            waits = await run_in_threadpool(take_responses, operations, run, params.input_responses)
        elif params.name == GET_CALL:
            call_id = arguments.get("call_id")
            if not isinstance(call_id, str):
                msg = f"{GET_CALL} takes the id of a call."
                raise InvalidValue(msg, field="call_id", hint="The response to the call has it as call_id.")
            run = await run_in_threadpool(find_own_call, operations, call_id)
        else:
            run, joined = await self._start(params.name, arguments, meta)
        links, forms = asks_at(context)
        takes_task = takes_tasks(context)
        until = monotonic() + (min(self.seconds, TASK_SECONDS) if takes_task else self.seconds)
        while True:
            seen = frozenset(shown) if links or forms else None
            left = max(0.0, until - monotonic()) if waits else 0.0
            waiting = await run_in_threadpool(partial(wait_for_call, operations, run, left, joined=joined, shown=seen))
            settled = await self._settled(context, waiting)
            if self.is_gone():
                return _failure("client_gone", "The client has gone.")
            find = partial(find_requests, links=self.address if links else None, forms=forms, shown=shown)
            requests = await run_in_threadpool(find, operations, settled) if waits else {}
            if not requests and (left == 0 or not _asks_another(settled, shown)):
                break
            if requests and context.protocol_version in MODERN_PROTOCOL_VERSIONS:
                return required_inputs(run, requests, shown)
            shown += [task.id for task in settled.tasks]
            waits = await run_in_threadpool(
                take_responses, operations, run, await ask_now(context, requests, max(1.0, left))
            )
        view = await run_in_threadpool(waiting.view, settled)
        if takes_task and waits and view.status != "ended":
            return created_task(view, settled.run, _url(view, self.address))
        return _result(view, self.address)

    async def _start(
        self, called: str, arguments: Mapping[str, object], meta: Mapping[str, object]
    ) -> tuple[Run, bool]:
        found = self._find_tool(called)
        if found is None:
            msg = f"{self.served.bundle} in {self.environment} has no tool {called[:80]} for {self.principal.name}."
            raise NotFound(
                msg, code="tool_not_found", hint="List the tools again: releases and rules may have changed."
            )
        session, key = meta.get(SESSION_ID), meta.get("idempotencyKey")
        if session is not None and not isinstance(session, str):
            msg = f"{SESSION_ID} is a text."
            raise Invalid(msg, code="invalid_argument")
        body = CallCreate(
            environment=self.environment,
            bundle=self.served.bundle,
            tool=found[0],
            arguments=dict(arguments),
            session_id=session,
        )
        start = partial(start_call, self.service.context(self.principal), body, protocol="mcp")
        return await execute_once(
            self.service,
            self.principal,
            f"mcp-call:{self.environment}/{self.served.bundle}",
            str(key) if key is not None else None,
            digest_of_json([found[0], dict(arguments), session]),
            partial(run_in_threadpool, start),
        )

    async def _settled(self, context: RequestContext, waiting: Waiting[CallView]) -> SettledRun:
        """Wait until a call has ended or is allowed, and report progress meanwhile."""
        until, count = monotonic() + waiting.seconds, 0
        while (left := until - monotonic()) > 0:
            settled = await next_change(self.service.changes, waiting.settling, min(left, PROGRESS_SECONDS))
            if settled is not None:
                return settled
            count += 1
            await context.session.report_progress(count, message="Waiting for approval")
        return await run_in_threadpool(read_settled_run, self.service.store, waiting.settling.run_id)


def _failure(code: str, message: str) -> CallToolResult:
    data = {"error": code, "message": message}
    return CallToolResult(content=[TextContent(text=message)], structured_content=data, is_error=True)


def _asks_another(settled: SettledRun, shown: Sequence[str]) -> bool:
    return any(task.id not in shown and not task.is_for_caller for task in settled.tasks)


def _url(view: CallView, address: str) -> str | None:
    return f"{address}/console/inbox/{view.questions[0].id}" if view.questions else None


def _result(view: CallView, address: str) -> CallToolResult:
    meta: dict[str, object] = {CALL_ID: view.id}
    if view.status == "ended" and view.error is not None:
        failed = _failure(view.error.type, view.error.message)
        return CallToolResult(
            content=failed.content, structured_content=failed.structured_content, is_error=True, _meta=meta
        )
    if view.status == "ended":
        text = view.result if isinstance(view.result, str) else json.dumps(view.result, ensure_ascii=False)
        return CallToolResult(content=[TextContent(text=text)], is_error=view.outcome != "success", _meta=meta)
    url = _url(view, address)
    again = f"Call {model_name(view.tool)} again with the same arguments, or {GET_CALL} with call_id {view.id}."
    match view.status:
        case "waiting":
            text = f"Waiting for approval: {url} . {again}"
        case "allowed" | "begun":
            text = f"The call is {view.status}: its caller makes it itself, with POST /v1/calls/{view.id}/begin and /result."
        case _:
            text = f"The call is under way. {again}"
    data = {"call_id": view.id, "status": view.status, "url": url}
    return CallToolResult(content=[TextContent(text=text)], structured_content=data, is_error=False, _meta=meta)
