"""When two names are the same person."""

from __future__ import annotations

import unicodedata


def same_person(name: str) -> str:
    """Fold a name so that one person spelled two ways is one person."""
    return unicodedata.normalize("NFKC", name).casefold().strip()
