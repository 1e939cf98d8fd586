"""Replies of models as the journal keeps them: sound texts, and calls with ids of their own. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from itertools import count

from pydantic_ai.messages import ModelResponse, ToolCallPart

from kneo.agents.texts import UNSOUND, find_flaw, paired, sound_text

_CALL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def sound_reply(reply: ModelResponse) -> ModelResponse:
    """Return a reply of a model with sound texts. Arguments that have no canonical form stay so: their call is refused later."""
    parts = []
    for part in reply.parts:
        changes = {
            item.name: sound_text(value)
            for item in fields(part)
            if item.init and isinstance(value := getattr(part, item.name), str) and UNSOUND.search(value)
        }
        if isinstance(part, ToolCallPart):
            changes |= _sound_arguments(part)
        parts.append(replace(part, **changes) if changes else part)  # type: ignore[arg-type]
    texts = {name: sound_text(text) for name in ("model_name",) if (text := getattr(reply, name)) is not None}
    return replace(reply, parts=parts, **texts)  # type: ignore[arg-type]


def _sound_arguments(part: ToolCallPart) -> dict[str, str]:
    """Return the change of a call whose arguments cannot be kept as they are: a text in which such characters are escaped."""
    written = part.args
    if isinstance(written, str):
        return {"args": UNSOUND.sub(_escaped, paired(written))} if UNSOUND.search(written) else {}
    if written is None or find_flaw(written) is None:
        return {}
    try:
        return {"args": json.dumps(written)}
    except (TypeError, ValueError, RecursionError):
        return {"args": "[the arguments cannot be written as JSON]"}


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def with_distinct_calls(reply: ModelResponse) -> ModelResponse:
    """Return a reply whose calls have ids that are distinct and fit into keys.

    Some servers say ``call_0`` for every call; the id becomes a part of the names of entries and questions.
    """
    ids: set[str] = set()
    parts = []
    for number, part in enumerate(reply.parts):
        if isinstance(part, ToolCallPart):
            call_id = part.tool_call_id
            if call_id in ids or not _CALL_ID.fullmatch(call_id):
                call_id = next(each for each in (f"call_{number}_{n}" for n in count()) if each not in ids)
                part = replace(part, tool_call_id=call_id)  # noqa: PLW2901
            ids.add(call_id)
        parts.append(part)
    return replace(reply, parts=parts)
