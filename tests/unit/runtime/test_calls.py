"""Questions about tool calls: which are open, and what each answer does to the step that asks."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from itertools import permutations

import pytest
from run_simulator import MOMENT, decision, through_json

from kneo.agents.turn import CallQuestion
from kneo.clock import isoformat
from kneo.digest import digest_of
from kneo.records.run import RunError, RunStatus
from kneo.records.task import CallDecision, DecisionKind
from kneo.runtime.engine.questions import consequences
from kneo.runtime.interpreter.node import (
    Ask,
    CallsWaiting,
    Execute,
    Frame,
    RunEnded,
    StepFailed,
    StepPostponed,
    Succeeded,
    TaskDecided,
    TaskOpened,
)
from kneo.runtime.interpreter.program import Program, actions, begin, prepare_retry, reset_questions, settle, waiting
from kneo.runtime.program.compiler import compile_program
from kneo.spec.models.environment import GatedSpec
from kneo.spec.models.spec import Spec

MODEL = {"provider": "dummy", "name": "dummy"}


def spec(step: dict[str, object] | None = None, **more: object) -> dict[str, object]:
    return {
        "agent": {"name": "teller", "model": MODEL, "tools": ["pay", "look"]},
        "workflow": {"type": "sequential", "steps": [{"id": "work", "kind": "agent", "ref": "teller", **(step or {})}]},
        "tools": {
            "pay": {
                "description": "Pay.",
                "implementation": "bank.pay",
                "capabilities": ["privileged"],
                "review": {"before": {"human": "ops", **more.pop("before", {})}},  # type: ignore[dict-item]
            },
            "look": {"description": "Look.", "review": {"external": {"human": "ops"}}},
        },
        "components": {"humans": {"ops": {"description": "Fine?"}, "boss": {}}},
        **more,
    }


def program_of(tree: dict[str, object]) -> Program:
    return compile_program(Spec.model_validate_json(json.dumps(tree)), "workflow")


def question(name: str = "1.a", **changes: object) -> CallQuestion:
    asked = CallQuestion(
        key=f"{name}:tools.pay.before",
        task_key="pay:1:0badf00d",
        kind="approval",
        gate="tools.pay.before",
        agent="teller",
        tool="pay",
        arguments={"amount": 5},
    )
    return replace(asked, **changes)


class Turns:
    """A run of one step, moved by hand."""

    def __init__(self, tree: dict[str, object] | None = None) -> None:
        self.program = program_of(tree or spec())
        self.state: Frame | RunEnded = begin(self.program, "in", MOMENT)

    @property
    def frame(self) -> Frame:
        assert not isinstance(self.state, RunEnded)
        return self.state

    @property
    def due(self) -> Execute | None:
        return next((one for one in actions(self.program, self.frame) if isinstance(one, Execute)), None)

    @property
    def asks(self) -> dict[str, Ask]:
        return {ask.key: ask for ask in waiting(self.program, self.frame).values()}

    def settle(self, ticket: str, outcome: object) -> None:
        after = settle(self.program, self.frame, ticket, outcome, MOMENT)  # type: ignore[arg-type]
        self.state = after if isinstance(after, RunEnded) else through_json(after)

    def ends(self, outcome: object) -> None:
        assert self.due is not None
        self.settle(self.due.ticket, outcome)
        while not isinstance(self.state, RunEnded):
            ask = next((one for one in actions(self.program, self.frame) if isinstance(one, Ask)), None)
            if ask is None:
                return
            assert consequences(self.program, self.frame, ask, MOMENT)
            self.settle(ask.ticket, TaskOpened(task_id=f"task:{ask.key}"))

    def waits(self, *questions: CallQuestion) -> None:
        self.ends(CallsWaiting(questions=questions))

    def answer(self, key: str, kind: str = "approved", text: str | None = None, **more: object) -> None:
        self.settle(self.asks[key].ticket, TaskDecided(decision=decision(kind, text, **more)))


def test_a_run_that_waits_for_an_answer_about_a_call_has_nothing_to_do() -> None:
    run = Turns()
    run.waits(question())
    assert run.due is None
    assert actions(run.program, run.frame) == ()
    [ask] = run.asks.values()
    assert ask.key == "work.pay:1:0badf00d"
    assert ask.subject.text == '{"arguments":{"amount":5},"tool":"pay"}'
    assert ask.gate.human.title == "pay(amount: 5)"
    assert ask.prompt == "Fine?\n\n- amount: 5"
    assert ask.gate.decisions == (DecisionKind.APPROVED, DecisionKind.REJECTED, DecisionKind.EDITED)
    assert ask.gate.human.description == "Fine?"


@pytest.mark.parametrize("order", list(permutations("abc")))
def test_each_answer_makes_the_step_due_while_it_waits_for_the_others(order: tuple[str, ...]) -> None:
    run = Turns()
    asked = {name: question(f"1.{name}", task_key=f"pay:{name}") for name in "abc"}
    run.waits(*asked.values())
    for count, name in enumerate(order, 1):
        run.answer(f"work.pay:{name}")
        assert run.due is not None
        assert set(run.due.call_answers) == {asked[one].key for one in order[:count]}
        left = [asked[one] for one in "abc" if one not in order[:count]]
        assert set(run.asks) == {f"work.{one.task_key}" for one in left}
        run.waits(*left) if left else run.ends(Succeeded(text="done"))
    assert isinstance(run.state, RunEnded)
    assert (run.state.status, run.state.output) == (RunStatus.SUCCEEDED, "done")


def test_an_answer_that_comes_while_the_step_runs_makes_it_due_again() -> None:
    run = Turns()
    run.waits(question("1.a", task_key="a"), question("1.b", task_key="b"))
    run.answer("work.a")
    run.answer("work.b")
    run.waits(question("1.b", task_key="b"))
    assert run.due is not None
    assert len(run.due.call_answers) == 2
    assert run.asks == {}


def test_a_question_that_is_no_longer_asked_is_withdrawn() -> None:
    run = Turns()
    run.waits(question("1.a", task_key="a"), question("1.b", task_key="b"))
    run.answer("work.a")
    run.waits(question("2.c", task_key="c"))
    assert set(run.asks) == {"work.c"}


def test_an_answer_passes_through_the_state_whole() -> None:
    run = Turns()
    run.waits(question())
    given = decision("edited", '{"amount": 6}', feedback="less", selected_options=("x",))
    run.settle(run.asks["work.pay:1:0badf00d"].ticket, TaskDecided(decision=given))
    assert run.due is not None
    assert run.due.call_answers == {question().key: CallDecision(**vars(given))}


def test_values_of_a_gates_form_are_arguments_of_the_same_names() -> None:
    run = Turns(spec(before={"fields": [{"name": "amount", "type": "int"}]}))
    run.waits(question(arguments={"amount": 5, "to": "ann"}))
    run.answer("work.pay:1:0badf00d", values={"amount": 6})
    assert run.due is not None
    [given] = run.due.call_answers.values()
    assert given.kind is DecisionKind.EDITED
    assert json.loads(given.content or "") == {"amount": 6, "to": "ann"}


@pytest.mark.parametrize(
    ("on_reject", "status", "error"),
    [
        (None, None, None),
        ("stop", RunStatus.CANCELLED, "human_rejected"),
        ("fail", RunStatus.FAILED, "human_rejected"),
    ],
)
def test_a_rejection_is_for_the_agent_or_ends_the_run(
    on_reject: str | None, status: RunStatus | None, error: str | None
) -> None:
    run = Turns(spec(before={"on_reject": on_reject} if on_reject else {}))
    run.waits(question())
    [ask] = run.asks.values()
    told = consequences(run.program, run.frame, ask, MOMENT)["rejected"]
    assert isinstance(told, dict)
    run.answer(ask.key, "rejected", "no")
    if status is None:
        assert told["next"] == ["work"]
        assert run.due is not None
        assert run.due.call_answers[question().key].content == "no"
        return
    assert isinstance(run.state, RunEnded)
    assert (run.state.status, run.state.error and run.state.error.type) == (status, error)
    assert told["ends"] == status.value


def test_stop_at_an_interrupted_call_ends_the_run_and_the_other_answers_do_not() -> None:
    key = "pay:1:0badf00d:interrupted.1"
    interrupted = question(
        kind="interrupted", gate=None, key="1.a:interrupted.1", task_key=key, facts={"begun_at": "12:00"}
    )
    for option in ("repeat", "done", "stop"):
        run = Turns()
        run.waits(interrupted)
        [ask] = run.asks.values()
        assert ask.key == f"work.{key}"
        assert ask.options == ("repeat", "done", "stop")
        assert ask.facts["begun_at"] == "12:00"
        run.answer(ask.key, "selected", option)
        if option == "stop":
            assert isinstance(run.state, RunEnded)
            assert (run.state.status, run.state.error and run.state.error.type) == (
                RunStatus.CANCELLED,
                "tool_interrupted",
            )
        else:
            assert run.due is not None
            assert run.due.call_answers[interrupted.key].selected_option == option


def test_a_question_of_the_agent_asks_the_declared_human_for_an_answer_of_its_schema() -> None:
    run = Turns()
    schema = {"type": "object", "properties": {"v": {"type": "integer"}}}
    asked = question(
        key="1.q:question",
        task_key="ask_question:1:abc",
        kind="question",
        gate=None,
        tool="ask_question",
        prompt="Which one?",
        human="boss",
    )
    run.waits(replace(asked, answer_schema=schema))
    [ask] = run.asks.values()
    assert (ask.key, ask.prompt, ask.subject.text) == ("work.ask_question:1:abc", "Which one?", "Which one?")
    assert (ask.gate.human.answer_schema, ask.gate.decisions[0]) == (schema, DecisionKind.PROVIDED)
    run = Turns()
    run.waits(replace(asked, options=("a", "b")))
    [ask] = run.asks.values()
    assert (ask.options, ask.gate.decisions[0]) == (("a", "b"), DecisionKind.SELECTED)


def test_a_result_from_outside_is_provided() -> None:
    run = Turns()
    schema = {"type": "object", "required": ["rows"]}
    run.waits(question(kind="external", gate="tools.look.external", tool="look", answer_schema=schema))
    [ask] = run.asks.values()
    assert ask.gate.decisions == (DecisionKind.PROVIDED, DecisionKind.REJECTED)
    assert ask.gate.human.answer_schema == schema


def test_a_question_to_nobody_fails_the_step() -> None:
    run = Turns()
    run.waits(question(kind="question", gate=None, human="nobody"))
    assert isinstance(run.state, RunEnded)
    assert run.state.error is not None
    assert run.state.error.type == "unknown_human"


def boom(*, final: bool = False) -> StepFailed:
    return StepFailed(error=RunError(type="model_unreachable", message="gone"), final=final)


def test_a_retry_continues_the_conversation_with_its_answers() -> None:
    run = Turns(spec({"on_error": "retry", "max_retries": 1}))
    run.waits(question("1.a", task_key="a"), question("1.b", task_key="b"))
    run.answer("work.a")
    run.ends(boom())
    assert run.due is not None
    assert (run.due.ticket, run.due.conversation) == ("work:1", "work~0")
    assert list(run.due.call_answers) == ["1.a:tools.pay.before"]
    assert run.asks == {}
    run.waits(question("1.b", task_key="b"))
    assert set(run.asks) == {"work.b"}


def test_a_reviewer_who_sends_a_result_back_begins_a_new_conversation() -> None:
    run = Turns(spec({"review": {"after": {"human": "boss", "on_reject": "retry"}}}))
    run.waits(question())
    run.answer("work.pay:1:0badf00d")
    run.ends(Succeeded(text="draft"))
    run.answer("work.after", "rejected", "again")
    assert run.due is not None
    assert (run.due.conversation, run.due.call_answers) == ("work~1", {})
    run.waits(question())
    assert set(run.asks) == {"work@1.pay:1:0badf00d"}


def test_a_failed_run_is_continued_with_its_answers() -> None:
    run = Turns()
    run.waits(question("1.a", task_key="a"), question("1.b", task_key="b"))
    run.answer("work.a")
    run.ends(boom(final=True))
    assert isinstance(run.state, RunEnded)
    assert run.state.kept is not None
    run.state = prepare_retry(run.program, run.state.kept)
    assert run.due is not None
    assert (run.due.conversation, list(run.due.call_answers)) == ("work~0", ["1.a:tools.pay.before"])
    assert run.asks == {}


def test_a_fork_asks_again() -> None:
    run = Turns()
    run.waits(question("1.a", task_key="a"), question("1.b", task_key="b"))
    run.answer("work.a")
    for state in (run.frame,):
        run.state = reset_questions(run.program, state)
        assert run.due is not None
        assert run.due.call_answers == {}
        assert run.asks == {}


def test_a_postponed_step_is_due_later_and_has_not_failed() -> None:
    run = Turns()
    run.ends(StepPostponed(seconds=40, reason="busy"))
    assert run.due is not None
    assert (run.due.ticket, run.due.not_before) == ("work:0", isoformat(MOMENT.now + timedelta(seconds=40)))
    run.ends(StepPostponed(seconds=1e9, reason="busy"))
    assert run.due is not None
    assert run.due.not_before == isoformat(MOMENT.now + timedelta(hours=1))
    for _ in range(22):
        run.ends(StepPostponed(seconds=1, reason="busy"))
    run.ends(StepPostponed(seconds=1, reason="busy"))
    assert isinstance(run.state, RunEnded)
    assert run.state.error is not None
    assert run.state.error.type == "step_postponed"


# ---- gates of tools -----------------------------------------------------------------------------------------------


def gates(tree: dict[str, object], agent: str = "teller", tool: str = "pay", **arguments: object) -> list[str]:
    body = json.dumps(tree)
    program = compile_program(GatedSpec.model_validate_json(body), "workflow")
    activity = next(one for one in actions(program, begin(program, "in", MOMENT)))  # type: ignore[arg-type]
    assert isinstance(activity, Execute)
    of_call = program.tool_gates.of_step(activity.activity.call_gates, "seed")
    return [gate.id for gate in of_call(agent, tool, arguments)]


def test_a_tool_has_the_gates_of_its_spec() -> None:
    assert gates(spec()) == ["tools.pay.before"]
    assert gates(spec(), tool="look") == ["tools.look.external"]
    assert gates(spec(), tool="other") == []


def test_a_condition_of_a_gate_compares_the_arguments() -> None:
    large = {"when": {"type": "metadata_equals", "key": "amount", "value": 100}}
    assert gates(spec(before=large), amount=100) == ["tools.pay.before"]
    assert gates(spec(before=large), amount=5) == []
    assert gates(spec(before={"when": {"type": "metadata_equals", "value": 1}})) == ["tools.pay.before"]


def test_equal_calls_are_sampled_alike() -> None:
    sampled = [bool(gates(spec(before={"sample": 0.5}), amount=amount)) for amount in range(100)]
    assert sampled == [bool(gates(spec(before={"sample": 0.5}), amount=amount)) for amount in range(100)]
    assert 20 < sum(sampled) < 80
    assert digest_of(b"") != digest_of(b"x")


@pytest.mark.parametrize(
    ("match", "agent", "tool", "asks"),
    [
        ({}, "teller", "pay", True),
        ({"capabilities": ["privileged", "shell"]}, "teller", "pay", True),
        ({"capabilities": ["shell"]}, "teller", "pay", False),
        ({"capabilities": ["privileged"]}, "teller", "look", False),
        ({"capabilities": ["privileged"]}, "teller", "undeclared", True),
        ({"tools": ["mail_*", "p*"]}, "teller", "pay", True),
        ({"tools": ["mail_*"]}, "teller", "pay", False),
        ({"tools": ["bank.*"]}, "teller", "pay", True),
        ({"refs": ["teller"]}, "teller", "pay", True),
        ({"refs": ["teller"]}, "helper", "pay", False),
        ({"steps": ["work"]}, "teller", "pay", True),
        ({"steps": ["other"]}, "teller", "pay", False),
        ({"workflows": ["x*"]}, "teller", "pay", False),
    ],
)
def test_an_environment_adds_gates_at_calls(match: dict[str, object], agent: str, tool: str, asks: bool) -> None:
    tree = spec(environment_gates=[{"name": "effects", "match": {"kinds": ["tool"], **match}, "before": True}])
    found = gates(tree, agent=agent, tool=tool)
    assert ("environment.effects.before" in found) is asks
    # The spec's own gates ask first.
    assert found[: len(found) - asks] == gates(spec(), tool=tool)


def test_a_gate_around_steps_is_not_asked_at_calls() -> None:
    tree = spec(environment_gates=[{"name": "steps", "match": {"kinds": ["agent"]}, "before": True}])
    program = compile_program(GatedSpec.model_validate_json(json.dumps(tree)), "workflow")
    assert set(program.tool_gates.of_step((), "seed")("teller", "x", {})) == set()


@pytest.mark.parametrize(
    ("effect", "leads_to"),
    [
        ("tell_agent", {"next": ["work"]}),
        ("stop", {"ends": "cancelled", "error": "human_rejected"}),
        ("fail", {"ends": "failed", "error": "human_rejected"}),
    ],
)
def test_the_consequence_of_a_rejection_names_the_call_that_is_not_made(effect: str, leads_to: dict) -> None:
    run = Turns(spec(before={"on_reject": effect}))
    run.waits(question())
    [ask] = run.asks.values()
    found = consequences(run.program, run.frame, ask, MOMENT)
    assert found["approved"] == {"next": ["work"], "calls": ["pay"]}
    assert found["rejected"] == {**leads_to, "effect": effect, "skips": ["work → pay"]}
