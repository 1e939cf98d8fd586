"""The two ends of the approval workflow, without side effects: what would be published is only returned."""

from __future__ import annotations


def draft_report(text: str) -> str:
    """Turn a request into something a person can judge."""
    return f"Draft report\n\nRequested: {text}\n\nThis is where the findings would stand."


def publish_report(text: str) -> str:
    """Return what would be published, and where."""
    return f"Published. https://example.org/reports/1\n\n{text}"
