from __future__ import annotations

from dataclasses import asdict, replace
from datetime import timedelta

import pytest
from builders import build_run, build_task
from console_load import step
from operation_context import operation_context
from processes import at_once

from kneo.api import decisions
from kneo.api.decisions import get_human_task
from kneo.clock import ManualClock, isoformat
from kneo.records.task import UNRESOLVED, Candidates, Decision, DecisionKind, HumanTask, Plan, TaskStatus, Vote
from kneo.store import history, runs, task_statistics, tasks
from kneo.store.engine import Store
from kneo.store.task_filter import EVERY_TASK, TaskFilter


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
    assert asdict(found) == asdict(task) | {name: getattr(found, name) for name in ("created_at", "updated_at", "mac")}


def test_a_decision_comes_back_as_it_was(store: Store) -> None:
    task = insert(store)
    with store.write() as tx:
        assert tasks.change(tx, task, status=TaskStatus.DECIDED, decision=decision())
        found = tasks.get(tx, task.id)
    assert (found.status, found.decision, found.version) == (TaskStatus.DECIDED, decision(), 1)


VOTE = Vote(
    actor="ann", decision=DecisionKind.APPROVED, answer="sha256:" + "0" * 64, at="2026-01-31T12:00:00.000000+00:00"
)


@pytest.mark.parametrize(
    "changes",
    [
        {"status": TaskStatus.DECIDED, "decision": decision(), "votes": (VOTE,), "next_at": None},
        {"status": TaskStatus.CLAIMED, "claimed_by": "ann", "snoozed_until": None},
        {"status": TaskStatus.CANCELLED, "metadata": {"reason": "superseded", "k": [1, None, {"ü": 0.5}]}},
        {"escalation": 2, "candidates": Candidates(users=("ann",), groups=("editors",)), "assignee": "bob"},
        {"plan": Plan(remind=("1h", "2h"), reminded=1), "next_at": "2026-01-31T13:00:00.000000+00:00"},
    ],
    ids="+".join,
)
def test_what_a_change_returns_is_what_stands_there(store: Store, changes: dict[str, object]) -> None:
    made = insert(store)
    with store.write() as tx:
        task = tasks.get(tx, made.id)
        after = tasks.change(tx, task, **changes)
        assert after == tasks.get(tx, made.id)
        assert (after.version, {name: getattr(after, name) for name in changes if name != "next_at"}) == (
            1,
            {name: value for name, value in changes.items() if name != "next_at"},
        )


def test_a_task_shows_what_led_to_it_and_nothing_that_came_after(store: Store, clock: ManualClock) -> None:
    """A decided task keeps showing what its reviewer read: the decision and later steps are none of it."""
    run, opened = build_run(input_text="What is new?"), clock.now()
    with store.write() as tx:
        runs.insert_run(tx, run)
        task = build_task(run_id=run.id)
        tasks.insert_task(tx, task)
        ends = {"plan": -60, "check": -1, "draft": 0, "approve": 30, "publish": 31}
        for number, (path, seconds) in enumerate(ends.items(), 1):
            at = isoformat(opened + timedelta(seconds=seconds))
            text = None if path == "check" else f"output of {path}"
            done = replace(step(run, number), step_id=path, output_text=text, started_at=at, completed_at=at)
            history.insert_step(tx, done)
    shown = [(each["name"], each["content"]) for each in get_human_task(operation_context(store), task.id).messages]
    assert shown == [(None, "What is new?"), ("plan", "output of plan"), ("draft", "output of draft")]


def test_a_task_shows_the_latest_of_many_steps_before_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "MAX_OUTPUTS", 3)
    run = build_run()
    with store.write() as tx:
        runs.insert_run(tx, run)
        for number in range(1, 6):
            history.insert_step(tx, replace(step(run, number, 1), step_id=f"step{number}", completed_at=tx.at))
        task = build_task(run_id=run.id)
        tasks.insert_task(tx, task)
    names = [each["name"] for each in get_human_task(operation_context(store), task.id).messages]
    assert names == [None, "step3", "step4", "step5"]


def test_a_change_on_what_was_read_earlier_is_refused(store: Store) -> None:
    task = insert(store)
    with store.write() as tx:
        assert tasks.change(tx, task, status=TaskStatus.CLAIMED, assignee="ann")
        assert not tasks.change(tx, task, status=TaskStatus.CLAIMED, assignee="ben")
        assert tasks.get(tx, task.id).assignee == "ann"


def test_of_twenty_answers_at_once_one_counts(store: Store) -> None:
    task = insert(store)

    def answer(number: int) -> HumanTask | None:
        with store.write() as tx:
            return tasks.change(tx, task, status=TaskStatus.DECIDED, decision=decision(f"person-{number}"))

    answered = at_once(20, answer)
    (won,) = [one for one in answered if one is not None]
    with store.read() as tx:
        found = tasks.get(tx, task.id)
    assert found.decision == won.decision
    assert found.version == 1


def test_lists_filter_by_status_and_run(store: Store) -> None:
    first, second = insert(store), insert(store)
    with store.write() as tx:
        tasks.change(tx, first, status=TaskStatus.DECIDED)
        assert [task.id for task in tasks.list_tasks(tx)] == [second.id]
        assert tasks.count_tasks(tx) == 1
        everything = tasks.list_tasks(tx, EVERY_TASK, descending=True)
        assert [task.id for task in everything] == [second.id, first.id]
        assert tasks.list_tasks(tx, EVERY_TASK, limit=1, offset=1)[0].id == second.id
        assert tasks.list_tasks(tx, TaskFilter(run_id=first.run_id)) == ()
        assert tasks.count_tasks(tx, replace(EVERY_TASK, run_id=first.run_id)) == 1
        assert [task.id for task in tasks.of_run(tx, second.run_id, UNRESOLVED)] == [second.id]
        assert tasks.of_run(tx, first.run_id, UNRESOLVED) == ()


def test_what_is_due_comes_longest_due_first(store: Store, clock: ManualClock) -> None:
    later = insert(store, next_at=isoformat(clock.now() + timedelta(seconds=20)))
    sooner = insert(store, next_at=isoformat(clock.now() + timedelta(seconds=10)))
    insert(store, next_at=isoformat(clock.now() + timedelta(days=1)))
    insert(store)
    decided = insert(store, next_at=isoformat(clock.now()))
    with store.write() as tx:
        tasks.change(tx, decided, status=TaskStatus.DECIDED)
        assert tasks.due(tx, 10) == ()
    clock.advance(timedelta(seconds=20))
    with store.read() as tx:
        assert [task.id for task in tasks.due(tx, 10)] == [sooner.id, later.id]
        assert [task.id for task in tasks.due(tx, 1)] == [sooner.id]


def test_pages_follow_each_other_whatever_came_or_went(store: Store) -> None:
    made = [insert(store, priority=number % 3) for number in range(9)]
    with store.write() as tx:
        page = tasks.list_tasks(tx, limit=3)
        tasks.change(tx, made[0], status=TaskStatus.CANCELLED)
        following = tasks.list_tasks(tx, limit=3, after=page[-1].id)
        assert [task.id for task in following] == [task.id for task in made[3:6]]
        ranked = tasks.list_tasks(tx, sort_by="priority", descending=True)
        pages: list[HumanTask] = []
        while found := tasks.list_tasks(
            tx, sort_by="priority", descending=True, limit=2, after=pages[-1].id if pages else None
        ):
            pages += found
    assert [task.priority for task in ranked] == [2, 2, 2, 1, 1, 1, 0, 0]
    assert pages == list(ranked)


def test_the_inbox_of_one_person(store: Store) -> None:
    anybodys = insert(store)
    anns = build_task(candidates=Candidates(users=("ann",), exclude=("bob",)))
    editors = build_task(candidates=Candidates(groups=("editors",)))
    not_bobs = build_task(candidates=Candidates(exclude=("bob",)))
    with store.write() as tx:
        tasks.insert_task(tx, anns, {"user:ann", "not:bob"})
        tasks.insert_task(tx, editors, {"group:prod/editors"})
        tasks.insert_task(tx, not_bobs, {"not:bob"})

        def inbox(*who: str) -> set[str]:
            return {task.id for task in tasks.list_tasks(tx, TaskFilter(who=who))}

        assert inbox("user:ann", "group:prod/editors") == {anybodys.id, anns.id, editors.id, not_bobs.id}
        assert inbox("user:cy") == {anybodys.id, not_bobs.id}
        assert inbox("user:bob", "group:prod/editors") == {anybodys.id, editors.id}


def test_counts_follow_what_happens_and_can_be_folded(store: Store, clock: ManualClock) -> None:
    late = insert(store, kind="review", environment="prod", due_at=isoformat(clock.now() - timedelta(seconds=1)))
    tasks_made = [insert(store) for _ in range(task_statistics.FOLD_ABOVE + 10)]
    with store.write() as tx:
        tasks.change(tx, tasks_made[0], status=TaskStatus.CLAIMED)
        tasks.change(tx, tasks_made[1], status=TaskStatus.DECIDED)
        tasks.change(tx, late, escalation=1)
        before = task_statistics.summary(tx)
        assert task_statistics.fold(tx) > task_statistics.FOLD_ABOVE
        assert task_statistics.fold(tx) == 0
        after = task_statistics.summary(tx)
    waiting = task_statistics.FOLD_ABOVE + 10
    assert before == after
    assert after == task_statistics.TaskSummary(
        waiting=waiting,
        escalated=1,
        overdue=1,
        by_status={"open": waiting - 1, "claimed": 1},
        by_kind={"approval": waiting - 1, "review": 1},
        by_environment={"": waiting - 1, "prod": 1},
    )
