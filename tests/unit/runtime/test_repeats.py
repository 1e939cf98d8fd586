"""Repetitions: what a person decided about a step holds for every further attempt, until the same question is asked again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from run_simulator import MOMENT, Boom, append, decision, fn, human, play, program_of, spec_of
from shapes import HOLDERS

from kneo.records.run import RunError, RunStatus
from kneo.records.task import Decision
from kneo.runtime.engine.programs import migrate_state
from kneo.runtime.interpreter.node import Ask, Execute, RunEnded, StepFailed, TaskDecided, TaskOpened
from kneo.runtime.interpreter.program import actions, begin, settle
from kneo.runtime.program.compiler import compile_program
from kneo.runtime.simulate.report import Simulator
from kneo.spec.lint import check
from kneo.spec.models.environment import EnvironmentGate, with_gates
from kneo.spec.models.spec import Spec

RETRIED = {"on_error": "retry", "max_retries": 1}
ASKED_ON_ERROR = {"error": {"human": "ann", "options": ["retry", "stop"]}}


@dataclass
class Once:
    """Work that fails at the first attempt of the steps with these ids."""

    failing: set[str]

    def __call__(self, execute: Execute) -> str:
        if execute.activity.id in self.failing:
            self.failing.discard(execute.activity.id)
            raise Boom(execute.activity.path)
        return append(execute)


def condition(when: str, **more: object) -> dict[str, object]:
    """A condition whose branches run ``a`` and ``b``; a person decides in place of ``when``."""
    step = {"id": "x", "kind": "condition", "when": {"type": when}, "steps": [fn("a")], "else": [fn("b")]}
    return {**step, "review": {"before": {"human": "ann", "on_reject": "else"}}, **more}


def by_position(**kinds: str) -> Callable[[Ask], Decision]:
    def answer(ask: Ask) -> Decision:
        word = kinds[ask.gate.position]
        return decision("selected", word) if ask.gate.position == "error" else decision(word)

    return answer


def branches(tickets: list[str]) -> list[str]:
    """The branch steps among what ran, in order."""
    return [name for ticket in tickets if (name := ticket.split("/")[-1].partition(":")[0]) in {"a", "b"}]


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("said", ["approved", "rejected"])
@pytest.mark.parametrize("repeat", ["on_error", "review.error"])
def test_a_decided_branch_stays_decided_when_it_is_repeated(holder: str, said: str, repeat: str) -> None:
    when, branch = ("never", "a") if said == "approved" else ("always", "b")
    step = condition(when, **(RETRIED if repeat == "on_error" else {}))
    if repeat == "review.error":
        step["review"] |= ASKED_ON_ERROR
    program = program_of(HOLDERS[holder](step), workflows={"outer": [step]})
    story = play(program, work=Once({branch}), answer=by_position(before=said, error="retry"))
    assert story.ended.status is RunStatus.SUCCEEDED
    assert branches(story.did) == [branch, branch]
    assert len([key for key in story.asked if key.endswith(".before")]) == 1


@pytest.mark.parametrize("kind", ["steps", "parallel", "loop", "workflow", "router", "condition"])
def test_a_container_that_is_repeated_asks_again_inside(kind: str) -> None:
    inner = [condition("always"), fn("c")]
    bodies = {
        "steps": {"steps": inner},
        "parallel": {"steps": inner},
        "loop": {"steps": inner, "max_iterations": 1},
        "workflow": {"ref": "inner"},
        "router": {"choices": {"y": {"steps": inner}}, "selector": {"default": "y"}},
        "condition": {"when": {"type": "always"}, "steps": inner},
    }
    step = {"id": "g", "kind": kind, **bodies[kind], **RETRIED}
    program = program_of([step], workflows={"inner": inner})
    story = play(program, work=Once({"c"}), answer=by_position(before="rejected"))
    assert len(story.asked) == 2
    # In a parallel the failure comes first: the question is withdrawn before it is answered.
    assert branches(story.did) == (["b"] if kind == "parallel" else ["b", "b"])


def test_a_route_that_was_chosen_is_asked_again_when_the_router_is_repeated() -> None:
    choices = {"x": {"steps": [fn("a")]}, "y": {"steps": [fn("b")]}}
    router = {"id": "r", "kind": "router", "choices": choices, "selector": {"default": "y"}, **RETRIED}
    for gate in ({"human": "ann"}, {"human": "ann", "when": {"type": "output_contains", "value": "in"}}):
        program = program_of([{**router, "review": {"route": gate}}])
        story = play(program, work=Once({"a"}), answer=lambda _ask: decision("selected", "x"))
        assert story.asked == ["r.route", "r@1.route"]
        assert branches(story.did) == ["a", "a"]


def test_an_environment_gate_around_a_condition_decides_no_branch() -> None:
    meant = {"kinds": ["condition"]}
    around = EnvironmentGate.model_validate(
        {"name": "money", "match": meant, "before": {"human": {}, "on_reject": "stop"}}
    )
    step = {key: value for key, value in condition("never", **RETRIED).items() if key != "review"}
    program = compile_program(with_gates(spec_of([step]), (around,)), "workflow")
    story = play(program, work=Once({"b"}), answer=by_position(before="approved"))
    assert (branches(story.did), story.asked) == (["b", "b"], ["x.before+money"])


def test_a_result_that_was_sent_back_is_shown_again() -> None:
    narrow = {"when": {"type": "output_equals", "value": "in>a"}, "on_reject": "retry"}
    program = program_of([{**fn("a"), "review": {"after": {"human": "ann", **narrow}}}])
    answers = iter([decision("rejected", "no"), decision("approved")])
    story = play(program, answer=lambda _ask: next(answers))
    assert story.asked == ["a.after", "a@1.after"]
    loop = {"id": "l", "kind": "loop", "steps": [fn("a")], "max_iterations": 3}
    each = {"when": {"type": "output_equals", "value": "in>l/a"}, "on_reject": "retry", "human": "ann"}
    answers = iter([decision("rejected", "no"), decision("approved")])
    story = play(program_of([{**loop, "review": {"each": each}}]), answer=lambda _ask: next(answers))
    assert story.asked == ["l#1.each", "l#2.each"]


@pytest.mark.parametrize("number", range(20))
def test_chance_falls_the_same_way_for_every_attempt(number: int) -> None:
    """A question that was drawn for the first attempt is drawn for all of them."""
    gate = {"human": "ann", "sample": 0.5, "on_reject": "skip"}
    risky = {**fn("a"), "id": f"risky{number}", "review": {"before": gate}}
    group = {"id": "g", "kind": "steps", "steps": [risky, fn("c")], **RETRIED}
    story = play(program_of([group]), work=Once({"c"}), answer=by_position(before="rejected"))
    assert len(story.asked) in {0, 2}
    assert len([ticket for ticket in story.did if "risky" in ticket]) == 2 - len(story.asked)


# ---- the proofs -------------------------------------------------------------------------------------------------

DANGER = {"functions": {"danger": {"implementation": "app.danger", "capabilities": ["shell"]}}}


def dangerous(**more: object) -> Spec:
    """A person may send the run to ``safe`` instead of ``danger``."""
    step = {
        "id": "c",
        "kind": "condition",
        "when": {"type": "always"},
        "review": {"before": {"on_reject": "else"}},
        "steps": [{"id": "danger", "kind": "function", "ref": "danger"}],
        "else": [{"id": "safe", "kind": "function", "ref": "safe"}],
        **more,
    }
    functions = {**DANGER["functions"], "safe": {"implementation": "app.safe"}}
    return Spec.model_validate({"agent": {"name": "root"}, "workflow": [step], "components": {"functions": functions}})


def test_a_simulation_follows_what_is_repeated() -> None:
    simulation = Simulator.of(dangerous(**RETRIED)).everything()
    assert (simulation.cut, simulation.findings) == (0, ())
    ran = [outcome.ran for outcome in simulation.outcomes]
    assert ("c/safe", "c@1/safe") in ran
    assert ("c/danger", "c@1/danger") in ran
    assert not [each for each in ran if {"c/safe", "c@1/danger"} <= {*each}]
    assert {outcome.status for outcome in simulation.outcomes} == {"succeeded", "failed"}


@pytest.mark.parametrize("repeat", [RETRIED, {"review": {"before": {"on_reject": "else"}, "error": {}}}])
def test_the_proof_and_the_simulation_agree_about_repeats(repeat: dict) -> None:
    spec = dangerous(**repeat)
    assert [d.code for d in check(spec) if d.code == "E_PRIVILEGED_UNGATED"] == []
    assert [finding.code for finding in Simulator.of(spec).everything().findings] == []


def test_a_step_in_a_group_that_is_repeated_fails_in_a_simulation() -> None:
    group = {"id": "g", "kind": "steps", "steps": [fn("a"), human("q")], "max_retries": 1}
    simulation = Simulator.of(spec_of([group])).everything()
    ran = {(outcome.ran, outcome.status) for outcome in simulation.outcomes}
    assert (("g/a", "g@1/a"), "failed") in ran
    assert (("g/a", "g@1/a"), "succeeded") in ran


def test_a_decision_is_kept_when_a_failed_run_is_continued() -> None:
    program = program_of([condition("always")])
    state = begin(program, "in", MOMENT)
    assert not isinstance(state, RunEnded)
    ask = actions(program, state)[0]
    state = settle(program, state, ask.ticket, TaskOpened(task_id="t"), MOMENT)
    state = settle(program, state, ask.ticket, TaskDecided(decision=decision("rejected")), MOMENT)
    assert [action.ticket for action in actions(program, state)] == ["x/b:0"]
    assert [action.ticket for action in actions(program, program.root.prepare_retry(state))] == ["x/b:1"]


def test_a_state_of_before_the_branch_was_kept_keeps_it_from_now_on() -> None:
    """The state of a run whose condition a person decided, as earlier versions wrote it."""
    program = program_of([condition("always", **RETRIED)])
    state = begin(program, "in", MOMENT)
    assert not isinstance(state, RunEnded)
    ask = actions(program, state)[0]
    state = settle(program, state, ask.ticket, TaskOpened(task_id="t"), MOMENT)
    state = settle(program, state, ask.ticket, TaskDecided(decision=decision("rejected")), MOMENT)
    step = {key: value for key, value in state["children"]["0"].items() if key != "chosen"}
    state = migrate_state({**state, "children": {"0": step}}, 3)
    state = settle(program, state, "x/b:0", StepFailed(error=RunError(type="boom", message="")), MOMENT)
    assert [action.ticket for action in actions(program, state)] == ["x@1/b:0"]
