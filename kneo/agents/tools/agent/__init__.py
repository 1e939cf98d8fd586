"""Agents of the spec as tools: a call is a turn of the agent, in a conversation of its own below that of the caller."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from kneo.agents.nested import NestedTurn, nested_turn, take_nested
from kneo.agents.services import Progress
from kneo.agents.turn import ToolCall
from kneo.errors import KneoError

_RESULTS = frozenset({"max_iterations", "model_empty_reply", "output_invalid", "conversation_too_long", "tool_failed"})
"""Errors of an agent behind a tool that are the call's result; every other one ends the turn of the caller as well."""


async def call_agent(
    call: ToolCall, *, take: NestedTurn, limit: int, announce: Callable[[], Awaitable[None]]
) -> tuple[str | KneoError, object]:
    """Take the turn of an agent behind a tool. Its questions come up with the call's key before their own.

    Args:
        call: The call.
        take: Takes a turn.
        limit: How deep agents may be behind each other.
        announce: Records that the call is under way, where the agent has not begun.

    Returns:
        The answer of the agent, or the error that is the call's result; and the tokens of its requests.

    Raises:
        PeopleRequired, Stopped: the agent asks, or an answer ends the run.
        KneoError: the turn of the caller ends.
    """
    # An agent that takes over answers for this one: what is withheld here is withheld there.
    is_hidden = call.tool.transfer and call.turn.withheld is not None
    text = str(call.arguments["input"])
    below = nested_turn(call.turn, str(call.tool.agent), text, key=call.key, limit=limit, is_hidden=is_hidden)
    if not below.journal.load():
        await announce()
    try:
        result = await take_nested(take, below, key=call.key, task_key=call.task_key)
    except KneoError as error:
        if error.code not in _RESULTS:
            raise
        return error, Progress.of(below.journal.load(), token_budget=None).tokens
    return result.text, result.facts["total_tokens"]
