"""Agents of the OpenAI Agents SDK in flows: each tool call that needs an approval is a human task. Needs ``openai-agents``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from agents import Agent, Runner, RunState
from pydantic_core import to_jsonable_python

from kneo.embed.steps import POLL_SECONDS, CheckpointCall
from kneo.sdk.waits import wait

__all__ = ["run_agent"]


async def run_agent(
    agent: Agent[Any],
    given: Any,
    *,
    timeout: float | None = POLL_SECONDS,  # noqa: ASYNC109 - the name that every wait has
    **options: Any,
) -> object:
    """Run an agent to its end and return its output as JSON; people approve its calls.

    The state of the agent at each pause is a checkpoint: after an answer, nothing before the pause is repeated. A crash
    between two pauses repeats the part after the earlier one.

    Args:
        agent: The agent; tools with ``needs_approval`` pause it.
        given: The input of the agent: a text or messages.
        timeout: Seconds that the program polls for each answer, as for ``wait``.
        options: Further arguments of ``Runner.run``, such as ``max_turns``.

    Raises:
        Usage: no step runs, or the output or the state of the agent is not JSON.
    """
    while True:
        call = CheckpointCall.of(f"{agent.name} part", (), {})
        recorded = await asyncio.to_thread(call.recorded)
        if recorded:
            part = recorded[0]
        else:
            result = await Runner.run(agent, given, **options)
            paused = {"state": result.to_state().to_json()} if result.interruptions else {}
            part = paused or {"output": to_jsonable_python(result.final_output)}
            await asyncio.to_thread(call.record, part)
        assert isinstance(part, Mapping)
        if "state" not in part:
            return part["output"]
        given = await RunState.from_json(agent, dict(part["state"]))
        for item in given.get_interruptions():
            if _is_approved(item, timeout):
                given.approve(item)
            else:
                given.reject(item)


def _is_approved(item: Any, timeout: float | None) -> bool:
    arguments = json.loads(item.arguments or "{}")
    return bool(
        wait(
            schema=bool,
            name=f"approve_{item.name}_{item.call_id}",
            question=f"Approve {item.name}?",
            metadata=arguments if isinstance(arguments, Mapping) else {"arguments": arguments},
            timeout=timeout,
        )
    )
