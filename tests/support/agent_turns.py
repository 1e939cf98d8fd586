"""A turn of an agent on a journal in memory, with a scripted model: its interruptions, its answers and what it did."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.wrapper import WrapperModel

from kneo.agents.services import AgentServices, Progress
from kneo.agents.turn import CallQuestion, PeopleRequired, ToolCall, ToolGate, Turn, TurnResult
from kneo.clock import ManualClock
from kneo.records.conversation import ConversationEntry, EntryKind, EntryStatus
from kneo.records.run import NewTrace
from kneo.records.task import Decision, DecisionKind
from kneo.settings import AgentSettings
from kneo.spec.models.spec import Spec

NEVER = 1_000_000


class Interrupted(BaseException):
    """The process ends here."""


@dataclass
class MemoryJournal:
    """The journal of a conversation, in memory; its writes can end the process before or after they happen."""

    conversation: str = "answer~0"
    rows: dict[tuple[str, str], ConversationEntry] = field(default_factory=dict)
    trace: list[NewTrace] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    interruptions: list[int] = field(default_factory=lambda: [NEVER])
    """The write that ends the process, counted in halves: even before it, odd after it."""
    synced: dict[tuple[str, str], ConversationEntry] = field(default_factory=dict)
    loses_power: bool = False
    """Whether the machine ends with the process: entries that were not on disk are lost."""

    def load(self) -> Sequence[ConversationEntry]:
        # Through JSON, as a database holds it.
        found = [entry for (conversation, _), entry in self.rows.items() if conversation == self.conversation]
        return [replace(entry, body=json.loads(json.dumps(entry.body))) for entry in found]

    def below(self, call_key: str) -> MemoryJournal:
        return replace(self, conversation=f"{self.conversation}>{call_key}")

    async def append(self, *entries: ConversationEntry, trace: Sequence[NewTrace] = (), durable: bool = True) -> None:
        self._end_here()
        for entry in entries:
            assert entry.conversation == self.conversation
            self.rows[entry.conversation, entry.name] = entry
            self.log.append(f"{entry.name} {entry.status}{' durable' if durable else ''}")
        if durable:
            self.synced.clear()
            self.synced.update(self.rows)
        self.trace += trace
        self._end_here()

    def _end_here(self) -> None:
        self.interruptions[0] -= 1
        if self.interruptions[0] != -1:
            return
        if self.loses_power:
            self.rows.clear()
            self.rows.update(self.synced)
        raise Interrupted


class RecordedModel(WrapperModel):
    """A model whose replies are journal entries before they are used."""

    def __init__(self, wrapped: Model, turn: Turn, progress: Progress) -> None:
        super().__init__(wrapped)
        self.turn, self.progress = turn, progress

    async def request(
        self, messages: list[ModelMessage], model_settings: Any, model_request_parameters: ModelRequestParameters
    ) -> ModelResponse:
        reply = await super().request(messages, model_settings, model_request_parameters)
        name, number = self.progress.next_entry()
        new = [*messages[0 if self.progress.planning else self.progress.messages :], reply]
        entry = ConversationEntry(
            conversation=self.turn.conversation,
            name=name,
            number=number,
            kind=EntryKind.MODEL,
            status=EntryStatus.DONE,
            body={"messages": ModelMessagesTypeAdapter.dump_python(new, mode="json")},
            facts={"input_tokens": 10, "output_tokens": 5},
            started_at="2026-01-31T12:00:00+00:00",
        )
        await self.turn.journal.append(entry, durable=False)
        self.progress.record(messages=len(messages) + 1, tokens=15)
        return reply


async def scripted_model(turn: Turn, services: AgentServices, progress: Progress) -> Model:
    """Return the recorded model of a turn; the script stands in ``services.models``."""
    assert isinstance(services.models, Script)
    return RecordedModel(services.models.model(turn.agent_name), turn, progress)


@dataclass
class Script:
    """Replies by agent: the reply of a request is chosen by the number of replies before it, so it survives crashes."""

    replies: Mapping[str, Sequence[object]]
    requests: list[tuple[str, list[ModelMessage], AgentInfo]] = field(default_factory=list)

    def model(self, agent: str) -> Model:
        def reply(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
            self.requests.append((agent, list(messages), info))
            number = sum(isinstance(message, ModelResponse) for message in messages)
            script = self.replies[agent]
            return as_reply(script[min(number, len(script) - 1)])

        return FunctionModel(reply, profile={"supports_json_schema_output": True})

    def results(self, request: int = -1) -> dict[str, Any]:
        """Return the tool results of a request, by call id."""
        last = self.requests[request][1][-1]
        assert isinstance(last, ModelRequest)
        return {part.tool_call_id: part.content for part in last.parts if isinstance(part, ToolReturnPart)}


def as_reply(written: object) -> ModelResponse:
    """Return a reply from a text, or from calls ``(tool, arguments)`` with the ids c0, c1, …"""
    if isinstance(written, str):
        return ModelResponse(parts=[TextPart(written)])
    assert isinstance(written, list)
    return ModelResponse(
        parts=[
            ToolCallPart(tool, arguments, tool_call_id=f"c{number}") for number, (tool, arguments) in enumerate(written)
        ]
    )


@dataclass
class Backend:
    """A backend that records its calls; a tool's function gets the call."""

    functions: Mapping[str, Callable[[ToolCall], object]] = field(default_factory=dict)
    calls: list[ToolCall] = field(default_factory=list)

    async def call(self, call: ToolCall) -> object:
        self.calls.append(call)
        name = call.name if call.tool.implementation is None else call.tool.implementation.rpartition(".")[2]
        result = self.functions.get(name, lambda made: f"{name} {json.dumps(dict(made.arguments))}")(call)
        return await result if hasattr(result, "__await__") else result  # type: ignore[misc]

    def names(self) -> list[str]:
        return [call.name for call in self.calls]


SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "additionalProperties": False}

LOOK = {"description": "Look.", "implementation": "bank.look", "parameters": SCHEMA}
PAY = {"description": "Pay.", "implementation": "bank.pay", "parameters": SCHEMA, "capabilities": ["privileged"]}


def spec_of(**changes: Any) -> Spec:
    """Return a spec with an agent ``root`` that has the tools look and pay."""
    agent = {
        "name": "root",
        "model": {"provider": "openai", "name": "m"},
        "strategy": {"type": "react"},
        "tools": {"include": ["look", "pay"]},
    }
    document = {"agent": {**agent, **changes.pop("agent", {})}, "tools": {"look": LOOK, "pay": PAY}, **changes}
    return Spec.model_validate(document)


@dataclass
class House:
    """A turn with everything around it."""

    script: Script
    turn: Turn
    services: AgentServices
    journal: MemoryJournal
    backend: Backend

    async def take(self, answers: Mapping[str, Decision] | None = None) -> TurnResult:
        from kneo.agents.loop import take_turn

        self.turn = replace(self.turn, answers={**self.turn.answers, **(answers or {})})
        return await take_turn(self.turn, self.services)

    async def questions(self, answers: Mapping[str, Decision] | None = None) -> list[CallQuestion]:
        """Take the turn to its next pause and return its questions."""
        try:
            result = await self.take(answers)
        except PeopleRequired as required:
            return list(required.questions)
        raise AssertionError(result)

    def events(self) -> list[str]:
        return [event.type for event in self.journal.trace]


def house(
    *replies: object,
    spec: Spec | None = None,
    gates: Mapping[str, Sequence[ToolGate]] | None = None,
    functions: Mapping[str, Callable[[ToolCall], object]] | None = None,
    clock: ManualClock,
    others: Mapping[str, Sequence[object]] | None = None,
    limits: AgentSettings | None = None,
    **services: Any,
) -> House:
    spec = spec or spec_of()
    script = Script({"root": replies, **(others or {})})
    backend = Backend(functions or {})
    journal = MemoryJournal()
    turn = Turn(
        run_id="run_1",
        step_id="answer",
        agent_name="root",
        agent=spec.agent,
        spec=spec,
        text="Do it.",
        conversation=journal.conversation,
        journal=journal,
        gates=lambda _agent, tool, _arguments: (gates or {}).get(tool, ()),
    )
    made = AgentServices(
        models=script,
        tools={"python": backend, "http": backend, "mcp": backend},
        limits=limits or AgentSettings(),
        clock=clock,
        **services,
    )
    return House(script, turn, made, journal, backend)


def decided(kind: str, **values: Any) -> Decision:
    known = {"content": None, "selected_option": None, "comment": None, "actor": "ann", "by": "person", "at": "now"}
    return Decision(kind=DecisionKind(kind), **{**known, **values})
