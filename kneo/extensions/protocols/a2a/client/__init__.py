"""Remote agents: tools that are agents of other services, called over Agent2Agent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kneo.agents.addresses import HostRules
from kneo.agents.http import HttpClient
from kneo.agents.secrets import Secrets
from kneo.agents.services import RulesNow, unrestricted
from kneo.agents.tools.kinds import BackendContext, BackendKind
from kneo.agents.turn import ToolCall
from kneo.extension_points import import_with_extra


class RemoteAgents:
    """The backend of remote agents, for a process that may never call one: the SDK is imported at the first call.

    Args:
        secrets: The secrets of this process.
        rules: The rules in force, with the services inside the network that tools may reach.
        seconds: Time for a call whose tool states none.
        client: Makes the client for the rules of an agent.
    """

    def __init__(
        self,
        secrets: Secrets,
        rules: RulesNow = unrestricted,
        *,
        seconds: float = 60,
        client: Callable[[HostRules], HttpClient] = HttpClient,
    ) -> None:
        self._secrets, self._rules, self._seconds, self._client = secrets, rules, seconds, client

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
        secrets = {
            name: call.secrets.fill(value, self._secrets) for name, value in call.tool.a2a.secret_headers.items()
        }
        rules = await self._rules(call.turn.environment)
        client = self._client(HostRules.of(call.turn.agent, rules.inside))
        called: object = await module.call_agent(call, client, secrets, call.tool.timeout_seconds or self._seconds)
        return called


def _open(context: BackendContext) -> RemoteAgents:
    seconds = context.settings.agents.tool_seconds
    return RemoteAgents(context.secrets, context.rules, seconds=seconds, client=context.client)


KIND = BackendKind(open=_open)
