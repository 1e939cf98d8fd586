"""What time does to a question: reminders, escalations, deadlines, whoever looks first."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from gates.asking import answer, ask, declare
from sqlalchemy import select

from kneo.clock import ManualClock, isoformat
from kneo.errors import KneoError
from kneo.records.run import RunStatus
from kneo.records.task import HumanTask, TaskStatus
from kneo.store import audit, receipts, releases, runs, tasks
from kneo.store.engine import Store
from kneo.store.tables import outbox
from kneo.store.task_filter import TaskFilter
from kneo.tasks import lifecycle
from kneo.tasks.inbox import claim, find, snooze
from kneo.tasks.lifecycle import process_due
from kneo.trust.dsse import parse_envelope


@pytest.fixture(autouse=True)
def _people(request: pytest.FixtureRequest) -> None:
    declare(request.getfixturevalue("keyless_store" if "keyless_store" in request.fixturenames else "store"))


def look(store: Store, task: HumanTask) -> HumanTask:
    with store.read() as tx:
        return find(tx, task.id)


def happened(store: Store, task: HumanTask) -> list[str]:
    with store.read() as tx:
        return [event.type for event in tasks.events_of(tx, task.id)]


def pass_(clock: ManualClock, store: Store, seconds: int) -> int:
    clock.advance(timedelta(seconds=seconds))
    return process_due(store)


def test_reminders_and_escalations_come_in_their_order_and_once(store: Store, clock: ManualClock) -> None:
    chain = [{"after": "2h", "to": "legal"}, {"after": "4h", "to": "cy"}]
    task = ask(store, candidates={"users": ["ann"]}, remind=["1h", "3h"], escalate=chain, timeout_seconds="1d")
    assert pass_(clock, store, 3599) == 0
    assert pass_(clock, store, 1) == 1
    assert process_due(store) == 0
    claim(store, task.id, actor="ann")
    assert pass_(clock, store, 3600) == 1
    now = look(store, task)
    assert (now.status, now.assignee, now.claimed_by, now.escalation) == (TaskStatus.OPEN, "legal", None, 1)
    assert pass_(clock, store, 2 * 3600) == 1
    assert happened(store, task) == ["requested", "reminded", "claimed", "escalated", "reminded", "escalated"]
    assert answer(store, task, "cy").status is TaskStatus.DECIDED


def test_a_task_whose_events_cannot_be_processed_delays_no_other(
    store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "BATCH", 1)
    stuck = [ask(store, candidates={"groups": ["editors"]}, remind=["1h"], notify=["ops"]) for _ in range(2)]
    other = ask(store, timeout_seconds="2h")
    with store.write() as tx:
        record = releases.environment(tx, "prod")
        assert record is not None
        releases.put_environments(tx, [replace(record, declaration=b"kind: Other")])
    assert pass_(clock, store, 2 * 3600) == 1
    assert look(store, other).status is TaskStatus.EXPIRED
    with store.read() as tx:
        receipt = receipts.of_task(tx, other.id)
    assert receipt is not None, "a deadline needs no rules of the environment"
    assert b'"policyDigest":null' in parse_envelope(receipt.envelope).payload
    assert [happened(store, task) for task in stuck] == [["requested"]] * 2
    declare(store)
    assert process_due(store) == 2
    assert [happened(store, task) for task in stuck] == [["requested", "reminded"]] * 2


@pytest.mark.parametrize(
    ("candidates", "to", "people"),
    [
        pytest.param({"users": ["cy"]}, "editors", ["ann", "ben"], id="a group"),
        pytest.param({"groups": ["editors"]}, "ops", ["ann"], id="a role"),
        pytest.param({"groups": ["editors"]}, "cy", ["cy"], id="a person"),
        pytest.param({}, "editors", ["ann", "ben"], id="a group, of a task for everyone"),
        pytest.param({"users": ["cy"], "exclude": ["ben"]}, "editors", ["ann"], id="a group with an excluded member"),
        pytest.param({"users": ["cy"]}, "editor", [], id="a name that nobody has"),
    ],
)
def test_an_escalation_notifies_the_people_of_the_group_or_role_that_it_names(
    store: Store, clock: ManualClock, candidates: dict[str, object], to: str, people: list[str]
) -> None:
    ask(store, candidates=candidates, notify=["mail"], escalate=[{"after": 60, "to": to}])
    pass_(clock, store, 60)
    with store.read() as tx:
        payloads = [row.payload for row in tx.connection.execute(select(outbox).order_by(outbox.c.id))]
    assert [(each["what"], each["people"]) for each in payloads] == [("escalated", people)]


def test_whoever_is_escalated_to_sees_and_answers_it(store: Store, clock: ManualClock) -> None:
    task = ask(store, candidates={"users": ["ann"]}, escalate=[{"after": 60, "to": "legal"}])
    with pytest.raises(KneoError):
        answer(store, task, "cy")
    pass_(clock, store, 60)
    with store.read() as tx:
        assert [one.id for one in tasks.list_tasks(tx, TaskFilter(who={"group:prod/legal"}))] == [task.id]
        assert tasks.count_tasks(tx, TaskFilter(escalated=True)) == 1
    assert answer(store, task, "cy").status is TaskStatus.DECIDED


def test_a_deadline_that_escalates_gives_the_next_one_as_long(store: Store, clock: ManualClock) -> None:
    chain = [{"after": "9h", "to": "ben"}]
    task = ask(store, timeout_seconds=60, on_timeout="escalate", escalate=chain)
    pass_(clock, store, 60)
    now = look(store, task)
    assert (now.assignee, now.deadline_at) == ("ben", isoformat(clock.now() + timedelta(seconds=60)))
    pass_(clock, store, 60)
    last = look(store, task)
    assert (last.status, last.escalation, last.deadline_at, last.next_at) == (TaskStatus.OPEN, 2, None, None)
    assert pass_(clock, store, 10**6) == 0
    assert answer(store, task, "dee").status is TaskStatus.DECIDED


@pytest.mark.parametrize(
    ("effect", "kind", "does"),
    [
        ("continue", "approved", None),
        ("approve", "approved", None),
        ("reject", "rejected", None),
        ("skip", "rejected", "skip"),
        ("cancel", "rejected", "cancel"),
        ("select:blue", "selected", None),
    ],
)
def test_silence_decides(store: Store, clock: ManualClock, effect: str, kind: str, does: str | None) -> None:
    options = {"options": ["red", "blue"]} if effect.startswith("select") else {}
    task = ask(store, timeout_seconds=60, on_timeout=effect, **options)
    assert pass_(clock, store, 60) == 1
    now = look(store, task)
    assert (now.status, now.decision.kind, now.decision.effect) == (TaskStatus.DECIDED, kind, does)
    assert now.decision.by == "policy:timeout"
    with pytest.raises(KneoError) as caught:
        answer(store, task, "ann")
    assert caught.value.code == "human_task_expired"


@pytest.mark.parametrize(
    ("on_timeout", "event", "continued"),
    [("fail", "human.expired", False), ("reject", "human.expired", False), ("continue", "human.continued", True)],
)
def test_the_audit_log_has_when_a_deadline_was_processed_and_who_was_asked(
    store: Store, clock: ManualClock, on_timeout: str, event: str, continued: bool
) -> None:
    ask(store, timeout_seconds=60, on_timeout=on_timeout, assignee="ann", escalate=[{"after": 30, "to": "ben"}])
    pass_(clock, store, 30)
    pass_(clock, store, 45)
    with store.read() as tx:
        [escalated], [expired] = (audit.events(tx, event_type=each) for each in ("human.escalated", event))
    assert {
        key: expired.event.metadata[key] for key in ("expired_at", "expires_at", "timeout_seconds", "on_timeout")
    } == {
        "expired_at": isoformat(clock.now()),
        "expires_at": isoformat(clock.now() - timedelta(seconds=15)),
        "timeout_seconds": 60,
        "on_timeout": on_timeout,
    }
    assert expired.event.metadata["auto_continued"] is continued
    assert [each.event.metadata["original_assignee"] for each in (escalated, expired)] == ["ann", "ann"]


def test_silence_ends_the_run_unless_it_says_otherwise(store: Store, clock: ManualClock) -> None:
    task = ask(store, timeout_seconds=60)
    pass_(clock, store, 60)
    assert look(store, task).status is TaskStatus.EXPIRED
    with store.read() as tx:
        run = runs.get(tx, task.run_id)
    assert (run.status, run.error.type) == (RunStatus.EXPIRED, "human_task_expired")


@pytest.mark.parametrize("late", [False, True])
def test_the_deadline_and_a_person_do_not_both_win(store: Store, clock: ManualClock, late: bool) -> None:
    task = ask(store, timeout_seconds=60, on_timeout="approve")
    clock.advance(timedelta(seconds=60 if late else 59))
    if not late:
        assert answer(store, task, "ann", "rejected").decision.by == "person"
        assert pass_(clock, store, 10) == 0
        assert look(store, task).decision.kind == "rejected"
        return
    # Nobody has swept yet: the deadline is applied before the answer is looked at, and stays.
    with pytest.raises(KneoError) as caught:
        answer(store, task, "ann", "rejected")
    assert caught.value.code == "human_task_expired"
    now = look(store, task)
    assert (now.decision.by, now.decision.kind) == ("policy:timeout", "approved")
    assert process_due(store) == 0


def test_a_snooze_ends_by_itself_and_does_not_move_the_deadline(store: Store, clock: ManualClock) -> None:
    task = ask(store, timeout_seconds=100, on_timeout="reject")
    snooze(store, task.id, isoformat(clock.now() + timedelta(seconds=50)), actor="ann")
    assert pass_(clock, store, 50) == 1
    assert look(store, task).status is TaskStatus.OPEN
    snooze(store, task.id, isoformat(clock.now() + timedelta(seconds=500)), actor="ann")
    assert pass_(clock, store, 50) == 1
    assert look(store, task).decision.by == "policy:timeout"


def test_a_sweep_that_comes_late_does_everything_that_was_due(store: Store, clock: ManualClock) -> None:
    chain = [{"after": 20, "to": "ben"}]
    task = ask(store, remind=[10, 30], escalate=chain, timeout_seconds=40, on_timeout="reject")
    assert pass_(clock, store, 1000) == 1
    assert happened(store, task) == ["requested", "reminded", "escalated", "reminded", "expired"]


@pytest.mark.parametrize(
    ("on_timeout", "not_taken"),
    [("approve", "approved"), ("cancel", "rejected"), ("fail", None), ("reject", "rejected")],
)
def test_silence_that_has_to_be_signed_and_cannot_be_decides_nothing(
    keyless_store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    on_timeout: str, not_taken: str | None,
) -> None:  # fmt: skip
    store = keyless_store
    monkeypatch.setattr("kneo.tasks.lifecycle.BATCH", 2)
    asked = [ask(store, receipt="signed", timeout_seconds=60, on_timeout=on_timeout) for _ in range(3)]
    clock.advance(timedelta(seconds=61))
    assert (process_due(store), process_due(store)) == (3, 0)  # once, and not again and again
    with store.read() as tx:
        for task in asked:
            found, run = find(tx, task.id), runs.get(tx, task.run_id)
            assert run is not None
            assert (found.status, found.decision, run.status) == (TaskStatus.EXPIRED, None, RunStatus.EXPIRED)
            assert run.error is not None
            assert "no_service_key" in run.error.message
            assert receipts.of_task(tx, task.id) is None
        told = audit.events(tx, event_type="human.expired", limit=10)
    facts = [(item.event.metadata["unsigned"], item.event.metadata["not_taken"]) for item in told]
    assert facts == [("no_service_key", not_taken)] * 3
    assert sum(getattr(record, "event", "") == "receipt_unsigned" for record in caplog.records) == 3


def test_a_question_that_only_escalates_needs_no_key_for_it(store: Store, clock: ManualClock) -> None:
    task = ask(
        store, receipt="signed", timeout_seconds=60, on_timeout="escalate", escalate=[{"after": 3600, "to": "cy"}]
    )
    clock.advance(timedelta(seconds=61))
    assert process_due(store) == 1
    with store.read() as tx:
        assert find(tx, task.id).status is TaskStatus.OPEN
