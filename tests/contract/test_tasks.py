from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta

from builders import build_task
from processes import at_once

from kneo.clock import ManualClock, isoformat
from kneo.state.task import UNRESOLVED, Decision, DecisionKind, HumanTask, TaskStatus
from kneo.store import tasks
from kneo.store.engine import Store


def insert(store: Store, **changes: object) -> HumanTask:
    task = build_task(**changes)
    with store.write() as tx:
        tasks.insert_task(tx, task)
    return task


def decision(actor: str = "ann") -> Decision:
    return Decision(
        kind=DecisionKind.APPROVED,
        content=None,
        selected_option=None,
        comment="fine",
        actor=actor,
        by="person",
        at="2026-01-31T12:00:00.000000+00:00",
    )


def test_a_task_comes_back_as_it_was(store: Store, clock: ManualClock) -> None:
    task = insert(
        store,
        options=("red", "blue"),
        default_option="red",
        decisions=(DecisionKind.SELECTED,),
        assignee="ann",
        timeout_seconds=60,
        deadline_at=isoformat(clock.now() + timedelta(seconds=60)),
        metadata={"k": ["≤"]},
    )
    with store.read() as tx:
        found = tasks.get(tx, task.id)
        assert tasks.get(tx, "cont_none") is None
    assert found.created_at == found.updated_at == isoformat(clock.now())
    assert asdict(found) == asdict(task) | {"created_at": found.created_at, "updated_at": found.updated_at}


def test_a_decision_comes_back_as_it_was(store: Store) -> None:
    task = insert(store)
    with store.write() as tx:
        assert tasks.change(tx, task, status=TaskStatus.DECIDED, decision=asdict(decision()))
        found = tasks.get(tx, task.id)
    assert (found.status, found.decision, found.version) == (TaskStatus.DECIDED, decision(), 1)


def test_a_change_on_what_was_read_earlier_is_refused(store: Store) -> None:
    task = insert(store)
    with store.write() as tx:
        assert tasks.change(tx, task, status=TaskStatus.CLAIMED, assignee="ann")
        assert not tasks.change(tx, task, status=TaskStatus.CLAIMED, assignee="ben")
        assert tasks.get(tx, task.id).assignee == "ann"


def test_of_twenty_answers_at_once_one_counts(store: Store) -> None:
    task = insert(store)

    def answer(number: int) -> bool:
        with store.write() as tx:
            return tasks.change(tx, task, status=TaskStatus.DECIDED, decision=asdict(decision(f"person-{number}")))

    answered = at_once(20, answer)
    assert sum(answered) == 1
    with store.read() as tx:
        found = tasks.get(tx, task.id)
    assert found.decision.actor == f"person-{answered.index(True)}"
    assert found.version == 1


def test_lists_filter_by_status_and_run(store: Store) -> None:
    first, second = insert(store), insert(store)
    with store.write() as tx:
        tasks.change(tx, first, status=TaskStatus.DECIDED)
        assert [task.id for task in tasks.list_tasks(tx)] == [second.id]
        assert tasks.count_tasks(tx) == 1
        everything = tasks.list_tasks(tx, statuses=TaskStatus, descending=True)
        assert [task.id for task in everything] == [second.id, first.id]
        assert tasks.list_tasks(tx, statuses=TaskStatus, limit=1, offset=1)[0].id == second.id
        assert tasks.list_tasks(tx, run_id=first.run_id) == ()
        assert tasks.count_tasks(tx, statuses=TaskStatus, run_id=first.run_id) == 1
        assert [task.id for task in tasks.of_run(tx, second.run_id, UNRESOLVED)] == [second.id]
        assert tasks.of_run(tx, first.run_id, UNRESOLVED) == ()


def test_overdue_tasks_come_longest_overdue_first_and_escalated_ones_not_again(
    store: Store, clock: ManualClock
) -> None:
    later = insert(store, deadline_at=isoformat(clock.now() + timedelta(seconds=20)))
    sooner = insert(store, deadline_at=isoformat(clock.now() + timedelta(seconds=10)))
    insert(store, deadline_at=isoformat(clock.now() + timedelta(days=1)))
    insert(store, deadline_at=isoformat(clock.now()), escalated_at=isoformat(clock.now()))
    insert(store)
    decided = insert(store, deadline_at=isoformat(clock.now()))
    with store.write() as tx:
        tasks.change(tx, decided, status=TaskStatus.DECIDED)
        assert tasks.due(tx, 10) == ()
    clock.advance(timedelta(seconds=20))
    with store.read() as tx:
        assert [task.id for task in tasks.due(tx, 10)] == [sooner.id, later.id]
        assert [task.id for task in tasks.due(tx, 1)] == [sooner.id]
