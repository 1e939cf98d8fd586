"""When two names are the same person."""

from __future__ import annotations

from kneo.names import person_key as same_person

__all__ = ["same_person"]
