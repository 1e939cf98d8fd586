"""Names of tools as models accept them, and the names of built-in tools."""

from __future__ import annotations

import re

from kneo.spec.models.agent import ASK_QUESTION, READ_SKILL

MAX_NAME = 64

OUTPUT_TOOL = "final_result"
"""The tool with which a model gives a structured answer."""

RESERVED = frozenset({ASK_QUESTION, READ_SKILL, OUTPUT_TOOL})

_OTHER = re.compile(r"[^A-Za-z0-9_-]")


def model_name(name: str) -> str:
    """Return the name of a tool for models: letters, digits, ``_`` and ``-``; other characters become ``_``."""
    return _OTHER.sub("_", name)[:MAX_NAME]
