"""Workers that share a PostgreSQL database: jobs appear with the change that makes them due, and survive their worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from engine import Engine, step
from installation_key import find_key
from kneo_process import eventually
from procrastinate import PsycopgConnector
from psycopg import OperationalError
from sqlalchemy import text

from kneo.clock import SystemClock
from kneo.records.run import RunStatus
from kneo.runtime.dispatch import postgres
from kneo.runtime.dispatch.postgres import QueueWorker
from kneo.store import queue, runs
from kneo.store.engine import Store, Tx, open_engine
from kneo.store.migrate import open_store
from kneo.telemetry import configure_logging

SOURCE = """
def quick(text): note("quick"); return text + ">quick"
def slow(text): note("slow"); time.sleep(0.3); return text + ">slow"
async def long(text):
    note("long")
    while not LOG.with_suffix(".go").exists(): await asyncio.sleep(0.02)
    return text + ">long"
"""
HUMAN = {"id": "q", "kind": "human", "ref": "ann"}


@pytest.fixture
def engine(postgres_url: str, tmp_path: Path) -> Iterator[Engine]:
    store = open_store(postgres_url, SystemClock(), find_key)
    yield Engine(store, tmp_path / "code", SOURCE)
    store.close()


@contextmanager
def working(engine: Engine, count: int = 1, concurrency: int = 4) -> Iterator[list[QueueWorker]]:
    workers = [QueueWorker(engine.store, engine.driver(), concurrency=concurrency) for _ in range(count)]
    threads = [threading.Thread(target=worker.run) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: listening(engine) == count)
        yield workers
    finally:
        for worker in workers:
            worker.stop()
        for thread in threads:
            thread.join(240)
            assert not thread.is_alive()


def listening(engine: Engine) -> int:
    """Return how many workers listen: a job that is announced before is found by the next poll."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query ILIKE 'LISTEN%'"
    with engine.store.read() as tx:
        return tx.connection.execute(text(query)).scalar_one()


def jobs(engine: Engine) -> int:
    with engine.store.read() as tx:
        return tx.connection.execute(text(f"SELECT count(*) FROM {queue.SCHEMA}.procrastinate_jobs")).scalar_one()


def status(engine: Engine, run: object, wanted: RunStatus) -> object:
    return eventually(lambda: (now := engine.look(run)).status is wanted and now)


def test_runs_and_answers_are_found_at_once_and_leave_no_jobs(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    # Longer than anybody waits here: what is found, is found because the database said so.
    monkeypatch.setattr(postgres, "POLL_SECONDS", 600.0)
    with working(engine):
        run = engine.start([step("quick"), HUMAN, step("slow")])
        status(engine, run, RunStatus.PAUSED)
        engine.answer(engine.open(run)[0], "approved")
        assert status(engine, run, RunStatus.SUCCEEDED).output_text == "in>quick>slow"
        eventually(lambda: jobs(engine) == 0)


def test_a_run_that_was_not_committed_has_no_job(engine: Engine) -> None:
    run = engine.start([step("quick")])
    assert jobs(engine) == 1

    def woken_in_vain(tx: Tx) -> None:
        runs.signal(tx, run.id)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        engine.store.transact(woken_in_vain)
    assert jobs(engine) == 1


def test_two_workers_do_everything_once(engine: Engine) -> None:
    branch = {"type": "concurrent", "participants": [step("a", "quick"), HUMAN, {**HUMAN, "id": "r"}]}
    made = [engine.start(branch) for _ in range(8)]
    with working(engine, count=2):
        for run in made:
            status(engine, run, RunStatus.PAUSED)
        for run in made:
            for task in engine.open(run):
                engine.answer(task, "approved")
        for run in made:
            status(engine, run, RunStatus.SUCCEEDED)
    assert engine.notes() == ["quick"] * 8


def turn_over(worker: QueueWorker) -> None:
    """Wait until the event loop of a worker has done what was due, and what followed from it."""
    assert worker._loop is not None
    for _ in range(100):
        done = threading.Event()
        worker._loop.call_soon_threadsafe(done.set)
        assert done.wait(240)


def test_stopping_lets_steps_finish_and_hands_runs_over(engine: Engine) -> None:
    run = engine.start([step("long"), step("quick")])
    with working(engine) as (worker,):
        eventually(lambda: engine.notes() == ["long"])
        for _ in range(2):  # a second signal, when the worker waits for its steps
            worker.stop()
            turn_over(worker)
        engine.log.with_suffix(".go").touch()
    now = engine.look(run)
    assert (now.status, now.owner) == (RunStatus.RUNNING, None)
    assert engine.steps(run) == [("long", "completed")]
    with working(engine):
        assert status(engine, run, RunStatus.SUCCEEDED).output_text == "in>long>quick"
    assert engine.notes() == ["long", "quick"]


def test_what_lost_its_job_is_found_again(engine: Engine) -> None:
    lost, orphan = engine.start([step("quick")]), engine.start([step("quick")])
    with engine.store.write() as tx:
        assert runs.acquire(tx, orphan.id, "job_999999") is not None
        tx.connection.execute(text(f"DELETE FROM {queue.SCHEMA}.procrastinate_jobs"))
    with engine.store.write() as tx:
        assert queue.restore(tx, timedelta(seconds=-1)) == 2
    with working(engine):
        status(engine, lost, RunStatus.SUCCEEDED)
        status(engine, orphan, RunStatus.SUCCEEDED)


def refused(engine: Engine) -> bool:
    with engine.store.read() as tx:
        return bool(tx.connection.execute(text("SELECT is_called FROM refusals")).scalar_one())


def test_a_job_whose_end_could_not_be_stored_is_retried(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "RESTORE_SECONDS", 0.2)
    # A sequence counts also in what is rolled back.
    refuse = f"""
        CREATE SEQUENCE refusals;
        CREATE FUNCTION refuse() RETURNS trigger AS $$
            BEGIN PERFORM nextval('public.refusals'); RAISE EXCEPTION 'no'; END $$ LANGUAGE plpgsql;
        CREATE TRIGGER refuse BEFORE DELETE ON {queue.SCHEMA}.procrastinate_jobs EXECUTE FUNCTION refuse()
    """
    with engine.store.write() as tx:
        tx.connection.execute(text(refuse))
    with working(engine):
        run = engine.start([step("quick")])
        status(engine, run, RunStatus.SUCCEEDED)
        eventually(lambda: refused(engine))
        with engine.store.write() as tx:
            tx.connection.execute(text("DROP FUNCTION refuse CASCADE"))
        eventually(lambda: jobs(engine) == 0)
    assert engine.notes() == ["quick"]


def test_a_worker_that_is_told_to_stop_while_it_connects_stops(engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        away = Store(open_engine(f"postgresql+psycopg://kneo@127.0.0.1:{silent.getsockname()[1]}/kneo"), SystemClock())
        worker = QueueWorker(away, engine.driver(), concurrency=1)
        thread = threading.Thread(target=worker.run, daemon=True)
        thread.start()
        asking, _ = silent.accept()
        worker.stop()
        thread.join(240)
        assert not thread.is_alive()
        asking.close()
        away.close()


def sessions(engine: Engine) -> set[int]:
    """Return the sessions of the database that are signs of life."""
    held = (
        "SELECT l.pid FROM pg_locks l JOIN pg_database d ON d.oid = l.database WHERE d.datname = current_database() "
        "AND l.locktype = 'advisory' AND l.objsubid = 2 AND l.classid = :sign"
    )
    with engine.store.read() as tx:
        return set(tx.connection.execute(text(held), {"sign": queue.SIGN_OF_LIFE}).scalars())


def test_a_worker_whose_session_ended_gives_signs_of_life_on_another_one(engine: Engine) -> None:
    with working(engine):
        run = engine.start([step("long")])
        (first,) = eventually(lambda: engine.notes() and sessions(engine))
        with engine.store.write() as tx:
            tx.connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": first})
        eventually(lambda: sessions(engine) - {first})
        engine.log.with_suffix(".go").touch()
        assert status(engine, run, RunStatus.SUCCEEDED).epoch == 1


def test_a_worker_stops_although_its_connection_breaks_meanwhile(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = threading.Event()

    async def breaks(_worker: QueueWorker, *_arguments: object) -> None:
        waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            # What psycopg raises for a statement that is cancelled while its server ends.
            raise OperationalError from None

    monkeypatch.setattr(QueueWorker, "_turn", breaks)
    worker = QueueWorker(engine.store, engine.driver(), concurrency=1)
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    assert waiting.wait(120)
    worker.stop()
    thread.join(120)
    assert not thread.is_alive()


def test_each_piece_of_work_is_not_logged() -> None:
    configure_logging("INFO")
    for name in ("procrastinate", "procrastinate.worker", "procrastinate.jobs"):
        assert not logging.getLogger(name).isEnabledFor(logging.INFO)
        assert logging.getLogger(name).isEnabledFor(logging.WARNING)
    assert logging.getLogger("kneo.runtime").isEnabledFor(logging.INFO)


@asynccontextmanager
async def fetching(engine: Engine, free: int) -> AsyncIterator[tuple[postgres._Jobs, list[str]]]:
    """Yield the jobs of a registered worker that may take some, and the searches that it makes."""
    connector = PsycopgConnector(
        conninfo=engine.store.conninfo,
        kwargs={"options": f"-c search_path={queue.SCHEMA}"},
        configure=postgres._commit_each,
    )
    await connector.open_async()
    try:
        jobs, searches = postgres._Jobs(connector, lambda: free), list[str]()
        search = connector.execute_query_all_async

        async def counted(query: str, **arguments: Any) -> Any:
            found = await search(query, **arguments)
            searches.append(query)
            if jobs.on_search is not None:
                await jobs.on_search()
            return found

        jobs.on_search = None
        connector.execute_query_all_async = counted
        yield jobs, searches
    finally:
        await connector.close_async()


def test_one_search_fetches_as_many_jobs_as_the_worker_may_take(engine: Engine) -> None:
    made = [engine.start([step("quick")]) for _ in range(5)]

    async def fetch() -> tuple[list[str], int]:
        async with fetching(engine, free=3) as (jobs, searches):
            worker = await jobs.register_worker()
            found = []
            while (job := await jobs.fetch_job([queue.QUEUE], worker)) is not None:
                found.append(str(job.task_kwargs["run_id"]))
            return found, len(searches)

    # Three, then two: fewer than asked for, so that no further search is made.
    assert asyncio.run(fetch()) == ([run.id for run in made], 2)


def test_a_job_that_is_announced_during_a_search_in_vain_is_found(engine: Engine) -> None:
    async def fetch() -> str:
        async with fetching(engine, free=3) as (jobs, searches):
            worker = await jobs.register_worker()
            listening = asyncio.Event()

            async def heard(**_: object) -> None:
                listening.set()

            listener = asyncio.create_task(jobs.listen_for_jobs(on_notification=heard, queues=[queue.QUEUE]))
            while not listening.is_set():  # until the first announcement is heard
                engine.store.transact(lambda tx: queue.enqueue(tx, "run_before", None))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(listening.wait(), 0.05)
            while await jobs.fetch_job([queue.QUEUE], worker) is not None:
                pass

            async def late() -> None:
                jobs.on_search = None
                listening.clear()
                engine.store.transact(lambda tx: queue.enqueue(tx, "run_late", None))
                await listening.wait()

            jobs.on_search = late
            searches.clear()
            job = await jobs.fetch_job([queue.QUEUE], worker)
            listener.cancel()
            await asyncio.wait([listener])
            assert job is not None
            assert len(searches) == 2
            return str(job.task_kwargs["run_id"])

    assert asyncio.run(fetch()) == "run_late"
