"""Texts of unknown origin on a terminal."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """Return a text of unknown origin without control characters, which terminals obey and readers do not see."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
