"""Agents of the spec behind other ones, as tools and as checks of guardrails: a turn in a conversation of its own below the caller's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeAlias

from kneo.agents.services import Progress
from kneo.agents.turn import CallQuestion, PeopleRequired, Stopped, ToolCall, Turn, TurnResult
from kneo.errors import Invalid, KneoError

NestedTurn: TypeAlias = Callable[[Turn], Awaitable[TurnResult]]
"""Takes the turn of an agent behind another one."""


def nested_turn(turn: Turn, agent_name: str, text: str, *, key: str, limit: int, is_hidden: bool = False) -> Turn:
    """Return the turn of an agent behind this one.

    Args:
        turn: The turn of the agent above.
        agent_name: A name in ``components.agents``, or the root agent's.
        text: The agent's input.
        key: Names its conversation below this one; the keys of its questions begin with it.
        limit: How deep agents may be behind each other.
        is_hidden: See ``Turn``.

    Raises:
        Invalid: ``agents_too_deep``; ``spec_invalid``: there is no such agent, or it is a workflow.
    """
    if turn.depth >= limit:
        msg = f"Agents call each other more than {limit} deep; the last one is {agent_name}."
        hint = "Remove the tool or the guardrail through which an agent reaches itself."
        raise Invalid(msg, code="agents_too_deep", hint=hint)
    spec, prefix = turn.spec, f"{key}>"
    agent = spec.components.agents.get(agent_name)
    if agent is None and is_hidden and agent_name == spec.agent.name:
        agent = spec.agent
    if agent is None or agent.as_agent is not None:
        what = (
            "is not in components.agents" if agent is None else "is a workflow (as_agent), whose gates would be skipped"
        )
        msg = f"The agent {turn.agent_name} cannot call the agent {agent_name}: it {what}."
        raise Invalid(msg, code="spec_invalid", hint="Name an agent that has a model.")
    return replace(
        turn,
        agent_name=agent_name,
        agent=agent,
        text=text,
        conversation=f"{turn.conversation}>{key}",
        journal=turn.journal.below(key),
        answers={name.removeprefix(prefix): one for name, one in turn.answers.items() if name.startswith(prefix)},
        depth=turn.depth + 1,
        is_hidden=is_hidden or turn.is_hidden,
        deltas=None,
        feedback="",
        session=None,
        own_text=None,
    )


async def take_nested(take: NestedTurn, turn: Turn, *, key: str, task_key: str) -> TurnResult:
    """Take the turn of an agent behind another one. Its questions come up with ``key`` before their own keys.

    Raises:
        PeopleRequired, Stopped: with the questions as the agent above asks them.
        KneoError: the turn ended without an answer.
    """

    def above(question: CallQuestion) -> CallQuestion:
        return replace(question, key=f"{key}>{question.key}", task_key=f"{task_key}>{question.task_key}")

    try:
        return await take(turn)
    except PeopleRequired as required:
        raise PeopleRequired([above(question) for question in required.questions]) from None
    except Stopped as stopped:
        raise Stopped(above(stopped.question), stopped.decision) from None


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
