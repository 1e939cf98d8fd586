"""The statements of each operation of a run, with those that begin and end transactions, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from config_repo import ConfigRepo
from engine import Engine, step
from service_bench import serving, spec_of
from sqlalchemy import Connection, event

from kneo.cli.serve.controller import Repository, make_controller
from kneo.runtime.engine.assemble import make_driver
from kneo.runtime.engine.wait import CallSettled, RunSettled, SettledRun, find_run
from kneo.runtime.engine.worker import Driver
from kneo.store import audit, runs
from kneo.store.change_feed import ChangeFeed
from kneo.store.engine import Store, Tx

SOURCE = """
def draft(text): return text + " (draft)"
def publish(text): return text + " (published)"
"""
HUMAN = {"id": "check", "kind": "human", "ref": "ann"}

BUDGETS = {
    "sqlite": {
        "human run": {"start": 9, "drive to the question": 14, "answer": 11, "drive to the end": 20, "seal": 17},
        "three steps": {"start": 9, "drive to the end": 19, "seal": 11},
    },
    "postgresql": {
        "human run": {"start": 7, "drive to the question": 9, "answer": 10, "drive to the end": 13, "seal": 11},
        "three steps": {"start": 7, "drive to the end": 17, "seal": 10},
    },
}
"""Statements of each operation. On PostgreSQL each is a round trip, and the start and the end of a transaction are among them; sealing
is once for all events of a second.
"""


@pytest.fixture
def engine(store: Store, tmp_path: Path) -> Engine:
    return Engine(store, tmp_path / "code", SOURCE)


@contextmanager
def counted(store: Store, counts: dict[str, int], name: str) -> Iterator[None]:
    """Count the round trips to the database while a block runs."""
    found: list[str] = []

    def statement(
        _connection: Connection, _cursor: object, sql: str, values: object, _more: object, many: bool
    ) -> None:
        found.extend([sql] * (len(values) if many else 1))

    def is_transaction(connection: Connection) -> bool:
        return connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT"

    def begin(connection: Connection) -> None:
        found.extend(["BEGIN"] * is_transaction(connection))

    def end(connection: Connection) -> None:
        found.extend(["COMMIT"] * is_transaction(connection))

    listeners = [("before_cursor_execute", statement)]
    if not store.is_sqlite:
        listeners += [("begin", begin), ("commit", end), ("rollback", end)]
    for kind, listener in listeners:
        event.listen(store.engine, kind, listener)
    try:
        yield
    finally:
        for kind, listener in listeners:
            event.remove(store.engine, kind, listener)
    counts[name] = len(found)


def human_run(engine: Engine, driver: Driver) -> dict[str, int]:
    store, counts = engine.store, dict[str, int]()
    with counted(store, counts, "start"):
        run = engine.start([step("a", "draft"), HUMAN, step("b", "publish")])
    with counted(store, counts, "drive to the question"):
        engine.drive_with(driver, run)
    (task,) = engine.open(run)
    with counted(store, counts, "answer"):
        engine.answer(task, "approved")
    with counted(store, counts, "drive to the end"):
        done = engine.drive_with(driver, run)
    with counted(store, counts, "seal"):
        audit.seal(store)
    assert done.output_text == "in (draft) (published)"
    return counts


def three_steps(engine: Engine, driver: Driver) -> dict[str, int]:
    store, counts = engine.store, dict[str, int]()
    with counted(store, counts, "start"):
        run = engine.start([step("a", "draft"), step("b", "draft"), step("c", "publish")])
    with counted(store, counts, "drive to the end"):
        done = engine.drive_with(driver, run)
    with counted(store, counts, "seal"):
        audit.seal(store)
    assert done.output_text == "in (draft) (draft) (published)"
    return counts


RELEASE_BUDGETS = {"sqlite": {"start": 14, "drive": 14}, "postgresql": {"start": 12, "drive": 11}}


@pytest.mark.both_databases
def test_a_release_started_over_http_executes_no_more_statements_than_its_budget(
    tmp_path: Path, database_url: str
) -> None:
    repo = ConfigRepo(tmp_path / "repo")
    repo.bundle("mail", "1.0.0", spec_of({"id": "publish", "kind": "function", "ref": "publish"}))
    repo.environment("prod", {"mail": "1.0.0"}, tools={"sandbox": {"required": "none"}})
    repo.commit("Release mail")
    with serving(tmp_path / "house", database_url, workers=0, KNEO_SERV_TRUST_ROOT=str(repo.pin)) as bench:
        source = Repository(str(repo.folder), "main", repo.pin, timedelta(seconds=60))
        make_controller(bench.settings, bench.store, source).run_once()
        order = {"input": "x", "bundle": "mail", "environment": "prod", "async_mode": True}
        driver, counts = make_driver(bench.settings, bench.store), dict[str, int]()
        for key in ("first", "second"):  # the second run finds its spec and its program
            with counted(bench.store, counts, "start"):
                run_id = bench.post("/runs", order, role="operator", expect=202, key=key)["run_id"]
            with counted(bench.store, counts, "drive"):
                asyncio.run(driver.drive(run_id))
            assert find_run(bench.store, run_id).status == "succeeded"
        budgets = RELEASE_BUDGETS[bench.store.engine.dialect.name]
        assert {name: count for name, count in counts.items() if count > budgets[name]} == {}


@pytest.mark.both_databases
def test_a_wait_for_a_run_executes_one_statement_for_each_poll(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    polls, counts = list[int](), dict[str, int]()
    progress = runs.progress

    def counted_progress(tx: Tx, run_ids: Sequence[str]) -> object:
        polls.append(len(run_ids))
        return progress(tx, run_ids)

    monkeypatch.setattr(runs, "progress", counted_progress)
    run = engine.start([step("a", "draft")])
    with counted(engine.store, counts, "wait"), ChangeFeed(engine.store) as feed:
        assert feed.wait_for(RunSettled(run.id), 0.3) is None
    assert counts["wait"] == len(polls) > 0


@pytest.mark.both_databases
def test_a_wait_reads_a_run_that_did_not_end_it_again_once_it_has_changed(engine: Engine) -> None:
    driver = engine.driver()
    run = engine.start([HUMAN, HUMAN | {"id": "again"}])
    call = CallSettled(run.id)

    def changed() -> Sequence[object]:
        with engine.store.look() as tx:
            return CallSettled.find_changed(tx, [call])

    def read() -> Sequence[SettledRun | None]:
        with engine.store.read() as tx:
            return CallSettled.read(tx, [call])

    for _ in range(2):
        engine.drive_with(driver, run)
        assert changed() == [call]
        assert changed() == [call]  # where a read fails, the next one is made
        assert read() == [None]
        assert changed() == []
        engine.answer(engine.open(run)[0], "approved")
    engine.drive_with(driver, run)
    assert changed() == [call]
    assert [settled.run.status for settled in read() if settled] == ["succeeded"]


FLOWS = {"human run": human_run, "three steps": three_steps}


@pytest.mark.both_databases
@pytest.mark.parametrize("flow", FLOWS)
def test_no_operation_executes_more_statements_than_its_budget(engine: Engine, flow: str) -> None:
    driver = engine.driver()
    FLOWS[flow](engine, driver)  # the second run finds its spec and its program
    found = FLOWS[flow](engine, driver)
    budgets = BUDGETS[engine.store.engine.dialect.name][flow]
    assert {name: count for name, count in found.items() if count > budgets[name]} == {}
