"""Questions that an environment puts around steps: asked beside those of the spec, and never in their place."""

from __future__ import annotations

from itertools import product

import pytest
from run_simulator import AGENT, Boom, append, decision, fn, play, spec_of
from shapes import BODY, CONTAINERS, HOLDERS, guarded

from kneo.records.run import RunStatus
from kneo.records.task import Decision
from kneo.runtime.interpreter.node import Ask, Execute
from kneo.runtime.interpreter.program import Program
from kneo.runtime.program.compiler import compile_program
from kneo.spec.models.environment import EnvironmentGate, with_gates
from kneo.spec.models.human import Gate
from kneo.spec.models.spec import Spec


def added(match: object, name: str = "env", **places: object) -> EnvironmentGate:
    asked = {place: Gate.model_validate({"human": {"description": "Sure?"}, **say}) for place, say in places.items()}
    return EnvironmentGate.model_validate({"name": name, "match": match}).model_copy(update=asked)


def program_with(spec: Spec, *gates: EnvironmentGate, target: str = "workflow") -> Program:
    return compile_program(with_gates(spec, gates), target)


def saying(kind: str, **by_key: Decision) -> object:
    def answer(ask: Ask) -> Decision:
        return by_key.get(ask.key.replace(".", "_").replace("+", "_")) or decision(kind)

    return answer


@pytest.mark.parametrize(("container", "holder"), list(product(CONTAINERS, HOLDERS)))
def test_what_it_stands_before_never_runs_without_a_yes(container: str, holder: str) -> None:
    step = CONTAINERS[container]
    spec = spec_of(HOLDERS[holder](step), workflows={"inner": BODY, "outer": [step]})
    # A step of a group is in the group, and a gate at the group is enough for it.
    program = program_with(spec, added({"steps": ["*x"], "kinds": [step["kind"]]}, before={"on_reject": "stop"}))
    agreed = play(program, answer=saying("approved"))
    assert [key.rpartition("/")[2].replace("#1", "") for key in agreed.asked] == ["x.before+env"]
    assert guarded(agreed.did)
    assert agreed.output == play(compile_program(spec, "workflow")).output
    refused = play(program, answer=saying("rejected"))
    assert (refused.ended.status, guarded(refused.did)) == (RunStatus.CANCELLED, [])


def test_it_is_asked_around_what_the_spec_asks() -> None:
    step = {**fn("a"), "review": {"before": {"human": "ann"}, "after": {"human": "ann"}}}
    outer = added({"refs": ["a"]}, "outer", before={}, after={})
    inner = added({"refs": ["a"]}, "inner", before={}, after={})
    program = program_with(spec_of([step]), outer, inner)
    story = play(program, answer=saying("approved"))
    before = ["a.before+outer", "a.before+inner", "a.before"]
    after = ["a.after", "a.after+inner", "a.after+outer"]
    assert story.asked == [*before, *after]


def test_each_of_them_can_refuse() -> None:
    step = {**fn("a"), "review": {"before": {"human": "ann", "on_reject": "skip"}}}
    skip = {"on_reject": "skip"}
    program = program_with(spec_of([step, fn("b")]), added({"refs": ["a"]}, before=skip, after=skip))
    for key, ran in [("a_before_env", ["b:0"]), ("a_before", ["b:0"]), ("a_after_env", ["a:0", "b:0"])]:
        story = play(program, answer=saying("approved", **{key: decision("rejected")}))
        assert story.did == ran, key
        assert story.output == "in>b", key


def test_a_person_who_decides_for_a_condition_still_does() -> None:
    step = {**CONTAINERS["condition"], "when": {"type": "never"}, "review": {"before": {"human": "ann"}}}
    program = program_with(spec_of([step]), added({"kinds": ["condition"]}, before={}))
    assert play(program, answer=saying("approved")).output == "in>x/a>x/b"
    assert play(program, answer=saying("approved", x_before=decision("rejected"))).output == "in>x/c"
    assert play(program, answer=saying("approved", x_before_env=decision("rejected"))).error == "human_rejected"


def test_an_approval_of_the_environment_decides_no_condition() -> None:
    step = {**CONTAINERS["condition"], "when": {"type": "never"}}
    program = program_with(spec_of([step]), added({"kinds": ["condition"]}, before={}))
    assert play(program, answer=saying("approved")).output == "in>x/c"


def test_a_result_that_is_sent_back_is_made_anew_and_asked_about_again() -> None:
    step = {**fn("a"), "review": {"before": {"human": "ann"}}}
    program = program_with(spec_of([step]), added({"refs": ["a"]}, after={"on_reject": "retry", "max_retries": 1}))
    again = {"a_after_env": decision("rejected", feedback="Better.")}
    story = play(program, answer=saying("approved", **again))
    assert story.asked == ["a.before", "a.after+env", "a@1.before", "a@1.after+env"]
    assert story.output == "in[Better.]>a"


def test_the_root_agent_alone_is_asked_about_too() -> None:
    spec = spec_of([fn("a")])
    program = program_with(spec, added({"refs": [AGENT["name"]]}, before={"on_reject": "stop"}), target="agent")
    assert play(program, answer=saying("approved")).asked == ["root.before+env"]
    assert play(program, answer=saying("rejected")).did == []


def test_what_stands_in_for_a_step_is_asked_about_too() -> None:
    steps = [{**fn("boom", ref="b"), "on_error": "fallback", "fallback_ref": "c"}, fn("c", enabled=True)]
    program = program_with(spec_of(steps), added({"refs": ["c"]}, before={"on_reject": "stop"}))

    def work(execute: Execute) -> str:
        if execute.activity.ref == "b":
            raise Boom
        return append(execute)

    story = play(program, work=work, answer=saying("rejected"))
    assert story.asked == ["boom:fallback.before+env"]
    assert [ticket for ticket in story.did if "fallback" in ticket] == []
