from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from builders import build_run, build_task
from operation_context import operation_context
from sqlalchemy import Select, text

from kneo.api.operation import Principal
from kneo.api.runs import list_runs
from kneo.clock import ManualClock, isoformat
from kneo.errors import Forbidden
from kneo.records.run import RunError, RunStatus
from kneo.records.task import Candidates, TaskStatus
from kneo.store import project_metadata, runs, tasks
from kneo.store.engine import Store
from kneo.store.run_filter import LASTING, SORTABLE, RunFilter, counting, listing


@pytest.fixture
def five(store: Store, clock: ManualClock) -> list[str]:
    """Five runs, a second apart."""
    differences = (
        {"input_text": "100% sure", "metadata": {"session_id": "s1"}},
        {"input_text": "100 percent", "metadata": {"session_id": "s1"}},
        {"status": RunStatus.FAILED, "error": RunError(type="boom", message="x"), "output_text": "Said LOUDLY"},
        {"target": "agent", "workflow_name": None, "workflow_type": None},
        {"environment": "prod", "workflow_name": "other", "requester": "bob"},
    )
    made = []
    for changes in differences:
        run = build_run(**changes)
        with store.write() as tx:
            runs.insert_run(tx, run)
        made.append(run.id)
        clock.advance(timedelta(seconds=1))
    return made


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (RunFilter(session_id="s1"), [0, 1]),
        (RunFilter(text="100%"), [0]),
        (RunFilter(text="said loud"), [2]),
        (RunFilter(text="_"), []),
        (RunFilter(text="\\"), []),
        (RunFilter(has_error=True), [2]),
        (RunFilter(has_error=False, session_id="s1"), [0, 1]),
        (RunFilter(statuses={RunStatus.FAILED}), [2]),
        (RunFilter(statuses={RunStatus.FAILED, RunStatus.RUNNING}), [0, 1, 2, 3, 4]),
        (RunFilter(statuses={RunStatus.FAILED, RunStatus.PAUSED}), [2]),
        (RunFilter(requester="bob"), [4]),
        (RunFilter(requester="ann", session_id="s1"), [0, 1]),
        (RunFilter(target="agent"), [3]),
        (RunFilter(workflow_type="sequential"), [0, 1, 2, 4]),
        (RunFilter(workflow_type="graph"), []),
        (RunFilter(workflow_name="other"), [4]),
        (RunFilter(environment="prod", target="agent"), []),
    ],
)
def test_runs_are_found_by(store: Store, five: list[str], where: RunFilter, expected: list[int]) -> None:
    with store.read() as tx:
        found = runs.list_runs(tx, where, sort_by="created_at", descending=False)
        assert [five.index(run.id) for run in found] == expected
        assert runs.count_runs(tx, where) == len(expected)


def test_runs_are_found_by_time(store: Store, five: list[str], clock: ManualClock) -> None:
    start = clock.now() - timedelta(seconds=5)
    where = RunFilter(
        created_after=isoformat(start + timedelta(seconds=1)), created_before=isoformat(start + timedelta(seconds=3))
    )
    with store.read() as tx:
        assert {run.id for run in runs.list_runs(tx, where)} == set(five[1:3])


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("column", sorted(SORTABLE))
def test_pages_hold_every_run_once_whatever_the_order(
    store: Store, five: list[str], column: str, descending: bool
) -> None:
    with store.read() as tx:
        pages = [runs.list_runs(tx, sort_by=column, descending=descending, limit=2, offset=at) for at in (0, 2, 4)]
    assert sorted(run.id for page in pages for run in page) == sorted(five)


def test_rows_without_the_value_come_last(store: Store, five: list[str]) -> None:
    with store.read() as tx:
        for descending in (True, False):
            found = runs.list_runs(tx, sort_by="session_id", descending=descending)
            assert {run.id for run in found[:2]} == set(five[:2])


def test_values_are_kept_by_name(store: Store) -> None:
    with store.write() as tx:
        assert project_metadata.read(tx, "policies") == {}
        project_metadata.lock(tx, "policies")
        project_metadata.write(tx, "policies", {"prod": {"enabled": True}})
        project_metadata.write(tx, "policies", {"prod": {"enabled": False}})
    with store.read() as tx:
        assert project_metadata.read(tx, "policies") == {"prod": {"enabled": False}}
        assert project_metadata.read(tx, "other") == {}


def test_runs_are_found_by_the_person_they_wait_for(store: Store, five: list[str]) -> None:
    candidates = [(), ("user:ann",), ("group:prod/editors",), ("user:ann", "not:ann")]
    with store.write() as tx:
        for run_id, who in zip(five, candidates, strict=False):
            named = any(not one.startswith("not:") for one in who)
            asked = Candidates(users=("ann",)) if named else Candidates()
            tasks.insert_task(tx, build_task(run_id=run_id, candidates=asked), who)
        decided = build_task(run_id=five[4], status=TaskStatus.DECIDED, resolved_at=tx.at)
        tasks.insert_task(tx, decided)
    with store.read() as tx:

        def waiting(*who: str) -> list[int]:
            where = RunFilter(waiting_for=who)
            found = runs.list_runs(tx, where, sort_by="created_at", descending=False)
            assert runs.count_runs(tx, where) == len(found)
            return [five.index(run.id) for run in found]

        assert waiting("user:ann") == [0, 1]
        assert waiting("user:cy", "group:prod/editors") == [0, 2]
        assert waiting("user:dee") == [0]


def test_whom_runs_wait_for_is_shown_to_readers_of_tasks(store: Store) -> None:
    context = replace(operation_context(store), principal=Principal("ann", frozenset({"runs:read"})))
    assert list_runs(context, requester="ann").runs == []
    with pytest.raises(Forbidden):
        list_runs(context, waiting_for="me")


def test_pages_go_on_after_a_run_in_an_order_that_lasts(store: Store, five: list[str]) -> None:
    with store.read() as tx:
        for sort_by, descending in itertools.product(sorted(LASTING), (True, False)):
            whole = [run.id for run in runs.list_runs(tx, sort_by=sort_by, descending=descending)]
            for seen in (1, 3, 5):
                rest = runs.list_runs(tx, sort_by=sort_by, descending=descending, after=whole[seen - 1])
                assert [run.id for run in rest] == whole[seen:]


def test_runs_are_listed_and_counted_by_an_index(store: Store) -> None:
    filters = [
        RunFilter(**{name: "x"})
        for name in ("environment", "bundle", "target", "workflow_name", "session_id")  # type: ignore[arg-type]
    ]
    filters += [
        RunFilter(),
        RunFilter(statuses={RunStatus.PAUSED}),
        RunFilter(requester="ann"),
        RunFilter(created_after="2026"),
        RunFilter(environment="x", bundle="y"),
    ]
    for where, descending in itertools.product(filters, (True, False)):
        # Runs that are found by their creation or their requester may be sorted otherwise.
        for sort_by in ("created_at", "updated_at")[: 1 if where.created_after or where.requester else 2]:
            statement = listing(where.conditions, sort_by, descending=descending, after=False)
            steps = plan(store, statement, where.values | {"most": 100, "skipped": 0})
            assert "SCAN runs" not in steps
            # Runs that changed at the very same time may be put in order, one such time after the other.
            steps = [step for step in steps if "Incremental Sort" not in step]
            assert not any("Seq Scan" in step or "FOR ORDER BY" in step or "Sort  (" in step for step in steps), steps
        steps = plan(store, counting(where.conditions), where.values)
        assert not any(step == "SCAN runs" or "Seq Scan" in step for step in steps), steps


def plan(store: Store, statement: Select[Any], values: dict[str, object]) -> list[str]:
    with store.read() as tx:
        explain = "EXPLAIN QUERY PLAN" if store.is_sqlite else "EXPLAIN"
        if not store.is_sqlite:
            for unwanted in ("seqscan", "sort", "bitmapscan"):
                tx.connection.execute(text(f"SET LOCAL enable_{unwanted} = off"))
        sql = statement.params(**values).compile(tx.connection, compile_kwargs={"literal_binds": True})
        return [str(row[-1]) for row in tx.connection.exec_driver_sql(f"{explain} {sql}")]


@pytest.mark.parametrize("sort_by", ["updated_at", "created_at", "status"])
@pytest.mark.parametrize("readable", [("a",), ("a", "b"), (*tuple(f"e{number}" for number in range(30)), "b", "c")])
def test_a_limited_transaction_lists_the_runs_of_its_environments_in_the_order_of_all(
    store: Store, clock: ManualClock, sort_by: str, readable: tuple[str, ...]
) -> None:
    for name in ("a", "b", None, "c", "a", "b", "c", "a"):
        with store.write() as tx:
            runs.insert_run(tx, build_run(environment=name))
        clock.advance(timedelta(seconds=1))
    limited = store.limited(lambda _tx: frozenset(readable))
    with store.read() as tx, limited.read() as seen:
        expected = [run.id for run in runs.list_runs(tx, sort_by=sort_by) if run.environment in readable]
        assert [run.id for run in runs.list_runs(seen, sort_by=sort_by)] == expected
        assert [run.id for run in runs.list_runs(seen, sort_by=sort_by, limit=2, offset=1)] == expected[1:3]
        assert runs.count_runs(seen) == len(expected)
        assert runs.list_runs(seen, RunFilter(environment="d")) == ()
        hidden = next(run for run in runs.list_runs(tx) if run.environment not in readable)
        assert runs.get(seen, hidden.id) is None
        assert runs.get(seen, expected[0]) is not None
