"""Usage of models and limits of requests per minute, on both databases."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from builders import build_run

from kneo.clock import ManualClock
from kneo.records.conversation import ConversationEntry, EntryKind, EntryStatus
from kneo.records.run import MAX_COUNT, AgentUsage, Run
from kneo.store import runs, usage
from kneo.store.engine import Store
from kneo.store.runs import Fenced
from kneo.store.usage import SHARDS, UsageGroup, admit_request, list_usage, usage_since

GPT = {"provider": "openai", "model": "gpt-5-mini", "agent": "writer"}


def model_entry(number: int = 1, **facts: object) -> ConversationEntry:
    return ConversationEntry(
        conversation="agent~0",
        name=f"model:{number}",
        number=number,
        kind=EntryKind.MODEL,
        status=EntryStatus.DONE,
        facts={**GPT, "input_tokens": 100, "output_tokens": 20, "cost_micros": 7, **facts},
        started_at="2026-01-31T12:00:00Z",
        completed_at="2026-01-31T12:00:01Z",
    )


def tool_entry(status: EntryStatus = EntryStatus.DONE) -> ConversationEntry:
    return ConversationEntry(
        conversation="agent~0",
        name="tool:1.a",
        number=1,
        kind=EntryKind.TOOL,
        status=status,
        facts={"tool": "look"},
        started_at="2026-01-31T12:00:00Z",
    )


def insert(store: Store, **changes: object) -> Run:
    run = build_run(**changes)
    with store.write() as tx:
        runs.insert_run(tx, run)
        acquired = runs.acquire(tx, run.id, "claim")
    assert acquired is not None
    return acquired


def record(store: Store, run: Run, *entries: ConversationEntry) -> Run:
    """Count entries as the append of a run's journal does."""

    with store.write() as tx:
        after = usage.record_usage(tx, run, entries)
        runs.commit(tx, after, usage=vars(after.usage))
    return after


def listed(store: Store, by: UsageGroup, environment: str | None = None) -> Mapping[tuple[str, ...], AgentUsage]:
    with store.read() as tx:
        rows = list_usage(tx, by=by, environment=environment, since="2026-01-01", until="2026-12-31", limit=100)
    return {tuple(row.group.values()): row.usage for row in rows}


def test_a_run_and_its_day_have_the_sum_of_the_finished_entries(store: Store) -> None:
    run = insert(store, environment="prod")
    run = record(
        store, run, model_entry(1), tool_entry(), tool_entry(EntryStatus.BEGUN), tool_entry(EntryStatus.DENIED)
    )
    run = record(store, run, model_entry(2, cost_micros=None), tool_entry(EntryStatus.FAILED))
    total = AgentUsage(requests=2, tool_calls=2, input_tokens=200, output_tokens=40, cost_micros=7, unpriced_requests=1)
    assert run.usage == total
    with store.read() as tx:
        stored = runs.get(tx, run.id)
    assert stored is not None
    assert stored.usage == total
    counted = AgentUsage(requests=2, input_tokens=200, output_tokens=40, cost_micros=7, unpriced_requests=1)
    assert listed(store, "day") == {("2026-01-31",): counted}
    assert listed(store, "model") == {("openai", "gpt-5-mini"): counted}
    assert listed(store, "agent") == {("writer",): counted}


def test_a_new_run_has_used_nothing(store: Store) -> None:
    assert insert(store).usage == AgentUsage()
    assert listed(store, "day") == {}


def test_nothing_is_counted_in_a_transaction_that_fails(store: Store) -> None:
    run = insert(store)
    with store.write() as tx:
        tx.connection.execute(runs.runs.update().values(epoch=9))
    with pytest.raises(Fenced):
        record(store, run, model_entry())
    assert listed(store, "day") == {}


def test_days_models_agents_and_environments_are_told_apart(store: Store, clock: ManualClock) -> None:
    prod, none = insert(store, environment="prod"), insert(store)
    record(store, prod, model_entry(), model_entry(2, provider="anthropic", model="claude"))
    clock.advance(timedelta(days=1))
    record(store, none, model_entry(agent="editor"))
    assert {key: used.requests for key, used in listed(store, "day").items()} == {
        ("2026-01-31",): 2,
        ("2026-02-01",): 1,
    }
    assert {key: used.requests for key, used in listed(store, "model").items()} == {
        ("anthropic", "claude"): 1,
        ("openai", "gpt-5-mini"): 2,
    }
    assert {key: used.requests for key, used in listed(store, "agent", "prod").items()} == {("writer",): 2}
    assert {key: used.requests for key, used in listed(store, "agent", "").items()} == {("editor",): 1}
    with store.read() as tx:
        assert usage_since(tx, "prod", "2026-01-31").requests == 2
        assert usage_since(tx, "prod", "2026-02-01") == AgentUsage()
        assert usage_since(tx, None, "2026-01-01").requests == 1


def test_names_and_counts_of_a_hostile_provider_are_bounded(store: Store) -> None:
    run = insert(store)
    odd = {"model": "m" * 10_000 + "\0", "input_tokens": 10**40, "output_tokens": -5, "cost_micros": "free"}
    run = record(store, run, *(model_entry(number, **odd) for number in range(5)))
    assert run.usage == AgentUsage(requests=5, input_tokens=5 * MAX_COUNT)
    assert list(listed(store, "model")) == [("openai", "m" * 200)]


def test_no_count_is_lost_among_concurrent_runs(store: Store) -> None:
    started = [insert(store) for _ in range(2 * SHARDS)]

    def use(run: Run) -> None:
        for number in range(5):
            run = record(store, run, model_entry(number), model_entry(number, agent="editor"))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, started))
    assert listed(store, "agent") == dict.fromkeys(
        [("editor",), ("writer",)],
        AgentUsage(requests=80, input_tokens=8_000, output_tokens=1_600, cost_micros=560),
    )


# ---- limits per minute ------------------------------------------------------------------------------------------


def admit(
    store: Store, *, requests: int | None = None, tokens: int | None = None, environment: str | None = "prod"
) -> timedelta | None:
    return store.transact(
        lambda tx: admit_request(tx, environment, "openai", requests=requests, tokens=tokens), durable=False
    )


def test_a_minute_admits_as_many_requests_as_its_limit(store: Store, clock: ManualClock) -> None:
    clock.advance(timedelta(seconds=15))
    assert [admit(store, requests=2) for _ in range(3)] == [None, None, timedelta(seconds=45)]
    clock.advance(timedelta(seconds=44))
    assert admit(store, requests=2) == timedelta(seconds=1)
    clock.advance(timedelta(seconds=1))
    assert [admit(store, requests=2) for _ in range(3)] == [None, None, timedelta(seconds=60)]


def test_refused_requests_come_again_at_the_rate_of_the_limit(store: Store) -> None:
    waits = [admit(store, requests=2) for _ in range(30)]
    assert waits == [None, None] + [timedelta(minutes=min(1 + n // 2, 10)) for n in range(28)]


def test_the_tokens_of_replies_close_the_minute(store: Store, clock: ManualClock) -> None:
    run = insert(store, environment="prod")
    assert admit(store, tokens=200) is None
    run = record(store, run, model_entry(1))
    assert admit(store, tokens=200) is None
    record(store, run, model_entry(2))
    assert admit(store, tokens=200) == timedelta(minutes=1)
    clock.advance(timedelta(minutes=1))
    assert admit(store, tokens=200) is None


def test_each_environment_has_its_own_minute(store: Store) -> None:
    assert admit(store, requests=1) is None
    assert admit(store, requests=1, environment="staging") is None
    assert admit(store, requests=1, environment=None) is None
    assert admit(store, requests=1) is not None
    run = insert(store, environment="staging")
    record(store, run, model_entry())
    assert admit(store, tokens=1) is None


def test_a_clock_that_is_far_ahead_stops_nobody(store: Store, clock: ManualClock) -> None:
    clock.advance(timedelta(hours=1))
    assert admit(store, requests=1) is None
    clock.advance(-timedelta(hours=1))
    assert admit(store, requests=1) is None
    assert admit(store, requests=1) is not None


def test_a_clock_that_is_a_little_ahead_does_not_double_the_limit(store: Store, clock: ManualClock) -> None:
    clock.advance(timedelta(seconds=60))
    assert admit(store, requests=1) is None
    clock.advance(-timedelta(seconds=1))
    assert admit(store, requests=1) is not None


def test_concurrent_requests_never_exceed_the_limit(store: Store) -> None:
    with ThreadPoolExecutor(8) as threads:
        waits = list(threads.map(lambda _: admit(store, requests=25), range(100)))
    assert waits.count(None) == 25
