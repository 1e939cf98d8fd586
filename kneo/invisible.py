"""Characters that cannot be seen, or that change the order of a line, and the visible marks that pages show for them. Pure."""

from __future__ import annotations

import re

_SELECTORS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200c\u200e\u200f"
    "\u2028-\u202e\u2060-\u2069\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
    # A joiner between two pictures makes one picture of them.
    "|(?<![\u2190-\u2bff\ufe0f\U0001f000-\U0001faff])\u200d|\u200d(?![\u2190-\u2bff\U0001f000-\U0001faff])"
    # One selector chooses the form of a picture, an ideograph or a keycap; others, and each further one, only hide data.
    f"|(?<![0-9#*\u00a1-\ufdff\ufe10-\U000e00ff\U000e01f0-\U0010ffff])[{_SELECTORS}]"
)
"""Control characters, and characters without a glyph that hide text or change its order."""


def reveal(text: str) -> str:
    """Return a text with a visible mark in place of each character that cannot be seen."""
    return _INVISIBLE.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)
