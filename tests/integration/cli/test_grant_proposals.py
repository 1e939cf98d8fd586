"""Drafts of grants from answers, and what plan, why, status, trace and doctor show of grants."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from grant_house import PEOPLE, GrantHouse
from integration.cli.conftest import Kneo

from kneo.cli.serve.database_checks import check_grants
from kneo.store.requests import ControllerRequest

PROPOSE = ("grant", "propose", "prod/refunds", "--tool", "refund")


def answer(house: GrantHouse, amounts: list[float], kind: str = "approved", *, seconds: int = 60) -> None:
    for amount in amounts:
        [task] = house.open(house.refunds(amount))
        house.store.clock.advance(timedelta(seconds=seconds))  # type: ignore[attr-defined]
        house.say(task, kind, "ann")
        if kind == "approved":
            house.say(task, kind, "ben")


def test_a_draft_has_the_range_of_what_people_approved(house: GrantHouse, kneo: Kneo) -> None:
    answer(house, [5, *range(10, 28)])
    assert "There are 19 answers; a draft needs 20." in kneo(*PROPOSE).out
    answer(house, [42.5])
    found = kneo(*PROPOSE, "--json").json
    assert found["when"] == 'args.amount >= 0 && args.amount <= 42.5 && args.currency in ["EUR"]'
    assert (found["answers"], found["approvals"], found["reviewers"], found["covered"]) == (20, 20, 2, 20)
    assert (found["edited_share"], found["quick_share"]) == (0, 0)
    assert (found["uses"], found["total"]) == (20, {"amount": pytest.approx(380.5)})
    assert str(found["command"]).startswith("kneo grant create prod/refunds --tool refund --when ")


def test_a_rejected_call_that_fits_drafts_nothing(house: GrantHouse, kneo: Kneo) -> None:
    answer(house, [float(each) for each in range(1, 21)])
    answer(house, [10.0], "rejected")
    assert "A call that a person rejected fits the draft." in kneo(*PROPOSE).out


def test_a_rubber_stamped_gate_drafts_nothing(house: GrantHouse, kneo: Kneo) -> None:
    answer(house, [float(each) for each in range(1, 21)], seconds=0)
    found = kneo(*PROPOSE, "--json").json
    assert (found["when"], found["quick_share"]) == (None, 1)
    assert "read the calls first" in str(found["problem"])


def test_grants_are_shown_where_people_look(house: GrantHouse, kneo: Kneo) -> None:
    grant = house.active()
    run = house.refunds(20)
    assert "1 active grant: kneo grant list --env prod" in kneo("status").out
    assert f"Grant {grant.id}: refund, 49 uses left" in kneo("why", "prod/refunds").out
    assert f"by grant {grant.id} (1 of 50) of ann, ben" in kneo("trace", run.id).out
    shown = kneo("task", "get", house.all_tasks(run)[0].id, "--json").json
    assert shown["decision"]["grant"] == {"id": grant.id, "number": 1, "terms_digest": grant.terms_digest}  # type: ignore[index]
    assert "1 standing grants are active." in kneo("doctor").out


def test_doctor_names_grants_that_are_unused_or_decide_nothing(house: GrantHouse) -> None:
    used, unused = (
        house.active(when=when, expires_in=timedelta(days=30)) for when in ("args.amount > 0", "args.amount < 0")
    )
    assert "2 standing grants are active." in check_grants(house.store).message
    house.store.clock.advance(timedelta(days=1))  # type: ignore[attr-defined]
    house.refunds(20)
    house.store.clock.advance(timedelta(days=13, seconds=1))  # type: ignore[attr-defined]
    assert f"unused for 14 days: {unused.id}." in check_grants(house.store).message
    house.serve("1.1.0", people={**PEOPLE, "ben": {"roles": ["office"]}})
    idle = check_grants(house.store).message.partition("voters may no longer answer: ")[2]
    assert used.id in idle
    assert unused.id in idle


def test_doctor_names_grants_whose_keys_are_revoked(house: GrantHouse, kneo: Kneo) -> None:
    grant = house.active()
    house.repo.revoke("ben")
    house.serve("1.1.0")
    assert f"voters may no longer answer: {grant.id}" in " ".join(kneo("doctor").out.split())
    shown = kneo("grant", "show", grant.id, "--json").json
    assert (shown["status"], shown["covers"], shown["lacks"]) == ("active", [], ["tools.refund.before"])


def test_a_plan_names_the_grants_that_a_release_ends(house: GrantHouse) -> None:
    grant = house.active()
    house.repo.bundle("refunds", "1.2.0", house.spec(description="Refunds more."), environments=["prod"])
    rules = {"unattended": [{"tools": ["refund"], "when": "args.ammount < 5"}]}
    house.repo.environment("prod", {"refunds": "1.2.0"}, **house.rules, tools=rules)
    house.repo.commit("Release 1.2.0")
    plan = house.bench.reconciler().handlers["plan"]
    request = ControllerRequest(id="ask_1", kind="plan", payload={}, actor="ann", status="open", result=None)
    answer = json.loads(json.dumps(plan(request, house.bench.lease())))
    [prod] = [each for each in answer["environments"] if each["name"] == "prod"]
    assert prod["actions"][0]["ends_grants"] == [grant.id]
    [call] = prod["calls"]
    assert (call["tool"], call["agent"], call["coverage"], call["when"]) == ("refund", "teller", "asked", None)
    assert any("refund has no argument ammount." in each for each in prod["warnings"])
