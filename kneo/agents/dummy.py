"""The provider ``dummy``: deterministic, in-process, for examples, tests and dry runs."""

from __future__ import annotations


def reply(text: str) -> str:
    """Answer a message the way the published dummy engine does, so that recorded outputs stay comparable."""
    return f"Final answer: {text}"
