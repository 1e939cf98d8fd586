"""People who race on PostgreSQL: several answer, claim and cancel at once over two services that drive the same runs.

However it goes: one outcome per task and no person counted twice, no approval below its quorum, nothing published that was not
approved and nothing published twice, no open task of an ended run, no paused run without an open task, and an unbroken audit log.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier, Event, Lock

from databases import Server, start_server
from engine import Engine, step
from hunt.report import Budget, Finding, Report

from kneo.clock import SystemClock
from kneo.errors import KneoError
from kneo.records.run import Run, RunStatus
from kneo.records.task import UNRESOLVED, DecisionKind, HumanTask, TaskStatus
from kneo.runtime.engine.recover import cancel_run
from kneo.store import audit, runs, tasks
from kneo.store.migrate import open_store
from kneo.tasks.decisions import DecisionRequest
from kneo.tasks.inbox import claim, decide, unclaim

PEOPLE = [f"person{number}" for number in range(5)]
REQUESTER = "bob"
RUNS = 4
ACTIONS = 12
"""Of each person, as fast as they can."""

SOURCE = """
def publish(text, context):
    note(f"{context.run_id} {context.idempotency_key}")
    return text
"""
RESOLVED = frozenset({TaskStatus.DECIDED, TaskStatus.APPLIED})


@dataclass
class Case:
    """One race.

    Attributes:
        services: Two engines on one database, each with its own connections.
        outcomes: How many answers ended each task, as the people who gave them were told.
        trouble: What nobody should have been told.
    """

    seed: int
    services: tuple[Engine, Engine]
    runs: list[Run] = field(default_factory=list)
    approvals: dict[str, int] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    trouble: list[str] = field(default_factory=list)
    answers: int = 0
    lock: Lock = field(default_factory=Lock)

    def start(self) -> None:
        chance = random.Random(self.seed)
        for _ in range(RUNS):
            needed = chance.randint(1, 3)
            who = {"users": [*PEOPLE, REQUESTER], "exclude": ["requester"]}
            human = {"description": "?", "candidates": who, "quorum": {"approvals": needed, "reject": "any"}}
            run = chance.choice(self.services).start(self._workflow(chance), ann=human)
            self.runs.append(run)
            self.approvals[run.id] = needed

    @staticmethod
    def _workflow(chance: random.Random) -> list[dict[str, object]]:
        gates = [{"id": f"g{number}", "kind": "human", "ref": "ann"} for number in range(chance.randint(1, 3))]
        if len(gates) > 1 and chance.random() < 0.6:
            return [{"id": "p", "kind": "parallel", "steps": gates}, step("publish")]
        guarded = {**step("more", "publish"), "review": {"before": {"human": "ann"}}}
        return [*gates, step("publish"), *([guarded] if chance.random() < 0.5 else [])]

    # ---- the race ---------------------------------------------------------------------------------------------

    def race(self) -> None:
        over, together = Event(), Barrier(len(PEOPLE) + 1)
        with ThreadPoolExecutor(len(PEOPLE) + 3) as pool:
            workers = [pool.submit(self._work, engine, over) for engine in self.services]
            people = [pool.submit(self._act, number, together) for number in range(len(PEOPLE) + 1)]
            try:
                for one in people:
                    one.result()
                self._finish()
            finally:
                over.set()
            for one in workers:
                one.result()

    def _work(self, engine: Engine, over: Event) -> None:
        """Drive what may be driven, again and again, as a worker does."""
        while not over.is_set():
            with engine.store.read() as tx:
                found = [run_id for run_id, _ in runs.list_claimable(tx, 50)]
            for run_id in found:
                engine.drive(self._of(run_id))
            over.wait(0.01 if not found else 0)

    def _of(self, run_id: str) -> Run:
        return next(run for run in self.runs if run.id == run_id)

    def _act(self, number: int, together: Barrier) -> None:
        """Do what one person does; the last one is the requester, whom no question may hear."""
        actor = PEOPLE[number] if number < len(PEOPLE) else REQUESTER
        chance = random.Random(f"{self.seed}:{actor}")
        together.wait(60)
        for _ in range(ACTIONS):
            engine, run = chance.choice(self.services), chance.choice(self.runs)
            found = engine.open(run)
            if chance.random() < 0.03:
                self._try(lambda engine=engine, run=run: cancel_run(engine.store, run.id, actor=actor))
            elif found:
                self._handle(engine, chance.choice(found), actor, chance)

    def _handle(self, engine: Engine, task: HumanTask, actor: str, chance: random.Random) -> None:
        match chance.choices(["decide", "claim", "unclaim"], [8, 1, 1])[0]:
            case "claim":
                self._try(lambda: claim(engine.store, task.id, actor=actor))
            case "unclaim":
                self._try(lambda: unclaim(engine.store, task.id, actor=actor))
            case _:
                kind = chance.choices([DecisionKind.APPROVED, DecisionKind.REJECTED], [9, 1])[0]
                self._answer(engine, task, actor, kind)

    def _answer(self, engine: Engine, task: HumanTask, actor: str, kind: DecisionKind) -> None:
        answer = DecisionRequest(request_id=task.request_id, decision=kind)
        after = self._try(lambda: decide(engine.store, task.id, answer, actor=actor))
        if isinstance(after, HumanTask):
            with self.lock:
                self.answers += 1
                self.outcomes[task.id] += after.status in RESOLVED
                if actor == REQUESTER:
                    self.trouble.append(f"{actor} is excluded from {task.key} of {task.run_id}, and was heard.")

    def _try(self, act: object) -> object:
        try:
            return act()
        except KneoError:
            return None  # refused: somebody else was first, or it is not theirs
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody should have been told
            with self.lock:
                self.trouble.append(f"{type(error).__name__}: {error}")
            return None

    def _finish(self) -> None:
        """Agree to whatever is open until every run has ended."""
        engine = self.services[0]
        for _ in range(10_000):
            alive = [run for run in self.runs if engine.look(run).status in {RunStatus.RUNNING, RunStatus.PAUSED}]
            if not alive:
                return
            for run in alive:
                for task in engine.open(run):
                    self._try(lambda task=task: unclaim(engine.store, task.id, actor=task.claimed_by or ""))
                    for actor in PEOPLE:
                        self._answer(engine, task, actor, DecisionKind.APPROVED)
        self.trouble.append("A run does not end, whatever people answer.")

    # ---- the laws ---------------------------------------------------------------------------------------------

    def laws(self) -> Iterator[str]:
        yield from self.trouble
        published = Counter(self.services[0].notes())
        yield from (f"Done twice: {key}" for key, times in published.items() if times > 1)
        with self.services[1].store.read() as tx:
            for run in self.runs:
                found = runs.get(tx, run.id)
                assert found is not None
                asked = tasks.of_run(tx, run.id, TaskStatus)
                yield from self._of_run(found, asked, [key for key in published if key.startswith(run.id)])
        audit.seal(self.services[0].store)
        verdict = audit.verify(self.services[1].store)
        if not verdict.valid:
            yield f"The audit log is broken: {verdict.problem}"

    def _of_run(self, run: Run, asked: tuple[HumanTask, ...], published: list[str]) -> Iterator[str]:
        still_open = [task.key for task in asked if task.status in UNRESOLVED]
        if still_open and run.status not in {RunStatus.RUNNING, RunStatus.PAUSED}:
            yield f"{run.id} has ended as {run.status}, and asks {still_open}."
        if run.status is RunStatus.PAUSED and not still_open:
            yield f"{run.id} is paused and asks nothing."
        for task in asked:
            yield from self._of_task(task)
        gates = [task for task in asked if task.key.endswith(".step")]
        agreed = [task for task in gates if task.decision and task.decision.kind is DecisionKind.APPROVED]
        if published and len(agreed) < len(gates):
            yield f"{run.id} published {published}, and of {len(gates)} gates {len(agreed)} were approved."

    def _of_task(self, task: HumanTask) -> Iterator[str]:
        where = f"{task.key} of {task.run_id}"
        if self.outcomes[task.id] > 1:
            yield f"{self.outcomes[task.id]} people were told that they decided {where}."
        voters = [vote.actor for vote in task.votes]
        if len(set(voters)) < len(voters):
            yield f"{where} counts a person twice: {voters}."
        if REQUESTER in voters:
            yield f"{where} counts its requester."
        approved = task.decision is not None and task.decision.kind is DecisionKind.APPROVED
        agreed = {vote.actor for vote in task.votes if vote.decision is DecisionKind.APPROVED}
        if approved and len(agreed) < self.approvals[task.run_id]:
            yield f"{where} was approved by {sorted(agreed)}, and needs {self.approvals[task.run_id]}."
        if task.decision is not None and task.status not in {*RESOLVED, TaskStatus.CANCELLED}:
            yield f"{where} has a decision and is {task.status}."


# ---- the hunt ---------------------------------------------------------------------------------------------------


@contextmanager
def racing(server: Server, template: str, seed: int) -> Iterator[Case]:
    name, folder = server.create(template), Path(tempfile.mkdtemp(prefix="kneo-hunt-"))
    stores = [open_store(server.url(name), SystemClock()) for _ in range(2)]
    try:
        first = Engine(stores[0], folder, SOURCE)
        # The other service runs the same module of functions.
        second = Engine(stores[1], folder, SOURCE)
        second.module, second.log, second.code = first.module, first.log, first.code
        yield Case(seed, (first, second))
    finally:
        for store in stores:
            store.close()
        server.drop(name)
        shutil.rmtree(folder)


def hunt(budget: Budget) -> Report:
    report = Report(counts={"tasks": 0, "answers": 0, "runs": 0, "succeeded": 0, "published": 0})
    server = start_server()
    try:
        template = server.create()
        open_store(server.url(template), SystemClock()).close()
        for seed in budget.seeds():
            report.cases += 1
            with racing(server, template, seed) as case:
                case.start()
                case.race()
                report.findings.extend(Finding(seed, law, "") for law in case.laws())
                _count(report, case)
    finally:
        server.stop()
    return report


def _count(report: Report, case: Case) -> None:
    engine = case.services[0]
    report.count("runs", len(case.runs))
    report.count("answers", case.answers)
    report.count("published", len(engine.notes()))
    for run in case.runs:
        report.count("succeeded", engine.look(run).status is RunStatus.SUCCEEDED)
        with engine.store.read() as tx:
            report.count("tasks", len(tasks.of_run(tx, run.id, TaskStatus)))
