"""The interpreter: frames in, frames out. Pure; time and randomness are parameters.

``begin`` makes the first state of a run, ``actions`` lists the actions that may be done now, ``settle`` applies the outcome
of one of them, ``waiting`` lists the open questions.

The state of a run is a tree of frames, one per node that has begun and not ended: a step costs the depth of the tree and
not the length of the history. Every frame is a plain JSON object; the module of its node lists its keys.

A *location* is the instance path of a node: the ids on the way to it, with ``#n`` for the n-th round or visit and ``@n`` for
the n-th repetition of a node around it (``refine#2/improve``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from pydantic import BaseModel

from kneo.agents.turn import ToolGates
from kneo.records.run import RunStatus
from kneo.runtime.interpreter.fork_gates import FORK_GATES, ForkGates, GateIndex, index_gates
from kneo.runtime.interpreter.gate import CompiledGate
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
    TaskOpened,
    stopped,
)
from kneo.runtime.interpreter.values import Value
from kneo.spec.coverage.sandboxes import CodePart, code_parts
from kneo.spec.models.agent import Agent
from kneo.spec.models.human import Condition
from kneo.spec.models.spec import FunctionComponent, Spec

ROOT_AGENT = ""
"""The name under which ``agents`` holds the root agent; no component can have it."""


class CallGates(Protocol):
    """The gates of the tool calls of a program."""

    @property
    def compiled(self) -> Mapping[str, CompiledGate]:
        """The gates by their ids."""
        ...

    def ids_of(self, added: Sequence[str], agent: str, tool: str) -> tuple[str, ...]:
        """Return the ids of the gates of a tool that an agent calls; ``added`` as for ``of_step``."""
        ...

    def of_step(self, added: Sequence[str], sampling_seed: str, known: Mapping[str, object]) -> ToolGates:
        """Return the gates of the calls that a step makes.

        Args:
            added: The ids of the gates of an environment.
            sampling_seed: Equal for steps of runs that share the random draws of ``sample``.
            known: What expressions compare besides the call: ``values`` and ``run``.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Program:
    """A compiled spec. A node's ``path`` is its position in the spec (``review/legal``)."""

    root: ProgramNode
    agents: Mapping[str, Agent]
    used_agents: tuple[str, ...]
    """The agents that its steps run, by their names in ``agents``."""
    functions: Mapping[str, FunctionComponent]
    agent_name: str
    workflow_name: str | None
    workflow_type: str | None
    spec: Spec
    tool_gates: CallGates
    """The gates of tool calls."""
    is_call: bool = False
    """Whether a run makes one call of a tool, which its input states."""

    @cached_property
    def gates(self) -> GateIndex:
        """Every gate of the program by its location."""
        return index_gates(self.root)

    @cached_property
    def comparisons(self) -> tuple[Condition, ...]:
        """Every condition of the spec that compares with a value."""
        return tuple(condition for condition in _conditions_in(self.spec) if condition.value is not None)

    @cached_property
    def inside(self) -> tuple[CodePart, ...]:
        """The parts of the spec whose level this machine gives."""
        return tuple(part for part in code_parts(self.spec) if part.outside is None)


def _conditions_in(part: object) -> Iterator[Condition]:
    if isinstance(part, Condition):
        yield part
    if isinstance(part, BaseModel):
        # The values, and not the fields of the class: a spec as it runs in an environment has the environment's gates too.
        part = vars(part)
    if isinstance(part, Mapping):
        part = tuple(part.values())
    for inner in part if isinstance(part, tuple | list) else ():
        yield from _conditions_in(inner)


def begin(program: Program, text: str, context: DecisionContext) -> Frame | RunEnded:
    """Return the first state of a run."""
    return _run_state(program.root.enter(context, Value(text=text), ""))


def actions(program: Program, state: Frame) -> tuple[Action, ...]:
    """List the actions that may be done now or later; without any the run waits for people."""
    return tuple(_root(program, state).ready(state, ""))


def waiting(program: Program, state: Frame) -> Mapping[str, Ask]:
    """Return the open questions by the ids of their tasks."""
    return dict(_root(program, state).waiting(state, ""))


def settle(program: Program, state: Frame, ticket: str, outcome: Outcome, context: DecisionContext) -> Frame | RunEnded:
    """Apply the outcome of the action that has this ticket.

    Raises:
        Stale: the action is no longer under way; the outcome is discarded.
    """
    return _run_state(_root(program, state).settle(context, state, ticket, outcome, ""))


def open_questions(program: Program, state: Frame, context: DecisionContext) -> Frame:
    """Return a state with a task opened for every question; a task has the ticket of its question as its id."""
    while (ask := next((action for action in actions(program, state) if isinstance(action, Ask)), None)) is not None:
        after = settle(program, state, ask.ticket, TaskOpened(task_id=ask.ticket), context)
        assert not isinstance(after, RunEnded), "an opened task ends no run"
        state = after
    return state


def prepare_retry(program: Program, state: Frame) -> Frame:
    """Return the state of a failed run, ready for another attempt."""
    return _root(program, state).prepare_retry(state)


def replace_input(program: Program, state: Frame, ticket: str, text: str) -> Frame:
    """Return a state with another input for the action that has this ticket."""
    return _root(program, state).replace_input(state, ticket, text, "")


def reset_questions(program: Program, state: Frame) -> Frame:
    """Return a state without its open tasks and without the gates before it."""
    return _root(program, state).reset_questions(state)


def _root(program: Program, state: Frame) -> ProgramNode | ForkGates:
    return ForkGates(body=program.root, gates=program.gates) if FORK_GATES in state else program.root


def _run_state(progress: Progress) -> Frame | RunEnded:
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
