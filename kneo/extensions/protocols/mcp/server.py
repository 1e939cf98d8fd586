"""The MCP server of one environment for one caller: its tools are the served agents, and ``get_run`` for runs that last longer.

It keeps nothing between two requests. What it asks of people is an elicitation whose state names the run, so that any process of
the service, and one that was started anew, takes the answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from json import JSONDecodeError
from typing import Protocol, Self

from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types import (
    PARSE_ERROR,
    CallToolRequestParams,
    CallToolResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    InputRequiredResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from kneo import __version__
from kneo.api.agents import AgentView, list_agents
from kneo.api.operation import Principal
from kneo.api.run_views import RunErrorView, readable, request_for_callers
from kneo.digest import digest_of
from kneo.errors import Forbidden, Invalid, KneoError, NotFound
from kneo.extensions.protocols.calls import ANSWER_SCOPES, AgentCalls, AgentMessage, is_settled
from kneo.json_text import parse_json
from kneo.records.run import Run, RunStatus
from kneo.records.task import DecisionKind, HumanTask
from kneo.runtime.engine.wait import SettledRun
from kneo.service.admission import read_body, replay
from kneo.service.context import Service
from kneo.service.routing import JsonResponse
from kneo.store.engine import Tx
from kneo.tasks.people import check_may_answer

MAX_SUBJECT_CHARS = 4_000
"""Characters of a subject in an elicitation; a longer one is reviewed at the link."""

_DECISIONS = (
    DecisionKind.APPROVED,
    DecisionKind.REJECTED,
    DecisionKind.EDITED,
    DecisionKind.SELECTED,
    DecisionKind.PROVIDED,
)


class RequestState(BaseModel):
    """A state that a client sends back with its answer. It proves nothing: what it names is read again for the caller."""

    model_config = ConfigDict(extra="forbid")

    @classmethod
    def read(cls, state: str) -> Self:
        """Read the state that a client sends back.

        Raises:
            Invalid: ``invalid_request_state``: it is not one of this server.
        """
        try:
            return cls.model_validate(parse_json(state))
        except ValueError as error:
            msg = "The request state is not one of this server."
            raise Invalid(msg, code="invalid_request_state") from error


class Elicited(RequestState):
    """The state of an elicitation: the question as it was shown."""

    run_id: str
    task_id: str
    request_id: str
    subject_digest: str | None


def link_of(task: HumanTask, address: str) -> str:
    """Return the link at which people answer a question."""
    return f"{address}/console/inbox/{task.id}"


def elicitation(run: Run, tasks: Sequence[HumanTask], address: str) -> InputRequiredResult | None:
    """Return the first question that fits a flat form; ``None`` where none does: those with forms, long subjects or other
    decisions are answered at their links.
    """
    for task in tasks:
        subject = task.subject or ""
        decisions = [kind for kind in _DECISIONS if kind in task.decisions]
        if task.answer_schema is not None or task.multiple or not decisions or len(subject) > MAX_SUBJECT_CHARS:
            continue
        request = request_for_callers(task)
        shown = request["subject"]
        value = shown.get("value") if isinstance(shown, Mapping) else None
        prompt = "\n\n".join(str(part) for part in (request["prompt"] or request["title"], value) if part)
        form = ElicitRequestFormParams(
            message=f"{prompt}\n\n{link_of(task, address)}", requested_schema=_form(task, decisions)
        )
        state = Elicited(run_id=run.id, task_id=task.id, request_id=task.request_id, subject_digest=task.subject_digest)
        return InputRequiredResult(
            input_requests={task.id: ElicitRequest(params=form)}, request_state=state.model_dump_json()
        )
    return None


def _form(task: HumanTask, decisions: Sequence[DecisionKind]) -> dict[str, object]:
    fields: dict[str, object] = {"decision": {"type": "string", "enum": [str(kind) for kind in decisions]}}
    if DecisionKind.EDITED in decisions or DecisionKind.PROVIDED in decisions:
        fields["content"] = {"type": "string", "description": "The text, where the decision is edited or provided."}
    if DecisionKind.SELECTED in decisions:
        fields["selected_option"] = {"type": "string", "enum": list(task.options or ())}
    return {"type": "object", "properties": fields, "required": ["decision"]}


def decision_of(state: Elicited, responses: Mapping[str, object] | None) -> dict[str, object] | None:
    """Return the decision that a client answers with, for the question as it was shown; ``None`` where the person declined."""
    response = (responses or {}).get(state.task_id)
    if not isinstance(response, ElicitResult) or response.action != "accept":
        return None
    answer = {name: value for name, value in (response.content or {}).items() if value not in {None, ""}}
    return {**answer, "request_id": state.request_id, "expect_digest": state.subject_digest}


def as_text(data: Mapping[str, object]) -> str:
    """Return a structured result as text, for clients that read only texts."""
    return json.dumps(data, ensure_ascii=False)


# The SDK reports each request at this level.
logging.getLogger("mcp").setLevel(logging.WARNING)

GET_RUN = "get_run"
"""The tool that returns the state of a run."""

WAIT_SECONDS = 600.0
"""The longest time of one call; the result of a run that takes longer is read with ``get_run``."""

_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

Result = CallToolResult | InputRequiredResult
RequestContext = ServerRequestContext[object, object]


def tool_name(bundle: str) -> str:
    """Return the name of an agent as a tool: its bundle's, where models accept it, else one with a digest of it."""
    if bundle != GET_RUN and _TOOL_NAME.fullmatch(bundle):
        return bundle
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', bundle)[:50]}_{digest_of(bundle.encode()).partition(':')[2][:12]}"


@dataclass(frozen=True)
class AgentTools:
    """The agents that one environment serves over MCP, as tools of one caller.

    Args:
        service: The parts of the service.
        principal: The caller.
        environment: The environment.
        address: The address of the service, for links.
    """

    service: Service
    principal: Principal
    environment: str
    address: str

    def server(self) -> Server[object]:
        """Return the server."""
        return Server("kneo", version=__version__, on_list_tools=self.list_tools, on_call_tool=self.call_tool)

    async def list_tools(self, _context: RequestContext, _params: PaginatedRequestParams | None) -> ListToolsResult:
        """List the served agents."""
        tools = [
            Tool(name=tool_name(agent.bundle), description=agent.description, input_schema=self._input_schema())
            for agent in await self._agents()
        ]
        schema = {"type": "object", "properties": {"run_id": {"type": "string"}}, "required": ["run_id"]}
        about = "Wait for a run that an earlier call has started, and return its output or its open questions."
        return ListToolsResult(tools=[*tools, Tool(name=GET_RUN, description=about, input_schema=schema)])

    async def call_tool(self, context: RequestContext, params: CallToolRequestParams) -> Result:
        """Run an agent, or continue a call with the answer to its question; an error is a result of the tool."""
        try:
            return await self._call(context, params)
        except KneoError as error:
            hint = f" {error.hint}" if error.hint else ""
            data = {"error": error.code, "message": error.message}
            return CallToolResult(
                content=[TextContent(text=f"{error.message}{hint}")], structured_content=data, is_error=True
            )

    async def _call(self, context: RequestContext, params: CallToolRequestParams) -> Result:
        arguments, may_ask, after = params.arguments or {}, True, 0
        reads = params.name == GET_RUN
        calls = (
            await self._calls_of_run(_text(arguments, "run_id"))
            if reads
            else self._calls(await self._agent(params.name))
        )
        if params.request_state is not None:
            state = Elicited.read(params.request_state)
            decision = decision_of(state, params.input_responses)
            after = (await calls.find(state.run_id)).run.trace_count
            settled = await self._answer(calls, state, decision)
            # A person who declined is not asked again in the same call.
            may_ask = decision is not None
        elif reads:
            settled = await calls.read(_text(arguments, "run_id"))
            after = settled.run.trace_count
        else:
            settled = await calls.start(_message(context, arguments), wait=False)
        settled = await self._settled(calls, context, settled.run.id, after)
        asked = await run_in_threadpool(self._elicitation, context, settled) if may_ask else None
        return asked or self._result(settled)

    async def _answer(self, calls: AgentCalls, state: Elicited, decision: Mapping[str, object] | None) -> SettledRun:
        if decision is None:
            return await calls.find(state.run_id)
        return await calls.answer(state.run_id, state.task_id, decision, f"{state.request_id}.answer", wait=False)

    async def _settled(self, calls: AgentCalls, context: RequestContext, run_id: str, after: int) -> SettledRun:
        """Wait until a run ends or asks, and report its steps after a trace event meanwhile."""
        count = 0
        try:
            async with asyncio.timeout(WAIT_SECONDS), aclosing(calls.follow(run_id, after)) as changes:
                async for change in changes:
                    if isinstance(change, SettledRun):
                        return change
                    count += 1
                    step = change.data.get("step_id") or ""
                    await context.session.report_progress(count, message=f"{change.name} {step}".strip())
        except TimeoutError:
            pass
        return await calls.find(run_id)

    def _elicitation(self, context: RequestContext, settled: SettledRun) -> InputRequiredResult | None:
        """Return a question for the client's person, where the client can ask and the caller may answer."""
        capabilities = context.session.client_capabilities
        if context.protocol_version not in MODERN_PROTOCOL_VERSIONS or capabilities is None:
            return None
        if capabilities.elicitation is None or not all(self.principal.may(scope) for scope in ANSWER_SCOPES):
            return None
        with self.service.store.read() as tx:
            tasks = [task for task in settled.tasks if _may_answer(tx, task, self.principal.name)]
        return elicitation(settled.run, tasks, self.address)

    def _result(self, settled: SettledRun) -> CallToolResult:
        run = settled.run
        output, error = readable(run.output_text), RunErrorView.of(run.error)
        data: dict[str, object] = {"run_id": run.id, "status": str(run.status)}
        if run.status is RunStatus.SUCCEEDED:
            data["output"] = output
        if error is not None:
            data["error"] = vars(error)
        if settled.tasks:
            data["questions"] = [self._question(task) for task in settled.tasks]
        if not is_settled(settled) or settled.tasks:
            data["next"] = f"Call {GET_RUN} with this run_id for the output."
        text = output if run.status is RunStatus.SUCCEEDED and output is not None else as_text(data)
        failed = run.status in {RunStatus.FAILED, RunStatus.CANCELLED}
        return CallToolResult(content=[TextContent(text=text)], structured_content=data, is_error=failed)

    def _question(self, task: HumanTask) -> dict[str, object]:
        request = request_for_callers(task)
        return {"continuation_id": task.id, "prompt": request["prompt"], "url": link_of(task, self.address)}

    async def _agents(self) -> list[AgentView]:
        context = self.service.context(self.principal)
        return (await run_in_threadpool(list_agents, context, self.environment, "mcp")).agents

    async def _agent(self, name: str) -> AgentView:
        for agent in await self._agents():
            if tool_name(agent.bundle) == name:
                return agent
        msg = f"{self.environment} serves no agent {name[:80]} over MCP."
        raise NotFound(msg, code="tool_not_found", hint="List the tools again: releases and rules may have changed.")

    async def _calls_of_run(self, run_id: str) -> AgentCalls:
        for agent in await self._agents():
            calls = self._calls(agent)
            try:
                await calls.find(run_id)
            except NotFound:
                continue
            return calls
        msg = f"There is no run {run_id[:80]} of an agent that {self.environment} serves over MCP."
        raise NotFound(msg, run_id=run_id[:80])

    def _calls(self, agent: AgentView) -> AgentCalls:
        return AgentCalls(self.service, self.principal, agent, "mcp")

    def _input_schema(self) -> dict[str, object]:
        text = {"type": "string", "maxLength": self.service.settings.limits.input_chars}
        session = {"type": "string", "maxLength": 200, "description": "Continues the conversation of an earlier call."}
        return {
            "type": "object",
            "properties": {"input": text, "session_id": session},
            "required": ["input"],
            "additionalProperties": False,
        }


class HasServer(Protocol):
    """The tools of one caller."""

    def server(self) -> Server[object]:
        """Return the server."""
        ...


def ignore() -> None:
    """Do nothing about a client that has gone."""


class McpResponse(Response):
    """A response of the MCP server to one request of streamable HTTP, without a session."""

    def __init__(self, tools: HasServer, max_bytes: int, on_gone: Callable[[], None] = ignore) -> None:
        super().__init__()
        self.tools = tools
        self.max_bytes = max_bytes
        self.on_gone = on_gone
        """Called when the client closes the connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        try:
            parse_json(body)
        except JSONDecodeError as error:
            # The SDK would take the last of two members.
            refused = {"code": PARSE_ERROR, "message": f"Parse error: {error.msg}"}
            await JsonResponse({"jsonrpc": "2.0", "id": None, "error": refused}, 400)(scope, receive, send)
            return
        manager = StreamableHTTPSessionManager(
            self.tools.server(), stateless=True, max_request_body_size=self.max_bytes
        )
        received = replay(body, receive)

        async def watch() -> Message:
            message = await received()
            if message["type"] == "http.disconnect":
                self.on_gone()
            return message

        async with manager.run():
            await manager.handle_request(scope, watch, send)


def _may_answer(tx: Tx, task: HumanTask, name: str) -> bool:
    try:
        check_may_answer(tx, task, name)
    except Forbidden:
        return False
    return True


def _message(context: RequestContext, arguments: Mapping[str, object]) -> AgentMessage:
    unknown = sorted(arguments.keys() - {"input", "session_id"})
    if unknown:
        msg = f"The tool has no argument {unknown[0][:60]}; it has input and session_id."
        raise Invalid(msg, code="unknown_argument")
    key = dict(context.meta or {}).get("idempotencyKey")
    return AgentMessage(
        text=_text(arguments, "input"),
        session_id=_text(arguments, "session_id") if "session_id" in arguments else None,
        metadata={},
        key=str(key) if key is not None else None,
    )


def _text(arguments: Mapping[str, object], name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str):
        msg = f"The argument {name} is a text."
        raise Invalid(msg, code="invalid_argument")
    return value
