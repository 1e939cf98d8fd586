"""Which worker a process gets, and what the one on Temporal is given from the store."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from engine import Engine, step
from installation_key import find_key
from sqlalchemy import text

from kneo.errors import Invalid
from kneo.runtime.engine.assemble import make_worker
from kneo.settings import ExecutionSettings, from_env
from kneo.store import queue, runs
from kneo.store.engine import Store

SOURCE = """
def quick(text): return text
"""


def wanted(here: Path):
    return replace(from_env({"HOME": str(here)}, here), execution=ExecutionSettings(dispatch="temporal"))


def test_temporal_is_refused_where_it_cannot_be(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "temporalio", None)
    monkeypatch.delitem(sys.modules, "kneo.extensions.temporal.worker", raising=False)
    with pytest.raises(Invalid) as refused:
        make_worker(wanted(tmp_path), store, 1)
    missing = "KNEO_SERV_DATABASE_URL" if store.is_sqlite else "kneo[temporal]"
    assert missing in (refused.value.hint or "")


def test_a_dispatcher_that_is_not_installed_is_refused(store: Store, tmp_path: Path) -> None:
    settings = replace(wanted(tmp_path), execution=ExecutionSettings(dispatch="kafka"))
    with pytest.raises(Invalid, match="no installed package has a dispatcher") as refused:
        make_worker(settings, store, 1)
    assert refused.value.hint == "Install the package, or use one of: auto, temporal."


def test_who_comes_for_a_run_has_a_claim_of_its_own_until_the_driver_was_lost(store: Store, tmp_path: Path) -> None:
    engine = Engine(store, tmp_path / "code", SOURCE)
    run = engine.start([step("quick")])
    with store.write() as tx:
        ((run_id, first),) = runs.list_claimable(tx, 10)
        assert run_id == run.id
        assert runs.acquire(tx, run.id, first) is not None
        assert runs.list_claimable(tx, 10) == ()
        assert runs.find_stalled(tx, timedelta(seconds=1), 10) == ()
        assert runs.find_stalled(tx, timedelta(seconds=-1), 10) == ((run.id, first),)
        runs.release(tx, run.id, first)
        ((_, second),) = runs.list_claimable(tx, 10)
        assert second != first
        assert len(second) <= 40


def test_jobs_that_nobody_waits_for_are_dropped(postgres_url: str, tmp_path: Path) -> None:
    from kneo.clock import SystemClock
    from kneo.store.migrate import open_store

    store = open_store(postgres_url, SystemClock(), find_key)
    engine = Engine(store, tmp_path / "code", SOURCE)
    engine.start([step("quick")])
    with store.write() as tx:
        count = text(f"SELECT count(*) FROM {queue.SCHEMA}.procrastinate_jobs")
        assert tx.connection.execute(count).scalar_one() == 1
        queue.drop(tx)
        assert tx.connection.execute(count).scalar_one() == 0
    store.close()
