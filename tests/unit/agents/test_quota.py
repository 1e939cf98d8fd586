"""Budgets and limits of model requests, decided without a database."""

from __future__ import annotations

from datetime import date

import pytest

from kneo.agents.quota import (
    GRANT,
    BudgetExceeded,
    MinuteLimits,
    ModelUnpriced,
    Period,
    PlannedRequest,
    check_budgets,
    minute_limits,
)
from kneo.agents.turn import PeopleRequired
from kneo.records.run import AgentUsage
from kneo.records.task import Decision, DecisionKind
from kneo.spec.policy import ModelRules

TODAY = date(2026, 1, 31)


def request(**changes: object) -> PlannedRequest:
    values: dict[str, object] = {
        "run_id": "run_1",
        "environment": "prod",
        "agent": "writer",
        "provider": "openai",
        "model": "gpt",
        "max_tokens": None,
        "is_priced": True,
    }
    return PlannedRequest(**values | changes)  # type: ignore[arg-type]


def used(tokens: int = 0, cost: float = 0) -> dict[Period, AgentUsage]:
    return dict.fromkeys(
        ("run", "day", "month"), AgentUsage(requests=1, input_tokens=tokens, cost_micros=round(cost * 1_000_000))
    )


def check(budgets: object, spent: dict[Period, AgentUsage], **changes: object) -> None:
    check_budgets(request(**changes), ModelRules.model_validate({"budgets": budgets}), spent, TODAY)


def answer(kind: DecisionKind, option: str | None = None) -> Decision:
    return Decision(
        kind=kind,
        content=None,
        selected_option=option,
        comment=None,
        actor="ann",
        by="person",
        at="2026-01-31T12:00:00Z",
    )


def test_a_budget_of_tokens_counts_the_longest_reply() -> None:
    budget = [{"per": "run", "tokens": 100}]
    check(budget, used(99))
    check(budget, used(90), max_tokens=10)
    for spent, most in ((100, None), (90, 11), (1_000, None)):
        with pytest.raises(BudgetExceeded, match="per run of prod allows no further request to gpt") as caught:
            check(budget, used(spent), max_tokens=most)
        assert caught.value.code == "budget_exceeded"
        assert caught.value.details["budget"] == {"per": "run", "tokens": 100}


def test_a_budget_of_cost_ends_when_it_is_used() -> None:
    check([{"per": "day", "cost": 0.5}], used(cost=0.49))
    with pytest.raises(BudgetExceeded, match=r"1 tokens|\$0.5000"):
        check([{"per": "day", "cost": 0.5}], used(1, cost=0.5))
    with pytest.raises(BudgetExceeded, match="no further request"):
        check([{"per": "day", "cost": 0}], used())


def test_every_budget_is_checked() -> None:
    budgets = [{"per": "run", "tokens": 1_000}, {"per": "month", "tokens": 50}]
    with pytest.raises(BudgetExceeded, match="per month") as caught:
        check(budgets, used(60))
    assert "next month" in str(caught.value)


def test_a_model_without_a_price_cannot_be_held_to_a_cost() -> None:
    with pytest.raises(ModelUnpriced, match="the price of openai/gpt is not known") as caught:
        check([{"per": "month", "cost": 800}], used(), is_priced=False)
    assert caught.value.code == "model_unpriced"
    assert "models.prices.gpt" in str(caught.value)
    check([{"per": "month", "tokens": 800}], used(), is_priced=False)


def test_a_person_grants_a_budget_again_and_again() -> None:
    budget = [{"per": "day", "tokens": 100, "on_exceeded": "ask"}]
    with pytest.raises(PeopleRequired) as caught:
        check(budget, used(100))
    [question] = caught.value.questions
    assert question.key == question.task_key == "budget:day:2026-01-31:1"
    assert (question.kind, question.options[0], question.tool) == ("question", GRANT, "model")
    assert question.prompt is not None
    assert "100 tokens" in question.prompt
    granted = {question.key: answer(DecisionKind.SELECTED, GRANT)}
    check(budget, used(199), answers=granted)
    with pytest.raises(PeopleRequired) as again:
        check(budget, used(200), answers=granted)
    assert again.value.questions[0].key == "budget:day:2026-01-31:2"


@pytest.mark.parametrize(
    "refusal", [answer(DecisionKind.REJECTED), answer(DecisionKind.SELECTED, "stop"), answer(DecisionKind.APPROVED)]
)
def test_every_answer_but_the_grant_ends_the_run(refusal: Decision) -> None:
    with pytest.raises(BudgetExceeded, match="rejected"):
        check(
            [{"per": "run", "tokens": 100, "on_exceeded": "ask"}],
            used(100),
            answers={"budget:run:run:1": refusal},
        )


def test_the_strictest_limits_of_a_provider_hold() -> None:
    rules = ModelRules.model_validate(
        {
            "limits": [
                {"provider": "openai", "requests_per_minute": 500, "tokens_per_minute": 1_000},
                {"provider": "openai", "requests_per_minute": 50},
                {"provider": "anthropic", "concurrency": 3},
            ]
        }
    )
    assert minute_limits(rules, "openai") == MinuteLimits(requests=50, tokens=1_000)
    assert minute_limits(rules, "anthropic") is None
    assert minute_limits(rules, "google") is None
