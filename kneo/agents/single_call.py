"""The turn of a call: one tool call, which another program states instead of a model."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias

from kneo.agents.loop import take_turn
from kneo.agents.services import AgentServices, Progress
from kneo.agents.step_tools import load_code, offered_tools
from kneo.agents.tool_calls.calls import ToolCalls
from kneo.agents.turn import Turn, TurnResult
from kneo.digest import canonical_json

CALL_KEY = "1.call"
"""The key of the only call of a conversation."""

CheckCaller: TypeAlias = Callable[[str], Awaitable[str | None]]
"""From a tool to the reason why the environment does not serve it to the caller now; ``None`` where it does."""


async def take_call(turn: Turn, services: AgentServices, check_caller: CheckCaller) -> TurnResult:
    """Make the call that a turn's text states, or continue it from its journal.

    Args:
        turn: The turn; its text is the JSON of ``tool`` and ``arguments``.
        services: The services of the process.
        check_caller: Asked each time that the turn is entered, so that a rule that was removed stops a call that waits.

    Raises:
        PeopleRequired, Stopped, Exception: see ``ToolCalls.take``.
    """
    stated, entries = json.loads(turn.text), turn.journal.load()
    name = str(stated["tool"])
    await load_code(turn, services, called=name)
    progress = Progress.of(entries, token_budget=None)
    calls = ToolCalls(
        turn,
        services,
        offered_tools(turn, services),
        nested=partial(take_turn, services=services, caller=progress),
        entries=entries,
        stops_on_error=False,
    )
    call = calls.open(name, stated["arguments"], key=CALL_KEY, number=1)
    if call.status is None and (refusal := await check_caller(name)) is not None:
        call = await calls.journal.refuse(call, "policy", {"denied": refusal})
    call = await calls.take(call)
    text = canonical_json({"outcome": call.outcome, "result": call.result}).decode()
    return TurnResult(text=text, facts={"tool": name, "outcome": call.outcome})
