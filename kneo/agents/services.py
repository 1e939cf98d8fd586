"""The services of agents in one process, the rules of its operator, and the progress of a turn. Imports no model library."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from kneo.agents.function_tools import TurnMiddleware
from kneo.agents.turn import ToolBackend
from kneo.clock import Clock, SystemClock
from kneo.records.conversation import ConversationEntry, EntryKind, EntryStatus
from kneo.settings import AgentSettings, Settings
from kneo.spec.models.spec import Tool
from kneo.spec.policy import McpRules, SandboxRules, ToolRules

RulesNow: TypeAlias = Callable[[str | None], Awaitable[ToolRules]]
"""From an environment to its tool rules as they are now; for ``None`` those of the operator. Waits without blocking the event loop."""


async def unrestricted(_environment: str | None) -> ToolRules:
    """Return rules that restrict nothing."""
    return ToolRules()


def _not_registered(_name: str) -> Tool | None:
    return None


@dataclass(frozen=True, kw_only=True)
class AgentServices:
    """The services of all turns in one process.

    Attributes:
        models: Makes the models of providers; used by ``kneo.agents.requests`` alone.
        tools: The backend of each kind of tool, by the name of the kind. A tool whose kind has none fails at its call.
        rules: The tool rules of an environment as they are now, so that stricter rules reach runs that wait.
        registered: A tool that the process registered, by name; the backend ``python`` calls it.
        middleware: The names of the middleware around tool calls that the process registered, which the backends call.
        turn_middleware: The middleware around turns that the process registered, by name.
    """

    models: object = None
    tools: Mapping[str, ToolBackend] = field(default_factory=dict)
    rules: RulesNow = unrestricted
    registered: Callable[[str], Tool | None] = _not_registered
    middleware: frozenset[str] = frozenset()
    turn_middleware: Mapping[str, TurnMiddleware] = field(default_factory=dict)
    limits: AgentSettings = field(default_factory=AgentSettings)
    clock: Clock = field(default_factory=SystemClock)


@dataclass(kw_only=True)
class Progress:
    """What the journal of a conversation has, counted while its turn continues.

    Attributes:
        replies: Model replies in the journal.
        messages: Messages that their entries hold; later ones are new.
        planned: Whether the journal has the plan of the strategy ``plan-act``.
        planning: Whether the next reply is that plan.
        tokens: Tokens of all requests, also of agents behind tools of this one.
        token_budget: Tokens that this conversation may use.
        past: Messages of earlier runs, which the conversation begins with.
        left_out_results: Results of calls that requests leave out, because they are too long for the model.
        left_out_messages: Messages of earlier runs that they leave out.
        caller: The progress of the agent that calls this one as a tool.
    """

    replies: int = 0
    messages: int = 0
    planned: bool = False
    planning: bool = False
    tokens: int = 0
    token_budget: int | None = None
    past: int = 0
    left_out_results: int = 0
    left_out_messages: int = 0
    caller: Progress | None = None

    @classmethod
    def of(
        cls, entries: Sequence[ConversationEntry], *, token_budget: int | None, caller: Progress | None = None
    ) -> Progress:
        """Count the entries of a journal.

        The entry of an agent behind a tool or a guardrail has the agent's tokens, that of the memory those of its summariser; before
        that entry, the agent counts them here itself.
        """
        progress = cls(token_budget=token_budget, caller=caller)
        for entry in entries:
            if entry.kind is EntryKind.MODEL and entry.status is EntryStatus.DONE:
                progress.planning = entry.name == "plan:0"
                progress.left_out_results = _counted(entry, "left_out_results")
                progress.left_out_messages = _counted(entry, "left_out_messages")
                messages = entry.body["messages"]
                assert isinstance(messages, list)
                progress.record(
                    messages=progress.messages + len(messages), tokens=_counted(entry, "input_tokens", "output_tokens")
                )
            elif entry.kind is not EntryKind.MODEL:
                progress.tokens += _counted(entry, "total_tokens")
        progress.planning = False
        return progress

    @property
    def requests(self) -> int:
        """The model requests of this conversation, over all its pauses."""
        return self.replies + self.planned

    def next_entry(self) -> tuple[str, int]:
        """Return the name and the number of the entry for the next reply."""
        return ("plan:0", 0) if self.planning else (f"model:{self.replies + 1}", self.replies + 1)

    def record(self, *, messages: int, tokens: int) -> None:
        """Count a reply that the journal has now.

        Args:
            messages: All messages of the conversation that the journal holds now, the reply included.
            tokens: The tokens of the request and its reply.
        """
        if self.planning:
            self.planned = True
        else:
            self.replies, self.messages = self.replies + 1, messages
        self.spend(tokens)

    def spend(self, tokens: int) -> None:
        """Count tokens, also for the agents above this one."""
        self.tokens += tokens
        if self.caller is not None:
            self.caller.spend(tokens)

    def tokens_left(self) -> int | None:
        """Return the tokens that this conversation and those above it still allow; ``None`` is no limit."""
        own = None if self.token_budget is None else self.token_budget - self.tokens
        above = None if self.caller is None else self.caller.tokens_left()
        return own if above is None else above if own is None else min(own, above)


def _counted(entry: ConversationEntry, *facts: str) -> int:
    counts = (entry.facts.get(fact) for fact in facts)
    return sum(count for count in counts if isinstance(count, int))


def operator_rules(settings: Settings) -> ToolRules:
    """Return the tool rules of the operator."""
    return ToolRules(
        inside=settings.agents.inside,
        mcp=McpRules(commands=settings.mcp.commands),
        sandbox=SandboxRules.model_validate({"required": settings.agents.sandbox}),
    )
