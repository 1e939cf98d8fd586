"""The two ends of the approval workflow, without side effects: what would be published is only returned."""

from __future__ import annotations


def draft_report(text: str) -> str:
    """Turn a request into something a person can judge."""
    return f"Draft report\n\nRequested: {text}\n\nThis is where the findings would stand."


def publish_report(text: str) -> str:
    """Say what would be published."""
    return f"Published:\n{text}"
