"""Quotas over a database, for the workers of several processes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from builders import build_run
from processes import run_pythons
from rules_now import always

from kneo.agents.quota import BudgetExceeded, PlannedRequest
from kneo.agents.turn import Postponed
from kneo.clock import ManualClock, new_id
from kneo.records.conversation import ConversationEntry, EntryKind, EntryStatus
from kneo.records.run import Run
from kneo.runtime.engine.agent_services import StoreQuota
from kneo.spec.policy import ModelRules
from kneo.store import runs, usage
from kneo.store.engine import Store
from kneo.store.migrate import open_store

START = datetime(2026, 1, 31, 12, tzinfo=UTC)

TOKENS = 100
"""The tokens of one request and its reply."""


def reply() -> ConversationEntry:
    return ConversationEntry(
        conversation="agent~0",
        name="model:1",
        number=1,
        kind=EntryKind.MODEL,
        status=EntryStatus.DONE,
        facts={"agent": "a", "provider": "openai", "model": "gpt", "input_tokens": TOKENS, "cost_micros": 500_000},
        started_at="2026-01-31T12:00:00Z",
    )


def start(store: Store) -> Run:
    with store.write() as tx:
        run = build_run(id=new_id("run", tx.now), environment="prod")
        runs.insert_run(tx, run)
        acquired = runs.acquire(tx, run.id, "claim")
    assert acquired is not None
    return acquired


def planned(run: Run) -> PlannedRequest:
    return PlannedRequest(
        run_id=run.id,
        environment="prod",
        agent="a",
        provider="openai",
        model="gpt",
        max_tokens=None,
        is_priced=True,
    )


def record(store: Store, run: Run) -> Run:
    with store.write() as tx:
        after = usage.record_usage(tx, run, [reply()])
        runs.commit(tx, after, usage=vars(after.usage))
    return after


def quota_of(store: Store, rules: object) -> StoreQuota:
    return StoreQuota(store, always(ModelRules.model_validate(rules)))


@pytest.mark.parametrize("per", ["run", "day", "month"])
def test_a_period_is_over_when_its_budget_is_used(store: Store, clock: ManualClock, per: str) -> None:
    quota = quota_of(store, {"budgets": [{"per": per, "cost": 1}]})
    first, other = start(store), start(store)
    for _ in range(2):
        asyncio.run(quota.admit(planned(first)))
        first = record(store, first)
    with pytest.raises(BudgetExceeded):
        asyncio.run(quota.admit(planned(first)))
    if per == "run":
        asyncio.run(quota.admit(planned(other)))
        return
    with pytest.raises(BudgetExceeded):
        asyncio.run(quota.admit(planned(other)))
    clock.advance(timedelta(hours=12))  # from the last day of January into February
    asyncio.run(quota.admit(planned(other)))


def test_a_full_minute_postpones_and_a_used_budget_does_not_fill_it(store: Store) -> None:
    limits = [{"provider": "openai", "requests_per_minute": 1}]
    run = start(store)
    closed = quota_of(store, {"limits": limits, "budgets": [{"per": "day", "cost": 0}]})
    with pytest.raises(BudgetExceeded):
        asyncio.run(closed.admit(planned(run)))
    quota = quota_of(store, {"limits": limits})
    asyncio.run(quota.admit(planned(run)))
    with pytest.raises(Postponed) as caught:
        asyncio.run(quota.admit(planned(run)))
    assert caught.value.seconds == 60


IMPORTS = f"""
import asyncio, sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[2] / "support")]!r}
from test_model_quota import *
"""

WORK = """
url, attempts, concurrent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
store = open_store(url, ManualClock(START))
quota = quota_of(store, {"budgets": [{"per": "day", "tokens": 5_000}]})

async def one(slots):
    async with slots:
        run = await asyncio.to_thread(start, store)
        try:
            await quota.admit(planned(run))
        except BudgetExceeded:
            return 0
        await asyncio.sleep(0)
        await asyncio.to_thread(record, store, run)
        return 1

async def main():
    slots = asyncio.Semaphore(concurrent)
    return sum(await asyncio.gather(*(one(slots) for _ in range(attempts))))

print(asyncio.run(main()))
store.close()
"""


@pytest.mark.both_databases
def test_concurrent_requests_exceed_a_budget_by_those_under_way_at_most(
    database_url: str, dialect: str, request: pytest.FixtureRequest
) -> None:
    open_store(database_url, ManualClock(START)).close()
    processes = 3 if dialect == "postgresql" else 1
    every = request.config.getoption("--every-write", default=False)
    attempts, concurrent = (1_000 if every else 120) // processes, 8
    arguments = [(database_url, str(attempts), str(concurrent))] * processes
    admitted = [int(line) for line in run_pythons(IMPORTS, WORK, arguments, timeout=300)]
    store = open_store(database_url, ManualClock(START))
    with store.read() as tx:
        spent = usage.usage_since(tx, "prod", "2000-01-01").input_tokens
    store.close()
    assert spent == sum(admitted) * TOKENS
    assert 5_000 <= spent <= 5_000 + (processes * concurrent - 1) * TOKENS
