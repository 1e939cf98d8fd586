"""Programs and commands that execute steps themselves: what happens when their lock is lost while a step is under way."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from databases import Server
from engine import Engine, step
from kneo_process import eventually
from sqlalchemy import text

from kneo.clock import SystemClock
from kneo.errors import Conflict
from kneo.records.run import RunStatus
from kneo.runtime.engine.assemble import drive_or_wait
from kneo.sdk.db import RunDatabase
from kneo.sdk.durable import Flow
from kneo.settings import from_env
from kneo.store import locks
from kneo.store.engine import WORKER_LOCK, Store
from kneo.store.migrate import open_store

SOURCE = """
async def waits(text):
    note("begun")
    try:
        while not LOG.with_suffix(".go").exists(): await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        note("stopped")
        raise
    return text + ">waits"
"""


@pytest.fixture
def url(postgres_server: Server) -> Iterator[str]:
    name = postgres_server.create()
    yield postgres_server.url(name)
    postgres_server.drop(name)


@pytest.fixture
def pg(url: str) -> Iterator[Store]:
    opened = open_store(url, SystemClock())
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def _look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "CHECK_SECONDS", 0.0)


def end_sessions(store: Store) -> None:
    """End every session that holds the lock of those that execute steps, as a server does that restarts."""
    with store.engine.connect() as connection:
        statement = text(
            "SELECT pg_terminate_backend(l.pid, 60000) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
            "WHERE l.locktype = 'advisory' AND d.datname = current_database() "
            "AND l.objid = ((hashtext(:name)::bigint) & 4294967295)"
        )
        connection.execute(statement, {"name": f"kneo:{WORKER_LOCK}"})


def is_held(store: Store) -> bool:
    """Look whether a session holds the lock, without taking it: a command that finds it taken gives up its run."""
    with store.engine.connect() as connection:
        statement = text(
            "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
            "WHERE l.locktype = 'advisory' AND l.granted AND d.datname = current_database() "
            "AND l.objid = ((hashtext(:name)::bigint) & 4294967295)"
        )
        return bool(connection.execute(statement, {"name": f"kneo:{WORKER_LOCK}"}).scalar_one())


@contextlib.contextmanager
def taken_over(store: Store) -> Iterator[None]:
    """Take the lock from the process that holds it."""
    with contextlib.ExitStack() as stack:

        def take() -> bool:
            end_sessions(store)
            return bool(stack.enter_context(store.exclusive(WORKER_LOCK)))

        eventually(take)
        yield


def test_a_command_ends_its_steps_when_another_process_takes_its_lock(pg: Store, tmp_path: Path) -> None:
    engine = Engine(pg, tmp_path / "code", SOURCE)
    run = engine.start([step("waits")])
    # In the worker, where a function sees that it is cancelled; the process of a sandbox is killed.
    settings = replace(from_env({"KNEO_SERV_TOOLS_SANDBOX": "none"}), import_roots=(tmp_path / "code",))
    driving = threading.Thread(target=lambda: drive_or_wait(settings, pg, run.id, 600))
    driving.start()
    eventually(lambda: engine.notes() == ["begun"])
    with taken_over(pg):
        eventually(lambda: engine.notes() == ["begun", "stopped"])
        eventually(lambda: engine.look(run).owner is None)
        assert engine.look(run).status is RunStatus.RUNNING
        # The other process goes on with it, and the command waits for that.
        engine.log.with_suffix(".go").touch()
        assert engine.drive(run).status is RunStatus.SUCCEEDED
    driving.join(240)
    assert not driving.is_alive()
    assert engine.notes() == ["begun", "stopped", "begun"]


def test_a_command_takes_a_lock_that_was_lost_again_and_goes_on(pg: Store, tmp_path: Path) -> None:
    engine = Engine(pg, tmp_path / "code", SOURCE)
    run = engine.start([step("waits")])
    # In the worker, where a function sees that it is cancelled; the process of a sandbox is killed.
    settings = replace(from_env({"KNEO_SERV_TOOLS_SANDBOX": "none"}), import_roots=(tmp_path / "code",))
    driving = threading.Thread(target=lambda: drive_or_wait(settings, pg, run.id, 600))
    driving.start()
    eventually(lambda: engine.notes() == ["begun"])
    end_sessions(pg)

    eventually(lambda: is_held(pg))
    engine.log.with_suffix(".go").touch()
    driving.join(240)
    assert engine.look(run).status is RunStatus.SUCCEEDED
    assert engine.notes() == ["begun"]


def test_a_flow_ends_its_steps_when_another_process_takes_its_lock(pg: Store, url: str) -> None:
    began, stopped, errors = threading.Event(), threading.Event(), list[Exception]()

    async def work() -> str:
        began.set()
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            stopped.set()
            raise
        return "done"

    def start() -> None:
        try:
            flow.start()
        except Conflict as error:
            errors.append(error)

    with contextlib.closing(RunDatabase(url)) as database:
        flow = Flow("slow", work, database)
        driving = threading.Thread(target=start)
        driving.start()
        assert began.wait(240)
        with taken_over(pg):
            assert stopped.wait(240)
            driving.join(240)
        assert [error.code for error in errors] == ["worker_running"]
