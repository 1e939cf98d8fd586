"""Standing grants in the real engine: what they decide, what they leave to people, their limits and their ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import get_ident

import pytest
from grant_house import FINANCE, PEOPLE, RULE, GrantHouse, grant_house
from hostile_arguments import OTHER, UNKNOWN
from sqlalchemy import event, select, update

from kneo.errors import KneoError
from kneo.records.conversation import ConversationEntry, EntryKind, EntryStatus
from kneo.records.grant import GrantStatus
from kneo.records.run import Run, RunStatus
from kneo.records.task import HumanTask, TaskStatus
from kneo.runtime.engine import record
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import ForkRequest, fork
from kneo.runtime.engine.session import RunSession
from kneo.runtime.engine.timers import process_found
from kneo.spec.models.spec import McpToolRef
from kneo.store import agent_journal, receipts, tables
from kneo.store.due import Due, find_due
from kneo.store.engine import Store, Tx
from kneo.tasks import grants
from kneo.tasks.lifecycle import notify_people

pytestmark = pytest.mark.both_databases


@pytest.fixture
def house(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GrantHouse]:
    with grant_house(store, tmp_path, monkeypatch) as made:
        made.release()
        yield made


def refused(code: str, act: object) -> str:
    with pytest.raises(KneoError) as refusal:
        act()  # type: ignore[operator]
    assert refusal.value.code == code, refusal.value
    return refusal.value.message


def only_task(house: GrantHouse, run: Run) -> HumanTask:
    [task] = house.all_tasks(run)
    return task


# ---- what a grant decides -------------------------------------------------------------------------------------------


def test_a_call_within_the_grant_is_decided_when_its_task_opens(house: GrantHouse) -> None:
    grant = house.active()
    run = house.refunds(20)
    assert run.status is RunStatus.SUCCEEDED
    assert house.refunded() == [20]
    task = only_task(house, run)
    assert task.decision is not None
    assert (task.status, task.decision.by, task.decision.voters) == (TaskStatus.APPLIED, "grant", ("ann", "ben"))
    assert task.metadata["grant"] == {"id": grant.id, "number": 1, "of": 50, "terms_digest": grant.terms_digest}
    after = house.grant(grant)
    assert (after.uses, after.totals, house.uses(grant)) == (1, {"amount": "20"}, [(1, run.id)])


def test_each_use_is_one_decision_with_one_receipt(house: GrantHouse) -> None:
    grant = house.active()
    runs = [house.refunds(10), house.refunds(20, 30)]
    with house.store.read() as tx:
        found = [receipt for run in runs for receipt in receipts.of_run(tx, run.id)]
    assert len(found) == 3
    assert len({receipt.task_id for receipt in found}) == 3
    assert all(len(receipt.statements) == 2 for receipt in found)
    assert [number for number, _ in house.uses(grant)] == [1, 2, 3]


def test_people_are_notified_only_where_no_grant_decides(house: GrantHouse) -> None:
    house.active()
    covered, asked = house.refunds(20), house.refunds(200)
    assert covered.status is RunStatus.SUCCEEDED
    assert asked.status is RunStatus.PAUSED
    assert house.why(asked) == "condition"


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (100.01, "condition"),
        ({"amount": 20, "currency": "USD"}, "condition"),
        ({"amount": -20, "currency": "EUR"}, "total"),
    ],
)
def test_a_call_outside_the_grant_is_asked_with_the_reason(house: GrantHouse, call: object, why: str) -> None:
    grant = house.active()
    assert house.why(house.refunds(call)) == why
    assert house.uses(grant) == []


def test_a_grant_covers_no_call_of_which_its_condition_is_not_definitely_true(house: GrantHouse) -> None:
    house.release(house.spec(parameters={"type": "object"}))
    grants_of = [house.active(), house.active(when="!(args.amount > 100 || args.currency != 'EUR')")]
    for arguments in (UNKNOWN, OTHER):
        run = house.refunds(*arguments)
        reasons = [task.metadata["grant"]["not_covered"] for task in house.open(run)]  # type: ignore[index]
        assert reasons == ["total" if call.get("amount") in (-1, -1e300) else "condition" for call in arguments]
    assert [house.uses(grant) for grant in grants_of] == [[], []]
    assert house.refunded() == []


def test_without_a_grant_the_task_says_nothing(house: GrantHouse) -> None:
    assert house.why(house.refunds(20)) is None


def test_an_environment_without_rules_for_grants_executes_no_further_statement(
    house: GrantHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.serve("1.1.0", grants=[])

    def only_notify(tx: Tx, _run: Run, task: HumanTask, _asked: object) -> HumanTask:
        notify_people(tx, task, "requested")
        return task

    def statements(answer: Callable[..., HumanTask]) -> list[str]:
        """Drive a run to its question, and return the statements by which a grant might answer, or people are notified."""
        found: list[str] = []
        thread = 0

        def listen(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            if thread == get_ident():
                found.append(statement)

        def listened(*arguments: object) -> HumanTask:
            nonlocal thread
            thread = get_ident()
            try:
                return answer(*arguments)
            finally:
                thread = 0

        monkeypatch.setattr(record, "answer_by_grant", listened)
        event.listen(house.store.engine, "before_cursor_execute", listen)
        assert house.refunds(20).status is RunStatus.PAUSED
        event.remove(house.store.engine, "before_cursor_execute", listen)
        return found

    assert statements(grants.answer_by_grant) == statements(only_notify)
    house.serve("1.1.0", grants=[RULE])
    assert len(statements(grants.answer_by_grant)) > len(statements(only_notify))


def test_an_earlier_state_of_a_grant_that_is_put_back_covers_nothing(house: GrantHouse) -> None:
    grant = house.active()
    with house.store.read() as tx:
        [row] = tx.connection.execute(select(tables.grants)).mappings()
    assert [house.refunds(amount).status for amount in (10, 20)] == [RunStatus.SUCCEEDED] * 2
    with house.store.write() as tx:
        tx.connection.execute(update(tables.grants).values(**row))
    assert house.refunds(30).status is RunStatus.PAUSED
    assert len(house.uses(grant)) == len(house.refunded()) == 2


def test_a_grant_that_lacks_votes_covers_nothing(house: GrantHouse) -> None:
    grant = house.create()
    assert house.why(house.refunds(20)) == "quorum"
    assert house.why(house.refunds(200)) == "condition"
    assert house.uses(grant) == []


# ---- limits ---------------------------------------------------------------------------------------------------------


def test_the_last_use_ends_the_grant_and_counts(house: GrantHouse) -> None:
    grant = house.active(uses=2)
    runs = [house.refunds(20) for _ in range(3)]
    assert [run.status for run in runs] == [RunStatus.SUCCEEDED, RunStatus.SUCCEEDED, RunStatus.PAUSED]
    ended = house.grant(grant)
    assert (ended.status, ended.ended, ended.uses_left) == (GrantStatus.ENDED, "used_up", 0)
    assert house.why(runs[2]) == "used_up"


def test_totals_are_decimals(house: GrantHouse) -> None:
    grant = house.active(total={"amount": 0.3})
    assert [house.refunds(amount).status for amount in (0.1, 0.2)] == [RunStatus.SUCCEEDED] * 2
    assert house.grant(grant).totals == {"amount": "0.3"}
    assert house.why(house.refunds(0.01)) == "total"


def test_a_run_and_a_day_have_limits(house: GrantHouse) -> None:
    grant = house.active(uses_per_run=2, uses_per_day=3)
    first = house.refunds(1, 2, 3)
    assert first.status is RunStatus.PAUSED
    assert house.why(first) == "limits"
    assert house.refunds(4).status is RunStatus.SUCCEEDED
    assert house.why(house.refunds(5)) == "limits"
    house.store.clock.advance(timedelta(days=1))  # type: ignore[attr-defined]
    assert house.refunds(6).status is RunStatus.SUCCEEDED
    assert len(house.uses(grant)) == 4


@pytest.mark.parametrize(("limits", "most"), [({"uses": 50}, 50), ({"uses": 50, "total": {"amount": 333}}, 33)])
def test_runs_at_once_take_exactly_the_limit(house: GrantHouse, limits: dict, most: int) -> None:
    grant = house.active(**limits)
    runs = [house.refunds(10, drive=False) for _ in range(60)]
    with ThreadPoolExecutor(8) as threads:
        ended = list(threads.map(house.drive, runs))
    assert sum(run.status is RunStatus.SUCCEEDED for run in ended) == most
    assert sum(run.status is RunStatus.PAUSED for run in ended) == 60 - most
    after = house.grant(grant)
    assert (after.uses, after.totals.get("amount")) == (most, str(10 * most))
    assert [number for number, _ in house.uses(grant)] == list(range(1, most + 1))
    assert len(house.refunded()) == most


# ---- whom the votes decide for --------------------------------------------------------------------------------------


def test_a_grant_decides_nothing_that_its_voters_could_not_decide(house: GrantHouse) -> None:
    excluding = {**FINANCE_OF_THREE, "exclude": ["requester"]}
    house.release(house.spec(human={"candidates": excluding}))
    house.active()
    assert house.refunds(20, requester="eve").status is RunStatus.SUCCEEDED
    mine = house.refunds(20, requester="ann")
    assert house.why(mine) == "separation_of_duties"
    people = {name: person for name, person in PEOPLE.items() if name != "ben"}
    house.serve("1.2.0", people=people)
    assert house.why(house.refunds(20)) == "not_a_candidate"
    house.serve("1.2.0", people={**PEOPLE, "ben": {"roles": ["office"]}})
    assert house.why(house.refunds(20)) == "not_a_candidate"
    house.serve("1.2.0", people=PEOPLE, questions={"approvals": 3})
    assert house.why(house.refunds(20)) == "quorum"


FINANCE_OF_THREE = {"roles": ["finance"]}


def test_a_revoked_key_decides_nothing(house: GrantHouse) -> None:
    house.active()
    house.repo.revoke("ben")
    house.serve("1.1.0")
    assert house.why(house.refunds(20)) == "signature"


def test_a_rule_that_is_gone_or_tightened_covers_nothing(house: GrantHouse) -> None:
    house.active()
    house.serve("1.1.0", grants=[{**RULE, "uses": 10}])
    assert house.why(house.refunds(20)) == "limits"
    house.serve("1.1.0", grants=[{**RULE, "when": "args.amount < 10"}])
    assert house.why(house.refunds(20)) == "condition"
    house.serve("1.1.0", grants=[{**RULE, "tools": ["other"]}])
    assert house.why(house.refunds(20)) == "no_rule"
    house.serve("1.1.0", grants=[])
    assert house.why(house.refunds(20)) is None


@pytest.mark.parametrize("how", ["human", "always_ask", "form", "external"])
def test_what_people_alone_decide_is_never_covered(house: GrantHouse, how: str) -> None:
    changes: dict[str, object] = {
        "human": {"human": {"grants": "never"}},
        "always_ask": {"always_ask": True},
        "form": {"human": {"fields": [{"name": "note", "required": False}]}},
        "external": {"review": {"external": {"human": {"candidates": FINANCE_OF_THREE}}}},
    }[how]  # type: ignore[assignment]
    house.release(house.spec(**changes))
    if how == "form":
        grant = house.active()
        assert house.refunds(20).status is RunStatus.PAUSED
        assert house.uses(grant) == []
    else:
        refused("grant_not_allowed", house.create)


def test_a_gate_for_people_alone_asks_after_one_that_a_grant_answered(house: GrantHouse) -> None:
    human = {**FINANCE, "grants": "never"}
    added = {"name": "out", "match": {"kinds": ["tool"], "tools": ["refund"]}, "before": {"human": human}}
    house.release(gates=[added])
    grant = house.active()
    run = house.refunds(20)
    assert house.why(run) == "never"
    assert [task.status for task in house.all_tasks(run)] == [TaskStatus.APPLIED, TaskStatus.OPEN]
    assert (len(house.uses(grant)), house.refunded()) == (1, [])


def test_questions_that_are_not_about_a_call_are_never_covered(house: GrantHouse) -> None:
    spec = house.spec()
    agent = spec["agent"]
    assert isinstance(agent, dict)
    review = {"id": "look", "type": "keyword", "action": "human_review", "config": {"keywords": ["EUR"]}}
    house.release({**spec, "agent": {**agent, "tools": ["refund", "ask_question"], "guardrails": {"tool": [review]}}})
    grant = house.active(when=None)
    asked = house.refunds({"question": "Refund 20?"})
    assert (house.why(asked), house.open(asked)[0].kind) == (None, "freeform")
    run = house.refunds(20)
    [task] = house.open(run)
    assert (house.why(run), task.position != "tool" or not task.is_about_a_call) == (None, True)
    assert house.uses(grant) == []
    house.say(task, "approved", "ann")
    assert house.drive(run).status is RunStatus.SUCCEEDED
    assert [number for number, _ in house.uses(grant)] == [1], "the gate after the review is answered"


def test_a_question_about_an_interrupted_call_is_never_covered(house: GrantHouse) -> None:
    run = house.refunds(20)
    [task], [reply] = house.open(run), house.journal(run)
    begun = ConversationEntry(
        conversation=reply.conversation,
        name="tool:1.c1",
        number=1,
        kind=EntryKind.TOOL,
        status=EntryStatus.BEGUN,
        body={"arguments": {"amount": 20, "currency": "EUR"}},
        facts={"tool": "refund", "begun": 1},
        started_at="2026-01-31T12:00:00.000000+00:00",
    )
    with house.store.write() as tx:
        agent_journal.append(tx, run.id, [begun])
    grant = house.active()
    for name in ("ann", "ben"):
        house.say(task, "approved", name)
    run = house.drive(run)
    [question] = house.open(run)
    assert question.options == ("repeat", "done", "stop")
    assert (house.why(run), house.uses(grant), house.refunded()) == (None, [], [])


def test_a_signer_of_the_bundle_does_not_decide_its_calls(house: GrantHouse) -> None:
    candidates = {"roles": ["finance"], "exclude": ["bundle_signer"]}
    house.release(house.spec(human={"candidates": candidates}), signers=["ann"])
    grant = house.active(actor="cid")
    assert house.refunds(20).status is RunStatus.SUCCEEDED
    refused("separation_of_duties", house.create)
    assert [vote.actor for vote in house.grant(grant).votes] == ["cid", "ben"]


def test_a_denied_call_is_not_made_though_a_grant_covers_it(house: GrantHouse) -> None:
    grant = house.active()
    house.serve("1.1.0", tools={"deny": [{"tools": ["refund"], "when": "args.amount > 10"}]})
    assert house.refunds(20).status is RunStatus.SUCCEEDED
    assert house.refunded() == []
    assert house.uses(grant) == []


# ---- ends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["revoke", "reject", "promote", "rollback", "expire"])
def test_an_end_between_a_decision_and_its_effect_asks_people(
    house: GrantHouse, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    if end == "rollback":
        house.release()
    other = house.refunds(200)
    grant = house.active()
    has_decision, ended = RunSession._has_decision, []

    def end_before(session: RunSession) -> bool:
        found = has_decision(session)
        if found and not ended:
            ended.append(end)
            if end == "revoke":
                house.revoke(grant)
            elif end == "reject":
                house.say(house.open(other)[0], "rejected", "ann")
            elif end == "promote":
                house.release()
            elif end == "rollback":
                house.serve("1.1.0")
            else:
                house.store.clock.advance(timedelta(days=14))  # type: ignore[attr-defined]
        return found

    monkeypatch.setattr(RunSession, "_has_decision", end_before)
    run = house.refunds(20)
    old, new = house.all_tasks(run)
    assert (old.status, old.metadata["reason"]) == (TaskStatus.CANCELLED, "grant_ended")
    assert (run.status, new.status, house.refunded()) == (RunStatus.PAUSED, TaskStatus.OPEN, [])
    assert len(house.uses(grant)) == 1, "its receipt and its use stay"
    house.say(new, "approved", "ann")
    house.say(new, "approved", "ben")
    assert house.drive(run).status is RunStatus.SUCCEEDED
    assert house.refunded() == [20]


def test_a_rejection_ends_the_grants_of_the_tool(house: GrantHouse) -> None:
    first, second = house.active(), house.active(when="args.amount <= 10")
    pending = house.create("cid")
    run = house.refunds(200)
    house.say(house.open(run)[0], "rejected", "ann")
    for grant in (first, second, pending):
        assert (house.grant(grant).status, house.grant(grant).ended) == (GrantStatus.ENDED, "rejected")
    assert house.why(house.refunds(20)) is None


def test_another_digest_ends_a_grant_and_a_rollback_revives_nothing(house: GrantHouse) -> None:
    grant = house.active()
    house.serve("1.1.0", people={**PEOPLE, "eve": {}})
    assert house.grant(grant).status is GrantStatus.ACTIVE, "the same digest"
    house.release()
    assert house.grant(grant).ended == "replaced"
    house.serve("1.1.0")
    assert house.why(house.refunds(20)) is None
    assert house.refunded() == []


def test_the_end_of_a_release_ends_its_grants(house: GrantHouse) -> None:
    grant = house.active()
    house.serve(None)
    assert house.grant(grant).ended == "replaced"


def test_an_expired_grant_covers_nothing_and_the_timers_end_it(house: GrantHouse) -> None:
    grant = house.active(expires_in=timedelta(hours=1))
    house.store.clock.advance(timedelta(hours=1))  # type: ignore[attr-defined]
    assert house.why(house.refunds(20)) == "expired"
    assert Due.GRANTS in find_due(house.store)
    process_found(house.store)
    assert Due.GRANTS not in find_due(house.store)
    assert house.grant(grant).ended == "expired"
    assert house.why(house.refunds(20)) == "expired"
    assert "expired" in refused("grant_ended", lambda: house.approve(grant, "cid"))


def test_spot_checks_ask_and_unread_ones_end_the_grant(house: GrantHouse) -> None:
    house.serve("1.1.0", grants=[{**RULE, "spotChecks": 1}])
    grant = house.active()
    for number in range(5):
        run = house.refunds(20)
        assert house.why(run) == "spot_check"
        assert house.grant(grant).status is GrantStatus.ACTIVE, number
        house.say(house.open(run)[0], "approved", "ann")
        house.say(house.open(run)[0], "approved", "ben")
    assert house.grant(grant).ended == "unread"
    assert house.grant(grant).uses == 0


def test_read_spot_checks_leave_the_grant(house: GrantHouse) -> None:
    house.serve("1.1.0", grants=[{**RULE, "spotChecks": 1}])
    grant = house.active()
    for _ in range(6):
        run = house.refunds(20)
        house.store.clock.advance(timedelta(minutes=1))  # type: ignore[attr-defined]
        house.say(house.open(run)[0], "approved", "ann")
        house.say(house.open(run)[0], "approved", "ben")
    assert house.grant(grant).status is GrantStatus.ACTIVE


def test_a_fork_reuses_no_answer_and_takes_another_use(house: GrantHouse) -> None:
    grant = house.active()
    run = house.refunds(20)
    order = ForkRequest(run_id=run.id, requester="eve", checkpoint=1)
    again = house.drive(fork(house.starter, ProgramLoader(house.store), order))
    assert again.status is RunStatus.SUCCEEDED
    assert [run_id for _, run_id in house.uses(grant)] == [run.id, again.id]


# ---- creation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "changes", "message"),
    [
        ("grant_exceeds_rule", {"uses": 200}, "uses 200 exceeds 100 of the rule grants[0] of prod."),
        (
            "grant_exceeds_rule",
            {"total": {}},
            "total of amount without a limit exceeds 5000 of the rule grants[0] of prod.",
        ),
        ("grant_exceeds_rule", {"expires_in": timedelta(days=31)}, "of the rule grants[0] of prod."),
        ("condition_invalid", {"when": "args.ammount < 1"}, "refund has no argument ammount. Did you mean amount?"),
        ("condition_invalid", {"when": "args.amount <"}, "when, column 14: expected a value, found the end."),
        ("condition_invalid", {"total": {"ammount": 1, "amount": 1}}, "refund has no argument ammount."),
        ("grant_not_allowed", {"tool": "other"}, "refunds has no tool other."),
        ("release_not_found", {"bundle": "other"}, "other is not released to prod."),
        ("environment_not_found", {"environment": "none"}, "none"),
    ],
)
def test_a_grant_beyond_its_rule_is_refused(house: GrantHouse, code: str, changes: dict, message: str) -> None:
    assert message in refused(code, lambda: house.create(**changes))


def test_a_grant_needs_a_rule_of_the_environment(house: GrantHouse) -> None:
    house.serve("1.1.0", grants=[])
    assert refused("grant_not_allowed", house.create) == "prod has no rule under grants for refund."
    house.serve("1.1.0", grants=[RULE], tools={"deny": ["refund"]})
    refused("grant_not_allowed", house.create)


def test_a_wider_rule_is_not_in_force_before_it_is_approved(house: GrantHouse) -> None:
    house.serve("1.1.0", grants=[], approvals={"required": 1, "roles": ["finance"]})
    house.repo.environment("prod", {"refunds": "1.1.0"}, prune={"maxPercent": 100}, **{**house.rules, "grants": [RULE]})
    house.repo.commit("Accept grants")
    outcome = house.bench.reconcile().outcomes["prod"]
    assert "AwaitingApproval" in str(outcome)
    assert refused("grant_not_allowed", house.create) == "prod has no rule under grants for refund."


def test_a_tool_of_a_server_without_a_pin_has_no_grants(house: GrantHouse) -> None:
    with house.store.read() as tx:
        found = grants.find_tool(tx, "prod", "refunds", "refund")
    mcp = McpToolRef(server="bank")
    unpinned = replace(found, tool=found.tool.model_copy(update={"implementation": None, "mcp": mcp}))
    assert "without a pin" in refused("grant_unpinned", lambda: grants.check_allowed(unpinned))


def test_voters_are_candidates_who_sign_with_their_own_key(house: GrantHouse) -> None:
    house.keys["dan"] = house.keys["ann"]
    refused("not_a_candidate", lambda: house.create("dan"))
    refused("signature_required", lambda: house.create(signed=False))
    house.keys["ben"], own = house.keys["cid"], house.keys["ben"]
    refused("WrongSigner", lambda: house.create("ben"))
    house.keys["ben"] = own
    grant = house.create()
    assert grant.status is GrantStatus.PENDING
    assert house.approve(grant, "ann").status is GrantStatus.PENDING, "a person counts once"
    assert house.approve(grant, "cid").status is GrantStatus.ACTIVE


def test_a_signed_statement_makes_one_grant(house: GrantHouse) -> None:
    request = house.request()
    with house.store.write() as tx:
        statement = house.signed(grants.draft(tx, request), "ann")
        grants.create(tx, request, actor="ann", statement=statement, pin=None)
    with house.store.write() as tx, pytest.raises(KneoError) as refusal:
        grants.create(tx, request, actor="ann", statement=statement, pin=None)
    assert refusal.value.code == "grant_exists"
    with house.store.write() as tx, pytest.raises(KneoError) as refusal:
        grants.create(
            tx, house.request(uses=51), actor="ann", statement=house.signed(grants.draft(tx, request), "ann"), pin=None
        )
    assert (refusal.value.code, refusal.value.details["field"]) == ("SubjectMismatch", "uses")


def test_a_revoked_grant_stays_revoked(house: GrantHouse) -> None:
    grant = house.active()
    house.revoke(grant)
    assert refused("grant_ended", lambda: house.revoke(grant)).endswith(": revoked.")
    refused("grant_not_found", lambda: house.approve(replace(grant, id="grt_0")))
