"""Usage: what requests to models and calls of tools consumed, as the journal of an agent records it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

from kneo.records.conversation import ConversationEntry, EntryKind, EntryStatus

MOST = 10**12
"""The highest count of one request. A provider that reports more is recorded with this, so that sums stay in their columns."""

NAME_CHARS = 200
"""Characters of a provider's, a model's and an agent's name in usage."""

MOST_MINUTES = 10
"""The longest time after which a request that a limit per minute refused comes again."""

FINISHED = frozenset({EntryStatus.DONE, EntryStatus.FAILED})


@dataclass(frozen=True, kw_only=True)
class AgentUsage:
    """A sum over requests and calls.

    Attributes:
        requests: Requests that a model answered.
        tool_calls: Tool calls that were made, with and without success; refused ones are not.
        input_tokens: Tokens that the models read.
        output_tokens: Tokens that the models wrote.
        cost_micros: The cost of the requests whose model has a price, in millionths of a US dollar.
        unpriced_requests: Requests whose model has no known price.
    """

    requests: int = 0
    tool_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_micros: int = 0
    unpriced_requests: int = 0

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    @property
    def known_cost(self) -> int | None:
        """The cost; ``None`` where no request has a price."""
        return None if self.unpriced_requests and self.unpriced_requests == self.requests else self.cost_micros

    def __add__(self, other: AgentUsage) -> AgentUsage:
        return AgentUsage(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    @classmethod
    def of(cls, entry: ConversationEntry) -> Self:
        """Return the usage of one journal entry, which is nothing until the entry is finished."""
        if entry.status not in FINISHED:
            return cls()
        if "input_tokens" in entry.facts:
            cost = entry.facts.get("cost_micros")
            return cls(
                requests=1,
                input_tokens=_count(entry.facts["input_tokens"]),
                output_tokens=_count(entry.facts.get("output_tokens")),
                cost_micros=_count(cost),
                unpriced_requests=int(cost is None),
            )
        return cls(tool_calls=int(entry.kind is EntryKind.TOOL))

    @classmethod
    def of_counts(cls, counts: Mapping[str, object]) -> Self:
        """Return the usage with these counts; a missing one is 0."""
        return cls(**{field.name: int(str(counts.get(field.name, 0))) for field in fields(cls)})


@dataclass(frozen=True, kw_only=True, order=True)
class UsageKey:
    """The agent, provider and model that a request is counted for."""

    provider: str
    model: str
    agent: str

    @classmethod
    def of(cls, entry: ConversationEntry) -> Self:
        names = (str(entry.facts.get(name) or "unknown") for name in ("provider", "model", "agent"))
        # Another server's words: a NUL cannot be stored, and a long name has to fit its column.
        provider, model, agent = (name.replace("\0", "")[:NAME_CHARS] for name in names)
        return cls(provider=provider, model=model, agent=agent)


def _count(value: object) -> int:
    return min(max(value, 0), MOST) if isinstance(value, int) else 0


@dataclass(frozen=True, kw_only=True)
class RateWindow:
    """The requests to a provider in one minute, counted over all workers.

    Attributes:
        minute: The number of the minute since 1970.
        requests: Admitted requests.
        tokens: Tokens of the replies that arrived.
        refused: Refused requests, each of which is to come again later than those before it.
    """

    minute: int
    requests: int = 0
    tokens: int = 0
    refused: int = 0

    def at(self, minute: int) -> RateWindow:
        """Return the window of a minute: this one, or a new one.

        A clock that is a minute ahead does not close the window of the others; one that is wrong by more is not believed.
        """
        return self if self.minute in {minute, minute + 1} else RateWindow(minute=minute)

    def admits(self, *, requests: int | None, tokens: int | None) -> bool:
        """Return whether another request stays within limits; ``None`` is no limit."""
        return (requests is None or self.requests < requests) and (tokens is None or self.tokens < tokens)

    def wait_minutes(self) -> int:
        """Return in how many minutes the request that was refused last is to come again, at the rate of this window."""
        return min(1 + (self.refused - 1) // max(self.requests, 1), MOST_MINUTES)
