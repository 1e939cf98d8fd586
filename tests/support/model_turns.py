"""Turns of agents with real libraries of providers and the loopback model server; journals in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from model_server import FORMATS, Format, ModelServer
from pydantic_ai.direct import model_request
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters

from kneo.agents.clients import ModelClients
from kneo.agents.providers import OperatorConnections
from kneo.agents.requests import ModelServices, recorded_model
from kneo.agents.services import AgentServices, Progress
from kneo.agents.turn import DeltaStream, Turn
from kneo.clock import ManualClock
from kneo.records.conversation import ConversationEntry
from kneo.records.run import NewTrace
from kneo.settings import ModelSettings
from kneo.spec.models.agent import Agent
from kneo.spec.models.spec import Spec
from kneo.spec.policy import ModelRules

KEY = "sk-very-secret-0123456789"

PROVIDERS: Mapping[Format, Mapping[str, Any]] = {
    "chat": {"provider": "openai", "extra": {"api": "chat"}},
    "responses": {"provider": "openai"},
    "anthropic": {"provider": "anthropic"},
    "gemini": {"provider": "google"},
}
"""How a spec chooses each format."""


@dataclass
class MemoryJournal:
    """A journal that a turn can be entered again with."""

    entries: dict[str, ConversationEntry] = field(default_factory=dict)
    trace: list[NewTrace] = field(default_factory=list)

    def load(self) -> Sequence[ConversationEntry]:
        return list(self.entries.values())

    def below(self, call_key: str) -> MemoryJournal:
        raise NotImplementedError

    async def append(self, *entries: ConversationEntry, trace: Sequence[NewTrace] = (), durable: bool = True) -> None:  # noqa: ARG002
        await asyncio.sleep(0)
        self.entries |= {entry.name: entry for entry in entries}
        self.trace += trace

    def events(self, kind: str) -> list[Mapping[str, object]]:
        return [event.data for event in self.trace if event.type == kind]


class Listener:
    """Receives deltas, and puts them together as a reader does."""

    def __init__(self, *, reads: bool = True) -> None:
        self.reads = reads
        self.text = ""
        self.deltas: list[tuple[int, int, str]] = []

        self.ended: list[int] = []

    def is_read(self) -> bool:
        return self.reads

    def write(self, request: int, offset: int, text: str) -> None:
        self.deltas.append((request, offset, text))
        self.text = self.text[:offset] + text

    def end(self, request: int) -> None:
        self.ended.append(request)


def variables(server: ModelServer) -> dict[str, str]:
    """Return the variables with which an operator points every provider to a server."""
    return {
        "OPENAI_BASE_URL": server.openai_url,
        "OPENAI_API_KEY": KEY,
        "ANTHROPIC_BASE_URL": server.url,
        "ANTHROPIC_API_KEY": KEY,
        "GOOGLE_GEMINI_BASE_URL": server.url,
        "GOOGLE_API_KEY": KEY,
        "OLLAMA_BASE_URL": server.url,
    }


@dataclass
class Conversation:
    """One conversation with a model: asks, is entered again, and shows its journal."""

    server: ModelServer
    model: Mapping[str, Any]
    rules: ModelRules | None = None
    settings: ModelSettings = field(default_factory=ModelSettings)
    deltas: DeltaStream | None = None
    env: Mapping[str, str] | None = None
    quota: Any = None
    journal: MemoryJournal = field(default_factory=MemoryJournal)
    clock: ManualClock = field(default_factory=lambda: ManualClock(datetime(2026, 1, 1, tzinfo=UTC)))
    waits: list[float] = field(default_factory=list)
    token_budget: int | None = None

    async def ask(self, text: str = "Hello.", *, before: Sequence[ModelMessage] = (), **request: Any) -> ModelResponse:
        """Ask once, as a turn that is entered with what the journal has; waits take no time and move the clock."""
        services, progress = self.services(), Progress.of(self.journal.load(), token_budget=self.token_budget)
        try:
            return await self.ask_model(
                await recorded_model(self.turn(text), services, progress), text, before, **request
            )
        finally:
            await services.models.close()

    async def go_on(self, messages: Sequence[ModelMessage], **request: Any) -> ModelResponse:
        """Ask again with a longer history, as the next request of the turn."""
        services, progress = self.services(), Progress.of(self.journal.load(), token_budget=self.token_budget)
        try:
            model = await recorded_model(self.turn("Hello."), services, progress)
            return await model_request(model, messages, model_request_parameters=ModelRequestParameters(**request))
        finally:
            await services.models.close()

    async def ask_model(
        self, model: Model, text: str = "Hello.", before: Sequence[ModelMessage] = (), **request: Any
    ) -> ModelResponse:
        """Ask a model as the loop does."""
        messages = [*before, ModelRequest.user_text_prompt(text, instructions="Be brief.")]
        return await model_request(model, messages, model_request_parameters=ModelRequestParameters(**request))

    def turn(self, text: str) -> Turn:
        agent = Agent(name="clerk", model={"name": "fake", **self.model})
        return Turn(
            run_id="run_1",
            step_id="answer",
            agent_name="clerk",
            agent=agent,
            spec=Spec(version="v1", agent=agent),
            text=text,
            conversation="answer~0",
            journal=self.journal,
            environment="prod" if self.rules is not None else None,
            deltas=self.deltas,
        )

    def services(self) -> AgentServices:
        env = variables(self.server) if self.env is None else self.env
        models = ModelServices(
            operator=OperatorConnections(secret=env.get),
            settings=self.settings,
            rules=self._rules,
            quota=self.quota,
            sleep=self._sleep,
            jitter=lambda: 1.0,
            clients=ModelClients(self.settings.reply_bytes),
        )
        return AgentServices(models=models, clock=self.clock)

    async def _rules(self, _environment: str | None) -> ModelRules | None:
        return self.rules

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.clock.advance(timedelta(seconds=seconds))
        await asyncio.sleep(0)


__all__ = ["FORMATS", "KEY", "PROVIDERS", "Conversation", "Listener", "MemoryJournal", "variables"]
