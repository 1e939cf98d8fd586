"""Who may write to a run: one driver at a time, and none whose time is over."""

from __future__ import annotations

from datetime import timedelta

import pytest
from builders import build_run
from processes import at_once

from kneo.clock import ManualClock, isoformat
from kneo.digest import digest_of
from kneo.records.run import RUN_TRANSITIONS, IllegalTransition, ReleaseRef, Run, RunError, RunStatus, StepRecord
from kneo.store import audit, history, runs
from kneo.store.engine import Store
from kneo.store.run_filter import RunFilter
from kneo.store.runs import Fenced

LIVE = (RunStatus.RUNNING, RunStatus.PAUSED)
CANCELLED = RunError(type="cancelled", message="ann cancelled it")


def insert(store: Store, **changes: object) -> Run:
    run = build_run(**changes)
    with store.write() as tx:
        runs.insert_run(tx, run)
    return run


def acquire(store: Store, run: Run, claim: str) -> Run | None:
    with store.write() as tx:
        return runs.acquire(tx, run.id, claim)


def get(store: Store, run: Run) -> Run:
    with store.read() as tx:
        found = runs.get(tx, run.id)
    assert found is not None
    return found


def commit(store: Store, run: Run, **changes: object) -> None:
    with store.write() as tx:
        runs.commit(tx, run, **changes)


# ---- what is kept ------------------------------------------------------------------------------------------------


def test_a_run_comes_back_as_it_was(store: Store, clock: ManualClock) -> None:
    release = ReleaseRef(
        bundle="publish",
        version="1.4.0",
        digest=digest_of(b"payload"),
        environment="prod",
        revision="main@sha1:abc",
        promotion_id="prm_1",
    )
    run = insert(
        store,
        release=release,
        environment="prod",
        input_text="línea ≤ 🎈",
        state={"at": [1, {"deep": None}]},
        visited_steps=("draft",),
        metadata={"k": "v"},
        deadline_at=isoformat(clock.now() + timedelta(hours=1)),
    )
    found = get(store, run)
    assert found.release == release
    assert (found.input_text, found.state, found.metadata) == (run.input_text, run.state, run.metadata)
    assert (found.visited_steps, found.deadline_at) == (("draft",), run.deadline_at)
    assert (found.epoch, found.owner, found.signal_seq) == (0, None, 0)
    assert found.created_at == found.started_at == isoformat(clock.now())


def test_an_unknown_run_is_none(store: Store) -> None:
    with store.write() as tx:
        assert runs.get(tx, "run_none") is None
        assert runs.acquire(tx, "run_none", "a") is None


def test_a_spec_is_kept_once(store: Store) -> None:
    digest = digest_of(b"spec")
    with store.write() as tx:
        runs.insert_spec(tx, digest, b"spec")
        runs.insert_spec(tx, digest, b"spec")
        assert runs.load_spec(tx, digest) == b"spec"
        assert runs.load_spec(tx, digest_of(b"other")) is None


def test_steps_checkpoints_and_trace_come_back_in_order(store: Store, clock: ManualClock) -> None:
    run = insert(store)
    with store.write() as tx:
        for number, name in enumerate(("draft", "approve", "publish"), 1):
            history.insert_step(
                tx,
                StepRecord(
                    run_id=run.id,
                    sequence=number,
                    step_id=name,
                    kind="function",
                    attempt=1,
                    status="failed" if name == "publish" else "succeeded",
                    idempotency_key=f"{run.id}:{name}:1",
                    input_text="in",
                    output_text="out",
                    error=RunError(type="boom", message="it broke") if name == "publish" else None,
                    code_digest=None,
                    started_at=tx.at,
                    completed_at=tx.at,
                ),
            )
            history.add_checkpoint(tx, run.id, "step", step_id=name, state={"at": name}, metadata={})
            history.add_trace(tx, run.id, "step_completed", step_id=name, output="≤")
        steps, checkpoints = history.list_steps(tx, run.id), history.list_checkpoints(tx, run.id)
        assert [(step.sequence, step.step_id) for step in steps] == [(1, "draft"), (2, "approve"), (3, "publish")]
        assert steps[0].error is None
        assert steps[2].error == RunError(type="boom", message="it broke")
        assert [point.state for point in checkpoints] == [{"at": "draft"}, {"at": "approve"}, {"at": "publish"}]
        assert [event.step_id for event in history.list_trace(tx, run.id, limit=2, offset=1)] == ["approve", "publish"]
        assert history.list_trace(tx, run.id)[0].data == {"output": "≤"}
        assert history.count_trace(tx, run.id, event_type="step_completed") == 3
        assert history.list_trace(tx, "run_other") == ()


def test_lists_filter_sort_and_page(store: Store, clock: ManualClock) -> None:
    made = []
    for number in range(5):
        made.append(insert(store, environment="prod" if number % 2 else None))
        clock.advance(timedelta(seconds=1))
    with store.read() as tx:
        assert [run.id for run in runs.list_runs(tx)] == [run.id for run in reversed(made)]
        page = runs.list_runs(tx, sort_by="created_at", descending=False, limit=2, offset=1)
        assert [run.id for run in page] == [made[1].id, made[2].id]
        assert {run.id for run in runs.list_runs(tx, RunFilter(environment="prod"))} == {made[1].id, made[3].id}
        assert runs.count_runs(tx, RunFilter(environment="prod")) == 2
        assert runs.count_runs(tx, RunFilter(statuses={RunStatus.PAUSED})) == 0
        assert [run.id for run in runs.list_runnable(tx, 2)] == [made[0].id, made[1].id]


# ---- the fence ---------------------------------------------------------------------------------------------------


def test_taking_a_run_raises_its_epoch(store: Store) -> None:
    run = insert(store)
    mine = acquire(store, run, "a")
    assert (mine.owner, mine.epoch) == ("a", 1)
    assert get(store, run) == mine


def test_a_run_has_one_driver(store: Store) -> None:
    run = insert(store)
    assert acquire(store, run, "a")
    assert acquire(store, run, "b") is None
    with store.read() as tx:
        assert runs.list_runnable(tx, 10) == ()


def test_of_many_drivers_one_gets_the_run(store: Store) -> None:
    run = insert(store)
    taken = at_once(12, lambda number: acquire(store, run, f"claim-{number}"))
    assert len([driver for driver in taken if driver]) == 1


def test_the_same_claim_takes_over_and_the_zombie_is_refused(store: Store) -> None:
    run = insert(store)
    zombie = acquire(store, run, "a")
    heir = acquire(store, run, "a")
    with pytest.raises(Fenced):
        commit(store, zombie, output_text="late")
    commit(store, heir, output_text="right")
    assert get(store, run).output_text == "right"


def test_a_driver_whose_run_was_freed_and_taken_is_refused(store: Store) -> None:
    run = insert(store)
    zombie = acquire(store, run, "a")
    with store.write() as tx:
        assert runs.clear_owners(tx) == 1
        assert runs.clear_owners(tx) == 0
    assert acquire(store, run, "b")
    with pytest.raises(Fenced):
        commit(store, zombie, output_text="late")
    with pytest.raises(Fenced), store.write() as tx:
        runs.pause(tx, zombie)


def test_a_refused_commit_takes_its_whole_transaction_with_it(store: Store) -> None:
    run = insert(store)
    zombie = acquire(store, run, "a")
    acquire(store, run, "a")
    with pytest.raises(Fenced), store.write() as tx:  # noqa: PT012 - the block is what is tested
        history.add_trace(tx, run.id, "step_completed")
        audit.record(tx, "step.done", actor=None, run_id=run.id)
        runs.commit(tx, zombie, output_text="late")
    with store.read() as tx:
        assert history.list_trace(tx, run.id) == ()
        assert audit.count(tx) == 0


def test_drivers_of_one_claim_at_once_commit_once(store: Store) -> None:
    """Each takes the run over from the one before; whoever was last wins, the others are refused."""
    run = insert(store)

    def drive(_: int) -> bool:
        mine = acquire(store, run, "a")
        if mine is None:  # another one has already brought it to its end
            return False
        try:
            commit(store, mine, status=RunStatus.SUCCEEDED, owner=None)
        except Fenced:
            return False
        return True

    assert sum(at_once(8, drive)) == 1
    assert get(store, run).status is RunStatus.SUCCEEDED


def test_a_driver_that_lets_go_frees_only_its_own(store: Store) -> None:
    run = insert(store)
    acquire(store, run, "a")
    with store.write() as tx:
        runs.release(tx, run.id, "b")
    assert get(store, run).owner == "a"
    with store.write() as tx:
        runs.release(tx, run.id, "a")
    assert get(store, run).owner is None


def test_a_driver_that_seemed_dead_does_not_let_go_of_what_took_over_with_its_claim(store: Store) -> None:
    run = insert(store)
    first, second = acquire(store, run, "job_1"), acquire(store, run, "job_1")
    with store.write() as tx:
        runs.release(tx, run.id, "job_1", epoch=first.epoch)
    assert get(store, run).owner == "job_1"
    with store.write() as tx:
        runs.release(tx, run.id, "job_1", epoch=second.epoch)
    assert get(store, run).owner is None


# ---- pausing and waking ------------------------------------------------------------------------------------------


def test_a_paused_run_is_nobodys_and_not_runnable(store: Store) -> None:
    run = insert(store)
    mine = acquire(store, run, "a")
    with store.write() as tx:
        assert runs.pause(tx, mine)
        assert runs.list_runnable(tx, 10) == ()
    assert (get(store, run).status, get(store, run).owner) == (RunStatus.PAUSED, None)
    assert acquire(store, run, "b") is None


def test_news_wakes_a_paused_run(store: Store) -> None:
    run = insert(store)
    mine = acquire(store, run, "a")
    with store.write() as tx:
        runs.pause(tx, mine)
        runs.signal(tx, run.id)
        assert [due.id for due in runs.list_runnable(tx, 10)] == [run.id]
    assert acquire(store, run, "b").signal_seq == 1


def test_news_that_came_before_the_pause_is_not_slept_through(store: Store) -> None:
    run = insert(store)
    mine = acquire(store, run, "a")
    with store.write() as tx:
        runs.signal(tx, run.id)
    with store.write() as tx:
        assert not runs.pause(tx, mine)
    assert get(store, run).status is RunStatus.RUNNING
    fresh = get(store, run)
    with store.write() as tx:
        assert runs.pause(tx, fresh)


def test_pausing_and_waking_at_once_never_loses_the_news(store: Store) -> None:
    for _ in range(15):
        run = insert(store)
        mine = acquire(store, run, "a")

        def work(number: int, mine: Run = mine) -> bool:
            with store.write() as tx:
                if number == 0:
                    return runs.pause(tx, mine)
                runs.signal(tx, mine.id)
                return True

        paused, _ = at_once(2, work)
        after = get(store, run)
        assert after.status is RunStatus.RUNNING
        assert after.owner == (None if paused else "a")


# ---- ending from outside -----------------------------------------------------------------------------------------


def test_an_ended_run_refuses_its_driver(store: Store) -> None:
    run = insert(store)
    mine = acquire(store, run, "a")
    with store.write() as tx:
        assert runs.end(tx, run.id, RunStatus.CANCELLED, CANCELLED, allowed=LIVE)
    with pytest.raises(Fenced):
        commit(store, mine, status=RunStatus.SUCCEEDED)
    after = get(store, run)
    assert (after.status, after.error, after.owner) == (RunStatus.CANCELLED, CANCELLED, None)
    assert after.completed_at


@pytest.mark.parametrize("before", RunStatus)
@pytest.mark.parametrize("after", RunStatus)
def test_only_legal_transitions_are_written(store: Store, before: RunStatus, after: RunStatus) -> None:
    run = insert(store, status=before)
    try:
        with store.write() as tx:
            written = runs.end(tx, run.id, after, CANCELLED, allowed=[before])
    except IllegalTransition:
        written = False
    assert written == (after in RUN_TRANSITIONS[before])
    assert get(store, run).status is (after if written else before)


def test_a_driver_writes_legal_transitions_only(store: Store) -> None:
    run = insert(store)
    mine = acquire(store, run, "a")
    with pytest.raises(ValueError, match="unknown"):
        commit(store, mine, status="unknown")
    commit(store, mine, status=RunStatus.RUNNING)
    commit(store, mine, status=RunStatus.FAILED)
    with pytest.raises(Fenced):
        commit(store, mine, status=RunStatus.SUCCEEDED)


def test_what_has_ended_and_what_has_not() -> None:
    assert {status for status in RunStatus if not status.is_final} == set(LIVE)
    assert {status for status in RunStatus if status.is_final and RUN_TRANSITIONS[status]} == {RunStatus.FAILED}


def test_a_run_ends_once(store: Store) -> None:
    run = insert(store)
    words = [RunStatus.CANCELLED, RunStatus.TIMED_OUT, RunStatus.EXPIRED, RunStatus.CANCELLED]

    def end(number: int) -> bool:
        with store.write() as tx:
            return runs.end(tx, run.id, words[number], CANCELLED, allowed=LIVE)

    ended = at_once(4, end)
    assert sum(ended) == 1
    assert get(store, run).status is words[ended.index(True)]


def test_ending_and_committing_at_once_has_one_outcome(store: Store) -> None:
    for _ in range(10):
        run = insert(store)
        mine = acquire(store, run, "a")

        def work(number: int, mine: Run = mine) -> bool:
            try:
                with store.write() as tx:
                    if number == 0:
                        runs.commit(tx, mine, status=RunStatus.SUCCEEDED, owner=None)
                        history.add_trace(tx, mine.id, "workflow_completed")
                        return True
                    return runs.end(tx, mine.id, RunStatus.CANCELLED, CANCELLED, allowed=LIVE)
            except Fenced:
                return False

        succeeded, cancelled = at_once(2, work)
        assert succeeded != cancelled
        assert get(store, run).status is (RunStatus.SUCCEEDED if succeeded else RunStatus.CANCELLED)
        with store.read() as tx:
            assert len(history.list_trace(tx, run.id)) == 1


def test_waking_does_not_bring_back_an_ended_run(store: Store) -> None:
    run = insert(store)
    with store.write() as tx:
        runs.end(tx, run.id, RunStatus.CANCELLED, CANCELLED, allowed=LIVE)
        runs.signal(tx, run.id)
        assert runs.list_runnable(tx, 10) == ()
    assert get(store, run).status is RunStatus.CANCELLED


def test_only_runs_past_their_deadline_are_overdue(store: Store, clock: ManualClock) -> None:
    soon = insert(store, deadline_at=isoformat(clock.now() + timedelta(seconds=10)))
    insert(store, deadline_at=isoformat(clock.now() + timedelta(days=1)))
    insert(store)
    ended = insert(store, deadline_at=isoformat(clock.now()))
    with store.write() as tx:
        runs.end(tx, ended.id, RunStatus.CANCELLED, CANCELLED, allowed=LIVE)
        assert runs.list_overdue(tx) == ()
    clock.advance(timedelta(seconds=10))
    with store.read() as tx:
        assert runs.list_overdue(tx) == (soon.id,)
