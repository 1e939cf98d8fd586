"""Scenarios: the possible outcomes of each action, all of them or those of an answers file.

Outputs of steps are unknown. A text matters only to a condition: each step returns a text that no condition matches, and each
word that conditions compare with. Words without an effect are merged: states with equal futures are one branch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from kneo.agents.turn import CallQuestion
from kneo.records.run import RunError, RunStatus
from kneo.records.task import Decision, DecisionKind
from kneo.runtime.interpreter.node import (
    Ask,
    CallsWaiting,
    Execute,
    Outcome,
    RunEnded,
    StepFailed,
    Succeeded,
    TaskDecided,
)
from kneo.runtime.simulate.layout import Layout
from kneo.spec.coverage.gates import strengthened
from kneo.spec.models.answers import AnswersFile, ScriptedAnswer
from kneo.spec.models.environment import QuestionPolicy
from kneo.spec.models.human import AnswerField
from kneo.tasks.forms import filled, problems, schema_of
from kneo.tasks.schedule import TimeoutPolicy

NOTHING_WRITTEN = AnswersFile(answers={})

ANY_QUESTIONS = QuestionPolicy()
"""The least requirements of questions, where no environment sets any."""

SIMULATED_PERSON = "simulated"

ELSE = "something else"
"""The label of a text that no condition matches."""

_ARGUMENTS = re.compile(r":[0-9a-f]{8}(?=>|\+|$)")
"""The digests of arguments in the key of a call."""

Values: TypeAlias = Mapping[str, object]

_SOME: Mapping[str, object] = {
    "int": 1,
    "float": 1.0,
    "list": [],
    "dict": {},
    "date": "2000-01-01",
    "datetime": "2000-01-01T00:00:00Z",
}
"""A value of each type that conditions cannot test."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One possible outcome of an action.

    Attributes:
        label: A word for it; empty where there is no choice.
        outcome: The outcome for the interpreter, or the run's end.
        agreed: Whether a person agreed to something by it.
    """

    label: str
    outcome: Outcome | RunEnded
    agreed: bool = False


@dataclass(frozen=True, slots=True)
class AnswerMismatch:
    """A written answer that does not fit its question."""

    key: str
    why: str


@dataclass(slots=True)
class Scenario:
    """The possible outcomes of one simulation; collects the written answers that were used, and those that do not fit."""

    layout: Layout
    written: AnswersFile = NOTHING_WRITTEN
    least: QuestionPolicy = ANY_QUESTIONS
    used: set[str] = field(default_factory=set)
    unfit: dict[str, AnswerMismatch] = field(default_factory=dict)

    def inputs(self) -> Iterator[tuple[str, str]]:
        """Yield the possible inputs of the run, each with a label."""
        if self.written.input is not None:
            yield "", self.written.input
        else:
            yield from self._texts("input")

    def results(self, action: Execute) -> Iterator[Transition]:
        """Yield the possible outcomes of a step."""
        location = action.ticket.rpartition(":")[0]
        known = self._output(location, action.activity.path)
        asked = self._due(action, location)
        if asked is not None:
            yield Transition("", CallsWaiting(questions=(asked,)))
            return
        is_caught = action.activity.path in self.layout.caught
        otherwise = "succeeds" if is_caught else ""
        if known is None and not action.call_answers:
            for call in self.layout.calls.get(action.activity.path, ()):
                otherwise = "makes no call that asks"
                yield Transition(f"calls {call.tool}", CallsWaiting(questions=(call.questions[0],)))
        if known is not None:
            yield Transition("", Succeeded(text=known))
            return
        choices = action.activity.choices
        for label, text in ((name, name) for name in choices) if choices else self._texts(location):
            yield Transition(label or otherwise, Succeeded(text=text))
        if is_caught:
            yield Transition(
                "fails", StepFailed(error=RunError(type="simulated", message=f"{location} failed"), final=True)
            )

    def answers(self, ask: Ask) -> Iterator[Transition]:
        """Yield the possible decisions of people, and the timeout of a question with a deadline."""
        key, written = self._written(ask)
        if written is None:
            yield from self._everything(ask)
            return
        self.used.add(key)
        why = self._misfit(ask, written)
        if why is not None:
            self.unfit[key] = AnswerMismatch(key, why)
            yield from self._everything(ask)
        elif written.timeout:
            yield _timeout(ask, self.least)
        else:
            yield _as_written(ask, written)

    def _due(self, action: Execute, location: str) -> CallQuestion | None:
        """Return the next question about a call that was begun, or about one whose answer is written.

        A step makes at most one gated call in a branch, or those whose answers are written.
        """
        calls, answers = self.layout.calls.get(action.activity.path, ()), action.call_answers
        begun = (call.next_question(answers) for call in calls if call.was_begun(answers))
        written = (
            call.questions[0]
            for call in calls
            if not call.was_begun(answers) and self._key_of_call(call.key(location)) is not None
        )
        return next((question for question in begun if question is not None), None) or next(written, None)

    def _written(self, ask: Ask) -> tuple[str, ScriptedAnswer | None]:
        key = self._key_of_call(ask.key) if ask.of_call else None
        key = key if key is not None else ask.key
        return key, self.written.answers.get(key)

    def _key_of_call(self, name: str) -> str | None:
        """Return the key of a written answer about a call. Digests of arguments, which it may have, are left out of account."""
        return next((key for key in self.written.answers if _ARGUMENTS.sub("", key) == name), None)

    # ---- the parts --------------------------------------------------------------------------------------------

    def _output(self, location: str, path: str) -> str | None:
        outputs = self.written.outputs
        for name in (location, path):
            if name in outputs:
                self.used.add(name)
                return outputs[name]
        return None

    def _texts(self, name: str) -> Iterator[tuple[str, str]]:
        """Yield a text that no condition matches, each word that a condition compares with, and all of them."""
        words = tuple(self.layout.words)
        folded = [word.casefold() for word in words]
        unknown = next(
            (text for text in (f"«{name}»", "«»") if not any(word in text.casefold() for word in folded)), ""
        )
        yield ELSE if words else "", unknown
        for word in words:
            yield json.dumps(word, ensure_ascii=False), word
        if len(words) > 1:
            yield "all of the words", " ".join(words)

    def _everything(self, ask: Ask) -> Iterator[Transition]:
        for kind in ask.gate.decisions:
            for label, decision in self._said(ask, kind):
                yield _decided(ask, label, decision)
        human = strengthened(ask.gate.human, self.least, ask.gate.on_reject)
        if (human.timeout_seconds or 0) > 0 and human.on_timeout != "escalate":
            yield _timeout(ask, self.least)

    def _said(self, ask: Ask, kind: DecisionKind) -> Iterator[tuple[str, Decision]]:
        match kind:
            case DecisionKind.EDITED | DecisionKind.PROVIDED:
                for label, text in self._texts(ask.key):
                    if text:  # an empty answer is refused
                        yield "" if label == ELSE else label, _decision(kind, content=text)
            case DecisionKind.SELECTED:
                for option in ask.options or ():
                    yield option, _decision(kind, selected_option=option)
            case DecisionKind.APPROVED:
                for label, values in self._forms(ask):
                    yield label, _decision(kind, values=values)
            case DecisionKind.REJECTED:
                yield "", _decision(kind)

    def _forms(self, ask: Ask) -> Iterator[tuple[str, Values | None]]:
        """Yield possible form values: valid ones, and each value that a condition may test."""
        fields = ask.gate.human.fields
        if not fields:
            yield "", None
            return
        usual = {each.name: next(iter(self._values(each))) for each in fields}
        yield "", usual
        for each in fields:
            for value in self._values(each):
                if value != usual[each.name]:
                    yield f"{each.name}={value}", {**usual, each.name: value}

    def _values(self, field: AnswerField) -> Sequence[object]:
        if field.allowed_values is not None:
            return field.allowed_values
        if field.type == "bool":
            return (True, False)
        if field.type == "str":
            return [text for _, text in self._texts(field.name)]
        return (field.default if field.default is not None else _SOME[field.type],)

    @staticmethod
    def _misfit(ask: Ask, written: ScriptedAnswer) -> str | None:
        """Return why an answer does not fit a question."""
        if written.timeout:
            return None if (ask.gate.human.timeout_seconds or 0) > 0 else "it has no time limit to run out"
        assert written.decision is not None
        kind = DecisionKind(written.decision)
        if kind not in ask.gate.decisions:
            return f"it takes {', '.join(ask.gate.decisions)}, not {kind}"
        if kind in {DecisionKind.EDITED, DecisionKind.PROVIDED} and written.content in {None, ""}:
            return f"{kind} needs content"
        fields = ask.gate.human.fields
        if fields and kind is not DecisionKind.REJECTED:
            schema = schema_of(fields)
            wrong = problems(schema, filled(schema, written.values or {}))
            if wrong:
                return "; ".join(f"{each['field']} {each['message']}" for each in wrong)
        if kind is DecisionKind.SELECTED and ask.options is not None and written.selected_option not in ask.options:
            return f"{written.selected_option!r} is none of {', '.join(ask.options)}"
        return None


def _timeout(ask: Ask, least: QuestionPolicy) -> Transition:
    human = strengthened(ask.gate.human, least, ask.gate.on_reject)
    policy = TimeoutPolicy(
        on_timeout=human.on_timeout,
        decisions=ask.gate.decisions,
        options=ask.options or (),
        default_option=human.default_option,
    )
    decision = policy.decision("")
    if decision is not None:
        return Transition("timeout", TaskDecided(decision=decision))
    error = RunError(type="human_task_expired", message=f"No answer to {ask.key} in time.")
    return Transition("timeout", RunEnded(status=RunStatus.EXPIRED, output=None, error=error))


def _as_written(ask: Ask, written: ScriptedAnswer) -> Transition:
    assert written.decision is not None
    content = written.content
    decision = _decision(
        DecisionKind(written.decision),
        content=content if isinstance(content, str) or content is None else json.dumps(content, ensure_ascii=False),
        selected_option=written.selected_option,
        values=written.values,
    )
    decision = replace(decision, comment=written.comment, feedback=written.feedback)
    return _decided(ask, decision.selected_option or "", decision)


def _decided(ask: Ask, label: str, decision: Decision) -> Transition:
    agreed = decision.kind is not DecisionKind.REJECTED and ask.gate.position != "error"
    return Transition(f"{decision.kind} {label}".rstrip(), TaskDecided(decision=decision), agreed)


def _decision(
    kind: DecisionKind, *, content: str | None = None, selected_option: str | None = None, values: Values | None = None
) -> Decision:
    return Decision(
        kind=kind,
        content=content,
        selected_option=selected_option,
        selected_options=(selected_option,) if selected_option is not None else (),
        comment=None,
        values=values,
        actor=SIMULATED_PERSON,
        by="person",
        at="",
    )


Privileged = Mapping[tuple[str, str], str]
"""Calls of steps that need an approval: kind and ref of the step, and a description of the call."""
