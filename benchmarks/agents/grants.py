"""The cost of calls that a standing grant covers, compared with calls without a gate: a whole run, uses of one grant, other grants.

All runs have one driver, as those of a worker. What a grant allows in a second is measured without the runs around it: eight threads
answer questions that are open, each in the transaction that a run answers it in.
"""

from __future__ import annotations

import asyncio
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
from sqlalchemy import event

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from databases import start_server
from grant_house import RULE, GrantHouse, grant_house
from installation_key import find_key

from benchmarks.agents.gates import gate_costs
from kneo import registry
from kneo.clock import ManualClock, SystemClock, new_id
from kneo.records.run import Run, RunStatus
from kneo.records.task import GRANTED, HumanTask
from kneo.runtime.engine import record
from kneo.runtime.engine.worker import Driver
from kneo.store import grants as rows
from kneo.store import runs
from kneo.store.engine import Tx
from kneo.store.migrate import open_store
from kneo.tasks.grants import CallAsked, answer_by_grant
from kneo.tasks.lifecycle import notify_people

WARM, MEASURED, SHARED, THREADS, OTHERS = 3, 15, 64, 8, 1_000
AIMS = {"SQLite": 4, "PostgreSQL": 8}
"""The most milliseconds that a covered call takes more than an ungated one."""

Costs = dict[str, str]


def grant_costs(rounds: int) -> dict[str, Costs]:
    """Return the costs on each database, each with its aim."""
    folder = Path(tempfile.mkdtemp(prefix="kneo-bench-"))
    server = start_server()
    gate = f"{gate_costs(rounds)['expression']} (aim: at most 0.05)"
    try:
        urls = {"SQLite": f"sqlite:///{folder / 'kneo.db'}", "PostgreSQL": server.url(server.create())}
        costs = {
            f"calls and grants, {name}": _costs(url, folder / name, rounds, AIMS[name]) for name, url in urls.items()
        }
        return {"calls and conditions": {"a gate with an expression, ms": gate}, **costs}
    finally:
        server.stop()
        shutil.rmtree(folder)


def _costs(url: str, folder: Path, rounds: int, aim: int) -> Costs:
    with _bench(url, folder) as bench:
        house = bench.house
        house.release(house.spec(capabilities=[], review=None), grants=[])
        ungated, few, least = bench.call(rounds)
        together = bench.together()
        house.release(grants=[])
        asked, *_ = bench.call(rounds, RunStatus.PAUSED)
        further = bench.further_statements()
        questions = bench.questions(SHARED)
        house.serve(f"1.{house.version}.0", grants=[{**RULE, "uses": 10_000, "total": {"amount": 100_000}}])
        house.active(uses=10_000, total={"amount": 100_000})
        covered, many, most = bench.call(rounds)
        uses, busy = bench.uses(questions)
        sharing = bench.together()
        _add_others(house)
        among, *_ = bench.call(rounds)
    return {
        "ungated call, ms": f"{ungated:.1f}",
        "covered call, ms": f"{covered:.1f}",
        "covered more than ungated, ms": f"{covered - ungated:.1f} (aim: at most {aim})",
        "covered more than ungated, ms of processor time": f"{most - least:.1f}",
        "covered more than ungated, statements": f"{many - few:.0f}",
        f"covered, with {OTHERS:,} grants of other tools, ms more": f"{among - covered:.1f} (aim: no change)",
        "asked, without rules for grants, ms": f"{asked:.1f}",
        "further statements without rules for grants": f"{further} (aim: 0)",
        f"uses of one grant in a second, {THREADS} at once": f"{uses:.0f} (aim: at least 100)",
        "a use of it, ms of processor time": f"{busy:.1f}",
        f"{SHARED} runs at once that share a grant, in a second": f"{sharing:.1f}",
        f"{SHARED} runs at once without a gate, in a second": f"{together:.1f}",
    }


@contextmanager
def _bench(url: str, folder: Path) -> Iterator[_Bench]:
    folder.mkdir()
    store, patch = open_store(url, ManualClock(SystemClock().now()), find_key), pytest.MonkeyPatch()
    try:
        with grant_house(store, folder, patch) as house, asyncio.Runner() as runner:
            bench = _Bench(house, house.driver(), runner)
            yield bench
            runner.run(bench.driver.close())
    finally:
        patch.undo()
        store.close()


class _Bench:
    """Runs of a house with one driver."""

    def __init__(self, house: GrantHouse, driver: Driver, runner: asyncio.Runner) -> None:
        self.house, self.driver, self.runner = house, driver, runner
        self.statements = 0
        event.listen(house.store.engine, "before_cursor_execute", self._count)

    def _count(self, *_arguments: object) -> None:
        self.statements += 1

    def call(self, rounds: int, status: RunStatus = RunStatus.SUCCEEDED) -> tuple[float, float, float]:
        """Drive runs whose agent makes one call, each to its end or its question.

        Returns:
            The middle of their milliseconds, of their statements, and of their milliseconds of processor time.
        """
        costs = []
        for number in range(WARM + MEASURED * rounds):
            run, before = self.house.refunds(1, drive=False), self.statements
            begun, busy = time.perf_counter(), time.process_time()
            self.runner.run(self.driver.drive(run.id))
            spent, used = time.perf_counter() - begun, time.process_time() - busy
            if number >= WARM:
                costs.append((spent * 1_000, self.statements - before, used * 1_000))
            assert self.house.look(run).status is status
        wall, statements, processor = (statistics.median(values) for values in zip(*costs, strict=True))
        return wall, statements, processor

    def together(self) -> float:
        """Return how many runs end in a second."""
        begun = time.perf_counter()
        ended = self._drive([self.house.refunds(1, drive=False) for _ in range(SHARED)])
        assert all(run.status is RunStatus.SUCCEEDED for run in ended)
        return SHARED / (time.perf_counter() - begun)

    def _drive(self, started: list[Run]) -> list[Run]:
        async def drive() -> None:
            await asyncio.gather(*(self.driver.drive(run.id) for run in started))

        self.runner.run(drive())
        return [self.house.look(run) for run in started]

    def questions(self, count: int) -> list[tuple[Run, HumanTask, CallAsked | None]]:
        """Open questions that no grant has answered yet; a driver has their runs again."""
        found: list[tuple[Run, HumanTask, CallAsked | None]] = []

        def keep(tx: Tx, run: Run, task: HumanTask, asked: CallAsked | None) -> HumanTask:
            found.append((run, task, asked))
            notify_people(tx, task, "requested")
            return task

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(record, "answer_by_grant", keep)
            self._drive([self.house.refunds(1, drive=False) for _ in range(count)])
        return [(self._claimed(run), task, asked) for run, task, asked in found]

    def _claimed(self, run: Run) -> Run:
        with self.house.store.write() as tx:
            runs.signal(tx, run.id)
            claimed = runs.acquire(tx, run.id, new_id("claim", tx.now))
        assert claimed is not None
        return claimed

    def uses(self, questions: list[tuple[Run, HumanTask, CallAsked | None]]) -> tuple[float, float]:
        """Return how many questions one grant answers in a second, and the milliseconds of processor time of each answer."""

        def answer(question: tuple[Run, HumanTask, CallAsked | None]) -> HumanTask:
            return self.house.store.transact(lambda tx: answer_by_grant(tx, *question))

        begun, busy = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(THREADS) as threads:
            answered = list(threads.map(answer, questions))
        seconds, used = time.perf_counter() - begun, time.process_time() - busy
        assert all(task.decision is not None and task.decision.by == GRANTED for task in answered)
        return len(answered) / seconds, used / len(answered) * 1_000

    def further_statements(self) -> int:
        """Return the statements that a question costs more than one that only notifies people."""
        [(run, task, asked)] = self.questions(1)
        counts = []
        for answers in (True, False):
            with self.house.store.write() as tx:
                reading = tx.remembering
                registry.find_declared(reading, run.environment)  # as the opening of the task did
                before = self.statements
                if answers:
                    answer_by_grant(reading, run, task, asked)
                else:
                    notify_people(reading, task, "requested")
                counts.append(self.statements - before)
        return counts[0] - counts[1]


def _add_others(house: GrantHouse) -> None:
    """Store grants of other tools of the same bundle."""
    with house.store.read() as tx:
        [one] = rows.list_grants(tx, status="active")
    with house.store.write() as tx:
        for number in range(OTHERS):
            rows.insert_grant(tx, replace(one, id=new_id("grt", tx.now), tool=f"other{number}"))
