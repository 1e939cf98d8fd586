"""Beginnings of texts in traces and checkpoints."""

from __future__ import annotations

import pytest

from kneo.redaction import redact_text
from kneo.runtime.engine.record import PREVIEW_CHARS, preview

TOKEN = "ghp_" + "a1B2" * 9


@pytest.mark.parametrize("shown", range(1, len(TOKEN)))
def test_a_preview_has_no_half_of_a_secret(shown: int) -> None:
    text = f"{'x' * (PREVIEW_CHARS - shown - 1)} {TOKEN} and more"
    cut = redact_text(preview(text) or "")
    assert cut.startswith("xxx")
    assert cut.endswith("...[truncated]")
    assert "ghp_" not in cut


def test_a_short_text_is_its_own_preview() -> None:
    assert [preview(text) for text in (None, "", TOKEN)] == [None, "", TOKEN]
