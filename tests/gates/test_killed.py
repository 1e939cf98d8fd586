"""Kill -9 while people answer: what was acknowledged holds, nobody is asked twice, and every effect happens once.

A sample of the writes here; all of them with ``make gates``.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine import Engine
from gate_house import House, spec_of
from gate_places import effect
from installation_key import find_key
from kneo_process import eventually
from warm import run_python

from kneo.clock import SystemClock
from kneo.records.run import RunStatus
from kneo.store import audit
from kneo.store.migrate import open_store

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

CRASHING = Path(__file__).parents[1] / "e2e" / "crash" / "crashing.py"

SOURCE = """
import fcntl
def effect(text, context):
    # What a careful function does with its key: the same effect again is no effect.
    with LOG.open("a+") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        log.seek(0)
        if context.idempotency_key not in log.read().splitlines():
            log.write(context.idempotency_key + "\\n")
    return text
"""
FLOW = [{"id": "ask", "kind": "human", "ref": "ann"}, effect("charge")]
SAMPLED = (1, 3)
MOST_WRITES = 30


@pytest.fixture
def engine(migrated_url: str, tmp_path: Path) -> Iterator[Engine]:
    store = open_store(migrated_url, SystemClock(), find_key)
    yield Engine(store, tmp_path / "code", SOURCE)
    store.close()


def answer_and_die(engine: Engine, url: str, die_at: int) -> bool:
    """Answer in a process that dies at a write, let another one finish; return whether the first did die."""
    run = engine.run(FLOW)
    (task,) = engine.open(run)
    arguments = [sys.executable, str(CRASHING), url, str(engine.log.parent), run.id]
    first = run_python([*arguments, str(die_at), task.id], timeout=240)
    assert first.returncode in {0, -signal.SIGKILL}, first.stderr
    again = [task.id] if engine.open(run) else []
    second = run_python([*arguments, "0", *again], timeout=240)
    assert second.returncode == 0, second.stderr
    assert engine.look(run).status is RunStatus.SUCCEEDED
    assert len(engine.notes()) == 1
    with engine.store.read() as tx:
        decisions = audit.events(tx, event_type="human.decision", run_id=run.id, limit=10)
    assert len(decisions) == 1
    return first.returncode != 0


def test_an_answer_is_applied_once_however_the_process_dies(
    engine: Engine, migrated_url: str, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--every-gate", default=False):
        for number in SAMPLED:
            engine.log.unlink(missing_ok=True)
            assert answer_and_die(engine, migrated_url, number)
        return
    for number in range(1, MOST_WRITES):
        engine.log.unlink(missing_ok=True)
        if not answer_and_die(engine, migrated_url, number):
            assert number > max(SAMPLED)
            return
    pytest.fail(f"still wrote after {MOST_WRITES} writes")


def test_a_restart_between_any_two_steps_changes_nothing(own_house: House, request: pytest.FixtureRequest) -> None:
    everywhere = request.config.getoption("--every-gate", default=False)

    def restart() -> None:
        own_house.at.kill()
        own_house.serve()

    gated = [{**effect(name), "review": {"before": {"human": "ann"}}} for name in ("p", "q")]
    flow = [effect("a"), {"id": "two", "kind": "parallel", "steps": gated}, {"id": "z", "kind": "human", "ref": "ann"}]
    run = own_house.start(spec_of([*flow, effect("b")]))
    answered: list[str] = []
    while own_house.look(run)["status"] != "succeeded":
        if everywhere:
            restart()
        task = eventually(lambda: own_house.tasks(run))[0]
        answered.append(str(task["continuation_id"]))
        if everywhere or len(answered) == 2:
            restart()
        assert own_house.answer(task, decision="approved").status_code == 200
        if everywhere:
            restart()
        eventually(lambda: own_house.look(run)["status"] in {"paused", "succeeded"})
    assert len(set(answered)) == len(answered) == 3
    assert sorted(own_house.did(run)) == ["a", "b", "p", "q"]
