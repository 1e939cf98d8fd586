"""The quota ``stored``: a run whose environment stores as much as its file allows is refused, also a fork, and fits again afterwards."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from engine import Engine, step
from gates.asking import declare

from kneo.clock import ManualClock
from kneo.errors import QuotaExceeded
from kneo.records.conversation import ConversationEntry, EntryKind, EntryStatus
from kneo.records.run import Run
from kneo.runtime.engine import quotas
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.recover import ForkRequest, fork
from kneo.store import agent_journal, stored_content
from kneo.store.engine import Store
from kneo.store.prune import prune_runs

HERE, OTHER = "prod", "other"
STEPS = """
def doubled(text):
    return text + text
"""
TEXT = "ä" * 5 * 1024
"""10 KiB."""


class Time:
    """The time of a process that only passes when it is told to."""

    now = 1_000.0


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(quotas, "monotonic", lambda: made.now)
    return made


@pytest.fixture
def engine(store: Store, tmp_path: Path) -> Engine:
    made = Engine(store, tmp_path / "code", STEPS)
    declare(store, inlineSpecs=True, quotas={"stored": "64Ki"})
    declare(store, environment=OTHER, inlineSpecs=True)
    return made


def start(engine: Engine, text: str = TEXT, environment: str = HERE) -> Run:
    return engine.start([step("doubled")], text, environment=environment)


def size(store: Store, environment: str = HERE) -> int:
    with store.read() as tx:
        return stored_content.measure(tx, environment)


def test_inputs_and_outputs_count_in_bytes(engine: Engine, store: Store, time: Time) -> None:
    for _ in range(2):
        engine.drive(start(engine))
    assert size(store) == 60 * 1024
    with pytest.raises(QuotaExceeded) as refused:
        start(engine)
    assert refused.value.code == "quota_exceeded"
    assert refused.value.details == {"quota": "stored", "limit": "64Ki", "used": 60 * 1024, "environment": HERE}
    assert size(store) == 60 * 1024, "nothing is stored"
    start(engine, "ä" * 2 * 1024)
    start(engine, environment=OTHER)


def test_a_fork_is_a_further_run(engine: Engine, store: Store, time: Time) -> None:
    parent = engine.drive(start(engine, TEXT * 2))  # 60 KiB
    with pytest.raises(QuotaExceeded):
        fork(engine.starter, ProgramLoader(store), ForkRequest(run_id=parent.id, requester="bob"))


def test_a_deleted_run_makes_room_at_the_next_measurement(
    engine: Engine, store: Store, clock: ManualClock, time: Time
) -> None:
    for _ in range(2):
        engine.drive(start(engine))
    clock.advance(timedelta(days=1))
    time.now += 1
    with pytest.raises(QuotaExceeded):
        start(engine)
    prune_runs(store, timedelta(hours=1))
    assert size(store) == 0
    with pytest.raises(QuotaExceeded):
        start(engine)
    time.now += 1
    start(engine)


def test_a_measurement_is_repeated_after_a_hundred_times_as_long_as_it_took(
    engine: Engine, store: Store, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    real = stored_content.measure

    def slow(tx: object, environment: str, **chosen: str | None) -> int:
        if "until" in chosen:
            measured.append(environment)
            time.now += 3
        return real(tx, environment, **chosen)

    monkeypatch.setattr(stored_content, "measure", slow)
    start(engine)
    assert measured == [HERE]
    for passed in (299, 1):
        with pytest.raises(QuotaExceeded):
            start(engine, TEXT * 7)
        time.now += passed
    assert measured == [HERE]
    with pytest.raises(QuotaExceeded):
        start(engine, TEXT * 7)
    assert measured == [HERE, HERE]


def test_conversations_count(engine: Engine, store: Store, time: Time) -> None:
    run, before = start(engine, "short"), size(store)
    entry = ConversationEntry(
        conversation="one~0",
        name="model:1",
        number=1,
        kind=EntryKind.MODEL,
        status=EntryStatus.DONE,
        body={"reply": "x" * 1000},
        facts={},
        started_at=run.created_at,
        completed_at=run.created_at,
    )
    with store.write() as tx:
        agent_journal.append(tx, run.id, [entry])
    assert size(store) - before == len('{"reply":""}') + 1000
