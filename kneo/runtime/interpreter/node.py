"""What all nodes have in common: the walk through the frames, and the words for what is to be done and what came of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from kneo.records.run import RunError, RunStatus
from kneo.records.task import Decision
from kneo.runtime.interpreter.gate import CompiledGate, WaitAnswer, WaitRequest
from kneo.runtime.interpreter.values import Value

Frame = Mapping[str, object]


class Stale(Exception):
    """An outcome of something that is no longer under way; it is discarded."""


@dataclass(frozen=True, kw_only=True)
class DecisionContext:
    """What the world contributes to a decision: the time, and texts to draw chances from.

    ``seed`` is the run's id: pauses before retries differ from run to run. ``case`` is what the run is about, so that
    starting the run again draws no other chance of being asked.
    """

    now: datetime
    seed: str
    case: str


# ---- what may be done -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Activity:
    """One thing that is done outside the interpreter. ``kind`` is ``agent``, ``function`` or ``guardrail``."""

    path: str
    id: str
    kind: str
    ref: str
    timeout_seconds: int | None = None


@dataclass(frozen=True, kw_only=True)
class Execute:
    """Do a step's work, not before a time if one is given."""

    ticket: str
    """Unique in its run: place and attempt. Part of the idempotency key."""
    activity: Activity
    value: Value
    attempt: int
    not_before: str | None = None
    answers: tuple[WaitAnswer, ...] = ()
    """What people gave to this step so far, in the order in which it asked."""


@dataclass(frozen=True, kw_only=True)
class GateRecheck:
    """A gate that was passed already, and is asked once more before a run goes on behind it."""

    source: str | None
    """The run in which it was answered; ``None`` where no earlier answer may count."""


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
    """How often what this is about was begun anew."""
    previous: str | None = None
    """What was sent back the last time."""
    prompt: str | None = None
    """The question as it is to be read, where it is not the gate's own template."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """What the person should know beside the subject."""
    human: str | None = None
    """Which of a step's humans, where a function asks in its middle."""
    passed: GateRecheck | None = None
    """Set where the gate was passed before: its step is not done again."""


Action = Execute | Ask


# ---- what came of it --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Succeeded:
    text: str
    metadata: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StepFailed:
    error: RunError
    final: bool = False
    """Whether trying again is pointless."""


@dataclass(frozen=True, kw_only=True)
class StepWaiting:
    """The step asks for something before it can go on."""

    wanted: WaitRequest


@dataclass(frozen=True, kw_only=True)
class TaskOpened:
    task_id: str


@dataclass(frozen=True, kw_only=True)
class TaskDecided:
    decision: Decision


Outcome = Succeeded | StepFailed | StepWaiting | TaskOpened | TaskDecided


# ---- where that leads -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Completed:
    value: Value


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Something failed and nothing below caught it."""

    error: RunError
    kept: Frame | None = None
    """Where it stood, so that somebody may have it tried again; ``None`` where trying again makes no sense."""


@dataclass(frozen=True, kw_only=True)
class RepeatRequested:
    """A person wants whatever came before this repeated, with what they said."""

    place: str
    feedback: str
    rejected: str
    limit: int
    error: RunError
    """How the run ends when nothing came before or the limit is reached."""


@dataclass(frozen=True, kw_only=True)
class RunEnded:
    """The run is over."""

    status: RunStatus
    output: str | None
    error: RunError | None = None
    outputs: Mapping[str, str] = field(default_factory=dict)
    kept: Frame | None = None
    """The state from which a failed run can be continued."""


Progress = Frame | Completed | Failed | RepeatRequested | RunEnded


def stopped(error: RunError) -> RunEnded:
    return RunEnded(status=RunStatus.CANCELLED, output=None, error=error)


# ---- nodes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ProgramNode(ABC):
    """A part of a program. ``path`` is where it stands in the spec, the ids from the outside in."""

    path: str
    id: str

    @property
    def may_repeat(self) -> bool:
        """Whether what comes before it may have to be repeated."""
        return False

    @abstractmethod
    def enter(self, context: DecisionContext, value: Value, place: str) -> Progress:
        """Begin."""

    @abstractmethod
    def locate(self, frame: Frame, slot: str, place: str) -> tuple[ProgramNode, str]:
        """Find the node of a child frame, and its place."""

    @abstractmethod
    def resume(
        self,
        context: DecisionContext,
        frame: Frame,
        slot: str,
        progress: Completed | Failed | RepeatRequested,
        place: str,
    ) -> Progress:
        """Go on after a child ended. The frame no longer has it."""

    def pending(self, _frame: Frame, _place: str) -> Execute | Ask | None:
        """Say what the node itself waits for, whether or not somebody has been asked already."""
        return None

    def take(self, _moment: DecisionContext, _frame: Frame, outcome: Outcome, place: str) -> Progress:
        """Take the outcome of what the node itself waited for; ``TaskOpened`` never gets here."""
        raise mismatch(place, outcome)

    def changed(self, _moment: DecisionContext, frame: Frame, _place: str) -> Progress:
        """Look again after a child moved on without ending."""
        return frame

    def parts(self) -> Iterable[ProgramNode]:
        """List the nodes directly inside."""
        return ()

    def own_gates(self) -> Iterable[tuple[CompiledGate, str]]:
        """List the node's own gates, each with the name of the human whom a function asks in its middle."""
        return ()

    # ---- the walk ---------------------------------------------------------------------------------------------

    def ready(self, frame: Frame, place: str) -> Iterator[Action]:
        """List what may be done."""
        own = self.pending(frame, place)
        if own is not None and frame.get("task") is None:
            yield own
        for slot, child in children(frame).items():
            node, inner = self.locate(frame, slot, place)
            for action in node.ready(child, inner):
                yield _delayed(action, frame)

    def waiting(self, frame: Frame, place: str) -> Iterator[tuple[str, Ask]]:
        """List the tasks whose answers are waited for."""
        task = frame.get("task")
        if isinstance(task, str):
            own = self.pending(frame, place)
            assert isinstance(own, Ask)
            yield task, own
        for slot, child in children(frame).items():
            node, inner = self.locate(frame, slot, place)
            yield from node.waiting(child, inner)

    def settle(self, context: DecisionContext, frame: Frame, ticket: str, outcome: Outcome, place: str) -> Progress:
        """Take an outcome, here or below.

        Raises:
            Stale: nothing here waits for it any more.
        """
        own = self.pending(frame, place)
        if own is not None and own.ticket == ticket:
            if isinstance(outcome, TaskOpened):
                return {**frame, "task": outcome.task_id}
            return self.take(context, {key: value for key, value in frame.items() if key != "task"}, outcome, place)
        for slot, child in children(frame).items():
            node, inner = self.locate(frame, slot, place)
            if is_within(ticket, inner):
                progress = node.settle(context, child, ticket, outcome, inner)
                return self.settled(context, frame, slot, progress, place)
        raise Stale(ticket)

    def settled(self, context: DecisionContext, frame: Frame, slot: str, progress: Progress, place: str) -> Progress:
        """Put what became of a child in its place."""
        match progress:
            case RunEnded():
                return progress
            case Failed():
                after = self.resume(context, without(frame, slot), slot, progress, place)
                if isinstance(after, Failed) and after.error is progress.error:
                    kept = with_child(frame, slot, progress.kept) if progress.kept is not None else None
                    return Failed(error=after.error, kept=kept)
                return after
            case Completed() | RepeatRequested():
                return self.resume(context, without(frame, slot), slot, progress, place)
            case _:
                return self.changed(context, with_child(frame, slot, progress), place)

    # ---- for those who look at it from outside ------------------------------------------------------------------

    def revived(self, frame: Frame) -> Frame:
        """Return the frame of something that failed as it has to be for another try."""
        return self._each_child(frame, lambda node, child, _place: node.revived(child), "")

    def given(self, frame: Frame, ticket: str, text: str, place: str) -> Frame:
        """Return the frame with another input for what has this ticket."""
        return self._each_child(frame, lambda node, child, inner: node.given(child, ticket, text, inner), place)

    def unasked(self, frame: Frame) -> Frame:
        """Return the frame as if nobody had been asked yet."""
        kept = {key: value for key, value in frame.items() if key != "task"}
        return self._each_child(kept, lambda node, child, _place: node.unasked(child), "")

    def _each_child(self, frame: Frame, change: Callable[[ProgramNode, Frame, str], Frame], place: str) -> Frame:
        if not children(frame):
            return frame
        changed = {}
        for slot, child in children(frame).items():
            node, inner = self.locate(frame, slot, place)
            changed[slot] = change(node, child, inner)
        return {**frame, "children": changed}


def children(frame: Frame) -> Mapping[str, Frame]:
    found = frame.get("children", {})
    assert isinstance(found, Mapping)
    return found


def with_child(frame: Frame, slot: str, child: Frame) -> Frame:
    return {**frame, "children": {**children(frame), slot: child}}


def without(frame: Frame, slot: str) -> Frame:
    return {**frame, "children": {key: child for key, child in children(frame).items() if key != slot}}


def number(frame: Frame, key: str, default: int = 0) -> int:
    value = frame.get(key, default)
    assert isinstance(value, int)
    return value


_ESCAPES = str.maketrans({sign: f"%{ord(sign):02X}" for sign in "%/#@:"})


def below(place: str, name: str) -> str:
    """Name the place of a step inside another; signs that have a meaning in places are escaped."""
    segment = name.translate(_ESCAPES)
    return f"{place}/{segment}" if place else segment


def is_within(ticket: str, place: str) -> bool:
    return ticket.startswith(place) and (not place or ticket[len(place) : len(place) + 1] in {"/", "#", "@", ":"})


def mismatch(place: str, outcome: Outcome) -> TypeError:
    return TypeError(f"{type(outcome).__name__} is no outcome of what {place} waits for")


def _delayed(action: Action, frame: Frame) -> Action:
    until = frame.get("not_before")
    if not isinstance(until, str) or not isinstance(action, Execute):
        return action
    return replace(action, not_before=max(until, action.not_before or ""))
