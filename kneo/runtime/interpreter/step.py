"""A step: something that is done, with everything a spec says around it.

Frame: ``node``, ``input``, ``attempt`` (how often the body was begun anew), ``phase`` and, as the phase needs them,
``task``, ``output`` (what is reviewed), ``error`` (what went wrong), ``failures`` (tries used up), ``reviews`` (results
rejected), ``asked`` (times a person said retry after an error), ``chosen`` (the branch that a person decided on, for every
attempt), ``not_before`` and ``children``.

Phases: ``before`` and ``after`` and ``error`` ask; ``step`` is the question of a step of kind human, ``wait`` one that a
function asks in its middle (``wanted``; ``answers`` to those before); ``body`` and ``fallback`` do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta

from kneo.clock import isoformat
from kneo.records.run import RunError, RunStatus
from kneo.records.task import DecisionKind
from kneo.runtime.interpreter.answers import chosen_text, edited, filled_in, forwarded, rejected
from kneo.runtime.interpreter.branch import ELSE, THEN, BranchNode
from kneo.runtime.interpreter.gate import (
    DEFAULT_HUMAN,
    TELL,
    CompiledGate,
    WaitRequest,
    effect_of,
    feedback_of,
    given,
    read_wait_answers,
    read_wait_request,
    rejection,
)
from kneo.runtime.interpreter.node import (
    Activity,
    Ask,
    Completed,
    DecisionContext,
    Execute,
    Failed,
    Frame,
    Outcome,
    ProgramNode,
    Progress,
    RepeatRequested,
    RunEnded,
    StepFailed,
    StepWaiting,
    Succeeded,
    TaskDecided,
    mismatch,
    number,
    stopped,
    with_child,
)
from kneo.runtime.interpreter.values import ReviewFeedback, Value, read_value
from kneo.spec.gates import draw

RETRY_BASE_SECONDS = 0.2
RETRY_CAP_SECONDS = 30.0

RETRY, SKIP, STOP, CONTINUE = "retry", "skip", "stop", "continue"

_KEPT_FOR_REVIEW = ("node", "input", "attempt", "failures", "reviews", "asked", "chosen")


def retry_delay(failures: int, chance: float) -> float:
    """Seconds to wait before a further try: doubling, at most half a minute, and spread over its upper half."""
    return float(min(RETRY_CAP_SECONDS, RETRY_BASE_SECONDS * 2 ** min(failures, 16)) * (0.5 + chance / 2))


def _answers(frame: Frame) -> Sequence[object]:
    found = frame.get("answers", ())
    assert isinstance(found, list | tuple)
    return found


@dataclass(frozen=True, kw_only=True)
class HumanQuestion:
    """What a step of kind human does."""

    gate: CompiledGate


@dataclass(frozen=True, kw_only=True)
class StepNode(ProgramNode):
    kind: str
    body: Activity | HumanQuestion | ProgramNode
    before: CompiledGate | None = None
    after: CompiledGate | None = None
    error: CompiledGate | None = None
    on_error: str = "fail"
    fallback: ProgramNode | None = None
    max_retries: int = 0
    save_as: str | None = None
    humans: Mapping[str, CompiledGate] = field(default_factory=dict)
    """Whom the body may ask in its middle, by name."""

    @property
    def may_repeat(self) -> bool:
        if isinstance(self.body, HumanQuestion):
            return self.body.gate.on_reject == RETRY
        return isinstance(self.body, ProgramNode) and self.body.may_repeat

    def parts(self) -> Iterable[ProgramNode]:
        return [node for node in (self.body, self.fallback) if isinstance(node, ProgramNode)]

    def own_gates(self) -> Iterable[tuple[CompiledGate, str]]:
        asked = self.body.gate if isinstance(self.body, HumanQuestion) else None
        yield from ((gate, "") for gate in (self.before, asked, self.after, self.error) if gate is not None)
        yield from ((gate, name) for name, gate in self.humans.items())

    # ---- begin ------------------------------------------------------------------------------------------------

    def enter(self, context: DecisionContext, value: Value, place: str) -> Progress:
        frame: Frame = {"node": self.path, "input": value.as_json(), "attempt": 0}
        if self.before is not None and self.before.asks(value, place, context.case):
            return {**frame, "phase": "before"}
        return self._begin(context, frame, value, place)

    def _begin(self, context: DecisionContext, frame: Frame, value: Value, place: str) -> Progress:
        chosen = frame.get("chosen")
        match self.body:
            case Activity():
                return {**frame, "phase": "body"}
            case HumanQuestion():
                return {**frame, "phase": "step"}
            case BranchNode() as branch if isinstance(chosen, str):
                progress = branch.enter_chosen(context, value, self._inner(frame, place), chosen)
            case node:
                progress = node.enter(context, value, self._inner(frame, place))
        return self._moved(context, {**frame, "phase": "body"}, "body", progress, place)

    def _moved(self, context: DecisionContext, frame: Frame, slot: str, progress: Progress, place: str) -> Progress:
        match progress:
            case Completed() | Failed() | RepeatRequested():
                return self.resume(context, frame, slot, progress, place)
            case RunEnded():
                return progress
            case _:
                return with_child(frame, slot, progress)

    def locate(self, frame: Frame, slot: str, place: str) -> tuple[ProgramNode, str]:
        if slot == "fallback":
            assert self.fallback is not None
            return self.fallback, f"{self._inner(frame, place)}:fallback"
        assert isinstance(self.body, ProgramNode)
        return self.body, self._inner(frame, place)

    @staticmethod
    def _inner(frame: Frame, place: str) -> str:
        attempt = number(frame, "attempt")
        return f"{place}@{attempt}" if attempt else place

    # ---- what it waits for ------------------------------------------------------------------------------------

    def pending(self, frame: Frame, place: str) -> Execute | Ask | None:
        phase, attempt = frame["phase"], number(frame, "attempt")
        value = read_value(frame["input"])
        match phase:
            case "body" if isinstance(self.body, Activity):
                until = frame.get("not_before")
                return Execute(
                    ticket=f"{place}:{attempt}",
                    activity=self.body,
                    value=value,
                    attempt=attempt,
                    not_before=until if isinstance(until, str) else None,
                    answers=read_wait_answers(frame.get("answers", ())),
                )
            case "wait":
                return self._wait(frame, value, place, attempt)
            case "step" | "before" if (gate := self._first(phase)) is not None:
                return self._ask(gate, value, place, attempt)
            case "after" if self.after is not None:
                ask = self._ask(self.after, read_value(frame["output"]), place, attempt)
                review = value.review
                previous = review.previous_output if review is not None else None
                return replace(ask, key=self.after.key(place, number(frame, "reviews")), previous=previous)
            case "error" if self.error is not None:
                ask = self._ask(self.error, value, place, attempt)
                facts = {"error": frame["error"], "attempt": attempt}
                key = self.error.key(place, number(frame, "asked"))
                return replace(ask, key=key, options=self._error_options(frame), facts=facts)
            case _:
                return None

    def _first(self, phase: object) -> CompiledGate | None:
        if phase == "before":
            return self.before
        return self.body.gate if isinstance(self.body, HumanQuestion) else None

    def _wait(self, frame: Frame, value: Value, place: str, attempt: int) -> Ask:
        wanted = read_wait_request(frame["wanted"])
        gate = wanted.gate(self.humans)
        assert gate is not None
        return Ask(
            ticket=f"{place}:wait{wanted.index}:{attempt}",
            path=self.path,
            step_id=self.id,
            key=wanted.key_at(self._inner(frame, place)),
            gate=gate,
            subject=replace(value, text=wanted.subject),
            options=wanted.options,
            attempt=attempt,
            prompt=wanted.prompt,
            human=wanted.human or DEFAULT_HUMAN,
        )

    def _ask(self, gate: CompiledGate, subject: Value, place: str, attempt: int) -> Ask:
        options = tuple(gate.human.options) if gate.human.options else None
        return Ask(
            ticket=f"{place}:{gate.spot}:{attempt}",
            path=self.path,
            step_id=self.id,
            key=gate.key(place),
            gate=gate,
            subject=subject,
            options=options,
            attempt=attempt,
        )

    def _error_options(self, frame: Frame) -> tuple[str, ...]:
        assert self.error is not None
        offered = tuple(self.error.human.options or (RETRY, SKIP, STOP))
        used_up = number(frame, "asked") >= self.error.max_retries
        return tuple(word for word in offered if not (used_up and word == RETRY)) or (STOP,)

    # ---- what came of it --------------------------------------------------------------------------------------

    def take(self, context: DecisionContext, frame: Frame, outcome: Outcome, place: str) -> Progress:
        match outcome:
            case Succeeded() if isinstance(self.body, Activity):
                before = read_value(frame["input"])
                metadata = {"node_kind": self.kind, "node_id": self.id, **outcome.metadata}
                value = Value(text=outcome.text, metadata=metadata, variables=before.variables)
                return self._succeeded(context, frame, value, place)
            case StepFailed():
                return self._failed(context, frame, outcome.error, place, final=outcome.final)
            case StepWaiting() if isinstance(self.body, Activity):
                return self._waits(context, frame, outcome.wanted, place)
            case TaskDecided():
                return self._answered(context, frame, outcome, place)
            case _:
                raise mismatch(place, outcome)

    def resume(
        self,
        context: DecisionContext,
        frame: Frame,
        slot: str,
        progress: Completed | Failed | RepeatRequested,
        place: str,
    ) -> Progress:
        match progress:
            case Completed():
                return self._succeeded(context, frame, progress.value, place)
            case Failed() if slot == "fallback":
                return progress
            case Failed():
                return self._failed(context, frame, progress.error, place, final=False)
            case RepeatRequested():
                return progress

    def _waits(self, context: DecisionContext, frame: Frame, wanted: WaitRequest, place: str) -> Progress:
        if wanted.gate(self.humans) is None:
            known = ", ".join(self.humans)
            message = f"{self.path} asks {wanted.human}, who is not in components.humans: {known}."
            return self._failed(context, frame, RunError(type="unknown_human", message=message), place, final=True)
        # What was said to another question than the one that is asked now is dropped with all that came after it.
        answers = list(_answers(frame))[: wanted.index]
        kept = {key: value for key, value in frame.items() if key != "not_before"}
        return {**kept, "phase": "wait", "wanted": wanted.as_json(), "answers": answers}

    def _heard(self, frame: Frame, answer: TaskDecided, place: str) -> Progress:
        """Begin the body again, with what was given."""
        wanted, decision = read_wait_request(frame["wanted"]), answer.decision
        gate = wanted.gate(self.humans)
        assert gate is not None
        effect = effect_of(gate, decision)
        if decision.kind is DecisionKind.REJECTED and effect not in {TELL, CONTINUE}:
            return rejected(gate, decision, replace(read_value(frame["input"]), review=None), place)
        heard = asdict(given(wanted, decision))
        kept = {key: value for key, value in frame.items() if key != "wanted"}
        return {**kept, "phase": "body", "answers": [*_answers(frame), heard]}

    def _succeeded(self, context: DecisionContext, frame: Frame, value: Value, place: str) -> Progress:
        sent_back = number(frame, "reviews") > 0
        if self.after is not None and (sent_back or self.after.asks(value, self._inner(frame, place), context.case)):
            kept = {key: frame[key] for key in _KEPT_FOR_REVIEW if key in frame}
            return {**kept, "phase": "after", "output": value.as_json()}
        return self._finished(value)

    def _finished(self, value: Value) -> Completed:
        if self.save_as is not None:
            value = replace(value, variables={**value.variables, self.save_as: value.text})
        return Completed(value=replace(value, review=None))

    def _failed(self, context: DecisionContext, frame: Frame, error: RunError, place: str, *, final: bool) -> Progress:
        failures = number(frame, "failures")
        if failures < self.max_retries and not final:
            wait = retry_delay(failures, draw(f"{context.seed}:{place}:{failures}"))
            until = isoformat(context.now + timedelta(seconds=wait))
            again = {**frame, "failures": failures + 1, "not_before": until}
            return self._anew(context, again, read_value(frame["input"]), place)
        if self.error is not None and self.error.asks(read_value(frame["input"]), place, context.case):
            kept = {key: value for key, value in frame.items() if key not in {"children", "not_before"}}
            return {**kept, "phase": "error", "error": {"type": error.type, "message": error.message}}
        return self._gave_up(context, frame, error, place)

    def _gave_up(self, context: DecisionContext, frame: Frame, error: RunError, place: str) -> Progress:
        value = read_value(frame["input"])
        if self.on_error == "continue":
            return self._finished(replace(value.passed_on("failed"), metadata={"error_type": error.type}))
        if self.on_error == "fallback" and self.fallback is not None:
            kept = {key: frame[key] for key in ("node", "input", "attempt")}
            progress = self.fallback.enter(context, value, f"{self._inner(frame, place)}:fallback")
            return self._moved(context, {**kept, "phase": "fallback"}, "fallback", progress, place)
        return Failed(error=error, kept=frame if isinstance(self.body, Activity) else None)

    def _anew(self, context: DecisionContext, frame: Frame, value: Value, place: str) -> Progress:
        """Begin the body again."""
        dropped = {"children", "output", "error"}
        fresh = {key: kept for key, kept in frame.items() if key not in dropped}
        fresh |= {"attempt": number(frame, "attempt") + 1, "input": value.as_json()}
        return self._begin(context, fresh, value, place)

    def revived(self, frame: Frame) -> Frame:
        fresh = {key: kept for key, kept in frame.items() if key not in {"not_before", "failures", "error"}}
        if isinstance(self.body, Activity) and frame["phase"] == "body":
            return {**fresh, "attempt": number(frame, "attempt") + 1}
        return super().revived(fresh)

    def unasked(self, frame: Frame) -> Frame:
        # What a body was told in its middle belongs to the run that asked; it asks again, and may be told the same.
        fresh = {key: value for key, value in frame.items() if key not in {"answers", "wanted"}}
        return super().unasked({**fresh, "phase": "body"} if frame["phase"] == "wait" else fresh)

    def given(self, frame: Frame, ticket: str, text: str, place: str) -> Frame:
        own = self.pending(frame, place)
        if own is not None and own.ticket == ticket:
            return {**frame, "input": replace(read_value(frame["input"]), text=text).as_json()}
        return super().given(frame, ticket, text, place)

    # ---- answers ----------------------------------------------------------------------------------------------

    def _answered(self, context: DecisionContext, frame: Frame, answer: TaskDecided, place: str) -> Progress:
        match frame["phase"]:
            case "step":
                return self._question(frame, answer, place)
            case "before":
                return self._permission(context, frame, answer, place)
            case "after":
                return self._judgement(context, frame, answer, place)
            case "error":
                return self._rescue(context, frame, answer, place)
            case "wait":
                return self._heard(frame, answer, place)
            case _:
                raise mismatch(place, answer)

    def _question(self, frame: Frame, answer: TaskDecided, place: str) -> Progress:
        assert isinstance(self.body, HumanQuestion)
        gate, decision, value = self.body.gate, answer.decision, read_value(frame["input"])
        told = replace(value, metadata={"node_kind": "human", "node_id": self.id, "decision": decision.kind.value})
        told = filled_in(told, decision, self.id)
        match decision.kind:
            case DecisionKind.APPROVED:
                return self._finished(replace(told, status="completed"))
            case DecisionKind.SELECTED:
                return self._finished(replace(told, text=chosen_text(decision), status="completed"))
            case DecisionKind.EDITED | DecisionKind.PROVIDED:
                return self._finished(replace(told, text=decision.content or "", status="completed"))
            case DecisionKind.REJECTED if effect_of(gate, decision) == RETRY:
                return RepeatRequested(
                    place=place,
                    feedback=feedback_of(decision),
                    rejected=value.text,
                    limit=gate.max_retries,
                    error=rejection(place, decision),
                )
            case DecisionKind.REJECTED:
                passed_on = forwarded(value, decision) if effect_of(gate, decision) == CONTINUE else value
                return self._past(rejected(gate, decision, passed_on, place))

    def _past(self, progress: Completed | RunEnded) -> Progress:
        return self._finished(progress.value) if isinstance(progress, Completed) else progress

    def _permission(self, context: DecisionContext, frame: Frame, answer: TaskDecided, place: str) -> Progress:
        assert self.before is not None
        value, decision = read_value(frame["input"]), answer.decision
        if decision.kind is DecisionKind.APPROVED:
            value = filled_in(value, decision, self.id)
            return self._begin(context, self._chose(THEN, {**frame, "input": value.as_json()}), value, place)
        if effect_of(self.before, decision) == "else" and isinstance(self.body, BranchNode):
            return self._begin(context, self._chose(ELSE, frame), value, place)
        return rejected(self.before, decision, value, place)

    def _chose(self, branch: str, frame: Frame) -> Frame:
        """Keep the branch that a person decided on, so that a repetition does not evaluate the condition instead."""
        return {**frame, "chosen": branch} if isinstance(self.body, BranchNode) else frame

    def _judgement(self, context: DecisionContext, frame: Frame, answer: TaskDecided, place: str) -> Progress:
        assert self.after is not None
        decision, output = answer.decision, read_value(frame["output"])
        if decision.kind is DecisionKind.APPROVED:
            return self._finished(output)
        if decision.kind is DecisionKind.EDITED:
            return self._finished(edited(output, decision))
        value, effect = read_value(frame["input"]), effect_of(self.after, decision)
        if effect == CONTINUE:
            return self._finished(output)
        if effect != RETRY:
            return rejected(self.after, decision, replace(value, review=None), place)
        reviews = number(frame, "reviews")
        if reviews >= self.after.max_retries:
            return stopped(rejection(place, decision))
        review = ReviewFeedback(previous_output=output.text, feedback=feedback_of(decision))
        again = {**frame, "reviews": reviews + 1, "failures": 0}
        return self._anew(context, again, replace(value, review=review), place)

    def _rescue(self, context: DecisionContext, frame: Frame, answer: TaskDecided, place: str) -> Progress:
        value, kept = read_value(frame["input"]), frame["error"]
        assert isinstance(kept, Mapping)
        error = RunError(type=kept["type"], message=kept["message"])
        choice = answer.decision.selected_option
        if choice == RETRY:
            return self._anew(context, {**frame, "asked": number(frame, "asked") + 1, "failures": 0}, value, place)
        if SKIP in {choice, answer.decision.effect}:
            return self._finished(value.passed_on("skipped"))
        if answer.decision.effect == "cancel":
            return stopped(RunError(type="cancelled", message=rejection(place, answer.decision).message))
        return RunEnded(status=RunStatus.FAILED, output=None, error=error)
