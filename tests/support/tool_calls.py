"""Calls of tools as backends receive them, without a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kneo.agents.http import HttpClient
from kneo.agents.secrets import Secrets
from kneo.agents.services import RulesNow, unrestricted
from kneo.agents.tools.kinds import BackendContext
from kneo.agents.tools.middleware import SecretFilter
from kneo.agents.turn import Journal, ToolBackend, ToolCall, Turn
from kneo.records.conversation import ConversationEntry
from kneo.records.run import NewTrace
from kneo.settings import AgentSettings, from_env
from kneo.spec.code import RunCode
from kneo.spec.models.agent import Agent
from kneo.spec.models.spec import Spec, Tool

KEY = "run_1:answer~0:1.call_1"


class NoJournal:
    """A journal for calls that write nothing."""

    def load(self) -> Sequence[ConversationEntry]:
        return ()

    def below(self, call_key: str) -> Journal:
        raise AssertionError(call_key)

    async def append(self, *entries: ConversationEntry, trace: Sequence[NewTrace] = (), durable: bool = True) -> None:
        raise AssertionError(entries, trace, durable)


def backend_context(
    secrets: Secrets = {}.get, rules: RulesNow = unrestricted, *, seconds: float = 60
) -> BackendContext:
    """Return what a process opens backends with."""
    settings = replace(from_env({}), agents=AgentSettings(tool_seconds=seconds))
    return BackendContext(settings=settings, secrets=secrets, rules=rules, client=HttpClient, on_close=print)


def filtered(backend: ToolBackend) -> ToolBackend:
    """Return a backend as agents call it: what leaves a call has no secrets."""
    return SecretFilter(backend)


def tool_call(
    arguments: Mapping[str, object] | None = None,
    *,
    name: str = "tool",
    agent: Mapping[str, object] | None = None,
    pins: Mapping[str, str] | None = None,
    environment: str | None = None,
    **tool: object,
) -> ToolCall:
    """A call of a tool with these fields of its declaration."""
    caller = Agent.model_validate({"name": "writer", **(agent or {})})
    turn = Turn(
        run_id="run_1",
        step_id="answer",
        agent_name="writer",
        agent=caller,
        spec=Spec(agent=caller),
        text="hello",
        conversation="answer~0",
        journal=NoJournal(),
        code=RunCode(pins or {}),
        environment=environment,
    )
    declared = Tool.model_validate({"description": "A tool.", **tool})
    return ToolCall(key="1.call_1", name=name, tool=declared, arguments=arguments or {}, turn=turn)
