"""The MCP servers of one process: the backend of their tools."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass

from mcp import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    EmbeddedResource,
    InputRequiredResult,
    TextContent,
    TextResourceContents,
)

from kneo.agents.addresses import Resolve, resolve
from kneo.agents.sandboxes import SandboxHost
from kneo.agents.secrets import CallSecrets, Secrets
from kneo.agents.services import RulesNow
from kneo.agents.tools.mcp.connection import Connection, ServerTransport
from kneo.agents.tools.mcp.elicitation import Elicitation
from kneo.agents.tools.mcp.failures import McpServerFailed, McpSessionEnded, McpToolFailed, McpUnreachable
from kneo.agents.tools.mcp.http import HttpTransport
from kneo.agents.tools.mcp.pins import OfferedTool, changed_parts, check_pin
from kneo.agents.tools.mcp.stdio import ServerCommand, ServerProcess
from kneo.agents.tools.mcp.targets import ConnectionTarget, target_of
from kneo.agents.tools.middleware import hide_in_error
from kneo.agents.turn import ToolCall
from kneo.errors import KneoError
from kneo.records.run import NewTrace
from kneo.sandbox.levels import Rights
from kneo.settings import McpSettings
from kneo.spec.coverage.exposure import permissions_of
from kneo.spec.coverage.sandboxes import server_part
from kneo.spec.models.agent import Agent
from kneo.spec.models.spec import McpPin, McpServer
from kneo.spec.policy import SandboxLevel, ToolRules

MAX_ROUNDS = 20
"""Results of one call without an end and without a question."""

ROUND_SECONDS = 0.05
"""Wait after the first such result; each further wait is longer by this time."""

TOOL_CHANGED = "W_MCP_TOOL_CHANGED"
"""The code of a tool that is not what its server says, where no pin refuses it."""

MAX_WARNED = 10_000
"""Tools of runs that a process remembers to have warned of."""


@dataclass(frozen=True, kw_only=True)
class _PlannedCall:
    """A call, its server and its pin, under the rules that hold now."""

    call: ToolCall
    target: ConnectionTarget
    request: CallToolRequestParams
    pin: McpPin | None
    is_pinned: bool
    seconds: float


class _Lease:
    """A connection and the number of its calls under way."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.calls = 0
        self.offered: Mapping[str, OfferedTool] | None = None
        """The server's tools when the connection began; ``None`` before they are listed, or where they cannot be."""
        self.closing: asyncio.TimerHandle | None = None


class McpServers:
    """Connections to MCP servers, one per declaration and secrets; opened by the first call, closed when idle.

    All its methods belong to the event loop that first used it.

    Args:
        rules: The tool rules of an environment as they are now; for ``None`` those of the operator.
        secrets: The secrets of the process.
        settings: Times of connections and calls.
        host: What sandboxes of this machine may have.
        resolver: The resolver of host names.
    """

    def __init__(
        self,
        rules: RulesNow,
        secrets: Secrets,
        settings: McpSettings,
        host: SandboxHost,
        resolver: Resolve = resolve,
    ) -> None:
        self._rules, self._secrets, self._settings, self._resolver = rules, secrets, settings, resolver
        self._host = host
        self._leases: dict[str, _Lease] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._warned: set[tuple[str, str]] = set()

    async def call(self, call: ToolCall) -> object:
        """Call a tool of a server.

        Raises:
            AnswerRequired: the server asks a person first.
            McpRefused: a rule or a pin does not permit the call.
            McpToolFailed: the server answered with an error.
            McpServerFailed: the server cannot be reached, or did not answer in time.
        """
        planned = self._plan(call, await self._rules(call.turn.environment))
        for number in itertools.count(1):
            try:
                return await self._once(planned)
            except McpServerFailed as error:
                if not self._is_repeated(error, call, number):
                    raise
            await asyncio.sleep(self._settings.retry_backoff_seconds * number)
        raise AssertionError  # the loop has no other end

    def _plan(self, call: ToolCall, rules: ToolRules) -> _PlannedCall:
        reference = call.tool.mcp
        assert reference is not None
        assert reference.server is not None
        server = call.turn.spec.mcp_servers[reference.server]
        return _PlannedCall(
            call=call,
            target=self._target(
                reference.server,
                server,
                rules,
                call.secrets,
                agent=call.turn.agent,
                rights=self._rights_of(reference.server, server, rules, call.turn.environment, call.floor),
            ),
            request=CallToolRequestParams(
                name=reference.name or call.name,
                arguments=dict(call.arguments),
                _meta={"idempotencyKey": call.idempotency_key},
            ),
            pin=reference.pin,
            is_pinned=reference.pin is not None or rules.mcp.pinned,
            seconds=call.tool.timeout_seconds or server.timeout or self._settings.call_seconds,
        )

    def _is_repeated(self, error: McpServerFailed, call: ToolCall, number: int) -> bool:
        if isinstance(error, McpSessionEnded) and number == 1:
            return True
        return number <= self._settings.retries and (isinstance(error, McpUnreachable) or not call.tool.has_effects)

    async def _once(self, planned: _PlannedCall) -> object:
        target, request = planned.target, planned.request
        async with self._connected(target) as connection:
            planned.call.secrets.follow(connection.secrets)
            await connection.ready()
            planned.call.observed.update(connection.facts())
            if not planned.is_pinned:
                await self._warn_of_change(planned, connection)
            try:
                async with asyncio.timeout(planned.seconds):
                    if planned.is_pinned:
                        check_pin(
                            target.name, request.name, planned.pin, await _offered(connection, planned.call.secrets)
                        )
                    result = await _finished(connection, request, planned.call)
                    return _value(result)
            except asyncio.CancelledError:
                self._retire(target.key)  # the server may still be at work, or hang
                raise
            except TimeoutError:
                self._retire(target.key)
                msg = f"The MCP server {target.name} did not answer the call of {request.name} within {planned.seconds:g} s."
                raise McpServerFailed(msg, code="tool_timeout") from None
            except MCPError as error:
                raise McpToolFailed(error.message) from None

    async def _warn_of_change(self, planned: _PlannedCall, connection: Connection) -> None:
        """Note in the trace of a run, once, that a tool without a pin is not what its server said at the start of the connection."""
        call, lease = planned.call, self._leases.get(planned.target.key)
        is_declared = bool(call.tool.parameters) or call.tool.returns is not None
        if lease is None or not is_declared or (call.turn.run_id, call.name) in self._warned:
            return
        if lease.offered is None:
            lease.offered = {}
            # The call decides whether the server works; a server that lists nothing in time may still answer it.
            with contextlib.suppress(KneoError, TimeoutError):
                async with asyncio.timeout(self._settings.connect_seconds):
                    lease.offered = await _offered(connection, call.secrets)
        offered = lease.offered.get(planned.request.name)
        changed = changed_parts(call.tool, offered) if offered is not None else ()
        if not changed:
            return
        if len(self._warned) >= MAX_WARNED:
            self._warned.clear()
        self._warned.add((call.turn.run_id, call.name))
        facts = {"agent_name": call.turn.agent_name, "tool_name": call.name, "server": planned.target.name}
        event = NewTrace(
            type="mcp_tool_changed",
            step_id=call.turn.step_id,
            data={**facts, "code": TOOL_CHANGED, "changed": list(changed)},
        )
        await call.turn.journal.append(trace=[event], durable=False)

    async def tools(self, name: str, server: McpServer, environment: str | None = None) -> Mapping[str, OfferedTool]:
        """List the tools of a server, as it describes them now.

        Raises:
            McpRefused: a rule does not permit the connection.
            McpServerFailed: the server cannot be reached, or did not answer in time.
        """
        secrets = CallSecrets()
        try:
            rules = await self._rules(environment)
            rights = self._rights_of(name, server, rules, environment)
            target = self._target(name, server, rules, secrets, rights=rights)
            async with self._connected(target) as connection, asyncio.timeout(self._settings.call_seconds):
                secrets.follow(connection.secrets)
                return await _offered(connection, secrets)
        except TimeoutError:
            msg = f"The MCP server {name} did not list its tools within {self._settings.call_seconds:g} s."
            raise McpServerFailed(msg) from None
        except KneoError as error:
            raise hide_in_error(error, secrets) from None

    async def close(self) -> None:
        """Close all connections, and end all servers over stdio."""
        for key in list(self._leases):
            self._drop(key)
        while self._closing:
            await asyncio.wait(self._closing)

    def _target(
        self,
        name: str,
        server: McpServer,
        rules: ToolRules,
        hidden: CallSecrets,
        *,
        rights: Rights | None,
        agent: Agent | None = None,
    ) -> ConnectionTarget:
        permissions = permissions_of(agent) if agent is not None else None
        denied = permissions.denied_domains if permissions is not None else ()
        return target_of(
            name,
            server,
            rules,
            self._secrets,
            hidden,
            connect_seconds=self._settings.connect_seconds,
            rights=rights,
            denied=denied,
        )

    def _rights_of(
        self,
        name: str,
        server: McpServer,
        rules: ToolRules,
        environment: str | None,
        floor: SandboxLevel | None = None,
    ) -> Rights | None:
        """Return the rights of a server over stdio; ``None`` of another one."""
        if server.transport != "stdio":
            return None
        return self._host.rights(server_part(name, server), rules.sandbox, environment, floor=floor)

    @contextlib.asynccontextmanager
    async def _connected(self, target: ConnectionTarget) -> AsyncGenerator[Connection]:
        lease = self._leases.get(target.key)
        if lease is None or not lease.connection.is_open:
            if lease is not None:
                self._retire(target.key)
            lease = self._leases[target.key] = _Lease(self._connection(target))
        if lease.closing is not None:
            lease.closing.cancel()
            lease.closing = None
        lease.calls += 1
        try:
            yield lease.connection
        finally:
            lease.calls -= 1
            if lease.calls == 0:
                self._release(target.key, lease)

    def _connection(self, target: ConnectionTarget) -> Connection:
        transport: ServerTransport
        if isinstance(target.to, ServerCommand):
            transport = ServerProcess(target.to)
        else:
            transport = HttpTransport(target.to, self._resolver)
        return Connection(target.name, transport, self._settings.connect_seconds)

    def _release(self, key: str, lease: _Lease) -> None:
        """Close a connection without calls: later, or at once where no further call can use it."""
        if self._leases.get(key) is lease and lease.connection.is_open:
            lease.closing = asyncio.get_running_loop().call_later(self._settings.idle_seconds, self._drop, key)
        else:
            if self._leases.get(key) is lease:
                del self._leases[key]
            self._close(lease)

    def _retire(self, key: str) -> None:
        """Give a connection no further call; it closes when those under way have ended."""
        lease = self._leases.pop(key, None)
        if lease is not None and lease.calls == 0:
            self._close(lease)

    def _drop(self, key: str) -> None:
        lease = self._leases.pop(key)
        self._close(lease)

    def _close(self, lease: _Lease) -> None:
        if lease.closing is not None:
            lease.closing.cancel()
        task = asyncio.get_running_loop().create_task(lease.connection.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def _offered(connection: Connection, secrets: CallSecrets) -> Mapping[str, OfferedTool]:
    """Return the tools as the server describes them, without secrets: pins of them stand in signed bundles."""
    tools = await connection.tools()
    return {
        name: OfferedTool(
            name=name,
            description=secrets.hide_text(tool.description or ""),
            input_schema=secrets.hide_fields(tool.input_schema),
            output_schema=secrets.hide_fields(tool.output_schema) if tool.output_schema is not None else None,
            is_read_only=tool.annotations is not None and tool.annotations.read_only_hint is True,
        )
        for name, tool in tools.items()
    }


async def _finished(connection: Connection, request: CallToolRequestParams, call: ToolCall) -> CallToolResult:
    """Make a call, or continue one that a person has answered.

    Raises:
        AnswerRequired: a person has to answer first.
    """
    restarted = False
    if call.state is not None and call.answer is not None:
        elicitation = Elicitation.restore(call.state).answered(call.answer)
        if (question := elicitation.question()) is not None:
            raise question
        try:
            result = await connection.call(_continued(request, elicitation))
        except MCPError as error:
            if error.code != INVALID_PARAMS:
                raise
            restarted = True  # the server no longer knows its state: the call starts again, and asks again
            result = await connection.call(request)
    else:
        result = await connection.call(request)
    for number in range(MAX_ROUNDS):
        if not isinstance(result, InputRequiredResult):
            return result
        elicitation = Elicitation.of(result, call.secrets)
        if (question := elicitation.question(restarted=restarted)) is not None:
            raise question
        await asyncio.sleep(ROUND_SECONDS * number)
        result = await connection.call(_continued(request, elicitation))
    msg = f"The MCP server gave no result of {request.name} in {MAX_ROUNDS} answers."
    raise McpToolFailed(msg)


def _continued(request: CallToolRequestParams, elicitation: Elicitation) -> CallToolRequestParams:
    answers = {"input_responses": elicitation.responses(), "request_state": elicitation.server_state}
    return request.model_copy(update=answers)


def _value(result: CallToolResult) -> object:
    """Return the result as JSON or text.

    Raises:
        McpToolFailed: it is an error.
    """
    text = "\n".join(_text(part) for part in result.content)
    if result.is_error:
        raise McpToolFailed(text or "The MCP server reports an error without a text.")
    return text if result.structured_content is None else result.structured_content


def _text(part: object) -> str:
    match part:
        case TextContent(text=text):
            return text
        case EmbeddedResource(resource=TextResourceContents(text=text)):
            return text
        case _:
            kind, name = getattr(part, "type", "content"), getattr(part, "uri", None) or getattr(part, "mime_type", "")
            return f"[{kind} {name}, not shown]"
