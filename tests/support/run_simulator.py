"""Running programs without a database, a loop or a clock: what the interpreter decides, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from kneo.records.run import RunError
from kneo.records.task import Decision, DecisionKind
from kneo.runtime.engine.questions import consequences
from kneo.runtime.interpreter.node import (
    Ask,
    DecisionContext,
    Execute,
    Frame,
    RunEnded,
    StepFailed,
    Succeeded,
    TaskDecided,
    TaskOpened,
)
from kneo.runtime.interpreter.program import Program, actions, begin, settle, waiting
from kneo.runtime.program.compiler import compile_program
from kneo.spec.models.spec import Spec

MOMENT = DecisionContext(now=datetime(2026, 1, 31, 12, tzinfo=UTC), seed="run_1", sampling_seed="case")

AGENT = {"name": "root", "model": {"provider": "dummy", "name": "dummy"}}


class Boom(Exception):
    pass


def spec_of(workflow: object, **components: object) -> Spec:
    functions = {
        name: {"implementation": f"steps.{name}"} for name in ["a", "b", "c", "d", "e", "f", "g", "h", "choose", "boom"]
    }
    workflows = components.pop("workflows", {})
    humans = {"ann": {"description": "Fine?"}, **components.pop("humans", {})}
    tree = {
        "agent": AGENT,
        "workflow": workflow,
        "components": {"functions": functions, "workflows": workflows, "humans": humans, "agents": {}},
    }
    return Spec.model_validate_json(json.dumps(tree))


def program_of(workflow: object, **components: object) -> Program:
    return compile_program(spec_of(workflow, **components), "workflow")


def fn(name: str, **more: object) -> dict[str, object]:
    """A function step whose function has its id unless ``ref`` says otherwise."""
    return {"id": name, "kind": "function", "ref": name if name in "abcdefgh" else "a", **more}


def human(name: str, **more: object) -> dict[str, object]:
    return {"id": name, "kind": "human", "ref": "ann", **more}


def decision(kind: str, text: str | None = None, **more: object) -> Decision:
    option = text if kind == "selected" else None
    content = text if kind != "selected" else None
    return Decision(
        kind=DecisionKind(kind),
        content=content,
        selected_option=option,
        comment=None,
        actor="ann",
        by="person",
        at="",
        **more,
    )


def append(execute: Execute) -> str:
    """What steps do here: say what they were given, and their name."""
    review = execute.value.review
    heard = f"[{review.feedback}]" if review else ""
    return f"{execute.value.text}{heard}>{execute.activity.path}"


Answer = Callable[[Ask], Decision]
Work = Callable[[Execute], str]
Choose = Callable[[int], int]


@dataclass
class Story:
    """What happened in a simulated run."""

    ended: RunEnded
    did: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    most: int = 0
    """The most steps that were ready at once."""
    largest: int = 0
    """The largest state, in characters of JSON."""

    @property
    def output(self) -> str | None:
        return self.ended.output

    @property
    def error(self) -> str | None:
        return self.ended.error.type if self.ended.error else None


def play(
    program: Program,
    text: str = "in",
    *,
    work: Work = append,
    answer: Answer | Mapping[str, Decision] | None = None,
    choose: Choose = lambda _count: 0,
    limit: int = 5000,
) -> Story:
    """Run to the end; ``choose`` says which of several actions comes next. Every state goes through JSON."""
    answers = answer if callable(answer) else (lambda ask: (answer or {})[ask.key])
    state = begin(program, text, MOMENT)
    story = Story(ended=RunEnded(status="none", output=None))  # type: ignore[arg-type]
    for _ in range(limit):
        if isinstance(state, RunEnded):
            story.ended = state
            return story
        state = through_json(state)
        story.largest = max(story.largest, len(json.dumps(state)))
        state = _next(program, state, story, work, answers, choose)
    raise AssertionError("did not end")


def _next(program: Program, state: Frame, story: Story, work: Work, answer: Answer, choose: Choose) -> Frame | RunEnded:
    todo = actions(program, state)
    asks = [action for action in todo if isinstance(action, Ask)]
    if asks:
        ask = asks[choose(len(asks))]
        story.asked.append(ask.key)
        # What every answer leads to can be told at every place, whatever stands around it.
        told = consequences(program, state, ask, MOMENT)
        assert json.loads(json.dumps(told)).keys() <= {kind.value for kind in ask.gate.decisions}
        return settle(program, state, ask.ticket, TaskOpened(task_id=f"task:{ask.ticket}"), MOMENT)
    open_questions = waiting(program, state)
    count = len(todo) + len(open_questions)
    assert count, "nothing to do and nothing to wait for"
    story.most = max(story.most, len(todo))
    number = choose(count)
    if number < len(todo):
        execute = todo[number]
        assert isinstance(execute, Execute)
        story.did.append(execute.ticket)
        try:
            outcome = Succeeded(text=work(execute))
        except Boom as error:
            outcome = StepFailed(error=RunError(type="boom", message=str(error)))
        return settle(program, state, execute.ticket, outcome, MOMENT)
    ask = list(open_questions.values())[number - len(todo)]
    return settle(program, state, ask.ticket, TaskDecided(decision=answer(ask)), MOMENT)


def through_json(state: Frame) -> Frame:
    loaded: Frame = json.loads(json.dumps(state))
    assert loaded == state
    return loaded
