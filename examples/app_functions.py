"""Stand-ins for the tools of the research agent: they answer at once and reach no network.

A tool is called with its arguments as one map and returns text. A function step is called with the text so far.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

MAX_SUMMARY_SENTENCES = 3


def web_search(arguments: Mapping[str, object]) -> str:
    """Pretend to search: one made-up result for whatever is asked."""
    query = str(arguments.get("query", "")).strip() or "nothing"
    return f"1. About {query} - https://example.org/search?topic={query.replace(' ', '+')}"


def webpage_reader(arguments: Mapping[str, object]) -> str:
    """Pretend to read a page."""
    return f"The page at {arguments.get('url', 'no address')} says what such a page would say."


def compress_history(text: str) -> str:
    """Keep the beginning and the end of a long conversation."""
    return text if len(text) <= 400 else f"{text[:200]} … {text[-200:]}"


def summarize(text: str) -> str:
    """Keep the first sentences."""
    sentences = re.split(r"(?<=[.!?])\s+", text.strip())
    return " ".join(sentences[:MAX_SUMMARY_SENTENCES])
