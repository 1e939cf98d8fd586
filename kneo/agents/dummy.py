"""The provider ``dummy``: deterministic, in-process, for examples, tests and dry runs."""

from __future__ import annotations

from dataclasses import replace

from kneo.agents.guardrails import CheckedText, Refused, TurnGuardrails
from kneo.agents.turn import Turn, TurnResult


def reply(text: str) -> str:
    """Answer a message the way the published dummy engine does, so that recorded outputs stay comparable."""
    return f"Final answer: {text}"


async def take_turn(turn: Turn, guardrails: TurnGuardrails) -> TurnResult:
    """Take a turn; its guardrails check the input and the answer.

    Raises:
        GuardrailViolation: the input or the answer is blocked.
        PeopleRequired: a person has to review one of them.
    """
    given = await guardrails.input(turn.text)
    answer = await guardrails.output(reply(replace(turn, text=given).prompt), 1)
    if isinstance(answer, Refused):
        at = CheckedText(stage="output", what="its answer", n="1", task_key="output:1")
        raise guardrails.violation(at, answer.guardrail, "the provider dummy cannot answer otherwise")
    facts = {"model_requests": 0, "tool_calls": 0, "total_tokens": 0}
    return TurnResult(text=str(answer), facts=facts, input=given if guardrails.of("input") else None)
