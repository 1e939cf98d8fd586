"""The words of a question: a template with a few names to fill in, and nothing else it could do."""

from __future__ import annotations

import re
from collections.abc import Mapping

MAX_PROMPT_CHARS = 20_000
"""A subject put into a prompt may be long; the whole of it is in the task's subject."""

_SLOT = re.compile(r"\{\{\s*([a-zA-Z_][a-zA-Z0-9_.]{0,100})\s*\}\}")


def render(template: str, names: Mapping[str, str]) -> str:
    """Fill in ``{{ input }}`` and the like; a name nobody knows stays as it is written.

    What is filled in is not looked at again, so a value that contains braces is only text.
    """
    filled = _SLOT.sub(lambda slot: names.get(slot[1], slot[0]), template)
    return filled if len(filled) <= MAX_PROMPT_CHARS else filled[:MAX_PROMPT_CHARS] + "...[truncated]"
