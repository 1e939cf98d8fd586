"""Times that people type into filters."""

from __future__ import annotations

import re

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def read_time_filter(text: str) -> str | None:
    """Return the time of a filter as operations take it: a day is its first moment (UTC), an empty text is no filter."""
    return f"{text}T00:00:00Z" if _DAY.fullmatch(text) else text or None
