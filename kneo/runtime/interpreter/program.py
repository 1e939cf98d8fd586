"""What can happen next in a run. Pure: state in, state out.

``begin`` makes the first state, ``actions`` lists what may be done now, ``settle`` takes the outcome of one of them,
``waiting`` lists the open questions. How each kind of node behaves is in ``kneo.runtime.interpreter``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from kneo.records.run import RunStatus
from kneo.runtime.interpreter.fork_gates import FORK_GATES, ForkGates, GateIndex, index_gates
from kneo.runtime.interpreter.node import (
    Action,
    Ask,
    Completed,
    DecisionContext,
    Failed,
    Frame,
    Outcome,
    ProgramNode,
    Progress,
    RepeatRequested,
    RunEnded,
    stopped,
)
from kneo.runtime.interpreter.values import Value
from kneo.spec.models import Agent, FunctionComponent


@dataclass(frozen=True, kw_only=True)
class Program:
    """Everything the interpreter needs of one spec."""

    root: ProgramNode
    agents: Mapping[str, Agent]
    asked: tuple[str, ...]
    """The agents that its steps run, by their names in ``agents``."""
    functions: Mapping[str, FunctionComponent]
    agent_name: str
    workflow_name: str | None
    workflow_type: str | None

    @cached_property
    def gates(self) -> GateIndex:
        """Every gate of the program; see ``index_gates``."""
        return index_gates(self.root)


ROOT_AGENT = ""
"""The name under which ``agents`` holds the root agent; no component can have it."""


def begin(program: Program, text: str, context: DecisionContext) -> Frame | RunEnded:
    """Make the state of a run that has done nothing yet."""
    return _close(program.root.enter(context, Value(text=text), ""))


def actions(program: Program, state: Frame) -> tuple[Action, ...]:
    """List what may be done now or later; empty means that the run waits for people."""
    gates = _fork_gates(program, state)
    return tuple(gates.ready(state) if gates is not None else program.root.ready(state, ""))


def waiting(program: Program, state: Frame) -> Mapping[str, Ask]:
    """Find the open questions by the ids of their tasks."""
    gates = _fork_gates(program, state)
    return dict(gates.waiting(state) if gates is not None else program.root.waiting(state, ""))


def settle(program: Program, state: Frame, ticket: str, outcome: Outcome, context: DecisionContext) -> Frame | RunEnded:
    """Take the outcome of the action that has this ticket.

    Raises:
        Stale: it is no longer under way; the outcome is discarded.
    """
    gates = _fork_gates(program, state)
    if gates is not None:
        return gates.settle(state, ticket, outcome)
    return _close(program.root.settle(context, state, ticket, outcome, ""))


def revived(program: Program, state: Frame) -> Frame:
    """Return the state of a run that failed as it has to be for another try."""
    gates = _fork_gates(program, state)
    return gates.revived(state) if gates is not None else program.root.revived(state)


def given(program: Program, state: Frame, ticket: str, text: str) -> Frame:
    """Return a state with another input for the action that has this ticket."""
    gates = _fork_gates(program, state)
    return gates.given(state, ticket, text) if gates is not None else program.root.given(state, ticket, text, "")


def unasked(program: Program, state: Frame) -> Frame:
    """Return a state as if its open questions had not been asked yet, without the gates that stand before it."""
    gates = _fork_gates(program, state)
    return gates.unasked(state) if gates is not None else program.root.unasked(state)


def _fork_gates(program: Program, state: Frame) -> ForkGates | None:
    return ForkGates(body=program.root, gates=program.gates) if FORK_GATES in state else None


def _close(progress: Progress) -> Frame | RunEnded:
    match progress:
        case Completed():
            value = progress.value
            return RunEnded(status=RunStatus.SUCCEEDED, output=value.text, outputs=value.outputs)
        case Failed():
            return RunEnded(status=RunStatus.FAILED, output=None, error=progress.error, kept=progress.kept)
        case RepeatRequested():
            return stopped(progress.error)
        case _:
            return progress
