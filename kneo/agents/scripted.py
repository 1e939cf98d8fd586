"""The models of a trial: scripted ones, whose replies are written in a case, and observed ones, whose names are noted."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from kneo.agents.clients import ModelClient, ModelClients
from kneo.agents.providers import ProviderConnection
from kneo.spec.models.agent import model_name
from kneo.spec.models.suite import ScriptedReply

NextReply = Callable[[], ScriptedReply]
"""Returns the next reply of a case; raises where there is none."""


def _no_function(_messages: list[ModelMessage], _info: AgentInfo) -> NoReturn:
    raise AssertionError


async def _close_nothing() -> None:
    """Close no connection."""


class ScriptedModel(FunctionModel):
    """A model that gives the replies of a case in order. It reads no tokens, and costs nothing."""

    def __init__(self, name: str, next_reply: NextReply) -> None:
        super().__init__(_no_function, model_name=name)
        self._next_reply, self._calls = next_reply, 0

    async def request(
        self, _messages: list[ModelMessage], _settings: ModelSettings | None, _parameters: ModelRequestParameters
    ) -> ModelResponse:
        reply = self._next_reply()
        if reply.call is None:
            return ModelResponse(parts=[TextPart(reply.text or "")], model_name=self.model_name, finish_reason="stop")
        self._calls += 1
        call = ToolCallPart(model_name(reply.call.tool), dict(reply.call.arguments), tool_call_id=f"call_{self._calls}")
        return ModelResponse(parts=[call], model_name=self.model_name, finish_reason="tool_call")


class ScriptedClients(ModelClients):
    """Clients that connect to nothing."""

    def __init__(self, next_reply: NextReply) -> None:
        super().__init__()
        self._next_reply = next_reply

    def client(self, connection: ProviderConnection) -> ModelClient:
        """Return a client whose models are scripted."""
        return ModelClient(connection, lambda name: ScriptedModel(name, self._next_reply), _close_nothing)


class ObservedClients(ModelClients):
    """Clients of real models.

    Args:
        before: Called before each request; its exception refuses it.
        answered: Called after each reply with the provider, the name of the model, and the name with which it answered.
    """

    def __init__(self, before: Callable[[], None], answered: Callable[[str, str, str], None]) -> None:
        super().__init__()
        self._before, self._answered = before, answered

    def client(self, connection: ProviderConnection) -> ModelClient:
        """Return a client whose requests are observed."""
        client = super().client(connection)
        provider = connection.provider.name
        observed = ModelClient(
            connection, lambda name: _Observed(client.model(name), provider, self._before, self._answered), client.close
        )
        observed.users = client.users
        return observed


class _Observed(WrapperModel):
    def __init__(
        self, wrapped: Model, provider: str, before: Callable[[], None], answered: Callable[[str, str, str], None]
    ) -> None:
        super().__init__(wrapped)
        self._provider_name, self._before, self._answered = provider, before, answered

    async def request(
        self, messages: list[ModelMessage], settings: ModelSettings | None, parameters: ModelRequestParameters
    ) -> ModelResponse:
        self._before()
        reply = await super().request(messages, settings, parameters)
        self._answered(self._provider_name, self.model_name, reply.model_name or self.model_name)
        return reply
