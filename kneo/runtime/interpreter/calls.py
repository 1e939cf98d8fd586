"""Questions about tool calls in the middle of an agent's turn. Several are open at once; each answer makes the step due again.

The frame of a step has one child per open question, with the question; the decisions so far are ``call_answers`` of the
step's frame, by the questions' keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kneo.agents.turn import CallQuestion
from kneo.digest import canonical_json, digest_of_json
from kneo.records.run import RunError, RunStatus
from kneo.records.task import ARGUMENTS_DIGEST, SANDBOX, CallDecision, Decision, DecisionKind
from kneo.runtime.interpreter.gate import DEFAULT_HUMAN, CompiledGate, effect_of, rejection
from kneo.runtime.interpreter.node import (
    Ask,
    Completed,
    DecisionContext,
    Frame,
    NodeEnd,
    Outcome,
    ProgramNode,
    Progress,
    RunEnded,
    TaskDecided,
    children,
    mapping,
    mismatch,
    stopped,
)
from kneo.runtime.interpreter.values import Value
from kneo.spec.call_title import call_title
from kneo.spec.models.human import Human

CALL = "call:"
"""The beginning of the child keys of questions about calls."""

ANSWERS = "call_answers"

REPEAT, DONE, STOP = "repeat", "done", "stop"
"""The options of a question about an interrupted call."""

REVIEW = (DecisionKind.APPROVED, DecisionKind.EDITED, DecisionKind.REJECTED)
"""The decisions about a text that a guardrail holds."""

ENDING = frozenset({"stop", "fail", "cancel"})
"""The effects of a rejection that end the run; every other one is for the agent, which continues without the call."""


def call_gate(
    question: CallQuestion, tool_gates: Mapping[str, CompiledGate], humans: Mapping[str, CompiledGate]
) -> CompiledGate | None:
    """Return the gate of a question: the tool's, or the asked human's; ``None`` where the program has no such gate."""
    if question.gate is not None:
        gate = tool_gates.get(question.gate)
        if gate is None or question.kind != "external":
            return gate
        human = gate.human.model_copy(update={"answer_schema": _schema(question) or gate.human.answer_schema})
        return replace(gate, human=human)
    gate = humans.get(question.human or DEFAULT_HUMAN)
    if gate is None:
        return None
    if question.kind == "guardrail":
        human = gate.human.model_copy(update={"answer_schema": None, "fields": (), "options": None})
        return replace(gate, human=human, decisions=REVIEW, on_reject="tell_agent")
    options = (REPEAT, DONE, STOP) if question.kind == "interrupted" else question.options or None
    human = gate.human.model_copy(update={"answer_schema": _schema(question), "fields": (), "options": options})
    first = DecisionKind.SELECTED if options else DecisionKind.PROVIDED
    return replace(gate, human=human, decisions=(first, DecisionKind.REJECTED), on_reject="tell_agent")


def _schema(question: CallQuestion) -> dict[str, object] | None:
    return dict(question.answer_schema) if question.answer_schema is not None else None


@dataclass(frozen=True, kw_only=True)
class CallNode(ProgramNode):
    """The question about one call. Its frame has ``question`` and, while the task is open, ``task``."""

    gate: CompiledGate
    question: CallQuestion
    owner: str
    """The location of the step, with the number of its conversation after the first one."""
    attempt: int

    def enter(self, context: DecisionContext, value: Value, location: str) -> Progress:
        raise NotImplementedError

    def locate(self, frame: Frame, child_key: str, location: str) -> tuple[ProgramNode, str]:
        raise NotImplementedError

    def resume(self, context: DecisionContext, frame: Frame, child_key: str, end: NodeEnd, location: str) -> Progress:
        raise NotImplementedError

    def pending(self, _frame: Frame, location: str) -> Ask:
        question, gate = self.question, self.gate
        human = gate.human
        if question.gate is not None:
            title = question.title or human.title or call_title(question.tool, None, question.arguments)
        else:
            title = human.title or human.description or _title(question)
        return Ask(
            ticket=f"{location}:ask",
            path=self.path,
            step_id=self.id,
            key=self._key,
            gate=replace(gate, human=human.model_copy(update={"title": title})),
            subject=Value(text=_subject(question)),
            options=tuple(human.options) if human.options else None,
            attempt=self.attempt,
            prompt=None if human.prompt and question.gate is not None else question.prompt or _prompt(question, human),
            facts=_facts(question),
            of_call=True,
        )

    @property
    def _key(self) -> str:
        return f"{self.gate.name or self.owner}.{self.question.task_key}"

    def take(self, _context: DecisionContext, _frame: Frame, outcome: Outcome, location: str) -> Progress:
        if not isinstance(outcome, TaskDecided):
            raise mismatch(location, outcome)
        decision = outcome.decision
        if decision.kind is DecisionKind.REJECTED and effect_of(self.gate, decision) in ENDING:
            return self._ended(decision)
        if self.question.kind == "interrupted" and decision.selected_option == STOP:
            message = f"{decision.actor} ended the run: {self.question.tool} was under way when its process ended."
            return stopped(RunError(type="tool_interrupted", message=message))
        sandbox = self.question.facts.get(SANDBOX)
        level = {"level": sandbox["level"]} if isinstance(sandbox, Mapping) else {}
        return Completed(value=Value(text=json.dumps({**_decision_json(self._with_values(decision)), **level})))

    def _ended(self, decision: Decision) -> RunEnded:
        what = "what the guardrail" if self.question.kind == "guardrail" else "the call of"
        holds = " holds" if self.question.kind == "guardrail" else ""
        error = rejection(f"{what} {self.question.tool}{holds} in {self.path}", decision)
        match effect_of(self.gate, decision):
            case "fail":
                return RunEnded(status=RunStatus.FAILED, output=None, error=error)
            case "cancel":
                return stopped(replace(error, type="cancelled"))
            case _:
                return stopped(error)

    def _with_values(self, decision: Decision) -> Decision:
        """Return an approval with form values as edited arguments: fields of a gate are arguments of the same names."""
        if self.question.kind != "approval" or decision.kind is not DecisionKind.APPROVED or not decision.values:
            return decision
        arguments = {**self.question.arguments, **decision.values}
        return replace(decision, kind=DecisionKind.EDITED, content=json.dumps(arguments, ensure_ascii=False))


def _subject(question: CallQuestion) -> str:
    if question.kind in {"question", "elicitation"}:
        return question.prompt or ""
    if question.kind == "guardrail":
        return str(question.arguments["text"])
    return canonical_json({"tool": question.tool, "arguments": dict(question.arguments)}).decode()


def _title(question: CallQuestion) -> str:
    match question.kind:
        case "approval":
            return f"{question.agent} wants to call {question.tool}"
        case "external":
            return f"{question.agent} needs the result of {question.tool}"
        case "interrupted":
            return f"{question.tool} was under way when its process ended"
        case "elicitation":
            return f"{question.tool} asks for input"
        case "question":
            return f"{question.agent} asks a question"
        case "guardrail":
            held = {"input": "the input", "tool": f"a call of {question.facts.get('tool')}"}
            return f"The guardrail {question.tool} holds {held.get(str(question.facts.get('stage')), 'the answer')} of {question.agent}"


MAX_SHOWN = 4_000
"""Characters of one argument in a prompt; the task's subject has the whole."""


def _prompt(question: CallQuestion, human: Human) -> str:
    if question.kind == "guardrail":
        return f"{_title(question)}. Approve it, edit it (it is checked again), or reject it (the run ends)."
    rows = [f"- {name}: {_shown(value)}" for name, value in question.arguments.items()]
    asked = {"interrupted": "Has the call had its effect? Look it up before you answer.", "external": "Carry it out."}
    first = human.description if question.gate is not None and human.description else f"{_title(question)}."
    lines = [first, asked.get(question.kind, ""), "", *(rows or ["It has no arguments."])]
    return "\n".join(lines).replace("\n\n\n", "\n\n")


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "...[truncated]"


def _facts(question: CallQuestion) -> dict[str, object]:
    if question.kind == "guardrail":
        return {**question.facts, "agent": question.agent, "guardrail": question.tool}
    facts: dict[str, object] = {**question.facts, "agent": question.agent, "tool": question.tool, "call": question.key}
    if question.gate is not None:
        facts["gate"] = question.gate
    if question.kind == "elicitation":
        facts[ARGUMENTS_DIGEST] = digest_of_json(dict(question.arguments))
    elif question.kind != "question":
        facts["arguments"] = dict(question.arguments)
    if question.kind == "approval" and question.answer_schema is not None:
        facts["parameters"] = dict(question.answer_schema)
    return facts


# ---- frames -----------------------------------------------------------------------------------------------------


def question_json(question: CallQuestion) -> dict[str, object]:
    """Return the JSON of a question; defaults are left out."""
    values = {**vars(question), "options": list(question.options), "facts": dict(question.facts)}
    kept = {name: value for name, value in values.items() if value not in (None, [], {})}
    return {**kept, "arguments": dict(question.arguments)}


def read_question(content: object) -> CallQuestion:
    """Read the JSON of ``question_json``."""
    assert isinstance(content, Mapping)
    return CallQuestion(**{**content, "options": tuple(content.get("options", ()))})


def _decision_json(decision: Decision) -> dict[str, object]:
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(decision).items()}
    return {name: value for name, value in values.items() if value not in (None, [])}


def read_decision(content: Mapping[str, Any]) -> CallDecision:
    """Read a decision of a frame."""
    named = {"content": None, "selected_option": None, "comment": None, **content}
    lists = {name: tuple(content.get(name, ())) for name in ("selected_options", "voters")}
    return CallDecision(**{**named, "kind": DecisionKind(content["kind"]), **lists})


def answers_of(frame: Frame) -> Mapping[str, Decision]:
    """Return the decisions about calls of a step, by the keys of their questions."""
    return {key: read_decision(decision) for key, decision in mapping(frame, ANSWERS).items()}


def with_questions(frame: Frame, questions: Sequence[CallQuestion], path: str) -> dict[str, object]:
    """Return the frame of a step that waits for answers; those that are open stay open, and others are withdrawn.

    A question that was answered in the meantime makes the step due at once.
    """
    answered, known = mapping(frame, ANSWERS), children(frame)
    asked = {f"{CALL}{one.key}": one for one in questions if one.key not in answered}
    slots = {key: known.get(key) or {"node": path, "question": question_json(one)} for key, one in asked.items()}
    return {**frame, "phase": "calls" if len(asked) == len(questions) else "body", "children": slots}


def with_answer(frame: Frame, child_key: str, end: Completed) -> dict[str, object]:
    """Return the frame of a step with the decision of one of its questions."""
    answers = {**mapping(frame, ANSWERS), child_key.removeprefix(CALL): json.loads(end.value.text)}
    return {**frame, ANSWERS: answers}


def unknown_gate(questions: Sequence[CallQuestion], path: str) -> RunError:
    """Return the error of a step whose questions cannot be asked."""
    what = ", ".join(sorted({question.gate or question.human or DEFAULT_HUMAN for question in questions}))
    message = f"{path} asks about a call, but neither components.humans nor the gates of tools have: {what}."
    return RunError(type="unknown_human", message=message)
