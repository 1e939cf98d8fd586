"""The operation that sums up the usage of models by day, model or agent."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Annotated

from pydantic import Field

from kneo.api.operation import Context, operation
from kneo.api.page import Word, view_of
from kneo.api.subjects import RUN
from kneo.errors import InvalidValue
from kneo.records.run import AgentUsage
from kneo.store.usage import UsageGroup, UsageRow, day_of, list_usage

MAX_ROWS = 1_000
"""Days, models or agents of one response."""

DAYS = 31
"""Days that are summed up where no first day is named."""

Day = Annotated[str, Field(max_length=10, description="A day in UTC, as in 2026-01-31.")]


@dataclass(frozen=True, kw_only=True)
class ModelUsageView:
    """The usage of one day, one model or one agent; the other columns are null."""

    day: str | None
    provider: str | None
    model: str | None
    agent: str | None
    requests: int
    input_tokens: int
    output_tokens: int
    total_tokens: int
    cost_micros: Annotated[
        int | None, Field(description="Millionths of a US dollar; null where no request has a price.")
    ]
    unpriced_requests: int

    @classmethod
    def of(cls, row: UsageRow) -> ModelUsageView:
        usage = row.usage
        columns = {name: row.group.get(name) for name in ("day", "provider", "model", "agent")}
        return view_of(cls, usage, **columns, total_tokens=usage.total_tokens, cost_micros=usage.known_cost)

    @property
    def group(self) -> str:
        """The name of the day, the agent or the model."""
        return self.day or self.agent or f"{self.provider}/{self.model}"


@dataclass(frozen=True, kw_only=True)
class UsageReportView:
    """Usage between two days, both included; ``truncated`` where there are more rows."""

    by: UsageGroup
    environment: str | None
    since: str
    until: str
    usage: list[ModelUsageView]
    total: ModelUsageView
    count: int
    truncated: bool


@operation("GET", "/usage", scope="runs:read", about=RUN)
def get_usage(
    context: Context,
    *,
    environment: Word | None = None,
    by: UsageGroup = "day",
    since: Day | None = None,
    until: Day | None = None,
) -> UsageReportView:
    """Sum up requests to models, their tokens and their cost by day, model or agent: of the last 31 days unless stated."""
    with context.store.read() as tx:
        last = _day(until, "until") if until is not None else tx.now.date()
        first = _day(since, "since") if since is not None else last - timedelta(days=DAYS - 1)
        found = list_usage(
            tx, by=by, environment=environment, since=day_of(first), until=day_of(last), limit=MAX_ROWS + 1
        )
    rows = found[:MAX_ROWS]
    total = sum((row.usage for row in rows), AgentUsage())
    return UsageReportView(
        by=by,
        environment=environment,
        since=day_of(first),
        until=day_of(last),
        usage=[ModelUsageView.of(row) for row in rows],
        total=ModelUsageView.of(UsageRow(group={}, usage=total)),
        count=len(rows),
        truncated=len(found) > MAX_ROWS,
    )


def _day(text: str, field: str) -> date:
    """Read a day.

    Raises:
        InvalidValue: it is not a day.
    """
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = date.min
    if day.year < 1970:
        msg = f"{field} is not a day: {text!r}."
        raise InvalidValue(msg, field=field, hint="Write it as in 2026-01-31.")
    return day
