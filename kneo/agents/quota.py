"""Quotas of model requests: an environment's budgets and its limits per minute, which are checked before each request.

The decisions are pure; ``ModelQuota`` is the port through which they are fed with what the database has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Literal, Protocol, TypeAlias

from kneo.agents.turn import CallQuestion, PeopleRequired
from kneo.errors import Forbidden
from kneo.records.run import AgentUsage, dollars
from kneo.records.task import Decision, DecisionKind
from kneo.spec.policy import ModelBudget, ModelRules

Period: TypeAlias = Literal["run", "day", "month"]

MICROS = 1_000_000
"""Parts of a unit of currency in which cost is counted."""


GRANT, STOP = "grant", "stop"
"""The options of a question about a budget."""


@dataclass(frozen=True, kw_only=True)
class PlannedRequest:
    """A request that is about to be sent.

    Attributes:
        environment: ``None`` where none is declared.
        agent: The agent's name.
        max_tokens: The most tokens that the reply may have, where the request states it.
        is_priced: Whether the price of the model is known.
        answers: The answers of the turn, among which are those to questions about budgets.
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
    """The quota of the environments of one process."""

    async def admit(self, request: PlannedRequest) -> None:
        """Admit a request, and count it for the limits per minute.

        Raises:
            BudgetExceeded: a budget is used up, or a person rejected to grant it once more.
            ModelUnpriced: a budget is stated as cost, and the price of the model is not known.
            PeopleRequired: a budget is used up, and a person decides whether to grant it once more.
            Postponed: a limit per minute is reached; no worker waits.
        """
        ...


class BudgetExceeded(Forbidden):
    """A budget does not allow another request."""

    default_code = "budget_exceeded"


class ModelUnpriced(Forbidden):
    """A budget is stated as cost, and the price of the model is not known."""

    default_code = "model_unpriced"


def check_budgets(request: PlannedRequest, rules: ModelRules, used: Mapping[Period, AgentUsage], today: date) -> None:
    """Check the budgets of an environment before a request.

    Requests that are under way are not counted: a budget is exceeded by those at most.

    Args:
        request: The request.
        rules: The rules that are in force now.
        used: The usage of the run, and of the environment in this day and this month, for each period with a budget.
        today: The day in UTC.

    Raises:
        BudgetExceeded, ModelUnpriced, PeopleRequired: see ``ModelQuota``.
    """
    for budget in rules.budgets:
        if budget.cost is not None and not request.is_priced:
            raise _unpriced(request, budget)
        grants = _grants(request, budget, today)
        if not _is_exceeded(request, budget, used[budget.per], 1 + grants.count):
            continue
        if budget.on_exceeded == "fail" or grants.rejected:
            raise _exceeded(request, budget, used[budget.per], rejected=grants.rejected)
        raise PeopleRequired([_question(request, budget, used[budget.per], grants.next_key)])


def _is_exceeded(request: PlannedRequest, budget: ModelBudget, used: AgentUsage, times: int) -> bool:
    tokens = budget.tokens * times if budget.tokens is not None else None
    cost = budget.cost * MICROS * times if budget.cost is not None else None
    by_tokens = tokens is not None and used.total_tokens + max(request.max_tokens or 1, 1) > tokens
    return by_tokens or (cost is not None and used.cost_micros >= cost)


@dataclass(frozen=True, kw_only=True)
class _Grants:
    """The answers of people who were asked to grant a budget once more."""

    count: int
    rejected: bool
    next_key: str


def _grants(request: PlannedRequest, budget: ModelBudget, today: date) -> _Grants:
    period = {"run": "run", "day": f"{today:%Y-%m-%d}", "month": f"{today:%Y-%m}"}[budget.per]
    count = 0
    while True:
        key = f"budget:{budget.per}:{period}:{count + 1}"
        answer = request.answers.get(key)
        if answer is None or answer.kind is not DecisionKind.SELECTED or answer.selected_option != GRANT:
            return _Grants(count=count, rejected=answer is not None, next_key=key)
        count += 1


def _question(request: PlannedRequest, budget: ModelBudget, used: AgentUsage, key: str) -> CallQuestion:
    amount = _amount(budget)
    return CallQuestion(
        key=key,
        task_key=key,
        kind="question",
        agent=request.agent,
        tool="model",
        arguments={"provider": request.provider, "model": request.model, "budget": _facts(budget)},
        prompt=f"{_name(budget, request)} is used up: {_used(used)} of {amount}. Grant this run {amount} more?",
        options=(GRANT, STOP),
        facts={"used": vars(used)},
    )


def _exceeded(request: PlannedRequest, budget: ModelBudget, used: AgentUsage, *, rejected: bool) -> BudgetExceeded:
    because = "A person rejected to grant it once more. " if rejected else ""
    left = f" The next reply may have {request.max_tokens} tokens." if request.max_tokens else ""
    return BudgetExceeded(
        f"{_name(budget, request)} allows no further request to {request.model}: {_used(used)} of {_amount(budget)}."
        f"{left}",
        hint=f"{because}Raise the budget in the environment's file"
        + (" and start the run again." if budget.per == "run" else f", or wait for the next {budget.per} (UTC)."),
        budget=_facts(budget),
    )


def _unpriced(request: PlannedRequest, budget: ModelBudget) -> ModelUnpriced:
    return ModelUnpriced(
        f"{_name(budget, request)} is stated as cost, and the price of {request.provider}/{request.model} is not known.",
        hint=f"Add models.prices.{request.model} to the environment's file, or state the budget in tokens.",
    )


def _name(budget: ModelBudget, request: PlannedRequest) -> str:
    of = f"of {request.environment}" if request.environment is not None else "without an environment"
    return f"The budget per {budget.per} {of}"


def _facts(budget: ModelBudget) -> dict[str, object]:
    return {name: value for name in ("per", "tokens", "cost") if (value := getattr(budget, name)) is not None}


def _amount(budget: ModelBudget) -> str:
    parts = [f"{budget.tokens} tokens"] if budget.tokens is not None else []
    if budget.cost is not None:
        parts.append(dollars(round(budget.cost * MICROS)))
    return " and ".join(parts)


def _used(used: AgentUsage) -> str:
    return f"{used.total_tokens} tokens and {dollars(used.cost_micros)} are used"


@dataclass(frozen=True, kw_only=True)
class MinuteLimits:
    """The limits per minute of requests to one provider; ``None`` is no limit."""

    requests: int | None
    tokens: int | None


def minute_limits(rules: ModelRules, provider: str) -> MinuteLimits | None:
    """Return the strictest limits per minute of a provider; ``None`` where it has none."""
    limits = [limit for limit in rules.limits if limit.provider == provider]
    found = MinuteLimits(
        requests=_least(limit.requests_per_minute for limit in limits),
        tokens=_least(limit.tokens_per_minute for limit in limits),
    )
    return found if found != MinuteLimits(requests=None, tokens=None) else None


def _least(values: Iterable[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)
