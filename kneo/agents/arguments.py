"""Arguments of tool calls: JSON objects of bounded depth with a canonical form. Pure.

A model, a guardrail and a person write arguments. People, gates and services have to read the same value: arguments that have two
readings, or none, are refused before anything else looks at them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from kneo.digest import find_uncanonical

Arguments: TypeAlias = Mapping[str, object]

MAX_DEPTH = 64
"""Lists and objects inside each other, as in files."""

MAX_REASON_CHARS = 300


def find_flaw(arguments: object) -> str | None:
    """Return why a value cannot be the arguments of a call; ``None`` where it can."""
    if not isinstance(arguments, Mapping):
        return "the arguments are not a JSON object"
    flaw = find_uncanonical(dict(arguments), MAX_DEPTH)
    return (
        f"the arguments are not JSON that every service reads alike: {flaw[:MAX_REASON_CHARS]}"
        if flaw is not None
        else None
    )


def read_arguments(written: str | Arguments | None, limit: int) -> tuple[Arguments, str | None]:
    """Return the arguments of a call of a model, or why they cannot be read.

    Args:
        written: The arguments as the model wrote them, or as its library parsed them.
        limit: Their size in bytes.
    """
    if not written:
        return {}, None
    try:
        text = written if isinstance(written, str) else json.dumps(written)
        if len(text.encode(errors="replace")) > limit:
            return {}, f"the arguments are longer than {limit} bytes"
        arguments = json.loads(text, object_pairs_hook=_unambiguous)
    except (TypeError, ValueError, RecursionError) as error:
        return {}, f"the arguments are not JSON: {str(error)[:MAX_REASON_CHARS]}"
    flaw = find_flaw(arguments)
    return ({}, flaw) if flaw is not None else (arguments, None)


def _unambiguous(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) < len(pairs):
        msg = "a key is written twice"
        raise ValueError(msg)
    return value
