"""What is left out of a request that is too long for its model."""

from __future__ import annotations

import pytest
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from kneo.agents.failures import RequestFailure
from kneo.agents.window import DROPPED, LeftOut, leave_out_more, without
from kneo.clock import SystemClock


def said(text: str) -> ModelMessage:
    return ModelRequest(parts=[UserPromptPart(text)])


def answered(text: str) -> ModelMessage:
    return ModelResponse(parts=[TextPart(text)])


def called(*results: object) -> list[ModelMessage]:
    numbers = range(len(results))
    calls = ModelResponse(parts=[ToolCallPart("look", {}, tool_call_id=f"c{number}") for number in numbers])
    parts = [ToolReturnPart("look", results[number], tool_call_id=f"c{number}") for number in numbers]
    return [calls, ModelRequest(parts=parts)]


def results(messages: list[ModelMessage]) -> list[object]:
    return [part.content for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]


def test_the_oldest_results_are_left_out_first_and_the_newest_stay() -> None:
    messages = [said("go"), *called("a" * 40, "b" * 40), *called("c" * 40, {"d": "d" * 30}), *called("e" * 500)]
    steps = []
    left_out: LeftOut | None = LeftOut()
    while left_out is not None:
        steps.append(sum(result == DROPPED for result in results(without(messages, left_out))))
        left_out = leave_out_more(messages, 0, left_out)
    assert steps == [0, 2, 3, 4]
    assert results(messages)[0] == "a" * 40
    last = without(messages, LeftOut(results=4))
    assert results(last) == [DROPPED] * 4 + ["e" * 500]
    assert [type(message) for message in last] == [type(message) for message in messages]


def test_then_the_oldest_messages_of_earlier_runs_are_left_out_in_whole_pairs() -> None:
    past = [message for number in range(4) for message in (said(f"u{number}"), answered(f"a{number}"))]
    messages = [*past, said("new")]
    first = leave_out_more(messages, 8, LeftOut())
    assert first == LeftOut(messages=4)
    second = leave_out_more(messages, 8, first)
    assert second == LeftOut(messages=6)
    third = leave_out_more(messages, 8, second)
    assert third == LeftOut(messages=8)
    assert leave_out_more(messages, 8, third) is None
    assert without(messages, third) == messages[-1:]


@pytest.mark.parametrize(
    ("status", "body", "too_long"),
    [
        (400, {"code": "context_length_exceeded", "message": "This model's maximum context length is 8192"}, True),
        (400, {"error": {"message": "prompt is too long: 210000 tokens > 200000 maximum"}}, True),
        (413, {"error": {"type": "request_too_large"}}, True),
        (400, [{"error": {"message": "The input token count (1) exceeds the maximum"}}], True),
        (400, {"message": "temperature is not supported"}, False),
        (400, None, False),
        (500, {"message": "context length"}, False),
    ],
)
def test_a_request_that_is_too_long_is_known_by_the_words_of_its_refusal(
    status: int, body: object, too_long: bool
) -> None:
    failure = RequestFailure.of(ModelHTTPError(status, "m", body), SystemClock().now())
    assert failure is not None
    assert failure.is_too_long is too_long
