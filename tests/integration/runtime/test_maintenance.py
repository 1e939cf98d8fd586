"""What is kept, what goes, and copies that can be trusted."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from engine import Engine, step

from kneo.clock import ManualClock
from kneo.errors import Invalid, Transient
from kneo.maintenance import RetentionManager, RetentionPolicy
from kneo.records.conversation import ConversationEntry, EntryKind, EntryStatus
from kneo.records.run import RunStatus
from kneo.runtime.engine.start import Starter
from kneo.spec.project import Retention
from kneo.store import audit, history, runs, tasks
from kneo.store.engine import Store
from kneo.store.usage import record_usage, usage_since


def model_entry() -> ConversationEntry:
    return ConversationEntry(
        conversation="agent~0",
        name="model:1",
        number=1,
        kind=EntryKind.MODEL,
        status=EntryStatus.DONE,
        facts={"provider": "openai", "model": "m", "agent": "a", "input_tokens": 1, "output_tokens": 1},
        started_at="2026-01-31T12:00:00Z",
    )


HUMAN = {"id": "q", "kind": "human", "ref": "ann"}
SOURCE = "def a(text): return text\ndef bad(text): raise ValueError\n"


@pytest.fixture
def engine(store: Store, tmp_path: Path) -> Engine:
    return Engine(store, tmp_path / "code", SOURCE)


def test_runs_that_ended_go_with_all_they_left_and_others_stay(engine: Engine, clock: ManualClock) -> None:
    done, broken = engine.run([step("a")]), engine.run([step("bad")])
    waiting = engine.run([step("a"), HUMAN])
    clock.advance(timedelta(days=10))
    young = engine.run([step("a")])
    manager = RetentionManager(engine.store)
    assert manager.prune(RetentionPolicy()).runs == 0
    report = manager.prune(RetentionPolicy(runs_days=5, checkpoints_days=5, continuations_days=5))
    assert report.runs == 2
    with engine.store.read() as tx:
        assert [runs.get(tx, run.id) is None for run in (done, broken, waiting, young)] == [True, True, False, False]
        assert history.list_steps(tx, done.id) == ()
        assert history.list_checkpoints(tx, waiting.id)
        assert tasks.count_tasks(tx) == 1
        assert audit.events(tx, run_id=done.id, limit=10)
    engine.answer(engine.open(waiting)[0], "approved")
    assert engine.drive(waiting).status is RunStatus.SUCCEEDED


def test_only_the_statuses_that_are_named_go(engine: Engine, clock: ManualClock) -> None:
    done, broken = engine.run([step("a")]), engine.run([step("bad")])
    clock.advance(timedelta(days=10))
    policy = RetentionPolicy(runs_days=5, run_statuses=(RunStatus.SUCCEEDED, RunStatus.PAUSED))
    assert RetentionManager(engine.store).prune(policy).runs == 1
    with engine.store.read() as tx:
        assert runs.get(tx, done.id) is None
        assert runs.get(tx, broken.id) is not None


def test_a_variable_wins_over_the_project() -> None:
    project = Retention(runs_days=30, logs_days=7)
    policy = RetentionPolicy.from_project_and_env(project, {"KNEO_SERV_RETENTION_RUNS_DAYS": "3"})
    assert (policy.runs_days, policy.logs_days, policy.queue_days) == (3, 7, None)
    assert RetentionPolicy.from_project_and_env(None, {}).keeps_everything


def test_the_usage_of_days_that_no_budget_needs_goes(engine: Engine, clock: ManualClock) -> None:
    run = engine.start([step("a")])
    with engine.store.read() as tx:
        row = runs.get(tx, run.id)
    assert row is not None

    def used() -> int:
        with engine.store.read() as tx:
            return usage_since(tx, None, "2000-01-01").requests

    for days in (0, 40, 20):
        clock.advance(timedelta(days=days))
        with engine.store.write() as tx:
            record_usage(tx, row, [model_entry()])
    manager = RetentionManager(engine.store)
    assert (manager.prune(RetentionPolicy()).usage_rows, used()) == (0, 3)
    assert (manager.prune(RetentionPolicy(usage_days=31)).usage_rows, used()) == (1, 2)


def test_usage_is_kept_for_the_month_of_its_budgets() -> None:
    with pytest.raises(Invalid, match="a budget per month needs 31"):
        RetentionPolicy.from_project_and_env(None, {"KNEO_SERV_RETENTION_USAGE_DAYS": "30"})
    assert RetentionPolicy.from_project_and_env(None, {"KNEO_SERV_RETENTION_USAGE_DAYS": "31"}).usage_days == 31


def test_old_files_go(engine: Engine, tmp_path: Path, clock: ManualClock) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "now.log").write_text("x")
    clock.advance(timedelta(days=365 * 10))
    assert RetentionManager(engine.store, logs=logs).prune(RetentionPolicy(logs_days=5)).logs == 1


def test_a_full_queue_takes_no_more(engine: Engine) -> None:
    engine.starter = Starter(engine.store, engine.starter.check_spec, pin=None, max_queue=2)
    made = [engine.start([step("a")]) for _ in range(2)]
    with pytest.raises(Transient) as caught:
        engine.start([step("a")])
    assert (caught.value.code, caught.value.http_status) == ("queue_full", 503)
    engine.drive(made[0])
    engine.start([step("a")])
