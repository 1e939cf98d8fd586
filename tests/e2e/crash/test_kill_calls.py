"""Kill -9 at the writes of a call that people approve: one decision, and at most one effect; where it is not known, a question.

A sample of the writes here; all of them with ``make crash``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.crash.test_kill_agents import PATIENCE_SECONDS, Processes
from grant_house import FINANCE, GrantHouse, grant_house
from installation_key import find_key

from kneo.clock import ManualClock, SystemClock
from kneo.records.run import Run, RunStatus
from kneo.records.task import TaskStatus
from kneo.runtime.engine.start import StartRequest
from kneo.store import tasks
from kneo.store.migrate import open_store

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600), pytest.mark.both_databases]

SAMPLED = tuple((when, number) for number in (1, 2, 4, 5) for when in ("before", "after"))


@pytest.fixture
def house(migrated_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GrantHouse]:
    store = open_store(migrated_url, ManualClock(SystemClock().now()), find_key)
    with grant_house(store, tmp_path, monkeypatch) as made:
        spec = {**made.spec(human={**FINANCE, "quorum": {"approvals": 1}}), "targets": ["call"]}
        made.release(spec, grants=[], protocols={"calls": [{"bundle": "refunds", "callers": {"users": ["eve"]}}]})
        yield made
    store.close()


def go_through(house: GrantHouse, url: str, run: Run, when: str, die_at: int) -> int:
    """Approve what is asked until the call has ended, with a process that dies at a write and another one that continues.

    A person who is asked whether an interrupted call took effect looks at the effects.
    """
    processes = Processes(house, url, run, house.server)
    try:
        processes.start(when, die_at)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not house.look(run).status.is_final:
            assert time.monotonic() < deadline, (when, die_at, house.look(run))
            processes.reap()
            if not processes.alive:
                processes.start()
            for task in house.open(run):
                if task.options:
                    took_effect = any(run.id in line for line in house.notes())
                    house.say(task, "selected", selected_option="done" if took_effect else "repeat")
                else:
                    house.say(task, "approved")
            time.sleep(0.02)
        processes.reap()
    finally:
        processes.stop()
    return processes.killed


def test_a_call_is_decided_and_made_once_where_processes_are_killed(
    house: GrantHouse, migrated_url: str, request: pytest.FixtureRequest
) -> None:
    points = list(SAMPLED)
    if request.config.getoption("--every-write", default=False):
        points = [(when, number) for when in ("before", "after") for number in range(1, 12)]
    text = json.dumps({"tool": "refund", "arguments": {"amount": 20, "currency": "EUR"}})
    killed = 0
    for when, number in points:
        order = StartRequest(input=text, requester="eve", bundle="refunds", environment="prod", target="call")
        run = house.starter.start(order)
        killed += go_through(house, migrated_url, run, when, number)
        ended = house.look(run)
        assert ended.status is RunStatus.SUCCEEDED, (when, number, ended.error)
        assert json.loads(ended.output_text or "")["outcome"] == "success"
        with house.store.read() as tx:
            decided = [task for task in tasks.of_run(tx, run.id, TaskStatus) if task.decision is not None]
        assert len([task for task in decided if task.position == "tool"]) == 1, (when, number)
        assert len([line for line in house.notes() if run.id in line]) == 1, (when, number)
    assert killed > 2
