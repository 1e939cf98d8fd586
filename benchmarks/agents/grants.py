"""The cost of calls that a standing grant covers: beside calls without a gate, with a grant that runs share, and with other grants."""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from databases import start_server
from grant_house import RULE, GrantHouse, grant_house
from installation_key import find_key

from kneo.clock import ManualClock, SystemClock, new_id
from kneo.records.run import RunStatus
from kneo.store import grants as rows
from kneo.store.migrate import open_store

WARM, MEASURED, SHARED, OTHERS = 3, 15, 60, 1_000


def grant_costs(rounds: int) -> dict[str, dict[str, float]]:
    """Return the costs on each database."""
    folder = Path(tempfile.mkdtemp(prefix="kneo-bench-"))
    server = start_server()
    try:
        urls = {"SQLite": f"sqlite:///{folder / 'kneo.db'}", "PostgreSQL": server.url(server.create())}
        return {name: _costs(url, folder / name, rounds) for name, url in urls.items()}
    finally:
        server.stop()
        shutil.rmtree(folder)


def _costs(url: str, folder: Path, rounds: int) -> dict[str, float]:
    with _house(url, folder) as house:
        house.release(house.spec(capabilities=[], review=None), grants=[])
        ungated = _call(house, rounds)
        house.release(grants=[])
        asked = _call(house, rounds, RunStatus.PAUSED)
        house.serve(f"1.{house.version}.0", grants=[{**RULE, "uses": 10_000, "total": {}}])
        house.active(uses=10_000, total={})
        covered = _call(house, rounds)
        _add_others(house)
        among = _call(house, rounds)
        runs = [house.refunds(1, drive=False) for _ in range(SHARED)]
        begun = time.perf_counter()
        with ThreadPoolExecutor(8) as threads:
            ended = list(threads.map(house.drive, runs))
        seconds = time.perf_counter() - begun
        assert all(run.status is RunStatus.SUCCEEDED for run in ended)
    return {
        "ungated, ms": ungated,
        "asked, without rules for grants, ms": asked,
        "covered, ms": covered,
        "covered more than ungated, ms": round(covered - ungated, 1),
        f"covered, with {OTHERS} grants of other tools, ms": among,
        f"{SHARED} runs that share a grant, runs per second": round(SHARED / seconds, 1),
    }


@contextmanager
def _house(url: str, folder: Path) -> Iterator[GrantHouse]:
    folder.mkdir()
    store, patch = open_store(url, ManualClock(SystemClock().now()), find_key), pytest.MonkeyPatch()
    try:
        with grant_house(store, folder, patch) as house:
            yield house
    finally:
        patch.undo()
        store.close()


def _call(house: GrantHouse, rounds: int, status: RunStatus = RunStatus.SUCCEEDED) -> float:
    """Return the middle time of a run whose agent makes one call, from the model's first request to the end or the question."""
    durations = []
    for number in range(WARM + MEASURED * rounds):
        run = house.refunds(1, drive=False)
        begun = time.perf_counter()
        run = house.drive(run)
        if number >= WARM:
            durations.append((time.perf_counter() - begun) * 1_000)
        assert run.status is status
    return round(statistics.median(durations), 1)


def _add_others(house: GrantHouse) -> None:
    """Store grants of other tools of the same bundle."""
    with house.store.read() as tx:
        [one] = rows.list_grants(tx, status="active")
    with house.store.write() as tx:
        for number in range(OTHERS):
            rows.insert_grant(tx, replace(one, id=new_id("grt", tx.now), tool=f"other{number}"))
