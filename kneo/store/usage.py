"""Usage of models per day: counters that grow in the transaction of each journal entry, so that they equal its sums after any crash."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import date, datetime, timedelta
from typing import Literal, TypeAlias

from sqlalchemy import bindparam, func, select, update

from kneo.records.conversation import ConversationEntry
from kneo.records.run import AgentUsage, RateWindow, Run, UsageKey
from kneo.store.engine import Tx, add_counts, insert_ignoring_duplicates
from kneo.store.prepared import Prepared
from kneo.store.tables import model_usage, rate_windows

SHARDS = 8
"""Rows among which the counters of one day are divided, so that concurrent runs rarely wait for each other's row lock."""

UsageGroup: TypeAlias = Literal["day", "model", "agent"]

COUNTS = tuple(field.name for field in fields(AgentUsage) if field.name != "tool_calls")
"""The counters of a row. Tool calls are of no model; a run counts them."""

_SUMS = [func.coalesce(func.sum(model_usage.c[name]), 0).label(name) for name in COUNTS]


def record_usage(tx: Tx, run: Run, entries: Iterable[ConversationEntry]) -> Run:
    """Count journal entries that this transaction finishes; return the run with its new usage, which the caller commits.

    An entry that was finished before this transaction must not be among them.
    """
    total, by_key = run.usage, dict[UsageKey, AgentUsage]()
    for entry in entries:
        usage = AgentUsage.of(entry)
        total += usage
        if usage.requests:
            key = UsageKey.of(entry)
            by_key[key] = by_key.get(key, AgentUsage()) + usage
    place = {
        "environment": run.environment or "",
        "day": day_of(tx.now),
        "shard": zlib.crc32(run.id.encode()) % SHARDS,
    }
    # In one order, so that two transactions cannot wait for each other.
    rows = [
        place | vars(key) | {name: getattr(usage, name) for name in COUNTS} for key, usage in sorted(by_key.items())
    ]
    add_counts(tx, model_usage, COUNTS, rows)
    tokens = Counter[str]()
    for key, usage in by_key.items():
        tokens[key.provider] += usage.total_tokens
    for provider, count in sorted(tokens.items()):
        _count_tokens(tx, run.environment, provider, count)
    return replace(run, usage=total)


def day_of(moment: datetime | date) -> str:
    """Return a day in UTC as it is stored."""
    return f"{moment:%Y-%m-%d}"


_SINCE = Prepared(
    select(*_SUMS).where(
        model_usage.c.environment == bindparam("of_environment"), model_usage.c.day >= bindparam("since")
    )
)


def usage_since(tx: Tx, environment: str | None, day: str) -> AgentUsage:
    """Return the usage of an environment from a day on."""
    row = _SINCE.first(tx, {"of_environment": environment or "", "since": day})
    assert row is not None
    return AgentUsage.of_counts(row._asdict())


@dataclass(frozen=True, kw_only=True)
class UsageRow:
    """The usage of one day, one model or one agent."""

    group: Mapping[str, str]
    usage: AgentUsage


def list_usage(
    tx: Tx, *, by: UsageGroup, environment: str | None, since: str, until: str, limit: int
) -> tuple[UsageRow, ...]:
    """List usage between two days, both included: days in their order, models and agents by their names."""
    names = ("provider", "model") if by == "model" else (by,)
    group = [model_usage.c[name] for name in names]
    where = [model_usage.c.day >= since, model_usage.c.day <= until]
    if environment is not None:
        where.append(model_usage.c.environment == environment)
    if tx.reach is not None:
        where.append(model_usage.c.environment.in_(sorted(tx.reach)))
    rows = tx.connection.execute(
        select(*group, *_SUMS).where(*where).group_by(*group).order_by(*group).limit(limit)
    ).mappings()
    return tuple(
        UsageRow(group={name: row[name] for name in names}, usage=AgentUsage.of_counts(dict(row))) for row in rows
    )


def total_by_model(tx: Tx) -> Mapping[tuple[str, str, str], AgentUsage]:
    """Sum up all usage by environment, provider and model."""
    group = [model_usage.c[name] for name in ("environment", "provider", "model")]
    rows = tx.connection.execute(select(*group, *_SUMS).group_by(*group)).mappings()
    return {(row["environment"], row["provider"], row["model"]): AgentUsage.of_counts(dict(row)) for row in rows}


# ---- limits per minute ----------------------------------------------------------------------------------------------

_OF_PROVIDER = (
    rate_windows.c.environment == bindparam("of_environment"),
    rate_windows.c.provider == bindparam("to_provider"),
)
_LOCK_WINDOW = Prepared(select(rate_windows).where(*_OF_PROVIDER).with_for_update())
_SET_WINDOW = Prepared(update(rate_windows).where(*_OF_PROVIDER))


SERVICE = ""
"""Stands in the place of a provider for the API of Kneo itself."""


def admit_request(
    tx: Tx, environment: str | None, provider: str, *, requests: int | None, tokens: int | None
) -> timedelta | None:
    """Count a request to a provider within limits per minute; return after which time a refused one may come again."""
    names = {"environment": environment or "", "provider": provider}
    window = _read_window(tx, environment, provider)
    if window is None:
        insert_ignoring_duplicates(tx, rate_windows, **names, **vars(RateWindow(minute=_minute(tx))))
        window = _read_window(tx, environment, provider)
        assert window is not None
    window = window.at(_minute(tx))
    if window.admits(requests=requests, tokens=tokens):
        _write_window(tx, environment, provider, replace(window, requests=window.requests + 1))
        return None
    window = replace(window, refused=window.refused + 1)
    _write_window(tx, environment, provider, window)
    begins = datetime.fromtimestamp(60 * (_minute(tx) + window.wait_minutes()), tx.now.tzinfo)
    return begins - tx.now


def _count_tokens(tx: Tx, environment: str | None, provider: str, tokens: int) -> None:
    """Count the tokens of a reply where the provider has limits."""
    window = _read_window(tx, environment, provider)
    if window is not None:
        window = window.at(_minute(tx))
        _write_window(tx, environment, provider, replace(window, tokens=window.tokens + tokens))


def _read_window(tx: Tx, environment: str | None, provider: str) -> RateWindow | None:
    row = _LOCK_WINDOW.first(tx, {"of_environment": environment or "", "to_provider": provider})
    if row is None:
        return None
    return RateWindow(minute=row.minute, requests=row.requests, tokens=row.tokens, refused=row.refused)


def _write_window(tx: Tx, environment: str | None, provider: str, window: RateWindow) -> None:
    _SET_WINDOW.change(tx, {"of_environment": environment or "", "to_provider": provider, **vars(window)})


def _minute(tx: Tx) -> int:
    return int(tx.now.timestamp()) // 60
