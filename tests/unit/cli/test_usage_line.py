"""Usage and events of agents as lines of text."""

from __future__ import annotations

import pytest

from kneo.api.run_views import UsageView
from kneo.cli.local import ArrivedDeltas
from kneo.cli.runs.runs import usage_line
from kneo.cli.watch import StreamPrinter, details, indent
from kneo.records.conversation import ModelDelta
from kneo.records.run import AgentUsage

USED = AgentUsage(requests=2, tool_calls=3, input_tokens=1_000, output_tokens=204, cost_micros=3_100)


@pytest.mark.parametrize(
    ("usage", "line"),
    [
        (USED, "2 requests, 3 tool calls, 1204 tokens, $0.0031"),
        (AgentUsage(requests=1, tool_calls=1, input_tokens=1), "1 request, 1 tool call, 1 token, $0.0000"),
        (AgentUsage(requests=1, input_tokens=1, cost_micros=12), "1 request, 0 tool calls, 1 token, $0.000012"),
        (
            AgentUsage(requests=1, unpriced_requests=1, input_tokens=9),
            "1 request, 0 tool calls, 9 tokens, price unknown",
        ),
        (
            USED + AgentUsage(requests=1, unpriced_requests=1),
            "3 requests, 3 tool calls, 1204 tokens, $0.0031, 1 request without a known price",
        ),
    ],
)
def test_the_usage_of_a_run_is_one_line(usage: AgentUsage, line: str) -> None:
    assert usage_line(vars(UsageView.of(usage))) == line


def test_requests_and_tool_calls_form_a_tree() -> None:
    kinds = ("step_completed", "model_completed", "tool_call_started", "workflow_completed")
    assert [indent(kind) + kind for kind in kinds] == [
        "step_completed",
        "└ model_completed",
        "  └ tool_call_started",
        "workflow_completed",
    ]


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            {
                "type": "model_completed",
                "model_name": "gpt",
                "metadata": {"input_tokens": 10, "output_tokens": 5, "milliseconds": 80},
                "output_preview": "One\nmoment",
            },
            "gpt 15 tokens 80 ms One moment",
        ),
        ({"type": "tool_call_completed", "tool_name": "look", "metadata": {"milliseconds": 3}}, "look 3 ms"),
        ({"type": "tool_call_failed", "tool_name": "look", "error": {"type": "E", "message": "gone"}}, "look gone"),
        ({"type": "step_completed", "model_name": "gpt", "output_preview": "out"}, "out"),
        ({"type": "status", "status": "paused"}, "paused"),
    ],
)
def test_an_event_is_one_line(event: dict[str, object], line: str) -> None:
    assert details(event) == line


def delta(text: str, offset: int, request: int = 1) -> dict[str, object]:
    return {
        "type": "model_delta",
        "run_id": "r",
        "step_id": "draft",
        "request": request,
        "offset": offset,
        "text": text,
    }


def test_replies_are_printed_while_they_arrive(capsys: pytest.CaptureFixture[str]) -> None:
    printer = StreamPrinter()
    printer.show({"type": "workflow_started"})
    for event in (delta("One ", 0), delta("two.", 4), delta("Next", 0, 2), delta("late", 9, 2), delta("Again", 0, 2)):
        printer.show(event)
    printer.show({"type": "step_completed", "step_id": "draft"})
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:-1] == ["One two.", "Next[…]late", "Again"]
    assert "workflow_started" in lines[0]
    assert "step_completed" in lines[-1]


def test_what_arrived_of_a_reply_stands_before_the_event_that_completes_it() -> None:
    arrived = ArrivedDeltas()
    for request, offset, text in ((1, 0, "Let "), (1, 4, "me look."), (2, 0, "It is")):
        arrived.queue.put(ModelDelta(run_id="r", step_id="draft", request=request, offset=offset, text=text))
    completed = {"type": "model_completed", "step_id": "draft", "metadata": {"request": 1}}
    assert [event["text"] for event in arrived.of_reply(completed)] == ["Let ", "me look."]
    assert not list(arrived.of_reply({"type": "step_completed", "step_id": "draft", "metadata": {}}))
    completed["metadata"] = {"request": 2}
    assert [event["text"] for event in arrived.of_reply(completed)] == ["It is"]
    assert not list(arrived.of_reply(completed))
