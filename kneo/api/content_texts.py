"""Texts of people and models in responses: without secrets, and bounded."""

from __future__ import annotations

import json

from kneo.redaction import redact, redact_text

MAX_TEXT_CHARS = 20_000
"""Characters of one text."""

MAX_CHARS = 4_000_000
"""Characters of all texts of a response."""


class ContentTexts:
    """Redacts and bounds the texts of one response.

    Args:
        personal: Whether personal data is removed too.
    """

    def __init__(self, *, personal: bool) -> None:
        self.personal = personal
        self.left = MAX_CHARS

    @property
    def truncated(self) -> bool:
        """Whether the texts are longer than a response may be."""
        return self.left <= 0

    def shown(self, value: object) -> str:
        """Return a text, or data as JSON, without secrets and cut where it is too long."""
        # Redacted as a whole: half a secret is not recognized.
        text = self._redacted(value)
        most = max(min(MAX_TEXT_CHARS, self.left), 0)
        self.left -= len(text)
        return text if len(text) <= most else f"{text[:most]}[cut: {len(text)} characters in all]"

    def _redacted(self, value: object) -> str:
        if isinstance(value, str):
            return redact_text(value, personal=self.personal)
        return json.dumps(redact(value, personal=self.personal), ensure_ascii=False, default=str)
