"""Who may answer, how many have to, and what of a refused answer is kept: nothing."""

from __future__ import annotations

from datetime import timedelta

import pytest
from builders import build_run
from gates.asking import answer, ask, declare
from processes import at_once

from kneo.clock import ManualClock, isoformat
from kneo.digest import digest_of
from kneo.errors import KneoError
from kneo.records.release import BundleRecord
from kneo.records.run import ReleaseRef
from kneo.records.task import HumanTask, TaskStatus
from kneo.store import audit, releases, runs, tasks
from kneo.store.engine import Store
from kneo.tasks.inbox import assign, claim, comment, delegate, find, snooze, unclaim


@pytest.fixture(autouse=True)
def _people(store: Store) -> None:
    declare(store)


def look(store: Store, task: HumanTask) -> HumanTask:
    with store.read() as tx:
        return find(tx, task.id)


def refused(store: Store, task: HumanTask, actor: str, kind: str = "approved", **more: object) -> str:
    """Answer something that is not taken; return the code, having seen that nothing changed."""
    before = look(store, task)
    with store.read() as tx:
        events = len(audit.events(tx, limit=1000))
    with pytest.raises(KneoError) as caught:
        answer(store, task, actor, kind, **more)
    assert look(store, task) == before
    with store.read() as tx:
        assert len(audit.events(tx, limit=1000)) == events
    return caught.value.code


def test_only_candidates_answer(store: Store) -> None:
    by_group = ask(store, candidates={"groups": ["editors"]})
    by_role = ask(store, candidates={"roles": ["legal"]})
    by_name = ask(store, candidates={"users": ["dee"]}, assignee="cy")
    assert refused(store, by_group, "cy") == refused(store, by_role, "ann") == refused(store, by_name, "ben")
    assert refused(store, by_group, "nobody") == "not_a_candidate"
    assert answer(store, by_group, "Ben").status is TaskStatus.DECIDED
    assert answer(store, by_role, "cy").status is TaskStatus.DECIDED
    assert answer(store, by_name, "cy").decision.actor == "cy"


@pytest.mark.parametrize("content", ["NaN", "-Infinity", "1e999", "[" * 10_000])
def test_a_value_that_no_database_stores_is_refused(store: Store, content: str) -> None:
    number = ask(store, schema={"type": "number"})
    assert refused(store, number, "ann", "provided", content=content) == "human_input_invalid"
    assert answer(store, number, "ann", "provided", content="4.5").decision.data == 4.5


def test_whoever_asked_signed_or_reviewed_does_not_answer(store: Store) -> None:
    digest = digest_of(b"a bundle")
    record = BundleRecord(
        digest=digest,
        name="b",
        version="1",
        seq=1,
        prev=None,
        payload=b"a bundle",
        envelope=b"{}",
        spec_digest=digest,
        signers=("ann",),
        first_seen_at="2026-01-01",
        revision="r",
    )
    ref = ReleaseRef(bundle="b", version="1", digest=digest, environment="prod", revision="r", promotion_id="p")
    run = build_run(environment="prod", requester="rex", release=ref)
    with store.write() as tx:
        releases.insert_bundles(tx, [record])
        runs.insert_run(tx, run)
    exclude = {"candidates": {"exclude": ["requester", "bundle_signer", "previous_reviewers", "dee"]}}
    first = ask(store, run, **exclude)
    for name in ("rex", "ann", "ANN ", "dee"):
        assert refused(store, first, name) == "separation_of_duties"
    answer(store, first, "ben")
    second = ask(store, run, key="other.step", **exclude)
    assert refused(store, second, "ben") == "separation_of_duties"
    declare(store, allowSelf=True)
    assert refused(store, second, "dee") == "separation_of_duties"
    assert answer(store, second, "ann").status is TaskStatus.DECIDED


def test_a_quorum_waits_for_enough_people_of_the_right_roles(store: Store) -> None:
    task = ask(store, quorum={"approvals": 2, "each": [{"role": "legal"}]})
    voted = answer(store, task, "ann")
    assert (voted.status, [vote.actor for vote in voted.votes]) == (TaskStatus.OPEN, ["ann"])
    again = answer(store, task, "ann")
    assert len(again.votes) == 1
    enough_but_no_lawyer = answer(store, task, "ben")
    assert enough_but_no_lawyer.status is TaskStatus.OPEN
    decided = answer(store, task, "cy")
    assert (decided.status, decided.decision.voters) == (TaskStatus.DECIDED, ("ann", "ben", "cy"))


def test_rules_that_share_people_can_be_met(store: Store) -> None:
    rules = {"approvals": 2, "each": [{"role": "reviewer"}, {"role": "ops"}]}
    for order in (("ann", "ben"), ("ben", "ann")):
        task = ask(store, quorum=rules)
        assert [answer(store, task, name).status for name in order] == [TaskStatus.OPEN, TaskStatus.DECIDED]


def test_roles_in_sequence_wait_for_their_turn(store: Store) -> None:
    task = ask(store, quorum={"approvals": 2, "each": [{"role": "legal"}, {"role": "ops"}], "order": "sequence"})
    assert refused(store, task, "ann") == "not_a_candidate"
    answer(store, task, "cy")
    assert refused(store, task, "ben") == "not_a_candidate"
    assert answer(store, task, "ann").status is TaskStatus.DECIDED


def test_one_objection_is_enough_unless_a_majority_is_asked(store: Store) -> None:
    any_ = ask(store, quorum={"approvals": 3})
    assert answer(store, any_, "ann", "rejected").decision.kind == "rejected"
    most = ask(store, quorum={"approvals": 3, "reject": "majority"})
    assert answer(store, most, "ann", "rejected").status is TaskStatus.OPEN
    assert answer(store, most, "ben").status is TaskStatus.OPEN
    decided = answer(store, most, "cy", "rejected")
    assert (decided.decision.kind, decided.decision.voters) == ("rejected", ("ann", "cy"))


def test_an_environment_only_asks_for_more(keyless_store: Store) -> None:
    store = keyless_store
    least = {
        "approvals": 2,
        "exclude": ["requester"],
        "denyOnTimeout": ["approve", "continue"],
        "receipt": "signed",
    }
    declare(store, questions=least)
    plain = ask(store, timeout_seconds=60, on_timeout="approve", receipt="none")
    assert (plain.quorum.approvals, plain.on_timeout, plain.plan.receipt) == (2, "fail", "signed")
    assert plain.candidates.exclude == ("requester",)
    strict = ask(
        store, quorum={"approvals": 3}, candidates={"exclude": ["ann"]}, timeout_seconds=60, on_timeout="reject"
    )
    assert (strict.quorum.approvals, strict.on_timeout) == (3, "reject")
    assert strict.candidates.exclude == ("ann", "requester")
    # Nothing here could sign what has to be signed, so nothing is decided.
    assert refused(store, plain, "ann") == "no_service_key"


def test_votes_agree_only_when_they_say_the_same(store: Store) -> None:
    task = ask(store, quorum={"approvals": 2})
    answer(store, task, "ann", "edited", content="one")
    answer(store, task, "ben", "edited", content="two")
    assert look(store, task).status is TaskStatus.OPEN
    decided = answer(store, task, "cy", "edited", content="two")
    assert (decided.decision.content, decided.decision.voters) == ("two", ("ben", "cy"))


def test_what_is_filled_in_is_checked_before_it_is_kept(store: Store) -> None:
    fields = [
        {"name": "tone", "type": "str", "allowed_values": ["dry", "warm"]},
        {"name": "words", "type": "int", "min": 1, "required": False, "default": 3},
        {"name": "at", "type": "date", "required": False},
        {"name": "code", "type": "str", "pattern": "[a-z]+", "required": False},
    ]
    task = ask(store, fields=fields, decisions=["approved", "rejected"])
    for values in (
        None,
        {},
        {"tone": "loud"},
        {"tone": "dry", "words": "3"},
        {"tone": "dry", "words": True},
        {"tone": "dry", "words": 0},
        {"tone": "dry", "at": "tomorrow"},
        {"tone": "dry", "code": "abc1"},
        {"tone": "dry", "other": 1},
    ):
        assert refused(store, task, "ann", values=values) == "human_input_invalid"
    decided = answer(store, task, "ann", values={"tone": "dry", "at": "2026-02-01"})
    assert decided.decision.values == {"tone": "dry", "words": 3, "at": "2026-02-01"}


def test_a_refusal_does_not_repeat_what_was_sent(store: Store) -> None:
    task = ask(store, fields=[{"name": "tone", "type": "int"}])
    with pytest.raises(KneoError) as caught:
        answer(store, task, "ann", values={"tone": "hunter2"})
    assert "hunter2" not in f"{caught.value} {caught.value.details}"
    assert caught.value.details["fields"] == [
        {"field": "tone", "rule": "type", "message": "must satisfy type: integer"}
    ]


def test_content_has_to_fit_a_schema(store: Store) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    task = ask(store, schema=schema, decisions=["provided", "rejected"])
    assert refused(store, task, "ann", "provided", content={"n": "x"}) == "human_input_invalid"
    assert refused(store, task, "ann", "provided", content="plain") == "human_input_invalid"
    assert answer(store, task, "ann", "provided", content={"n": 1}).decision.content == '{"n": 1}'
    free = ask(store, request_type="freeform", decisions=["provided"])
    assert answer(store, free, "ann", "provided", content=[1, "≤"]).decision.content == '[1, "≤"]'


@pytest.mark.parametrize(
    ("code", "kind", "more"),
    [
        ("request_mismatch", "approved", {"request_id": "req_other"}),
        ("subject_changed", "approved", {"expect_digest": digest_of(b"other")}),
        ("decision_not_allowed", "provided", {"content": "x"}),
        ("unknown_option", "selected", {"selected_option": "green"}),
        ("unknown_option", "selected", {"selected_options": ("red", "blue")}),
        ("content_required", "selected", {}),
        ("content_required", "edited", {"content": " "}),
        ("human_input_invalid", "approved", {"values": {"x": 1}}),
        ("human_input_invalid", "edited", {"content": {"x": 1}}),
        ("human_input_invalid", "approved", {"content": float("nan")}),
    ],
)
def test_an_answer_that_does_not_fit_changes_nothing(
    store: Store, code: str, kind: str, more: dict[str, object]
) -> None:
    task = ask(store, options=["red", "blue"], decisions=["approved", "rejected", "edited", "selected"])
    assert refused(store, task, "ann", kind, **more) == code


def test_several_options_where_several_may_be_chosen(store: Store) -> None:
    task = ask(store, options=["red", "blue", "green"], multiple=True)
    assert refused(store, task, "ann", "selected", selected_options=("red", "red")) == "unknown_option"
    decided = answer(store, task, "ann", "selected", selected_options=("green", "red"))
    assert decided.decision.selected_options == ("green", "red")


def test_of_twenty_answers_at_once_one_counts(store: Store) -> None:
    task = ask(store)

    def try_to(number: int) -> str:
        kind = "approved" if number % 2 else "rejected"
        try:
            return answer(store, task, f"person-{number}", kind).decision.actor
        except KneoError as error:
            return error.code

    answers = at_once(20, try_to)
    assert sorted(answers)[:19] == ["human_task_decided"] * 19
    assert look(store, task).decision.actor in answers


def test_what_somebody_has_taken_is_theirs(store: Store) -> None:
    task = ask(store)
    claim(store, task.id, actor="ann")
    again = claim(store, task.id, actor="ann")
    assert (again.status, again.claimed_by, again.version) == (TaskStatus.CLAIMED, "ann", 1)
    assert refused(store, task, "ben") == "claimed_by_other"
    for act in (claim, unclaim):
        with pytest.raises(KneoError) as caught:
            act(store, task.id, actor="ben")
        assert caught.value.code == "claimed_by_other"
    assert unclaim(store, task.id, actor="ann").status is TaskStatus.OPEN
    assert answer(store, task, "ben").status is TaskStatus.DECIDED


def test_a_task_is_handed_to_somebody_who_may_answer_it(store: Store) -> None:
    task = ask(store, candidates={"groups": ["editors"]})
    with pytest.raises(KneoError) as caught:
        delegate(store, task.id, "cy", actor="ann")
    assert caught.value.code == "not_a_candidate"
    claim(store, task.id, actor="ann")
    handed = delegate(store, task.id, "ben", actor="ann", comment="you know this")
    assert (handed.status, handed.assignee, handed.claimed_by) == (TaskStatus.OPEN, "ben", None)
    assert assign(store, task.id, "ann", actor="ben").assignee == "ann"
    with store.read() as tx:
        told = [(event.type, event.actor, event.data.get("to")) for event in tasks.events_of(tx, task.id)]
    assert told == [
        ("requested", "rex", None),
        ("claimed", "ann", None),
        ("delegated", "ann", "ben"),
        ("assigned", "ben", "ann"),
    ]


def test_a_snoozed_task_comes_back_and_can_be_answered_meanwhile(store: Store, clock: ManualClock) -> None:
    task = ask(store)
    with pytest.raises(KneoError):
        snooze(store, task.id, isoformat(clock.now()), actor="ann")
    until = isoformat(clock.now() + timedelta(hours=1))
    assert snooze(store, task.id, until, actor="ann").status is TaskStatus.SNOOZED
    assert answer(store, task, "ben").status is TaskStatus.DECIDED


def test_what_people_write_stays_out_of_the_audit_log(store: Store) -> None:
    task = ask(store)
    comment(store, task.id, "a private remark", actor="ann")
    answer(store, task, "ann", "edited", content="private words", comment="private too")
    with store.read() as tx:
        log = str([event.event.metadata for event in audit.events(tx, limit=100)])
        kept = str([event.data for event in tasks.events_of(tx, task.id)])
    assert "private" not in log
    assert "a private remark" in kept
    assert "private too" in kept
