"""Every list of a caller who reads a few of many environments is answered by an index, on both databases."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
from builders import build_run, build_task
from sqlalchemy import event, text

from kneo.digest import digest_of
from kneo.records.run import ReleaseRef, RunError, RunStatus
from kneo.store import audit, runs, tasks
from kneo.store.engine import Store, Tx
from kneo.store.run_filter import RunFilter

REACH = frozenset({"env-7", "env-8", "env-9"})
RELEASE = ReleaseRef(
    bundle="pay", version="1.0.0", digest=digest_of(b"payload"), environment="prod", revision="1", promotion_id="prm_1"
)
NOON = "2026-01-31T12:00:00.000000+00:00"

FILTERS = {
    "nothing": RunFilter(),
    "status": RunFilter(statuses={RunStatus.FAILED}),
    "statuses": RunFilter(statuses={RunStatus.FAILED, RunStatus.PAUSED}),
    "error": RunFilter(has_error=True),
    "environment": RunFilter(environment="env-7"),
    "environment and status": RunFilter(environment="env-7", statuses={RunStatus.FAILED}),
}

AUDITED: Sequence[audit.AuditConditions] = (
    {},
    {"event_type": "run.created"},
    {"actor": "ann"},
    {"environment": "env-7"},
    {"environment": "env-7", "event_type": "run.created"},
    {"created_after": NOON},
)


@pytest.fixture
def filled(store: Store) -> Store:
    """A database with some rows of each environment."""
    with store.write() as tx:
        for number in range(200):
            status = RunStatus.FAILED if number % 3 else RunStatus.PAUSED
            error = RunError(type="boom", message="x") if number % 3 else None
            run = build_run(environment=f"env-{number % 50}", status=status, error=error)
            runs.insert_run(tx, run)
            resolved_at = NOON if number % 5 else None
            tasks.insert_task(tx, build_task(run_id=run.id, environment=run.environment, resolved_at=resolved_at))
            audit.record(tx, "run.created", actor="ann", environment=run.environment, run_id=run.id)
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE" if store.is_sqlite else "VACUUM ANALYZE runs, tasks, audit_events"))
    return store


@contextmanager
def _executed(store: Store) -> Iterator[list[tuple[str, object]]]:
    """Collect the statements that are executed."""
    found: list[tuple[str, object]] = []

    def note(_connection: object, _cursor: object, statement: str, values: object, *_: object) -> None:
        found.append((statement, values))

    event.listen(store.engine, "before_cursor_execute", note)
    yield found
    event.remove(store.engine, "before_cursor_execute", note)


def _steps(store: Store, read: Callable[[Tx], object], table: str) -> list[str]:
    """Return the steps of the plans of a read that concern a table, and those that sort."""
    with _executed(store) as statements, store.read() as tx:
        read(replace(tx, reach=REACH))
    explain = "EXPLAIN QUERY PLAN" if store.is_sqlite else "EXPLAIN"
    steps = []
    with store.write() as tx:
        if not store.is_sqlite:
            # Then any other way that there is, is taken: what is left of these says that there is none.
            for unwanted in ("seqscan", "bitmapscan", "hashjoin", "mergejoin"):
                tx.connection.execute(text(f"SET LOCAL enable_{unwanted} = off"))
        for statement, values in statements:
            steps += [str(row[-1]) for row in tx.connection.exec_driver_sql(f"{explain} {statement}", values)]
    found = [step for step in steps if table in step.split() or "ORDER BY" in step]
    assert any(table in step for step in found), steps
    return found


def _is_by(step: str, index: str, *, table: str) -> bool:
    """Return whether a step reads an index of environments from one environment on, or a row by its id."""
    if "ORDER BY" in step:
        return False
    by_id = f"pk_{table}", f"sqlite_autoindex_{table}"
    return not step.startswith("SCAN") and (index in step or any(name in step for name in by_id))


def _check_list(store: Store, read: Callable[[Tx], object], index: str, table: str) -> None:
    """Check that a list reads the first rows of each environment by its index, and puts only these in one order."""
    steps = _steps(store, read, table)
    others = [step for step in steps if "ORDER BY" not in step]
    assert all(_is_by(step, index, table=table) for step in others), steps
    if index != "ix_runs_environment_":
        assert len(steps) - len(others) <= 1, steps


def _check_count(store: Store, read: Callable[[Tx], object], index: str, table: str) -> None:
    """Check that a count reads the index of environments alone; among so few rows PostgreSQL may choose another one."""
    for step in _steps(store, read, table):
        assert f"INDEX {index}" in step or " Scan using " in step, step
        assert not step.startswith("SCAN"), step


def test_runs_of_some_environments_are_read_in_the_order_of_the_index_of_each(filled: Store) -> None:
    for where, sort_by, descending in itertools.product(FILTERS.values(), ("created_at", "updated_at"), (True, False)):
        for after in (None, "run_1") if sort_by == "created_at" else (None,):
            read = partial(runs.list_runs, where=where, sort_by=sort_by, descending=descending, limit=5, after=after)
            # Where most runs have an error, no index for runs with one is worth it.
            index = "ix_runs_environment_" if where.has_error else f"ix_runs_environment_{sort_by}"
            _check_list(filled, read, index, "runs")
        _check_count(filled, partial(runs.count_runs, where=where), "ix_runs_environment_", "runs")


def test_runs_of_a_bundle_or_workflow_are_read_and_counted_by_its_index(store: Store) -> None:
    with store.write() as tx:
        for number in range(400):
            release, name = replace(RELEASE, bundle=f"bundle-{number % 20}"), f"workflow-{number % 20}"
            run = build_run(environment=f"env-{number % 50}", release=release, workflow_name=name)
            runs.insert_run(tx, run)
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE" if store.is_sqlite else "VACUUM ANALYZE runs"))
    for where, index in (
        (RunFilter(bundle="bundle-7"), "ix_runs_bundle_updated_at"),
        (RunFilter(workflow_name="workflow-7"), "ix_runs_workflow_name_updated_at"),
    ):
        for read in (partial(runs.list_runs, where=where, limit=5), partial(runs.count_runs, where=where)):
            steps = [step for step in _steps(store, read, "runs") if "ORDER BY" not in step]
            assert steps, where
            assert all(index in step for step in steps), steps
        with store.read() as tx:
            limited, every = replace(tx, reach=REACH), runs.list_runs(tx, where, limit=1_000)
            expected = [run.id for run in every if run.environment in REACH]
            assert 0 < len(expected) < len(every)
            assert [run.id for run in runs.list_runs(limited, where)] == expected
            assert runs.count_runs(limited, where) == len(expected)


def test_audit_events_of_some_environments_are_read_and_counted_by_their_index(filled: Store) -> None:
    index, table = "ix_audit_events_environment_id", "audit_events"
    for where, descending in itertools.product(AUDITED, (True, False)):
        _check_list(filled, partial(audit.events, limit=5, descending=descending, **where), index, table)
        _check_count(filled, partial(audit.count, **where), index, table)


def test_open_tasks_of_some_environments_are_read_by_an_index_of_the_inbox(filled: Store) -> None:
    steps = _steps(filled, lambda tx: tasks.list_tasks(tx, limit=5), "tasks")
    assert all("ix_tasks_" in step for step in steps), steps


def test_lists_of_some_environments_hold_what_they_held(filled: Store) -> None:
    with filled.read() as tx:
        limited = replace(tx, reach=REACH)
        everything = runs.list_runs(tx, sort_by="created_at", limit=1_000)
        for name, where in FILTERS.items():
            places = REACH if where.environment is None else {where.environment}
            here = [run for run in everything if run.environment in places]
            here = [run for run in here if not where.has_error or run.error is not None]
            expected = [run.id for run in here if not where.statuses or run.status in where.statuses]
            found = runs.list_runs(limited, where, sort_by="created_at", limit=100)
            assert [run.id for run in found] == expected, name
            assert runs.count_runs(limited, where) == len(expected), name
            for size in (1, 2):
                rest = runs.list_runs(limited, where, sort_by="created_at", limit=100, after=expected[size - 1])
                assert [run.id for run in rest] == expected[size:], name
        events = audit.events(limited, limit=100)
        assert {item.event.environment for item in events} == REACH
        assert [item.event.id for item in audit.events(limited, limit=2, offset=1)] == [
            item.event.id for item in events[1:3]
        ]
        assert audit.count(limited) == len(events)
        assert audit.events(limited, environment="env-1") == ()
        assert audit.count(limited, environment="env-1") == 0
