"""The period of a text search.

Texts have no index on either database, so a search reads every row that was created in its period. A search without a period would
read everything that is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from kneo.api.page import stored_time
from kneo.clock import isoformat, parse_time
from kneo.errors import InvalidValue

DEFAULT_PERIOD = timedelta(days=30)
MAX_PERIOD = timedelta(days=366)


@dataclass(frozen=True, kw_only=True)
class SearchPeriod:
    """The period of creation that a text search covered, the end excluded; no end is now."""

    created_after: str
    created_before: str | None


def search_period(now: datetime, created_after: str | None, created_before: str | None) -> SearchPeriod:
    """Return the period of a text search: what the caller gave, by default the last 30 days before its end.

    Raises:
        InvalidTime: a text is not a time.
        InvalidValue: the period is longer than ``MAX_PERIOD``.
    """
    after, before = stored_time(created_after), stored_time(created_before)
    end = parse_time(before) if before is not None else now
    if after is None:
        # Year 1 has no earlier month to search.
        reach = min(DEFAULT_PERIOD, end - datetime.min.replace(tzinfo=end.tzinfo))
        after = isoformat(end - reach)
    elif end - parse_time(after) > MAX_PERIOD:
        msg = f"A text search covers up to {MAX_PERIOD.days} days; from {after} to {before or 'now'} is longer."
        hint = "Set created_after, and created_before for an earlier period."
        raise InvalidValue(msg, field="created_after", hint=hint)
    return SearchPeriod(created_after=after, created_before=before)
