"""The quota of models: budgets and limits per minute, checked before each request. Imports no model library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from kneo.records.task import Decision


@dataclass(frozen=True, kw_only=True)
class PlannedRequest:
    """A request that is about to be made.

    Attributes:
        max_tokens: The bound of the reply; ``None`` where it is not known.
        is_priced: Whether the cost of the reply will be known.
        answers: The decisions about earlier questions of the turn, by ``CallQuestion.key``.
    """

    run_id: str
    environment: str | None
    agent: str
    provider: str
    model: str
    max_tokens: int | None
    is_priced: bool
    answers: Mapping[str, Decision] = field(default_factory=dict)


class ModelQuota(Protocol):
    """The budgets of runs, days and months, and the limits per minute, over all workers."""

    async def admit(self, request: PlannedRequest) -> None:
        """Admit a request, awaited before each try of it.

        Raises:
            KneoError: ``budget_exceeded`` or ``model_unpriced``.
            Postponed: the minute is full.
            PeopleRequired: a person is asked for a further budget.
        """
        ...
