"""Steps: an activity, a question or a group, with the gates, retries and error handling that a spec declares around it.

Frame: ``node``, ``input``, ``attempt`` (repetitions of the body), ``phase`` and, as the phase needs them, ``task``,
``output`` (the result under review), ``error``, ``failures`` (retries used), ``reviews`` (results rejected), ``asked``
(retries that a person chose after an error), ``chosen`` (the branch that a person decided on, for every attempt),
``not_before``, ``postponed`` (times that the step was postponed), ``call_answers`` (decisions about calls of an agent's tools)
and ``children``.

Phases: ``calls`` waits for answers about calls, each question a child; ``before``, ``after`` and ``error`` ask; ``step`` is the question of a step of kind human, ``wait`` the question of a
function in the middle of its work (``wanted``; ``answers`` to the earlier ones); ``body`` and ``fallback`` execute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta

from kneo.clock import isoformat
from kneo.function_context import WaitRequest, read_wait_answers, read_wait_request
from kneo.records.run import RunError, RunStatus
from kneo.records.task import Decision, DecisionKind
from kneo.runtime.interpreter.branch import ELSE, THEN, BranchNode
from kneo.runtime.interpreter.calls import (
    ANSWERS,
    CALL,
    CallNode,
    answers_of,
    call_gate,
    read_question,
    unknown_gate,
    with_answer,
    with_questions,
)
from kneo.runtime.interpreter.gate import (
    DEFAULT_HUMAN,
    NOTIFY_STEP,
    CompiledGate,
    effect_of,
    gate_of,
    rejection,
    wait_answer,
)
from kneo.runtime.interpreter.node import (
    Activity,
    Ask,
    CallsWaiting,
    Completed,
    DecisionContext,
    Execute,
    Failed,
    Frame,
    NodeEnd,
    Outcome,
    ProgramNode,
    Progress,
    RepeatRequested,
    RunEnded,
    RunStopped,
    StepFailed,
    StepPostponed,
    StepWaiting,
    Succeeded,
    TaskDecided,
    below,
    children,
    chosen_text,
    dropped,
    edited,
    filled_in,
    forwarded,
    kept,
    mapping,
    mismatch,
    number,
    rejected,
    stopped,
)
from kneo.runtime.interpreter.values import ReviewFeedback, Value, read_value
from kneo.spec.conditions import draw

RETRY_BASE_SECONDS = 0.2
RETRY_CAP_SECONDS = 30.0

POSTPONED_SECONDS = 3_600.0
"""The longest time that a step is postponed at once."""

MAX_POSTPONED = 24
"""The number of times that a step is postponed before it fails."""

RETRY, SKIP, STOP, CONTINUE = "retry", "skip", "stop", "continue"


def retry_delay(failures: int, chance: float) -> float:
    """Return the seconds before a retry: doubling, at most half a minute, spread over the upper half."""
    return float(min(RETRY_CAP_SECONDS, RETRY_BASE_SECONDS * 2 ** min(failures, 16)) * (0.5 + chance / 2))


@dataclass(frozen=True, kw_only=True)
class StepNode(ProgramNode):
    """A step. Its body is an activity, a question (a step of kind human) or a group of nodes."""

    kind: str
    body: Activity | CompiledGate | ProgramNode
    before: CompiledGate | None = None
    after: CompiledGate | None = None
    error: CompiledGate | None = None
    on_error: str = "fail"
    fallback: ProgramNode | None = None
    max_retries: int = 0
    save_as: str | None = None
    humans: Mapping[str, CompiledGate] = field(default_factory=dict)
    """The humans whom the body may ask in the middle of its work, by name."""
    tool_gates: Mapping[str, CompiledGate] = field(default_factory=dict)
    """The gates of the tools that the body may call, by their ids."""

    @property
    def may_repeat(self) -> bool:
        match self.body:
            case CompiledGate():
                return self.body.on_reject == RETRY
            case ProgramNode():
                return self.body.may_repeat
            case _:
                return False

    def parts(self) -> Iterable[ProgramNode]:
        return [node for node in (self.body, self.fallback) if isinstance(node, ProgramNode)]

    @property
    def question(self) -> CompiledGate | None:
        """The question of a step of kind human."""
        return self.body if isinstance(self.body, CompiledGate) else None

    def own_gates(self) -> Iterable[tuple[CompiledGate, str]]:
        yield from ((gate, "") for gate in (self.before, self.question, self.after, self.error) if gate is not None)
        yield from ((gate, name) for name, gate in self.humans.items())

    # ---- begin ------------------------------------------------------------------------------------------------

    def enter(self, context: DecisionContext, value: Value, location: str) -> Progress:
        frame: Frame = {"node": self.path, "input": value.as_json(), "attempt": 0}
        if self.before is not None and self.before.asks(value, location, context.sampling_seed, context.run):
            return {**frame, "phase": "before"}
        return self._begin(context, frame, location)

    def _begin(self, context: DecisionContext, frame: Frame, location: str) -> Progress:
        chosen, value, inner = frame.get("chosen"), read_value(frame["input"]), self._inner(frame, location)
        match self.body:
            case Activity():
                return {**frame, "phase": "body"}
            case CompiledGate():
                return {**frame, "phase": "step"}
            case BranchNode() as branch if isinstance(chosen, str):
                progress = branch.enter_chosen(context, value, inner, chosen)
            case node:
                progress = node.enter(context, value, inner)
        return self.settled(context, {**frame, "phase": "body"}, "body", progress, location)

    def _repeat(self, context: DecisionContext, frame: Frame, value: Value, location: str) -> Progress:
        """Begin the body again, as another attempt."""
        fresh = dropped(frame, "children", "output", "error", "postponed")
        return self._begin(
            context, {**fresh, "attempt": number(frame, "attempt") + 1, "input": value.as_json()}, location
        )

    def locate(self, frame: Frame, child_key: str, location: str) -> tuple[ProgramNode, str]:
        if child_key.startswith(CALL):
            return self._call(frame, child_key, location), below(self._inner(frame, location), child_key)
        if child_key == "fallback":
            assert self.fallback is not None
            return self.fallback, f"{self._inner(frame, location)}:fallback"
        assert isinstance(self.body, ProgramNode)
        return self.body, self._inner(frame, location)

    def _call(self, frame: Frame, child_key: str, location: str) -> CallNode:
        question, reviews = read_question(children(frame)[child_key]["question"]), number(frame, "reviews")
        gate = call_gate(question, self.tool_gates, self.humans)
        assert gate is not None
        return CallNode(
            path=self.path,
            id=self.id,
            gate=gate,
            question=question,
            owner=f"{location}@{reviews}" if reviews else location,
            attempt=number(frame, "attempt"),
        )

    @staticmethod
    def _inner(frame: Frame, location: str) -> str:
        attempt = number(frame, "attempt")
        return f"{location}@{attempt}" if attempt else location

    # ---- pending actions --------------------------------------------------------------------------------------

    def pending(self, frame: Frame, location: str) -> Execute | Ask | None:
        attempt, value = number(frame, "attempt"), read_value(frame["input"])
        match frame["phase"]:
            case "body" if isinstance(self.body, Activity):
                until = frame.get("not_before")
                return Execute(
                    ticket=f"{location}:{attempt}",
                    activity=self.body,
                    value=value,
                    attempt=attempt,
                    not_before=until if isinstance(until, str) else None,
                    answers=read_wait_answers(frame.get("answers", ())),
                    call_answers=answers_of(frame),
                    conversation=f"{location}~{number(frame, 'reviews')}",
                )
            case "wait":
                return self._wait(frame, value, location, attempt)
            case "step" if self.question is not None:
                return self._ask(self.question, value, location, attempt)
            case "before" if self.before is not None:
                return self._ask(self.before, value, location, attempt)
            case phase:
                return self._ask_again(phase, frame, value, location)

    def _ask_again(self, phase: object, frame: Frame, value: Value, location: str) -> Ask | None:
        """Return the question of a phase that may be asked several times, each time under a key of its own."""
        attempt = number(frame, "attempt")
        if phase == "after" and self.after is not None:
            ask = self._ask(self.after, read_value(frame["output"]), location, attempt)
            previous = value.review.previous_output if value.review is not None else None
            return replace(ask, key=self.after.key(location, number(frame, "reviews")), previous=previous)
        if phase == "error" and self.error is not None:
            ask = self._ask(self.error, value, location, attempt)
            facts = {"error": frame["error"], "attempt": attempt}
            key = self.error.key(location, number(frame, "asked"))
            return replace(ask, key=key, options=self._error_options(self.error, frame), facts=facts)
        return None

    def _wait(self, frame: Frame, value: Value, location: str, attempt: int) -> Ask:
        request = read_wait_request(frame["wanted"])
        gate = gate_of(request, self.humans)
        assert gate is not None
        return Ask(
            ticket=f"{location}:wait{request.index}:{attempt}",
            path=self.path,
            step_id=self.id,
            key=request.key_at(self._inner(frame, location)),
            gate=gate,
            subject=replace(value, text=request.subject),
            options=request.options,
            attempt=attempt,
            prompt=request.prompt,
            human=request.human or DEFAULT_HUMAN,
        )

    def _ask(self, gate: CompiledGate, subject: Value, location: str, attempt: int) -> Ask:
        return Ask(
            ticket=f"{location}:{gate.position_id}:{attempt}",
            path=self.path,
            step_id=self.id,
            key=gate.key(location),
            gate=gate,
            subject=subject.as_subject(),
            options=tuple(gate.human.options) if gate.human.options else None,
            attempt=attempt,
        )

    @staticmethod
    def _error_options(gate: CompiledGate, frame: Frame) -> tuple[str, ...]:
        offered = tuple(gate.human.options or (RETRY, SKIP, STOP))
        used_up = number(frame, "asked") >= gate.max_retries
        return tuple(option for option in offered if not (used_up and option == RETRY)) or (STOP,)

    # ---- outcomes ---------------------------------------------------------------------------------------------

    def take(self, context: DecisionContext, frame: Frame, outcome: Outcome, location: str) -> Progress:
        match outcome:
            case TaskDecided():
                return self._decided(context, frame, outcome.decision, location)
            case StepFailed():
                if outcome.input_text is not None:
                    value = replace(read_value(frame["input"]), text=outcome.input_text, outputs={})
                    frame = {**frame, "input": value.as_json()}
                return self._failed(context, frame, outcome.error, location, final=outcome.final)
            case _ if isinstance(self.body, Activity):
                return self._attempted(context, frame, outcome, location)
            case _:
                raise mismatch(location, outcome)

    def _attempted(self, context: DecisionContext, frame: Frame, outcome: Outcome, location: str) -> Progress:
        match outcome:
            case Succeeded():
                before = read_value(frame["input"])
                metadata = {"node_kind": self.kind, "node_id": self.id, **outcome.metadata}
                value = Value(text=outcome.text, metadata=metadata, variables=before.variables, filled=before.filled)
                return self._succeeded(context, frame, value, location)
            case StepWaiting():
                return self._waits(context, frame, outcome.request, location)
            case CallsWaiting():
                return self._waits_for_calls(context, frame, outcome, location)
            case StepPostponed():
                return self._postponed(context, frame, outcome, location)
            case RunStopped():
                state = frame if outcome.can_continue else None
                return RunEnded(status=outcome.status, output=None, error=outcome.error, kept=state)
            case _:
                raise mismatch(location, outcome)

    def resume(self, context: DecisionContext, frame: Frame, child_key: str, end: NodeEnd, location: str) -> Progress:
        match end:
            case Completed() if child_key.startswith(CALL):
                # The step is due again with this answer, while it waits for the others.
                return {**with_answer(frame, child_key, end), "phase": "body"}
            case Completed():
                return self._succeeded(context, frame, end.value, location)
            case Failed() if child_key != "fallback":
                return self._failed(context, frame, end.error, location, final=False)
            case _:
                return end

    def _waits(self, context: DecisionContext, frame: Frame, request: WaitRequest, location: str) -> Progress:
        if gate_of(request, self.humans) is None:
            known = ", ".join(self.humans)
            message = f"{self.path} asks {request.human}, who is not in components.humans: {known}."
            error = RunError(type="unknown_human", message=message)
            return self._failed(context, frame, error, location, final=True)
        # Answers from this question on belong to other questions and are dropped.
        answers = list(_answers(frame))[: request.index]
        return {**dropped(frame, "not_before"), "phase": "wait", "wanted": request.as_json(), "answers": answers}

    def _waits_for_calls(
        self, context: DecisionContext, frame: Frame, outcome: CallsWaiting, location: str
    ) -> Progress:
        """Ask the questions that are not open yet, and withdraw those that are no longer asked."""
        unknown = [one for one in outcome.questions if call_gate(one, self.tool_gates, self.humans) is None]
        if unknown:
            return self._failed(context, frame, unknown_gate(unknown, self.path), location, final=True)
        return with_questions(dropped(frame, "not_before", "postponed"), outcome.questions, self.path)

    def _postponed(self, context: DecisionContext, frame: Frame, outcome: StepPostponed, location: str) -> Progress:
        postponed = number(frame, "postponed") + 1
        if postponed > MAX_POSTPONED:
            message = f"{self.path} was postponed {MAX_POSTPONED} times in a row: {outcome.reason}"
            return self._failed(context, frame, RunError(type="step_postponed", message=message), location, final=False)
        until = context.now + timedelta(seconds=min(max(outcome.seconds, 0.0), POSTPONED_SECONDS))
        return {**frame, "not_before": isoformat(until), "postponed": postponed}

    def _succeeded(self, context: DecisionContext, frame: Frame, value: Value, location: str) -> Progress:
        was_rejected = number(frame, "reviews") > 0
        if self.after is not None and (
            was_rejected or self.after.asks(value, self._inner(frame, location), context.sampling_seed, context.run)
        ):
            state = kept(frame, "node", "input", "attempt", "failures", "reviews", "asked", "chosen")
            return {**state, "phase": "after", "output": value.as_json()}
        return self._finished(value)

    def _finished(self, value: Value) -> Completed:
        if self.save_as is not None:
            value = replace(value, variables={**value.variables, self.save_as: value.text})
        return Completed(value=value if value.review is None else replace(value, review=None))

    def _failed(
        self, context: DecisionContext, frame: Frame, error: RunError, location: str, *, final: bool
    ) -> Progress:
        failures, value = number(frame, "failures"), read_value(frame["input"])
        if failures < self.max_retries and not final:
            delay = retry_delay(failures, draw(f"{context.seed}:{location}:{failures}"))
            until = isoformat(context.now + timedelta(seconds=delay))
            return self._repeat(context, {**frame, "failures": failures + 1, "not_before": until}, value, location)
        if self.error is not None and self.error.asks(value, location, context.sampling_seed, context.run):
            details = {"type": error.type, "message": error.message}
            return {**dropped(frame, "children", "not_before"), "phase": "error", "error": details}
        if self.on_error == "continue":
            return self._finished(replace(value.passed_on("failed"), metadata={"error_type": error.type}))
        if self.on_error == "fallback" and self.fallback is not None:
            frame = {**kept(frame, "node", "input", "attempt"), "phase": "fallback"}
            progress = self.fallback.enter(context, value, self.locate(frame, "fallback", location)[1])
            return self.settled(context, frame, "fallback", progress, location)
        return Failed(error=error, kept=frame if isinstance(self.body, Activity) else None)

    # ---- decisions --------------------------------------------------------------------------------------------

    def _decided(self, context: DecisionContext, frame: Frame, decision: Decision, location: str) -> Progress:
        match frame["phase"]:
            case "step" if self.question is not None:
                return self._question_decided(self.question, frame, decision, location)
            case "before" if self.before is not None:
                return self._before_decided(self.before, context, frame, decision, location)
            case "after" if self.after is not None:
                return self._after_decided(self.after, context, frame, decision, location)
            case "error":
                return self._error_decided(context, frame, decision, location)
            case "wait":
                return self._wait_decided(frame, decision, location)
            case _:
                raise mismatch(location, TaskDecided(decision=decision))

    def _question_decided(self, gate: CompiledGate, frame: Frame, decision: Decision, location: str) -> Progress:
        value = read_value(frame["input"])
        metadata = {"node_kind": "human", "node_id": self.id, "decision": decision.kind.value}
        result = filled_in(replace(value, metadata=metadata, status="completed"), decision, self.id)
        match decision.kind:
            case DecisionKind.APPROVED:
                return self._finished(result)
            case DecisionKind.SELECTED:
                return self._finished(replace(result, text=chosen_text(decision), outputs={}))
            case DecisionKind.EDITED | DecisionKind.PROVIDED:
                return self._finished(replace(result, text=decision.content or "", outputs={}))
            case DecisionKind.REJECTED if effect_of(gate, decision) == RETRY:
                return RepeatRequested(
                    feedback=decision.reason,
                    rejected=value.as_subject().text,
                    limit=gate.max_retries,
                    error=rejection(location, decision),
                )
            case DecisionKind.REJECTED:
                passed_on = forwarded(value, decision) if effect_of(gate, decision) == CONTINUE else value
                end = rejected(gate, decision, passed_on, location)
                return self._finished(end.value) if isinstance(end, Completed) else end

    def _before_decided(
        self, gate: CompiledGate, context: DecisionContext, frame: Frame, decision: Decision, location: str
    ) -> Progress:
        value, is_branch = read_value(frame["input"]), isinstance(self.body, BranchNode)
        if decision.kind is DecisionKind.APPROVED:
            frame = {**frame, "input": filled_in(value, decision, self.id).as_json()}
            return self._begin(context, {**frame, "chosen": THEN} if is_branch else frame, location)
        if effect_of(gate, decision) == "else" and is_branch:
            return self._begin(context, {**frame, "chosen": ELSE}, location)
        return rejected(gate, decision, value, location)

    def _after_decided(
        self, gate: CompiledGate, context: DecisionContext, frame: Frame, decision: Decision, location: str
    ) -> Progress:
        output, value, effect = read_value(frame["output"]), read_value(frame["input"]), effect_of(gate, decision)
        if decision.kind is DecisionKind.EDITED:
            return self._finished(edited(output, decision))
        if decision.kind is DecisionKind.APPROVED or effect == CONTINUE:
            return self._finished(output)
        if effect != RETRY:
            return rejected(gate, decision, replace(value, review=None), location)
        reviews = number(frame, "reviews")
        if reviews >= gate.max_retries:
            return stopped(rejection(location, decision))
        review = ReviewFeedback(previous_output=output.as_subject().text, feedback=decision.reason)
        again = {**frame, "reviews": reviews + 1, "failures": 0}
        return self._repeat(context, again, replace(value, review=review), location)

    def _error_decided(self, context: DecisionContext, frame: Frame, decision: Decision, location: str) -> Progress:
        value, error = read_value(frame["input"]), RunError(**mapping(frame, "error"))
        if decision.selected_option == RETRY:
            again = {**frame, "asked": number(frame, "asked") + 1, "failures": 0}
            return self._repeat(context, again, value, location)
        if SKIP in {decision.selected_option, decision.effect}:
            return self._finished(value.passed_on("skipped"))
        if decision.effect == "cancel":
            return stopped(RunError(type="cancelled", message=rejection(location, decision).message))
        return RunEnded(status=RunStatus.FAILED, output=None, error=error)

    def _wait_decided(self, frame: Frame, decision: Decision, location: str) -> Progress:
        """Begin the body again, with the answer."""
        request = read_wait_request(frame["wanted"])
        gate = gate_of(request, self.humans)
        assert gate is not None
        if decision.kind is DecisionKind.REJECTED and effect_of(gate, decision) not in {NOTIFY_STEP, CONTINUE}:
            return rejected(gate, decision, replace(read_value(frame["input"]), review=None), location)
        answers = [*_answers(frame), asdict(wait_answer(request, decision))]
        return {**dropped(frame, "wanted"), "phase": "body", "answers": answers}

    # ---- changes of a whole state -------------------------------------------------------------------------------

    def prepare_retry(self, frame: Frame) -> Frame:
        fresh = dropped(frame, "not_before", "failures", "error", "postponed")
        if isinstance(self.body, Activity) and frame["phase"] in {"body", "calls"}:
            # The tasks of its questions ended with the run; an agent asks again for the answers that it still needs.
            return {**dropped(fresh, "children"), "phase": "body", "attempt": number(frame, "attempt") + 1}
        return super().prepare_retry(fresh)

    def reset_questions(self, frame: Frame) -> Frame:
        # Answers in the middle of a step belong to the run that asked: the step asks again.
        fresh = dropped(frame, "answers", "wanted", ANSWERS)
        if not isinstance(self.body, Activity) or frame["phase"] not in {"body", "wait", "calls"}:
            return super().reset_questions(fresh)
        return super().reset_questions({**dropped(fresh, "children", "not_before", "postponed"), "phase": "body"})


def _answers(frame: Frame) -> Sequence[object]:
    answers = frame.get("answers", ())
    assert isinstance(answers, list | tuple)
    return answers
