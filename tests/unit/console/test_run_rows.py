"""Tests for the rows of a run's page and for the states of its graph."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from drawn_graphs import drawn_edge, drawn_step

from kneo.api.run_steps import StepGateView, StepView
from kneo.api.specs import GraphNodeView
from kneo.records.run import RunStatus
from kneo.service.console.run_rows import run_graph, step_rows, step_states, union_length

NOW = datetime(2026, 1, 31, 13, tzinfo=UTC)


def at(second: int) -> str:
    return f"2026-01-31T12:00:{second:02d}.000000+00:00"


def step(path: str, start: int = 0, end: int | None = 1, **changes: object) -> StepView:
    view = StepView(
        path=path,
        kind="function",
        attempt=0,
        status="completed",
        agent_name=None,
        started_at=at(start),
        completed_at=at(end) if end is not None else None,
        milliseconds=None,
        input="in",
        output="out",
        error=None,
        model=None,
        usage=None,
        code_digest=None,
        tool_calls=[],
    )
    return replace(view, **changes)  # type: ignore[arg-type]


def gate(path: str, opened: int, **changes: object) -> StepGateView:
    view = StepGateView(
        continuation_id="cont_1",
        path=path,
        key=f"{path}.after",
        kind="review",
        position="after",
        attempt=0,
        status="open",
        headline="Fine?",
        prompt="Fine?",
        opened_at=at(opened),
        resolved_at=None,
        decision=None,
        actor=None,
        comment=None,
        approvals=1,
        grant=None,
        votes=[],
    )
    return replace(view, **changes)  # type: ignore[arg-type]


def node(path: str, parent: str | None = None) -> GraphNodeView:
    return drawn_step(id=path, name=path, kind="function", parent=parent)


CONTAINER = [node("checks"), node("checks/a", "checks"), node("checks/b", "checks"), node("send")]


@pytest.mark.parametrize(
    ("steps", "gates", "status", "container"),
    [
        ([step("checks/a")], [], RunStatus.SUCCEEDED, "succeeded"),
        ([step("checks/a"), step("checks/b", status="running")], [], RunStatus.RUNNING, "running"),
        ([step("checks/a", status="running")], [gate("checks/b", 1)], RunStatus.RUNNING, "waiting"),
        ([step("checks/a"), step("checks/b", status="failed")], [], RunStatus.FAILED, "failed"),
        ([step("checks/a", status="failed"), step("checks/a", attempt=1)], [], RunStatus.SUCCEEDED, "succeeded"),
        ([], [], RunStatus.SUCCEEDED, "skipped"),
        ([], [gate("checks", 1)], RunStatus.PAUSED, "waiting"),
        ([], [], RunStatus.RUNNING, None),
    ],
)
def test_a_container_has_the_state_of_its_steps(
    steps: list[StepView], gates: list[StepGateView], status: RunStatus, container: str | None
) -> None:
    assert step_states(CONTAINER, [], steps, gates, status).get("checks") == container


def test_steps_that_a_finished_run_did_not_reach_were_skipped() -> None:
    assert step_states(CONTAINER, ["checks/a"], [], [], RunStatus.SUCCEEDED)["send"] == "skipped"
    assert "send" not in step_states(CONTAINER, ["checks/a"], [], [], RunStatus.FAILED)
    assert step_states(CONTAINER, ["send"], [], [], RunStatus.FAILED)["send"] == "succeeded"


def test_gates_stand_among_the_steps_in_the_order_of_time() -> None:
    sent_back = gate(
        "draft", 2, status="applied", resolved_at=at(9), decision="rejected", actor="ann", comment="Shorter"
    )
    rows, axis, times = step_rows(
        [
            step("draft", 0, 2),
            step("draft", 9, 10, attempt=1),
            step("send", 10, None, status="running", started_at=None),
        ],
        [sent_back, gate("draft", 10, attempt=1)],
        NOW,
    )
    assert [(row.path, row.is_gate, row.attempt, row.state) for row in rows] == [
        ("draft", False, 0, "succeeded"),
        ("draft", True, 0, "failed"),
        ("draft", False, 1, "succeeded"),
        ("draft", True, 1, "waiting"),
        ("send", False, 0, "running"),
    ]
    assert rows[1].peek == "ann rejected: Shorter"
    assert [row.anchor for row in rows][:2] == ["step-draft", "step-draft--2"]
    assert len({row.anchor for row in rows}) == len(rows)
    assert not axis.squeezed, "a step is under way all the time"
    assert times.waited > 3000


def test_an_hour_of_waiting_is_squeezed() -> None:
    _, axis, _ = step_rows([step("draft", 0, 2)], [gate("draft", 2)], NOW)
    [cut] = axis.squeezed
    assert cut.end - cut.start > 3000


def test_the_gate_of_a_human_step_stands_for_the_step() -> None:
    asked = gate("approve", 1, position="step", status="applied", resolved_at=at(5), decision="approved", actor="ann")
    rows, _, _ = step_rows([step("approve", 1, 5, kind="human")], [asked], NOW)
    assert [(row.name, row.is_gate, row.peek) for row in rows] == [("approve", True, "ann approved")]


def test_no_moment_is_counted_twice() -> None:
    assert union_length([(0, 10), (5, 12), (20, 21), (20, 20.5)]) == 13
    assert union_length([]) == 0


def test_large_graphs_are_closed_and_larger_ones_are_drawn_on_request() -> None:
    parts = [node(f"big/{number}", "big") for number in range(200)]
    graph = run_graph([node("big"), *parts], [], {}, {}, draw_all=False)
    assert graph.closed
    assert graph.svg is not None
    assert graph.svg.count("data-step") == 1
    opened = run_graph([node("big"), *parts], [], {}, {}, draw_all=True)
    assert opened.svg is not None
    assert opened.svg.count("data-step") == 201
    flat = [node(str(number)) for number in range(600)]
    edges = [drawn_edge(source=str(number), target=str(number + 1)) for number in range(599)]
    assert run_graph(flat, edges, {}, {}, draw_all=False).svg is None
    assert run_graph(flat, edges, {}, {}, draw_all=True).svg is not None
