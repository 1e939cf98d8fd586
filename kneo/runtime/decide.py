"""What can happen next in a run. Pure: state in, state out.

``begin`` makes the first state, ``actions`` lists what may be done now, ``settle`` takes the outcome of one of them,
``waiting`` lists the open questions. How each kind of node behaves is in ``kneo.runtime.interpret``.
"""

from __future__ import annotations

from collections.abc import Mapping

from kneo.records.run import RunStatus
from kneo.runtime.interpret.fork_gates import FORK_GATES, ForkGates
from kneo.runtime.interpret.node import (
    Action,
    Again,
    Answered,
    Ask,
    Asked,
    Done,
    Ended,
    Execute,
    Failed,
    Frame,
    Moment,
    Outcome,
    Progress,
    Stale,
    StepFailed,
    Succeeded,
    Waits,
    stopped,
)
from kneo.runtime.interpret.values import Value
from kneo.runtime.program import Program

__all__ = [
    "Action",
    "Answered",
    "Ask",
    "Asked",
    "Ended",
    "Execute",
    "Frame",
    "Moment",
    "Outcome",
    "Stale",
    "StepFailed",
    "Succeeded",
    "Waits",
    "actions",
    "begin",
    "given",
    "revived",
    "settle",
    "unasked",
    "waiting",
]


def begin(program: Program, text: str, moment: Moment) -> Frame | Ended:
    """Make the state of a run that has done nothing yet."""
    return _close(program.root.enter(moment, Value(text=text), ""))


def actions(program: Program, state: Frame) -> tuple[Action, ...]:
    """List what may be done now or later; empty means that the run waits for people."""
    gates = _fork_gates(program, state)
    return tuple(gates.ready(state) if gates is not None else program.root.ready(state, ""))


def waiting(program: Program, state: Frame) -> Mapping[str, Ask]:
    """Find the open questions by the ids of their tasks."""
    gates = _fork_gates(program, state)
    return dict(gates.waiting(state) if gates is not None else program.root.waiting(state, ""))


def settle(program: Program, state: Frame, ticket: str, outcome: Outcome, moment: Moment) -> Frame | Ended:
    """Take the outcome of the action that has this ticket.

    Raises:
        Stale: it is no longer under way; the outcome is discarded.
    """
    gates = _fork_gates(program, state)
    if gates is not None:
        return gates.settle(state, ticket, outcome)
    return _close(program.root.settle(moment, state, ticket, outcome, ""))


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


def _close(progress: Progress) -> Frame | Ended:
    match progress:
        case Done():
            value = progress.value
            return Ended(status=RunStatus.SUCCEEDED, output=value.text, outputs=value.outputs)
        case Failed():
            return Ended(status=RunStatus.FAILED, output=None, error=progress.error, kept=progress.kept)
        case Again():
            return stopped(progress.error)
        case _:
            return progress
