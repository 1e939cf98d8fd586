"""Imported runs: counted as runs, never as decisions of this installation, and neither continued, forked nor repeated."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from builders import build_task
from engine import Engine
from operation_context import operation_context
from prometheus_client.parser import text_string_to_metric_families
from published_history import FIXTURES, run_import

from kneo.api.run_history import get_run_recovery, get_run_replay
from kneo.api.runs import list_runs
from kneo.api.tasks import get_human_task_stats
from kneo.clock import new_id
from kneo.errors import Conflict
from kneo.records.run import IMPORTER, RunStatus
from kneo.records.task import TaskStatus
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import ForkRequest, fork
from kneo.service.events import Streams
from kneo.service.metrics import Metrics
from kneo.store import runs, tasks
from kneo.store.engine import Store


@pytest.fixture
def imported(store: Store, tmp_path: Path) -> Store:
    """A database with the runs of another platform."""
    run_import(Path(shutil.copy(FIXTURES / "1.2.0.sqlite", tmp_path / "published.sqlite")), store)
    return store


def test_imported_runs_are_listed_and_counted_by_status(imported: Store) -> None:
    context = operation_context(imported)
    page = list_runs(context, limit=100)
    by_status = Counter(run.status for run in page.runs)
    assert (page.total, sum(by_status.values())) == (13, 13)
    for status, count in by_status.items():
        assert list_runs(context, status=status, limit=1).total == count
    text = Metrics(imported, Streams(1, 1, 1.0)).text().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    counted = {sample.labels["status"]: sample.value for sample in samples if sample.name == "kneo_runs"}
    assert {status: count for status, count in counted.items() if count} == by_status
    waiting = {sample.labels["status"]: sample.value for sample in samples if sample.name == "kneo_human_tasks"}
    assert not any(waiting[status] for status in ("open", "claimed", "snoozed")), "no imported task waits"


def test_imported_tasks_are_in_no_statistics_of_gates(imported: Store) -> None:
    statistics = get_human_task_stats(operation_context(imported), since="365d")
    assert (statistics.tasks, statistics.gates) == (0, [])
    with imported.write() as tx:
        expired = build_task(
            id=new_id("cont", tx.now),
            status=TaskStatus.EXPIRED,
            requester=IMPORTER,
            created_at=tx.at,
            resolved_at=tx.at,
        )
        tasks.insert_task(tx, expired)
    statistics = get_human_task_stats(operation_context(imported), since="365d")
    assert [gate.expired for gate in statistics.gates] == [1], "a person may have the name of the importer"


def test_no_imported_run_is_forked_and_none_of_its_answers_is_reused(imported: Store, tmp_path: Path) -> None:
    engine = Engine(imported, tmp_path / "code", "")
    with imported.read() as tx:
        before = runs.list_runs(tx, limit=100)
    assert {run.status for run in before} >= {RunStatus.SUCCEEDED, RunStatus.FAILED}
    for run in before:
        with pytest.raises(Conflict) as refused:
            fork(engine.starter, ProgramLoader(imported), ForkRequest(run_id=run.id, checkpoint=1))
        assert (refused.value.code, refused.value.http_status) == ("run_imported", 409)
        assert run.id in refused.value.message
        assert refused.value.hint == "Start a new run of its spec: kneo run."
    with imported.read() as tx:
        assert runs.list_runs(tx, limit=100) == before


def test_an_imported_run_is_shown_as_a_timeline_that_cannot_continue(imported: Store) -> None:
    context = operation_context(imported)
    for run in list_runs(context, limit=100).runs:
        replay, recovery = get_run_replay(context, run.id), get_run_recovery(context, run.id)
        assert len(replay.timeline) == replay.checkpoint_count > 0
        assert (replay.answers, recovery.replay_context.can_continue) == ([], False)
