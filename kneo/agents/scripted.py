"""Models that connect to nothing: scripted ones, whose replies are written in a case; and observed ones, whose names are noted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, UserPromptPart
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from kneo.agents.clients import ModelClient, ModelClients
from kneo.agents.providers import ProviderConnection
from kneo.spec.models.agent import model_name
from kneo.spec.models.suite import Case, ScriptedReply

NextReply = Callable[[Sequence[ModelMessage]], ScriptedReply]
"""Returns the reply to a conversation; raises where there is none."""


def played_reply(cases: Sequence[Case], messages: Sequence[ModelMessage]) -> ScriptedReply:
    """Return the reply of the case whose input a conversation has last: its first one, or that after the replies since then."""
    prompts = [
        (index, part.content.strip())
        for index, message in enumerate(messages)
        for part in message.parts
        if isinstance(part, UserPromptPart) and isinstance(part.content, str)
    ]
    last, prompt = prompts[-1] if prompts else (0, "")
    case = next((each for each in cases if each.input.strip() == prompt), None)
    if case is None:
        return ScriptedReply(
            text="\n".join(("The scripted model replies to these inputs:", *(each.input for each in cases)))
        )
    replied = sum(isinstance(message, ModelResponse) for message in messages[last:])
    if replied >= len(case.replies):
        return ScriptedReply(text=f"The case {case.id} has no further reply.")
    return case.replies[replied]


def _no_function(_messages: list[ModelMessage], _info: AgentInfo) -> NoReturn:
    raise AssertionError


async def _close_nothing() -> None:
    """Close no connection."""


class ScriptedModel(FunctionModel):
    """A model whose replies are written in cases. It reads no tokens, and costs nothing."""

    def __init__(self, name: str, next_reply: NextReply) -> None:
        super().__init__(_no_function, model_name=name)
        self._next_reply = next_reply

    async def request(
        self, messages: list[ModelMessage], _settings: ModelSettings | None, _parameters: ModelRequestParameters
    ) -> ModelResponse:
        reply = self._next_reply(messages)
        if reply.call is None:
            return ModelResponse(parts=[TextPart(reply.text or "")], model_name=self.model_name, finish_reason="stop")
        number = sum(isinstance(part, ToolCallPart) for message in messages for part in message.parts) + 1
        call = ToolCallPart(model_name(reply.call.tool), dict(reply.call.arguments), tool_call_id=f"call_{number}")
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
