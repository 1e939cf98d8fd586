"""A text search reads the rows of its period alone, on both databases, and says which period that was."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from builders import build_run, build_task
from operation_context import operation_context
from sqlalchemy import Select, text

from kneo.api.page import MAX_PERIOD
from kneo.api.runs import list_runs
from kneo.api.tasks import list_human_tasks
from kneo.clock import ManualClock, first_id, isoformat, new_id
from kneo.errors import InvalidValue
from kneo.records.task import TaskStatus
from kneo.settings import from_env
from kneo.store import runs, tasks
from kneo.store.engine import Store, open_engine
from kneo.store.run_filter import SORTABLE, RunFilter, counting, listing
from kneo.store.task_filter import SORTABLE as TASK_ORDERS
from kneo.store.task_filter import TaskFilter
from kneo.store.task_filter import counting as counting_tasks
from kneo.store.task_filter import listing as listing_tasks
from kneo.store.time_limit import StatementTooSlow, limit_statements


@pytest.fixture
def old_and_new(store: Store, clock: ManualClock) -> tuple[str, str]:
    """A run of 40 days ago and a run of now, with the same text."""
    with store.write() as tx:
        old = build_run(id=new_id("run", tx.now), input_text="invoice", created_at=tx.at)
        runs.insert_run(tx, old)
    clock.advance(timedelta(days=40))
    with store.write() as tx:
        new = build_run(id=new_id("run", tx.now), input_text="Invoice 2", created_at=tx.at)
        runs.insert_run(tx, new)
    return old.id, new.id


def test_a_search_of_runs_covers_30_days_unless_the_caller_names_a_period(
    store: Store, old_and_new: tuple[str, str], clock: ManualClock
) -> None:
    old, new = old_and_new
    context = operation_context(store)
    for sort_by in sorted(SORTABLE):
        page = list_runs(context, q="invoice", sort_by=sort_by)  # type: ignore[arg-type]
        assert ([run.id for run in page.runs], page.total) == ([new], 1), sort_by
        assert page.searched is not None
        assert page.searched.created_after == isoformat(clock.now() - timedelta(days=30))
        since = isoformat(clock.now() - timedelta(days=41))
        wide = list_runs(context, q="invoice", created_after=since, sort_by=sort_by)  # type: ignore[arg-type]
        assert ({run.id for run in wide.runs}, wide.total) == ({old, new}, 2), sort_by
    before = isoformat(clock.now() - timedelta(days=20))
    earlier = list_runs(context, q="invoice", created_before=before)
    assert [run.id for run in earlier.runs] == [old]
    assert earlier.searched is not None
    assert earlier.searched.created_after == isoformat(clock.now() - timedelta(days=50))


def test_only_a_text_search_has_a_period(store: Store, old_and_new: tuple[str, str]) -> None:
    context = operation_context(store)
    for page in (list_runs(context), list_runs(context, q="")):
        assert ({run.id for run in page.runs}, page.searched) == (set(old_and_new), None)


def test_a_period_that_is_too_long_is_refused(store: Store, clock: ManualClock) -> None:
    context = operation_context(store)
    begin = clock.now() - MAX_PERIOD
    assert list_runs(context, q="x", created_after=isoformat(begin)).total == 0
    with pytest.raises(InvalidValue) as refused:
        list_runs(context, q="x", created_after=isoformat(begin - timedelta(seconds=1)))
    assert refused.value.details["field"] == "created_after"
    with pytest.raises(InvalidValue):
        list_human_tasks(context, q="x", status="all", created_after="1970-01-01T00:00:00Z")
    first = list_runs(context, q="x", created_before="0001-01-02T00:00:00Z")
    assert first.searched is not None
    assert first.searched.created_after.startswith("0001-01-01")


def test_a_search_of_tasks_finds_every_open_one_and_resolved_ones_of_its_period(
    store: Store, clock: ManualClock
) -> None:
    made: dict[str, str] = {}
    for days, age in ((40, "old"), (0, "new")):
        for status in (TaskStatus.OPEN, TaskStatus.DECIDED):
            with store.write() as tx:
                task = build_task(
                    id=new_id("cont", tx.now),
                    title="Publish the invoice?",
                    status=status,
                    created_at=tx.at,
                    resolved_at=None if status is TaskStatus.OPEN else tx.at,
                )
                tasks.insert_task(tx, task)
            made[f"{age} {status}"] = task.id
        clock.advance(timedelta(days=days))
    context = operation_context(store)

    def found(**options: str) -> tuple[set[str], bool]:
        page = list_human_tasks(context, q="INVOICE", **options)  # type: ignore[arg-type]
        names = {name for name, id_ in made.items() if id_ in {task.id for task in page.tasks}}
        assert page.total == len(names)
        return names, page.searched is not None

    assert found() == ({"old open", "new open"}, False), "an open task is found however old it is"
    for sort_by in sorted(TASK_ORDERS):
        assert found(status="all", sort_by=sort_by) == ({"new open", "new decided"}, True)
    assert found(status="decided") == ({"new decided"}, True)
    since = isoformat(clock.now() - timedelta(days=41))
    assert found(status="all", created_after=since) == (set(made), True)
    until = isoformat(clock.now() - timedelta(days=20))
    assert found(status="decided", created_before=until) == ({"old decided"}, True)
    assert found(created_before=until) == ({"old open"}, False)
    assert list_human_tasks(context, status="all", created_after=since).total == len(made)
    assert list_human_tasks(context, status="all", created_after="0001-01-01T00:00:00Z").total == len(made)


@contextmanager
def slow(store: Store, table: str) -> Iterator[None]:
    """Make a statement that reads a table reach a limit of a microsecond: SQLite looks at the time after many rows, PostgreSQL waits for a lock."""
    with store.write() as tx:
        if not store.is_sqlite:
            tx.connection.execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
            yield
            return
        if table == "runs":
            for number in range(MANY):
                runs.insert_run(tx, build_run(id=new_id("run", tx.now), input_text=f"row {number}", created_at=tx.at))
        else:
            for number in range(MANY):
                tasks.insert_task(tx, build_task(id=new_id("cont", tx.now), title=f"Row {number}?", created_at=tx.at))
    yield


MANY = 2_000
"""More rows than SQLite reads between two looks at the time."""


def test_a_search_that_takes_too_long_is_ended_and_names_a_shorter_period(
    store: Store, clock: ManualClock, tmp_path: Path
) -> None:
    settings = from_env({"KNEO_SERV_SEARCH_TIMEOUT_SECONDS": "0.000001"}, tmp_path)
    context = operation_context(store, settings=settings)
    half = isoformat(clock.now() - timedelta(days=15))
    with slow(store, "runs"):
        for sort_by in ("created_at", "updated_at"):
            with pytest.raises(InvalidValue) as refused:
                list_runs(context, q="absent", sort_by=sort_by)  # type: ignore[arg-type]
            assert (refused.value.code, refused.value.http_status) == ("search_too_slow", 422)
            assert refused.value.hint == f"Search a shorter period: set created_after to {half}."
            assert (
                f"from {isoformat(clock.now() - timedelta(days=30))} to now took longer than" in refused.value.message
            )
    with slow(store, "tasks"):
        with pytest.raises(InvalidValue) as refused:
            list_human_tasks(context, q="absent", status="all")
        assert half in str(refused.value.hint)
        with pytest.raises(InvalidValue) as refused:
            list_human_tasks(context, q="absent")
        assert refused.value.hint == "Search for another text, or name the environment."
    patient = operation_context(store)
    assert list_runs(patient, q="absent").total == 0
    assert list_human_tasks(patient, q="absent", status="all").total == 0


def test_the_limit_of_a_statement_ends_with_its_block(store: Store) -> None:
    endless = text(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
        if store.is_sqlite
        else "SELECT pg_sleep(600)"
    )
    with pytest.raises(StatementTooSlow), store.read() as tx, limit_statements(tx, 0.05):
        tx.connection.execute(endless).all()
    most = 2_000_000 if store.is_sqlite else 0.2
    lasting = text(
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {most}) SELECT max(i) FROM n"
        if store.is_sqlite
        else f"SELECT 1 FROM pg_sleep({most})"
    )
    with store.read() as tx:
        with limit_statements(tx, 0.001):
            pass
        assert tx.connection.execute(lasting).scalar_one() in {1, most}
    with store.read() as tx, limit_statements(tx, 1e9):
        assert tx.connection.execute(text("SELECT 1")).scalar_one() == 1


def test_the_limit_of_a_block_gives_way_to_that_of_the_operator(postgres_url: str, clock: ManualClock) -> None:
    limited = Store(open_engine(f"{postgres_url}&options=-c%20statement_timeout=7000"), clock)
    with limited.read() as tx:
        with limit_statements(tx, 1):
            assert tx.connection.execute(text("SHOW statement_timeout")).scalar() == "1s"
        assert tx.connection.execute(text("SHOW statement_timeout")).scalar() == "7s"
    limited.close()


def test_ids_of_times_before_the_first_one_sort_before_all(clock: ManualClock) -> None:
    assert first_id("cont", clock.now().replace(year=1)) < new_id("cont", clock.now())


def test_a_text_is_searched_in_the_index_of_creation(store: Store) -> None:
    where = RunFilter(text="x", created_after="2026")
    for sort_by, descending in itertools.product(sorted(SORTABLE), (True, False)):
        statement = listing(where.conditions, sort_by, descending=descending, after=False)
        check_range(store, statement, where.values | {"most": 100, "skipped": 0}, "created_at")
    check_range(store, counting(where.conditions), where.values, "created_at")


def test_a_text_of_tasks_is_searched_in_the_ids_of_its_period(store: Store, clock: ManualClock) -> None:
    where = TaskFilter(statuses=frozenset(TaskStatus), text="x", created_after=isoformat(clock.now()))
    for sort_by, descending in itertools.product(sorted(TASK_ORDERS), (True, False)):
        statement = listing_tasks(where.conditions, sort_by, descending=descending, after=False)
        check_range(store, statement, where.values | {"most": 100, "skipped": 0}, "id")
    check_range(store, counting_tasks(where.conditions), where.values, "id")


def check_range(store: Store, statement: Select[tuple[object, ...]], values: dict[str, object], column: str) -> None:
    """Check that a statement reads a range of an index that begins with a column."""
    with store.read() as tx:
        explain = "EXPLAIN QUERY PLAN" if store.is_sqlite else "EXPLAIN"
        if not store.is_sqlite:
            for unwanted in ("seqscan", "bitmapscan"):
                tx.connection.execute(text(f"SET LOCAL enable_{unwanted} = off"))
        sql = statement.params(**values).compile(tx.connection, compile_kwargs={"literal_binds": True})
        steps = [str(row[-1]) for row in tx.connection.exec_driver_sql(f"{explain} {sql}")]
    wanted = f"({column}>" if store.is_sqlite else f"Index Cond: (({column})::text >="
    assert any(wanted in step for step in steps), steps
    assert not any(step.startswith("SCAN") or "Seq Scan" in step for step in steps), steps
