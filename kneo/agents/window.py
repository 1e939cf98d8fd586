"""Requests that are longer than the window of a model: what is left out of them. The journal has everything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic_ai.messages import ModelMessage, ModelRequest, ModelRequestPart, ModelResponse, ToolReturnPart

DROPPED = "[dropped]"
"""The result of a call that is left out."""


@dataclass(frozen=True)
class LeftOut:
    """What the requests of a conversation leave out.

    Attributes:
        results: The results of this many calls, the oldest first.
        messages: This many messages of earlier runs, the oldest first.
    """

    results: int = 0
    messages: int = 0


def without(messages: Sequence[ModelMessage], left_out: LeftOut) -> list[ModelMessage]:
    """Return the messages of a request without what is left out."""
    shown, left = [], left_out.results
    for message in messages[left_out.messages :]:
        if left and isinstance(message, ModelRequest):
            parts: list[ModelRequestPart] = []
            for part in message.parts:
                if left and isinstance(part, ToolReturnPart):
                    parts.append(
                        ToolReturnPart(
                            part.tool_name,
                            DROPPED,
                            tool_call_id=part.tool_call_id,
                            outcome=part.outcome,
                            timestamp=part.timestamp,
                        )
                    )
                    left -= 1
                else:
                    parts.append(part)
            message = replace(message, parts=parts)  # noqa: PLW2901
        shown.append(message)
    return shown


def leave_out_more(messages: Sequence[ModelMessage], past: int, left_out: LeftOut) -> LeftOut | None:
    """Return what a request leaves out that is still too long; ``None`` where nothing more can be left out.

    Each time it is half of what can be left out: results of calls, then messages of earlier runs. The results of the last
    reply's calls stay.

    Args:
        messages: All messages of the request.
        past: How many of them are of earlier runs.
        left_out: What it leaves out already.
    """
    sizes = [_size(part) for message in messages[:-1] for part in message.parts if isinstance(part, ToolReturnPart)]
    remaining = sizes[left_out.results :]
    if remaining:
        count, dropped = 0, 0
        while 2 * dropped < sum(remaining) or not count:
            dropped += remaining[count]
            count += 1
        return replace(left_out, results=left_out.results + count)
    if left_out.messages >= past:
        return None
    first = left_out.messages + (past - left_out.messages + 1) // 2
    while first < past and isinstance(messages[first], ModelResponse):
        # Some providers refuse a conversation that begins with an answer.
        first += 1
    return replace(left_out, messages=first)


def _size(part: ToolReturnPart) -> int:
    return len(part.content if isinstance(part.content, str) else json.dumps(part.content, default=str))
