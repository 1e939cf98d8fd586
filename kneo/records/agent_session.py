"""Sessions of agents: what earlier runs left for later ones, text messages alone.

A session belongs to one requester in one environment. The session of the same name of another requester is another one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from kneo.records.conversation import ConversationEntry
from kneo.records.run import StepRecord
from kneo.records.task import DecisionKind, HumanTask

MEMORY_ENTRY = "memory:0"
"""The journal entry with the messages that a conversation begins with and with the text of its input."""

Role: TypeAlias = Literal["user", "assistant"]

AUTO = "auto"
ADDED_ROLES: Mapping[str, tuple[Role, ...]] = {
    AUTO: ("user", "assistant"),
    "never": (),
    "user_only": ("user",),
    "assistant_only": ("assistant",),
}
"""The messages of a turn that a session gets, by the ``append_mode`` of the agent."""


@dataclass(frozen=True, kw_only=True)
class SessionKey:
    """The identity of a session.

    Attributes:
        environment: The environment of its runs; empty where they have none.
        requester: The person or service whose runs it has.
        session_id: The name that the requester gave it.
    """

    environment: str
    requester: str
    session_id: str


@dataclass(frozen=True, kw_only=True)
class SessionMessage:
    """One message of a session. Numbers grow over all agents of the session."""

    number: int
    agent: str
    role: Role
    text: str
    run_id: str
    created_at: str


@dataclass(frozen=True, kw_only=True)
class SessionSummary:
    """A summary of the messages of one agent up to a number."""

    number: int
    text: str


@dataclass(frozen=True, kw_only=True)
class AgentSession:
    """A session in a list; ``messages`` is the count over all agents."""

    key: SessionKey
    messages: int
    created_at: str
    updated_at: str


@dataclass(frozen=True, kw_only=True)
class FinishedTurn:
    """The input and the final text of an agent's step in a run that succeeded; the spec may add only one of them."""

    agent: str
    user: str
    assistant: str
    append_mode: str = AUTO

    @property
    def messages(self) -> tuple[tuple[Role, str], ...]:
        """The messages that the turn adds to its session."""
        texts: Mapping[Role, str] = {"user": self.user, "assistant": self.assistant}
        return tuple((role, texts[role]) for role in ADDED_ROLES[self.append_mode])


def finished_turns(
    run_id: str, steps: Sequence[StepRecord], entries: Iterable[ConversationEntry], decided: Sequence[HumanTask]
) -> list[FinishedTurn]:
    """Return the turns that a run adds to its session, in the order in which their steps ended.

    A text that a person rejected is not among them, nor that of a step that was repeated; a text that a person edited is the
    edited one. Steps that a fork took over from its parent belong to the parent.

    Args:
        run_id: The run.
        steps: Its steps in their order.
        entries: The entries ``memory:0`` of its journal.
        decided: The tasks that people decided, in the order of their decisions.
    """
    begun: dict[str, ConversationEntry] = {}
    for entry in entries:
        known = begun.get(entry.location)
        # The text of a conversation that was begun anew after a review has a higher number.
        if known is None or (len(known.conversation), known.conversation) < (
            len(entry.conversation),
            entry.conversation,
        ):
            begun[entry.location] = entry
    last = {step.location: step for step in steps if step.kind != "human"}
    repeated = _repetitions(last)
    turns = []
    for location, step in sorted(last.items(), key=lambda item: item[1].sequence):
        begins = begun.get(location)
        if begins is None or step.output_text is None or not step.idempotency_key.startswith(f"{run_id}:"):
            continue
        user = str(begins.body["input"])
        text = None if _is_repeated(location, repeated) else _accepted(step.output_text, decided)
        if text is not None and text.strip() and user.strip():  # providers refuse messages without text
            mode = str(begins.facts.get("append_mode", AUTO))
            turns.append(FinishedTurn(agent=str(begins.facts["agent"]), user=user, assistant=text, append_mode=mode))
    return turns


def _accepted(text: str, decided: Sequence[HumanTask]) -> str | None:
    """Return the text that people made of a result; ``None`` where they rejected it."""
    is_rejected = False
    for task in decided:
        if task.decision is None or task.subject != text:
            continue
        is_rejected = task.decision.kind is DecisionKind.REJECTED
        if task.decision.kind in {DecisionKind.EDITED, DecisionKind.PROVIDED}:
            text = task.decision.content or ""
    return None if is_rejected else text


_ATTEMPT = re.compile(r"@(\d+)")


def _attempts(location: str) -> dict[str, int]:
    """Return the attempts at the nodes around a step, by the nodes' locations without attempts."""
    return {_ATTEMPT.sub("", location[: found.start()]): int(found.group(1)) for found in _ATTEMPT.finditer(location)}


def _repetitions(locations: Iterable[str]) -> dict[str, int]:
    """Return the last attempt at each node that was repeated."""
    highest: dict[str, int] = {}
    for location in locations:
        for node, attempt in _attempts(location).items():
            highest[node] = max(attempt, highest.get(node, 0))
    return highest


def _is_repeated(location: str, repeated: Mapping[str, int]) -> bool:
    """Return whether a node around a step was executed again after the step."""
    own, plain = _attempts(location), _ATTEMPT.sub("", location)
    return any(
        own.get(node, 0) < attempt
        for node, attempt in repeated.items()
        if plain.startswith(node) and plain[len(node) : len(node) + 1] in {"/", "#", ":"}
    )
