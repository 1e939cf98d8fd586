"""Quotas of model requests over the database, so that they hold for all workers together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

from kneo.agents.quota import BudgetExceeded, ModelUnpriced, Period, PlannedRequest, check_budgets, minute_limits
from kneo.agents.turn import PeopleRequired, Postponed
from kneo.records.usage import AgentUsage
from kneo.spec.models.rules import ModelRules
from kneo.store import runs, usage
from kneo.store.engine import Store, Tx


class StoreQuota:
    """The quota of all environments of a database.

    Args:
        store: The database.
        rules: Returns the rules for models that an environment has now.
    """

    def __init__(self, store: Store, rules: Callable[[str | None], Awaitable[ModelRules | None]]) -> None:
        self._store = store
        self._rules = rules

    async def admit(self, request: PlannedRequest) -> None:
        """Admit a request; see ``ModelQuota``."""
        rules = await self._rules(request.environment) or ModelRules()
        limits = minute_limits(rules, request.provider)
        if not rules.budgets and limits is None:
            return

        def work(tx: Tx) -> BaseException | None:
            try:
                check_budgets(request, rules, _used(tx, request, rules), tx.now.date())
            except (BudgetExceeded, ModelUnpriced, PeopleRequired) as refusal:
                return refusal
            if limits is None:
                return None
            wait = usage.admit_request(
                tx, request.environment, request.provider, requests=limits.requests, tokens=limits.tokens
            )
            return _postponed(request, wait) if wait is not None else None

        refusal = await asyncio.wrap_future(self._store.submit(work, durable=False))
        if refusal is not None:
            raise refusal


def _postponed(request: PlannedRequest, wait: timedelta) -> Postponed:
    of = f" of {request.environment}" if request.environment is not None else ""
    return Postponed(
        wait / timedelta(seconds=1), f"The limit{of} per minute of requests to {request.provider} is reached."
    )


def _used(tx: Tx, request: PlannedRequest, rules: ModelRules) -> dict[Period, AgentUsage]:
    """Read the usage of each period with a budget."""
    today = tx.now.date()
    used: dict[Period, AgentUsage] = {}
    for period in {budget.per for budget in rules.budgets}:
        if period == "run":
            run = runs.get(tx, request.run_id)
            used[period] = run.usage if run is not None else AgentUsage()
        else:
            first = today if period == "day" else today.replace(day=1)
            used[period] = usage.usage_since(tx, request.environment, usage.day_of(first))
    return used
