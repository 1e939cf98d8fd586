"""Checks of texts for keywords and patterns, and the replacement of their matches. Pure.

What is checked is a text, or a JSON value: the arguments or the result of a tool call, a structured output. Of a JSON value every
string, every key and every number is checked, and its whole text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from kneo.errors import Invalid
from kneo.spec.models.agent import Guardrail
from kneo.spec.patterns import Pattern, PatternInvalid, compile_pattern

REDACTED = "[redacted]"
"""The replacement of a match."""


class TextCheck(Protocol):
    """What a guardrail looks for in a text."""

    def finds(self, text: str) -> bool:
        """Return whether a text contains it.

        Raises:
            TextUnmatchable: the text cannot be judged.
        """
        ...

    def replaced(self, text: str) -> str:
        """Return a text with every match replaced.

        Raises:
            TextUnmatchable: the text cannot be judged.
        """
        ...


@dataclass(frozen=True)
class Keywords:
    """Texts that are looked for whatever their case."""

    words: Sequence[str]

    def finds(self, text: str) -> bool:
        folded = text.casefold()
        return any(word.casefold() in folded for word in self.words)

    def replaced(self, text: str) -> str:
        for word in self.words:
            text = re.sub(re.escape(word), REDACTED, text, flags=re.IGNORECASE)
        return text


@dataclass(frozen=True)
class Patterns:
    """Regular expressions that are looked for anywhere in a text."""

    patterns: Sequence[Pattern]

    def finds(self, text: str) -> bool:
        return any(pattern.search(text) for pattern in self.patterns)

    def replaced(self, text: str) -> str:
        for pattern in self.patterns:
            text = pattern.replace(text, REDACTED)
        return text


def text_check(guardrail: Guardrail) -> TextCheck:
    """Return what a guardrail of type ``keyword`` or ``regex`` looks for.

    Raises:
        Invalid: ``spec_invalid``: its config cannot be used.
    """
    key = "keywords" if guardrail.type == "keyword" else "patterns"
    stated = guardrail.config.get(key)
    texts = [text for text in stated if isinstance(text, str) and text] if isinstance(stated, list) else []
    if stated is not None and (not isinstance(stated, list) or len(texts) < len(stated)):
        msg = f"config.{key} of the guardrail {guardrail.id} is not a list of texts."
        raise Invalid(msg, code="spec_invalid")
    if key == "keywords":
        return Keywords(texts)
    try:
        return Patterns([compile_pattern(text) for text in texts])
    except PatternInvalid as flaw:
        raise Invalid(flaw.reason, code="spec_invalid") from None


def text_of(value: object) -> str:
    """Return the text of a value: a text itself, and the JSON of everything else."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def finds_in(check: TextCheck, value: object) -> bool:
    """Return whether a text or any part of a JSON value contains what a check looks for.

    Raises:
        TextUnmatchable: it cannot be judged.
    """
    return check.finds(text_of(value)) or any(check.finds(text) for text in _texts(value))


def redacted_value(check: TextCheck, value: object) -> object:
    """Return a text or a JSON value with every match replaced; a number that matches becomes a text.

    Raises:
        TextUnmatchable: it cannot be judged.
    """
    return _mapped(value, check.replaced)


def _texts(value: object) -> Sequence[str]:
    """Return the texts in a JSON value: strings, keys, and numbers as they are written."""
    texts: list[str] = []

    def kept(text: str) -> str:
        texts.append(text)
        return text

    _mapped(value, kept)
    return texts


def _mapped(value: object, change: Callable[[str], str]) -> object:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(str(key)): _mapped(each, change) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(each, change) for each in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        text = json.dumps(value)
        changed = change(text)
        return value if changed == text else changed
    return value
