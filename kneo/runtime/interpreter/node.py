"""Nodes, and the vocabulary between the interpreter and the engine: actions, outcomes and progress; and the effects of decisions
that are equal at every position of a gate.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from kneo.agents.turn import CallQuestion
from kneo.errors import Invalid
from kneo.function_context import WaitAnswer, WaitRequest
from kneo.records.run import RunError, RunStatus
from kneo.records.task import Decision
from kneo.runtime.interpreter.gate import CompiledGate, effect_of, rejection
from kneo.runtime.interpreter.values import Value, read_value

Frame = Mapping[str, object]


class Stale(Exception):
    """An outcome belongs to an action that is no longer under way; it is discarded."""


@dataclass(frozen=True, kw_only=True)
class DecisionContext:
    """Time and randomness for the interpreter, which has none of its own.

    ``seed`` is the run's id: retry delays differ from run to run. ``sampling_seed`` is equal for runs of the same spec on
    the same input and day: a restarted run is sampled for review like the run before it. ``run`` has the facts of the run that
    expressions compare: ``requester``, ``environment`` and ``workflow``.
    """

    now: datetime
    seed: str
    sampling_seed: str
    run: Mapping[str, object] = field(default_factory=dict)


# ---- actions: what the engine may do next ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Activity:
    """One unit of work outside the interpreter. ``kind`` is ``agent``, ``function`` or ``guardrail``."""

    path: str
    id: str
    kind: str
    ref: str
    timeout_seconds: int | None = None
    call_gates: tuple[str, ...] = ()
    """The ids of the gates that an environment adds at the tool calls of this step."""
    choices: Mapping[str, str | None] = field(default_factory=dict)
    """The choices of a router, with their descriptions; the result is the name of one of them."""


@dataclass(frozen=True, kw_only=True)
class Execute:
    """Execute an activity, no earlier than ``not_before``."""

    ticket: str
    """Unique in its run: location and attempt. Part of the idempotency key."""
    activity: Activity
    value: Value
    attempt: int
    not_before: str | None = None
    answers: tuple[WaitAnswer, ...] = ()
    """Answers to the earlier questions of this step, in their order."""
    call_answers: Mapping[str, Decision] = field(default_factory=dict)
    """Decisions about tool calls of this step, by the keys of their questions."""
    conversation: str = ""
    """The agent's conversation, which retries continue; a result that a reviewer rejected begins another one."""

    @property
    def filled(self) -> Mapping[str, object]:
        """The form values of people since the run began, those about calls of this step among them."""
        decided = sorted(self.call_answers.values(), key=lambda decision: decision.at)
        answered = {name: value for each in decided for name, value in (each.values or {}).items()}
        return {**self.value.filled, **answered}


@dataclass(frozen=True, kw_only=True)
class GateRecheck:
    """A gate that the run passed before; it is asked once more before the run continues behind it."""

    source: str | None
    """The run in which the gate was answered; ``None`` where no earlier answer may count."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Open a human task."""

    ticket: str
    path: str
    step_id: str
    key: str
    """Stable over resume and replay."""
    gate: CompiledGate
    subject: Value
    options: tuple[str, ...] | None = None
    attempt: int = 0
    previous: str | None = None
    """The result that was sent back the last time."""
    prompt: str | None = None
    """The question itself, where it is not the gate's template."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """Further information for the reviewer."""
    human: str | None = None
    """The declared human, where a function asks in the middle of its work."""
    of_call: bool = False
    """Whether the question is about one tool call, which a fork behind the step does not make again."""
    recheck: GateRecheck | None = None
    """Set where the gate was passed before: its step is not executed again."""


Action = Execute | Ask


# ---- outcomes of actions -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Succeeded:
    text: str
    metadata: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StepFailed:
    error: RunError
    final: bool = False
    """Whether a retry is pointless."""
    input_text: str | None = None
    """The input as guardrails passed it on, which is the step's input from now on; ``None``: as it was."""


@dataclass(frozen=True, kw_only=True)
class StepWaiting:
    """The step needs an answer before it can continue."""

    request: WaitRequest


@dataclass(frozen=True, kw_only=True)
class CallsWaiting:
    """The step cannot continue without answers about some of its tool calls."""

    questions: tuple[CallQuestion, ...]


@dataclass(frozen=True, kw_only=True)
class StepPostponed:
    """The step continues after a while. It has not failed."""

    seconds: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class RunStopped:
    """A person's answer in the middle of the step, or a guardrail, ends the run."""

    error: RunError
    status: RunStatus = RunStatus.CANCELLED
    can_continue: bool = False
    """Whether the failed run can be continued, with another attempt at the step."""


@dataclass(frozen=True, kw_only=True)
class TaskOpened:
    task_id: str


@dataclass(frozen=True, kw_only=True)
class TaskLapsed:
    """The decision of a task no longer counts, and has had no effect: the question is asked again."""


@dataclass(frozen=True, kw_only=True)
class TaskDecided:
    decision: Decision


AttemptOutcome = Succeeded | StepFailed | StepWaiting | CallsWaiting | StepPostponed | RunStopped
Outcome = AttemptOutcome | TaskOpened | TaskLapsed | TaskDecided


# ---- progress of nodes -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Completed:
    value: Value


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A failure that no node below has handled."""

    error: RunError
    kept: Frame | None = None
    """The frame from which the run can be continued; ``None`` where a retry makes no sense."""


@dataclass(frozen=True, kw_only=True)
class RepeatRequested:
    """A reviewer sends the preceding step's result back, with feedback."""

    feedback: str
    rejected: str
    limit: int
    error: RunError
    """The run's error where no step precedes or the limit is reached."""


@dataclass(frozen=True, kw_only=True)
class RunEnded:
    """The run is over."""

    status: RunStatus
    output: str | None
    error: RunError | None = None
    outputs: Mapping[str, str] = field(default_factory=dict)
    kept: Frame | None = None
    """The state from which a failed run can be continued."""


NodeEnd = Completed | Failed | RepeatRequested
Progress = Frame | NodeEnd | RunEnded


def stopped(error: RunError) -> RunEnded:
    return RunEnded(status=RunStatus.CANCELLED, output=None, error=error)


def condition_failed(path: str, error: Invalid) -> Failed:
    return Failed(error=RunError(type=error.code, message=f"{path}: {error.message}"))


# ---- nodes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ProgramNode(ABC):
    """A part of a program. ``path`` is its position in the spec, the ids from the outside in."""

    path: str
    id: str

    @property
    def may_repeat(self) -> bool:
        """Whether the node may request a repetition of the step before it."""
        return False

    @abstractmethod
    def enter(self, context: DecisionContext, value: Value, location: str) -> Progress:
        """Begin the node."""

    @abstractmethod
    def locate(self, frame: Frame, child_key: str, location: str) -> tuple[ProgramNode, str]:
        """Return the node of a child frame, and the child's location."""

    @abstractmethod
    def resume(self, context: DecisionContext, frame: Frame, child_key: str, end: NodeEnd, location: str) -> Progress:
        """Continue after a child ended. The frame no longer contains the child."""

    def pending(self, _frame: Frame, _location: str) -> Execute | Ask | None:
        """Return the action that the node itself waits for, whether or not its task is open already."""
        return None

    def take(self, _context: DecisionContext, _frame: Frame, outcome: Outcome, location: str) -> Progress:
        """Apply the outcome of the node's own action; ``TaskOpened`` and ``TaskLapsed`` never get here."""
        raise mismatch(location, outcome)

    def changed(self, _context: DecisionContext, frame: Frame, _location: str) -> Progress:
        """Return the progress after a child advanced without ending."""
        return frame

    def parts(self) -> Iterable[ProgramNode]:
        """List the nodes directly inside."""
        return ()

    def own_gates(self) -> Iterable[tuple[CompiledGate, str]]:
        """List the node's own gates, each with the human that a function asks in the middle of its work."""
        return ()

    # ---- the walk ---------------------------------------------------------------------------------------------

    def ready(self, frame: Frame, location: str) -> Iterator[Action]:
        """List the actions that may be done."""
        own = self.pending(frame, location)
        if own is not None and frame.get("task") is None:
            yield own
        for child_key, child in children(frame).items():
            node, inner = self.locate(frame, child_key, location)
            for action in node.ready(child, inner):
                yield _delayed(action, frame)

    def waiting(self, frame: Frame, location: str) -> Iterator[tuple[str, Ask]]:
        """List the open tasks, each with its question."""
        task = frame.get("task")
        if isinstance(task, str):
            own = self.pending(frame, location)
            assert isinstance(own, Ask)
            yield task, own
        for child_key, child in children(frame).items():
            node, inner = self.locate(frame, child_key, location)
            yield from node.waiting(child, inner)

    def settle(self, context: DecisionContext, frame: Frame, ticket: str, outcome: Outcome, location: str) -> Progress:
        """Apply an outcome to this node or a node below.

        Raises:
            Stale: no node waits for the action.
        """
        own = self.pending(frame, location)
        if own is not None and own.ticket == ticket:
            if isinstance(outcome, TaskOpened):
                return {**frame, "task": outcome.task_id}
            if isinstance(outcome, TaskLapsed):
                return dropped(frame, "task")
            return self.take(context, dropped(frame, "task"), outcome, location)
        for child_key, child in children(frame).items():
            node, inner = self.locate(frame, child_key, location)
            if is_within(ticket, inner):
                progress = node.settle(context, child, ticket, outcome, inner)
                return self.settled(context, frame, child_key, progress, location)
        raise Stale(ticket)

    def settled(
        self, context: DecisionContext, frame: Frame, child_key: str, progress: Progress, location: str
    ) -> Progress:
        """Put a child's progress into the frame, or continue after the child ended."""
        match progress:
            case RunEnded():
                kept = progress.kept
                return progress if kept is None else replace(progress, kept=with_child(frame, child_key, kept))
            case Completed() | Failed() | RepeatRequested():
                after = self.resume(context, without(frame, child_key), child_key, progress, location)
                if isinstance(after, Failed) and isinstance(progress, Failed) and after.error is progress.error:
                    stuck = with_child(frame, child_key, progress.kept) if progress.kept is not None else None
                    return Failed(error=after.error, kept=stuck)
                return after
            case _:
                return self.changed(context, with_child(frame, child_key, progress), location)

    # ---- changes of a whole state -------------------------------------------------------------------------------

    def prepare_retry(self, frame: Frame) -> Frame:
        """Return the frame of a failed node, ready for another attempt; its open tasks ended with the run, and open anew."""
        return self._each_child(dropped(frame, "task"), lambda node, child, _location: node.prepare_retry(child), "")

    def replace_input(self, frame: Frame, ticket: str, text: str, location: str) -> Frame:
        """Return the frame with another input for the action that has this ticket."""
        own = self.pending(frame, location)
        if own is not None and own.ticket == ticket:
            return {**frame, "input": replace(read_value(frame["input"]), text=text, outputs={}).as_json()}
        return self._each_child(
            frame, lambda node, child, inner: node.replace_input(child, ticket, text, inner), location
        )

    def reset_questions(self, frame: Frame) -> Frame:
        """Return the frame without its open tasks: each question is asked again."""
        return self._each_child(dropped(frame, "task"), lambda node, child, _: node.reset_questions(child), "")

    def _each_child(self, frame: Frame, change: Callable[[ProgramNode, Frame, str], Frame], location: str) -> Frame:
        if not children(frame):
            return frame
        located = {key: self.locate(frame, key, location) for key in children(frame)}
        changed = {key: change(located[key][0], child, located[key][1]) for key, child in children(frame).items()}
        return {**frame, "children": changed}


# ---- frames -----------------------------------------------------------------------------------------------------


def children(frame: Frame) -> Mapping[str, Frame]:
    return mapping(frame, "children")


def with_child(frame: Frame, child_key: str, child: Frame) -> Frame:
    return {**frame, "children": {**children(frame), child_key: child}}


def without(frame: Frame, child_key: str) -> Frame:
    return {**frame, "children": dropped(children(frame), child_key)}


def dropped(frame: Frame, *keys: str) -> dict[str, object]:
    return {key: value for key, value in frame.items() if key not in keys}


def kept(frame: Frame, *keys: str) -> dict[str, object]:
    return {key: frame[key] for key in keys if key in frame}


def number(frame: Frame, key: str, default: int = 0) -> int:
    value = frame.get(key, default)
    assert isinstance(value, int)
    return value


def mapping(frame: Frame, key: str) -> Mapping[str, Any]:
    """Return an object inside a frame; a missing one is empty."""
    value = frame.get(key)
    if value is None:
        return {}
    assert isinstance(value, dict)
    return value


# ---- locations --------------------------------------------------------------------------------------------------

_ESCAPES = str.maketrans({sign: f"%{ord(sign):02X}" for sign in "%/#@:"})


def below(location: str, name: str) -> str:
    """Return the location of a step inside another; signs that have a meaning in locations are escaped."""
    segment = name.translate(_ESCAPES)
    return f"{location}/{segment}" if location else segment


def is_within(ticket: str, location: str) -> bool:
    return ticket.startswith(location) and (
        not location or ticket[len(location) : len(location) + 1] in {"/", "#", "@", ":"}
    )


def mismatch(location: str, outcome: Outcome) -> TypeError:
    return TypeError(f"{type(outcome).__name__} is no outcome of the action at {location}")


def _delayed(action: Action, frame: Frame) -> Action:
    until = frame.get("not_before")
    if not isinstance(until, str) or not isinstance(action, Execute):
        return action
    return replace(action, not_before=max(until, action.not_before or ""))


def rejected(gate: CompiledGate, decision: Decision, value: Value, location: str) -> Completed | RunEnded:
    """Return the effect of a rejection; the rejected step does not run.

    ``value`` is the input of the step that follows where the run continues: skipped, or unchanged with ``continue``.
    Effects of a single position (retry, else) belong to the caller; here they stop the run, as does an unknown effect.
    """
    match effect_of(gate, decision):
        case "skip":
            return Completed(value=value.passed_on("skipped"))
        case "continue":
            return Completed(value=replace(value, status="completed", metadata={"decision": "rejected"}, review=None))
        case "fail":
            return RunEnded(status=RunStatus.FAILED, output=None, error=rejection(location, decision))
        case "cancel":
            return stopped(RunError(type="cancelled", message=rejection(location, decision).message))
        case _:
            return stopped(rejection(location, decision))


FORWARDED = "Rejected by human reviewer: "
"""The beginning of the text of a value that continues after a rejection."""


def forwarded(value: Value, decision: Decision) -> Value:
    """Return a value with the reviewer's words as its text: the effect of ``continue`` at a step of kind human."""
    return replace(value, text=f"{FORWARDED}{decision.reason}", outputs={})


def filled_in(value: Value, decision: Decision, step_id: str) -> Value:
    """Return a value with the form values of a decision: for the next step, and as ``<step>.<field>`` for conditions."""
    if not decision.values:
        return value
    named = {f"{step_id}.{name}": _text(content) for name, content in decision.values.items()}
    filled = {**value.filled, **decision.values}
    return replace(value, values=dict(decision.values), variables={**value.variables, **named}, filled=filled)


def _text(content: object) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def chosen_text(decision: Decision) -> str:
    """Return the selected options as one text."""
    return ", ".join(decision.selected_options) or decision.selected_option or ""


def edited(value: Value, decision: Decision) -> Value:
    """Return a result with the reviewer's text."""
    return replace(
        value, text=decision.content or "", metadata={**value.metadata, "decision": "edited"}, outputs={}, review=None
    )
