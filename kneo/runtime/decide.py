"""What can happen next in a run. Pure: state in, state out.

The state of a run is a tree of frames, one per node that has begun and not ended, so that a step costs the depth of
the tree and not the length of the history. A frame is a plain JSON object:

* leaf     ``{"node": path, "input": text, "attempt": n}``
* gate     ``{"node": path, "input": text, "task": id or null}``
* sequence ``{"node": path, "index": n, "child": frame}``

``begin`` makes the first state, ``actions`` lists what may be done now, ``settle`` takes the outcome of one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kneo.runtime.program import Gate, Leaf, Node, Program, Sequence
from kneo.state.run import RunError, RunStatus
from kneo.state.task import Decision, DecisionKind

Frame = Mapping[str, object]


# ---- what may be done -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Execute:
    """Do a step's work."""

    leaf: Leaf
    input: str
    attempt: int


@dataclass(frozen=True)
class Ask:
    """Open a human task for a gate."""

    gate: Gate
    input: str


Action = Execute | Ask


# ---- what came of it --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Succeeded:
    output: str


@dataclass(frozen=True)
class StepFailed:
    error: RunError


@dataclass(frozen=True)
class Asked:
    task_id: str


@dataclass(frozen=True)
class Answered:
    decision: Decision


Outcome = Succeeded | StepFailed | Asked | Answered


@dataclass(frozen=True)
class Ended:
    """The run is over."""

    status: RunStatus
    output: str | None
    error: RunError | None = None


@dataclass(frozen=True)
class _Done:
    output: str


_Progress = Frame | _Done | Ended

REJECTED = "human_rejected"


def begin(program: Program, text: str) -> Frame | Ended:
    """Make the state of a run that has done nothing yet."""
    return _close(_enter(program.root, text))


def actions(program: Program, state: Frame) -> tuple[Action, ...]:
    """List what may be done now; empty means that the run waits for people."""
    return tuple(_ready(program.root, state))


def gate_of_task(program: Program, state: Frame, task_id: str) -> str:
    """Find the path of the gate that waits for a task.

    Raises:
        KeyError: no gate of this state does.
    """
    return {task: path for path, task in _waiting(program.root, state)}[task_id]


def settle(program: Program, state: Frame, path: str, outcome: Outcome) -> Frame | Ended:
    """Take the outcome of the action at ``path``."""
    return _close(_settle(program.root, state, path, outcome))


def _close(progress: _Progress) -> Frame | Ended:
    if isinstance(progress, _Done):
        return Ended(RunStatus.SUCCEEDED, progress.output)
    return progress


# ---- the interpreter --------------------------------------------------------------------------------------------


def _enter(node: Node, text: str) -> _Progress:
    match node:
        case Leaf():
            return {"node": node.path, "input": text, "attempt": 0}
        case Gate():
            return {"node": node.path, "input": text, "task": None}
        case Sequence():
            return _continue_sequence(node, 0, text)
        case _:
            raise _unknown(node)


def _continue_sequence(node: Sequence, index: int, text: str) -> _Progress:
    while index < len(node.children):
        progress = _enter(node.children[index], text)
        if isinstance(progress, _Done):
            index, text = index + 1, progress.output
            continue
        if isinstance(progress, Ended):
            return progress
        return {"node": node.path, "index": index, "child": progress}
    return _Done(text)


def _ready(node: Node, frame: Frame) -> list[Action]:
    match node:
        case Leaf():
            return [Execute(node, _text(frame, "input"), _number(frame, "attempt"))]
        case Gate():
            return [] if frame["task"] else [Ask(node, _text(frame, "input"))]
        case Sequence():
            return _ready(*_child(node, frame))
        case _:
            raise _unknown(node)


def _waiting(node: Node, frame: Frame) -> list[tuple[str, str]]:
    match node:
        case Leaf():
            return []
        case Gate():
            return [(node.path, _text(frame, "task"))] if frame["task"] else []
        case Sequence():
            return _waiting(*_child(node, frame))
        case _:
            raise _unknown(node)


def _settle(node: Node, frame: Frame, path: str, outcome: Outcome) -> _Progress:
    match node:
        case Leaf():
            return _settle_leaf(node, frame, outcome)
        case Gate():
            return _settle_gate(node, frame, outcome)
        case Sequence():
            child, inner = _child(node, frame)
            progress = _settle(child, inner, path, outcome)
            if isinstance(progress, _Done):
                return _continue_sequence(node, _number(frame, "index") + 1, progress.output)
            return progress if isinstance(progress, Ended) else {**frame, "child": progress}
        case _:
            raise _unknown(node)


def _settle_leaf(node: Leaf, frame: Frame, outcome: Outcome) -> _Progress:
    match outcome:
        case Succeeded():
            return _Done(outcome.output)
        case StepFailed() if _number(frame, "attempt") < node.max_retries:
            return {**frame, "attempt": _number(frame, "attempt") + 1}
        case StepFailed() if node.on_error == "continue":
            return _Done(_text(frame, "input"))
        case StepFailed():
            return Ended(RunStatus.FAILED, None, outcome.error)
        case _:
            raise _mismatch(node, outcome)


def _settle_gate(node: Gate, frame: Frame, outcome: Outcome) -> _Progress:
    match outcome:
        case Asked():
            return {**frame, "task": outcome.task_id}
        case Answered():
            return _effect(node, _text(frame, "input"), outcome.decision)
        case _:
            raise _mismatch(node, outcome)


def _effect(node: Gate, subject: str, decision: Decision) -> _Progress:
    """Turn a decision into what flows on, or into the end of the run."""
    if decision.kind is DecisionKind.APPROVED:
        return _Done(subject)
    if decision.kind is DecisionKind.SELECTED:
        return _Done(decision.selected_option or "")
    if decision.kind is not DecisionKind.REJECTED:
        return _Done(decision.content or "")
    reason = decision.content or decision.comment or ""
    if node.human.on_reject == "continue":
        return _Done(f"Rejected by human reviewer: {reason}")
    said = f": {reason}" if reason else "."
    return Ended(
        RunStatus.CANCELLED, None, RunError(type=REJECTED, message=f"{decision.actor} rejected {node.path}{said}")
    )


def _child(node: Sequence, frame: Frame) -> tuple[Node, Frame]:
    inner = frame["child"]
    assert isinstance(inner, Mapping)
    return node.children[_number(frame, "index")], inner


def _text(frame: Frame, key: str) -> str:
    value = frame[key]
    assert isinstance(value, str)
    return value


def _number(frame: Frame, key: str) -> int:
    value = frame[key]
    assert isinstance(value, int)
    return value


def _unknown(node: Node) -> TypeError:
    return TypeError(f"no interpreter for {type(node).__name__}")


def _mismatch(node: Node, outcome: Outcome) -> TypeError:
    return TypeError(f"{type(outcome).__name__} is no outcome of {type(node).__name__} {node.path}")
