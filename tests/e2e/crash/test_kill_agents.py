"""Kill -9 at each write of a run whose agent calls tools, is stopped at a gate, and asks a question.

Finished calls are not repeated, at most one model request is, and the gated effect happens once: where a process died in the
middle of it, a person who looks it up decides. A sample of the writes here; all of them with ``make crash``.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine import Engine
from installation_key import find_key
from kneo_process import eventually
from model_server import Call, ModelServer, Reply, model_server
from sqlalchemy import text
from warm import start_python

from kneo.clock import SystemClock
from kneo.records.conversation import EntryKind, EntryStatus
from kneo.records.run import AgentUsage, Run, RunStatus
from kneo.records.task import UNRESOLVED, DecisionKind, HumanTask, TaskStatus
from kneo.runtime.engine.start import StartRequest
from kneo.settings import process_environment
from kneo.store import agent_journal, tasks, usage
from kneo.store.migrate import open_store
from kneo.tasks.decisions import DecisionRequest
from kneo.tasks.inbox import decide

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]

SOURCE = """
import signal
from hashlib import sha256
def look(arguments, key):
    note("look " + key)
    return {"found": arguments["id"]}
def pay(arguments, key):
    note(f"pay {key} {arguments['amount']}")
    if os.environ.get("DIE_AFTER_EFFECT"):
        os.kill(os.getpid(), signal.SIGKILL)
    return {"paid": arguments["amount"]}
def screen(text):
    note("screen " + sha256(text.encode()).hexdigest()[:12])
    return "rude" not in text
def look_slowly(arguments, key):
    note("look " + key)
    # Until the test opens the gate: after it has stopped the process.
    while not LOG.with_suffix(".go").exists():
        time.sleep(0.02)
    return {"found": arguments["id"]}
"""

SCRIPT = [
    Reply(
        calls=[
            Call("look", {"id": "u1"}),
            Call("pay", {"amount": 5}),
            Call("ask_question", {"question": "Which version?"}),
        ]
    ),
    Reply(calls=[Call("look", {"id": "u2"})]),
    Reply("Paid."),
]

GUARDED = [*SCRIPT[:-1], Reply("A rude answer."), SCRIPT[-1]]

EFFECT = "effect"
SAMPLED = (("before", 3), ("after", 4), ("before", 6), (EFFECT, 0))
MOST_WRITES = 60

PATIENCE_SECONDS = 600


def cases(config: pytest.Config) -> list[tuple[str, int]]:
    if config.getoption("--every-write", default=False):
        return [(EFFECT, 0), ("before", 0), ("after", 0)]
    return list(SAMPLED)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "die_at" in metafunc.fixturenames:
        metafunc.parametrize(("when", "die_at"), cases(metafunc.config))


@pytest.fixture
def engine(migrated_url: str, tmp_path: Path) -> Iterator[Engine]:
    store = open_store(migrated_url, SystemClock(), find_key)
    yield Engine(store, tmp_path / "code", SOURCE)
    store.close()


def guardrails(engine: Engine) -> dict[str, object]:
    """Return the parts of a spec whose agent is checked at each stage; its first answer is refused."""
    check = {"id": "screen", "type": "function", "ref": "screen"}
    stages = {"input": [check], "tool": [{**check, "target": "look"}], "output": [{**check, "action": "retry"}]}
    return {"guardrails": stages, "functions": {"screen": {"implementation": f"{engine.module}.screen"}}}


def tree(engine: Engine, *, look: str = "look", gate: bool = True, is_guarded: bool = False) -> dict[str, object]:
    object_of = {
        name: {"type": "object", "properties": {name: {"type": kind}}, "required": [name]}
        for name, kind in (("id", "string"), ("amount", "integer"))
    }
    review = {"review": {"before": {"human": "ops"}}} if gate else {}
    guarded = guardrails(engine) if is_guarded else {"guardrails": {}, "functions": {}}
    return {
        "agent": {
            "name": "teller",
            "model": {"provider": "openai", "name": "m", "extra": {"api": "chat"}},
            "strategy": "react",
            "tools": ["look", "pay", "ask_question"],
            "ask_question": "ops",
            "guardrails": guarded["guardrails"],
        },
        "workflow": {"type": "sequential", "steps": [{"id": "work", "kind": "agent", "ref": "teller"}]},
        "tools": {
            "look": {
                "description": "Look something up.",
                "implementation": f"{engine.module}.{look}",
                "parameters": object_of["id"],
            },
            "pay": {
                "description": "Pay.",
                "implementation": f"{engine.module}.pay",
                "parameters": object_of["amount"],
                "capabilities": ["privileged"],
                **review,
            },
        },
        "components": {"humans": {"ops": {"description": "Fine?"}}, "functions": guarded["functions"]},
    }


def start(engine: Engine, **more: object) -> Run:
    return engine.starter.start(StartRequest(input="Pay 5.", requester="bob", spec=tree(engine, **more)))  # type: ignore[arg-type]


class Processes:
    """The processes that execute the run; the first one may die."""

    def __init__(self, engine: Engine, url: str, run: Run, server: ModelServer) -> None:
        self.engine, self.url, self.run, self.server = engine, url, run, server
        self.alive: list[subprocess.Popen[bytes]] = []
        self.killed = 0

    def start(self, when: str = "before", die_at: int = 0) -> subprocess.Popen[bytes]:
        environment = {
            **process_environment("PATH"),
            "OPENAI_API_KEY": "key",
            "OPENAI_BASE_URL": self.server.openai_url,
            # In the worker, which the function kills.
            **({"DIE_AFTER_EFFECT": "1", "KNEO_SERV_TOOLS_SANDBOX": "none"} if when == EFFECT else {}),
        }
        script = Path(__file__).with_name("crashing_agents.py")
        folder = str(self.engine.log.parent)
        process = start_python(
            [sys.executable, str(script), self.url, folder, self.run.id, when, str(die_at)], env=environment
        )
        self.alive.append(process)
        return process

    def reap(self) -> None:
        for process in [process for process in self.alive if process.poll() is not None]:
            self.alive.remove(process)
            assert process.returncode in {0, -signal.SIGKILL}
            self.killed += process.returncode == -signal.SIGKILL

    def stop(self) -> None:
        for process in self.alive:
            process.kill()
            process.wait()


def open_tasks(engine: Engine, run: Run) -> list[HumanTask]:
    with engine.store.read() as tx:
        return list(tasks.of_run(tx, run.id, UNRESOLVED))


def answer(engine: Engine, task: HumanTask) -> None:
    """Answer like a person who looks into the effect's own log where a call was interrupted."""
    if task.options is not None:
        paid = [line for line in engine.notes() if line.startswith("pay ")]
        option, content = ("done", '{"paid": 6}') if paid else ("repeat", None)
        request = DecisionRequest(decision=DecisionKind.SELECTED, selected_option=option, content=content)
    elif task.position == "tool":
        request = DecisionRequest(decision=DecisionKind.EDITED, arguments={"amount": 6})
    else:
        request = DecisionRequest(decision=DecisionKind.PROVIDED, content="v2")
    decide(engine.store, task.id, request, actor="ann")


def finished(engine: Engine, run: Run) -> set[str]:
    with engine.store.read() as tx:
        entries = agent_journal.list_entries(tx, run.id)
    return {
        f"{run.id}:{e.conversation}:{e.name.removeprefix('tool:')}" for e in entries if e.status is EntryStatus.DONE
    }


def calls(engine: Engine) -> Counter[str]:
    return Counter(line.split()[1] for line in engine.notes())


def go_through(
    engine: Engine, url: str, server: ModelServer, when: str, die_at: int, *, is_guarded: bool = False
) -> tuple[Run, int]:
    """Run to the end with a process that dies at a write, and another process that continues."""
    run = start(engine, is_guarded=is_guarded)
    processes = Processes(engine, url, run, server)
    made_before: Counter[str] = Counter()
    done_before: set[str] = set()
    try:
        processes.start(when, die_at)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (now := engine.look(run)).status in {RunStatus.RUNNING, RunStatus.PAUSED}:
            assert time.monotonic() < deadline, (when, die_at, now)
            waiting = open_tasks(engine, run)
            if now.status is RunStatus.PAUSED and waiting:
                answer(engine, waiting[0])
            processes.reap()
            if not processes.alive:
                done_before, made_before = finished(engine, run), calls(engine)
                processes.start()
            time.sleep(0.02)
        processes.reap()
        assert now.status is RunStatus.SUCCEEDED, (when, die_at, now.error)
        assert now.output_text == "Paid."
        made = calls(engine)
        assert {key: made[key] for key in done_before & set(made)} == {
            key: made_before[key] for key in done_before & set(made)
        }, "a finished call was repeated"
        check(engine, now, server, GUARDED if is_guarded else SCRIPT)
    finally:
        processes.stop()
    return now, processes.killed


def check(engine: Engine, run: Run, server: ModelServer, script: list[Reply]) -> None:
    effects = [line for line in engine.notes() if line.startswith("pay ")]
    assert [line.split()[2] for line in effects] == ["6"], "the gated effect"
    assert len(server.requests) <= len(script) + 1
    last = server.requests[-1].text
    assert '"paid' in json.dumps(last)
    assert "v2" in last
    with engine.store.read() as tx:
        entries = agent_journal.list_entries(tx, run.id)
        asked = tasks.of_run(tx, run.id, TaskStatus)
        counted = usage.usage_since(tx, run.environment, "")
        runs = tx.connection.execute(text("SELECT count(*) FROM runs")).scalar_one()
    used = sum((AgentUsage.of(entry) for entry in entries), AgentUsage())
    assert run.usage == used
    # Each run of the same script uses the same.
    assert (counted.requests, counted.total_tokens) == (runs * used.requests, runs * used.total_tokens)
    replies = [entry.name for entry in entries if entry.kind is EntryKind.MODEL]
    assert replies == [f"model:{number}" for number in range(1, len(script) + 1)]
    keys = Counter(task.key for task in asked)
    assert max(keys.values()) == 1, "a question was opened again"
    assert {task.status for task in asked} == {TaskStatus.APPLIED}


def test_a_killed_turn_continues_where_it_was(engine: Engine, migrated_url: str, when: str, die_at: int) -> None:
    first = die_at or 1
    for number in range(first, MOST_WRITES):
        engine.log.unlink(missing_ok=True)
        with model_server(SCRIPT) as server:
            _, killed = go_through(engine, migrated_url, server, when, number)
        if die_at or when == EFFECT:
            assert killed == 1
            return
        if not killed:
            assert number > 8, (when, number)
            return
    pytest.fail(f"it still wrote after {MOST_WRITES} writes")


def test_a_guarded_turn_that_is_killed_checks_no_text_anew(
    engine: Engine, migrated_url: str, when: str, die_at: int
) -> None:
    if when == EFFECT:
        pytest.skip("the effect is the same with guardrails")
    for number in range(die_at or 1, MOST_WRITES):
        engine.log.unlink(missing_ok=True)
        with model_server(GUARDED) as server:
            run, killed = go_through(engine, migrated_url, server, when, number, is_guarded=True)
        with engine.store.read() as tx:
            guards = [entry for entry in agent_journal.list_entries(tx, run.id) if entry.kind is EntryKind.GUARD]
        outcomes = Counter(entry.facts.get("outcome") for entry in guards if entry.name.startswith("guard:"))
        assert outcomes["retried"] == 1
        # A check whose verdict was not written yet is made once more; every other one is not.
        screened = Counter(line for line in engine.notes() if line.startswith("screen "))
        assert sum(count - 1 for count in screened.values()) <= killed, screened
        if die_at:
            assert killed == 1
            return
        if not killed:
            assert number > 12, (when, number)
            return
    pytest.fail(f"it still wrote after {MOST_WRITES} writes")


def test_a_stopped_worker_makes_no_further_call_when_it_continues(postgres_url: str, tmp_path: Path) -> None:
    store = open_store(postgres_url, SystemClock(), find_key)
    engine = Engine(store, tmp_path / "code", SOURCE)
    run = start(engine, look="look_slowly", gate=False)
    script = [Reply(calls=[Call("look", {"id": "u1"})]), Reply(calls=[Call("pay", {"amount": 6})]), Reply("Paid.")]
    with model_server(script) as server:
        processes = Processes(engine, postgres_url, run, server)
        try:
            zombie = processes.start()
            eventually(engine.notes)
            zombie.send_signal(signal.SIGSTOP)
            engine.log.with_suffix(".go").touch()
            processes.start()
            done = eventually(lambda: (now := engine.look(run)).status is not RunStatus.RUNNING and now)
            assert done.status is RunStatus.SUCCEEDED, done
            requests = len(server.requests)
            zombie.send_signal(signal.SIGCONT)
            assert zombie.wait(PATIENCE_SECONDS) == 0
            assert len(server.requests) == requests
            assert [line.split()[0] for line in engine.notes()] == ["look", "look", "pay"]
            assert engine.look(run) == done
        finally:
            processes.stop()
            store.close()
