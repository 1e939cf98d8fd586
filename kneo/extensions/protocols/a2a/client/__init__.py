"""Remote agents: tools that are agents of other services, called over Agent2Agent."""

from __future__ import annotations

import asyncio

from kneo.agents.addresses import HostRules
from kneo.agents.tools.kinds import BackendContext, BackendKind
from kneo.agents.turn import ToolCall
from kneo.extension_points import import_with_extra


class RemoteAgents:
    """The backend of remote agents, for a process that may never call one: the SDK is imported at the first call."""

    def __init__(self, context: BackendContext) -> None:
        self._context = context

    async def call(self, call: ToolCall) -> object:
        """Call a remote agent; raises what ``call_agent`` raises.

        Raises:
            Invalid: ``a2a_not_installed``.
            Forbidden: a secret is refused.
        """
        # In a thread: the import takes seconds on a busy machine, and other runs go on meanwhile.
        module = await asyncio.to_thread(
            import_with_extra, "kneo.extensions.protocols.a2a.client.calls", "a2a", "A remote agent"
        )
        assert call.tool.a2a is not None
        secrets = self._context.fill(call, call.tool.a2a.secret_headers)
        rules = await self._context.rules(call.turn.environment)
        client = self._context.client(HostRules.of(call.turn.agent, rules.inside))
        seconds = call.tool.timeout_seconds or self._context.settings.agents.tool_seconds
        called: object = await module.call_agent(call, client, secrets, seconds)
        return called


KIND = BackendKind(open=RemoteAgents)
