"""The steps and gates of a run as rows on a time axis, and the states of its graph. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup

from kneo.api.run_steps import GateVoteView, StepGateView, StepView
from kneo.api.run_views import UsageView
from kneo.api.specs import GraphEdgeView, GraphNodeView
from kneo.clock import parse_time
from kneo.records.grant import use_words
from kneo.records.run import RunStatus
from kneo.records.task import UNRESOLVED, TaskStatus
from kneo.service.console.graph_layout import lay_out
from kneo.service.console.graph_svg import StepState, bar_svg, graph_svg, step_anchor
from kneo.service.console.render import peek, span
from kneo.service.console.time_axis import Interval, TimeAxis
from kneo.spec.gates import POSITIONS

OPEN_STEPS, MOST_STEPS = 150, 500
"""A graph of more steps is drawn with closed containers; one of still more only where that is asked for."""

ROW_CHARS = 700
"""Characters of an input or output in a row; the page of the step has the whole text."""

STATES: Mapping[str, StepState] = {
    "completed": "succeeded",
    "failed": "failed",
    "running": "running",
    "waiting": "waiting",
    "stopped": "failed",
}
"""The states of steps by the status of their last attempt."""


@dataclass(frozen=True, kw_only=True)
class CallRow:
    """A tool call of a step."""

    name: str
    status: str
    took: str


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """A step or a gate of a run as a row: its name, its bar, and what it took in and gave out."""

    anchor: str
    path: str
    name: str
    state: StepState
    is_gate: bool
    attempt: int
    peek: str
    took: str
    bar: Markup
    is_open: bool
    number: int = 0
    """The number of the step, for the address of its page; 0 for a gate."""
    kind: str = ""
    input: str = ""
    output: str = ""
    error: str = ""
    started_at: str | None = None
    model: str = ""
    usage: UsageView | None = None
    code_digest: str | None = None
    calls: tuple[CallRow, ...] = ()
    prompt: str = ""
    decision: str = ""
    votes: tuple[GateVoteView, ...] = ()
    task_id: str = ""

    @property
    def label(self) -> str:
        """The icon of the row."""
        icons = {"succeeded": "ok", "failed": "no", "waiting": "clock", "running": "play"}
        return icons.get(self.state, "dot")


@dataclass(frozen=True, kw_only=True)
class RunTimes:
    """The time that steps worked, and the time that gates waited for people, without counting any moment twice."""

    worked: float
    waited: float


@dataclass(frozen=True, kw_only=True)
class _Event:
    """A step or a gate with its time."""

    begin: float
    end: float
    step: StepView | None = None
    number: int = 0
    gate: StepGateView | None = None


def step_rows(
    steps: Sequence[StepView], gates: Sequence[StepGateView], now: datetime, *, first: int = 0
) -> tuple[list[StepRow], TimeAxis, RunTimes]:
    """Return rows in the order of their beginning.

    Args:
        steps: The steps of a page of the list.
        gates: The gates to show among them.
        now: The present, at which what is under way ends.
        first: The number of steps on the pages before.
    """
    shown_gates = {gate.path for gate in gates if gate.position == "step"}
    events = [
        _event_of(step, number, now)
        for number, step in enumerate(steps, first + 1)
        # The gate of a human step shows the question and the answer.
        if not (step.kind == "human" and step.path in shown_gates)
    ]
    latest = max((event.end for event in events if event.step and event.step.completed_at), default=now.timestamp())
    events = [
        event if event.begin else _Event(begin=latest, end=event.end, step=event.step, number=event.number)
        for event in events
    ]
    events += [
        _Event(
            begin=_seconds(gate.opened_at),
            end=_seconds(gate.resolved_at) if gate.resolved_at is not None else now.timestamp(),
            gate=gate,
        )
        for gate in gates
    ]
    events.sort(key=lambda event: (event.begin, event.number))
    work = [(event.begin, max(event.end, event.begin)) for event in events if event.step is not None]
    waits = [(event.begin, max(event.end, event.begin)) for event in events if event.gate is not None]
    axis = TimeAxis.of(work, waits)
    seen: Counter[str] = Counter()
    rows = []
    for event in events:
        path = event.step.path if event.step is not None else event.gate.path if event.gate is not None else ""
        seen[path] += 1
        anchor = step_anchor(path) + (f"--{seen[path]}" if seen[path] > 1 else "")
        rows.append(_row(event, axis, anchor))
    return rows, axis, RunTimes(worked=union_length(work), waited=union_length(waits))


def union_length(intervals: Iterable[Interval]) -> float:
    """Return the length of the union of intervals."""
    length, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        if end > reached:
            length += end - max(start, reached)
            reached = end
    return length


def _event_of(step: StepView, number: int, now: datetime) -> _Event:
    return _Event(
        begin=_seconds(step.started_at) if step.started_at is not None else 0,
        end=_seconds(step.completed_at) if step.completed_at is not None else now.timestamp(),
        step=step,
        number=number,
    )


def _seconds(text: str) -> float:
    return parse_time(text).timestamp()


def _row(event: _Event, axis: TimeAxis, anchor: str) -> StepRow:
    if event.gate is not None:
        return _gate_row(event.gate, event, axis, anchor)
    assert event.step is not None
    step = event.step
    state = STATES[step.status]
    error = f"{step.error.type}: {step.error.message}" if step.error is not None else ""
    return StepRow(
        anchor=anchor,
        path=step.path,
        name=step.path,
        state=state,
        is_gate=False,
        attempt=step.attempt or 0,
        peek=peek(error or step.output or ("" if step.completed_at else step.input)),
        took=span(event.end - event.begin) if step.started_at is not None else "",
        bar=bar_svg(axis, event.begin, event.end, state),
        is_open=state == "failed",
        number=event.number,
        kind=step.kind,
        input=step.input or "",
        output=step.output or "",
        error=error,
        started_at=step.started_at,
        model=f"{step.model.provider}/{step.model.name}" if step.model is not None else "",
        usage=step.usage,
        code_digest=step.code_digest,
        calls=tuple(
            CallRow(
                name=call.tool or call.key,
                status=call.status,
                took=span(_seconds(call.completed_at) - _seconds(call.started_at)) if call.completed_at else "",
            )
            for call in step.tool_calls
        ),
    )


def _gate_row(gate: StepGateView, event: _Event, axis: TimeAxis, anchor: str) -> StepRow:
    state = gate_state(gate)
    decided = gate_words(gate)
    return StepRow(
        anchor=anchor,
        path=gate.path,
        name=gate.path if gate.position == "step" else POSITIONS[gate.position].where.format(gate.path),
        state=state,
        is_gate=True,
        attempt=gate.attempt,
        peek=peek(decided if state != "waiting" else gate.headline),
        took=span(event.end - event.begin),
        bar=bar_svg(axis, event.begin, event.end, f"gate {state}"),
        is_open=state == "waiting",
        prompt=gate.prompt,
        decision=decided,
        votes=tuple(gate.votes),
        started_at=gate.opened_at,
        task_id=gate.continuation_id,
    )


def gate_state(gate: StepGateView) -> StepState:
    """Return the state of a gate."""
    if gate.status in UNRESOLVED:
        return "waiting"
    if gate.status == TaskStatus.CANCELLED:
        return "skipped"
    return "failed" if gate.decision == "rejected" or gate.status == TaskStatus.EXPIRED else "succeeded"


def gate_words(gate: StepGateView) -> str:
    """Return who decided what, and why: of several people each."""
    if gate.grant is not None:
        return f"approved by {use_words(gate.grant, [vote.actor for vote in gate.votes])}"
    several = [_answer_words(vote.actor, vote.decision, vote.comment) for vote in gate.votes]
    if gate.decision is None:
        state = {"cancelled": "withdrawn", "expired": "expired"}.get(gate.status, "waits for people")
        return "; ".join([*several, state])
    if len(several) > 1:
        return "; ".join(several)
    return _answer_words(gate.actor, gate.decision, gate.comment)


def _answer_words(actor: str | None, decision: str, comment: str | None) -> str:
    words = f"{actor} {decision}" if actor else decision
    return f"{words}: {comment}" if comment else words


# ---- the graph ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RunGraph:
    """The graph of a run: its drawing, or the number of steps where there are too many to draw unasked."""

    svg: Markup | None
    steps: int
    closed: bool


def run_graph(
    nodes: Sequence[GraphNodeView],
    edges: Sequence[GraphEdgeView],
    states: Mapping[str, StepState],
    attempts: Mapping[str, int],
    *,
    draw_all: bool,
) -> RunGraph:
    """Draw the graph of a run; ``draw_all`` draws every step of a large one."""
    parents = {step.parent for step in nodes if step.parent is not None}
    closed = parents if len(nodes) > OPEN_STEPS and not draw_all else frozenset()
    shown = [step for step in nodes if step.parent is None] if closed else nodes
    if len(shown) > MOST_STEPS and not draw_all:
        return RunGraph(svg=None, steps=len(nodes), closed=False)
    notes = {path: f"attempt {number + 1}" for path, number in attempts.items() if number}
    return RunGraph(svg=graph_svg(lay_out(nodes, edges, closed), states, notes), steps=len(nodes), closed=bool(closed))


def step_states(
    nodes: Sequence[GraphNodeView],
    visited: Sequence[str],
    steps: Sequence[StepView],
    gates: Sequence[StepGateView],
    status: RunStatus,
) -> dict[str, StepState]:
    """Return the state of each node of a graph; a node that is not in the result was not reached."""
    states: dict[str, StepState] = dict.fromkeys(visited, "succeeded")
    for step in steps:
        states[step.path] = STATES[step.status]
    for gate in gates:
        if gate.status in UNRESOLVED:
            states[gate.path] = "waiting"
    inside: dict[str, list[StepState]] = defaultdict(list)
    # A container stands before the steps inside it.
    for node in reversed(nodes):
        own = inside.get(node.id)
        if own and states.get(node.id) != "waiting":
            states[node.id] = _container_state(own, status)
        if node.id not in states and status is RunStatus.SUCCEEDED:
            states[node.id] = "skipped"
        if node.parent is not None and node.id in states:
            inside[node.parent].append(states[node.id])
    return states


def _container_state(inside: Sequence[StepState], status: RunStatus) -> StepState:
    for state in ("waiting", "running"):
        if state in inside:
            return state
    if "failed" in inside and status is not RunStatus.SUCCEEDED:
        return "failed"
    return "succeeded" if "succeeded" in inside or "failed" in inside else "skipped"
