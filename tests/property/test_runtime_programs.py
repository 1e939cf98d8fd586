"""Laws of the interpreter that no example shows: random programs, random order, one result."""

from __future__ import annotations

import random
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st
from run_simulator import MOMENT, Boom, append, decision, play, program_of, spec_of, through_json

from kneo.records.run import RunStatus
from kneo.records.task import Decision
from kneo.runtime.interpreter.node import Ask, DecisionContext, Execute, RunEnded, Stale, Succeeded
from kneo.runtime.interpreter.program import actions, begin, settle
from kneo.runtime.interpreter.step import RETRY_CAP_SECONDS, retry_delay
from kneo.runtime.program.compiler import compile_program
from kneo.spec.models.environment import EnvironmentGate, with_gates

WORDS = st.sampled_from(["a", "b", "c", ">a", "in"])
CONDITIONS = st.one_of(
    st.builds(lambda word: {"type": "output_contains", "value": word}, WORDS),
    st.builds(lambda word: {"type": "variable_equals", "key": "v", "value": word}, WORDS),
    st.sampled_from([{"type": "always"}, {"type": "never"}, {"type": "status_is", "value": "failed"}]),
)
GATES = st.fixed_dictionaries(
    {"human": st.just("ann")}, optional={"on_reject": st.sampled_from(["skip", "stop", "fail"])}
)


def _common(draw: st.DrawFn, kind: str) -> dict[str, object]:
    step: dict[str, object] = {"kind": kind}
    if draw(st.integers(0, 4)) == 0:
        step["on_error"] = draw(st.sampled_from(["continue", "retry"]))
    if draw(st.integers(0, 4)) == 0:
        step["save_as"] = draw(st.sampled_from(["v", "w"]))
    if draw(st.integers(0, 5)) == 0:
        step["review"] = {draw(st.sampled_from(["before", "error"])): draw(GATES) | {"human": "ann"}}
        if "error" in step["review"]:
            step["review"]["error"].pop("on_reject", None)
    return step


def _number(steps: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{**step, "id": f"s{index}"} for index, step in enumerate(steps)]


@st.composite
def step_lists(draw: st.DrawFn, depth: int = 3) -> list[dict[str, object]]:
    return _number([draw(a_step(depth)) for _ in range(draw(st.integers(1, 3)))])


@st.composite
def a_step(draw: st.DrawFn, depth: int) -> dict[str, object]:
    kinds = ["function"] * 3 + ["human"]
    if depth:
        kinds += ["steps", "parallel", "condition", "loop", "router"]
    kind = draw(st.sampled_from(kinds))
    step = _common(draw, kind)
    match kind:
        case "function":
            step["ref"] = draw(st.sampled_from(["a", "b", "boom"]))
        case "human":
            step["ref"] = "ann"
            step.pop("review", None)
        case "steps" | "parallel":
            step["steps"] = draw(step_lists(depth - 1))
        case "condition":
            step |= {
                "when": draw(CONDITIONS),
                "steps": draw(step_lists(depth - 1)),
                "else": draw(step_lists(depth - 1)),
            }
        case "loop":
            step |= {"steps": draw(step_lists(depth - 1)), "max_iterations": 2, "until": draw(CONDITIONS)}
        case _:
            ways = {name: {"steps": draw(step_lists(depth - 1))} for name in ("x", "y")}
            by = {"conditions": [{"when": draw(CONDITIONS), "choice": "x"}], "default": "y"}
            step |= {"choices": ways, "selector": by}
    return step


@st.composite
def workflows(draw: st.DrawFn) -> object:
    steps = draw(step_lists())
    match draw(st.sampled_from(["sequential", "concurrent", "handoff", "group-chat", "graph"])):
        case "sequential":
            return steps
        case "graph":
            nodes = {step["id"]: step for step in steps}
            names = st.sampled_from(sorted(nodes))
            edges = st.fixed_dictionaries({"from": names, "to": names}, optional={"condition": CONDITIONS})
            return {
                "type": "graph",
                "start": "s0",
                "nodes": nodes,
                "edges": draw(st.lists(edges, max_size=5)),
                "max_steps": 6,
            }
        case "group-chat":
            return {"type": "group-chat", "participants": steps, "rounds": 2}
        case family:
            return {"type": family, "participants": steps}


def work(execute: Execute) -> str:
    """A pure function of what the step was given; some fail, some only at first."""
    if execute.activity.ref == "boom" and execute.attempt == 0:
        raise Boom(execute.activity.path)
    return append(execute)[-2000:]


def answer(ask: Ask) -> Decision:
    """A pure function of the question."""
    if ask.gate.position == "error":
        return decision("selected", "skip")
    wanted = ["approved", "rejected"] if "1" in ask.key else ["approved"]
    return decision(wanted[len(ask.subject.text) % len(wanted)], "no")


@settings(max_examples=150, deadline=None)
@given(workflows(), st.integers(0, 2**32))
def test_any_order_ends_and_gives_the_same_result(workflow: object, seed: int) -> None:
    program = program_of(workflow, humans={"ann": {"on_reject": "skip"}})
    chance = random.Random(seed)
    first = play(program, work=work, answer=answer)
    other = play(program, work=work, answer=answer, choose=chance.randrange)
    if {first.ended.status, other.ended.status} <= {RunStatus.SUCCEEDED}:
        assert (first.ended.output, first.ended.outputs) == (other.ended.output, other.ended.outputs)
        assert sorted(first.did) == sorted(other.did)
    else:
        # A person who stops a run, or a failure, may come before or after what another branch does.
        assert first.ended.status is not RunStatus.SUCCEEDED
        assert other.ended.status is not RunStatus.SUCCEEDED
    assert len(set(first.did)) == len(first.did), "two executions share a name, so an idempotency key"
    assert len(set(first.asked)) == len(first.asked)


ADDED = st.lists(
    st.fixed_dictionaries(
        {"match": st.sampled_from([{"steps": ["*"]}, {"refs": ["a"]}, {"kinds": ["loop", "condition", "steps"]}])},
        optional={"before": st.sampled_from([{}, {"on_reject": "stop"}, {"when": {"type": "never"}}])},
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=100, deadline=None)
@given(workflows(), ADDED)
def test_a_question_of_an_environment_takes_none_of_the_spec_away(workflow: object, gates: list[dict]) -> None:
    spec = spec_of(workflow, humans={"ann": {"on_reject": "skip"}})
    added = tuple(
        EnvironmentGate.model_validate({"name": f"g{number}", "before": {}, **gate})
        for number, gate in enumerate(gates)
    )

    def agreed(ask: Ask) -> Decision:
        return decision("approved") if "+" in ask.key else answer(ask)

    plain = play(compile_program(spec, "workflow"), work=work, answer=answer)
    gated = play(compile_program(with_gates(spec, added), "workflow"), work=work, answer=agreed)
    assert len(set(gated.asked)) == len(gated.asked)
    if RunStatus.SUCCEEDED in {plain.ended.status, gated.ended.status}:
        # Whoever agrees to everything that is added sees what the spec says, all of it.
        assert sorted(key for key in gated.asked if "+" not in key) == sorted(plain.asked)
        assert (gated.ended.status, gated.ended.output) == (plain.ended.status, plain.ended.output)
        assert sorted(gated.did) == sorted(plain.did)


@settings(max_examples=50, deadline=None)
@given(workflows())
def test_settling_is_deterministic_and_changes_nothing_in_place(workflow: object) -> None:
    program = program_of(workflow)
    state = begin(program, "in", MOMENT)
    for _ in range(30):
        if isinstance(state, RunEnded):
            return
        todo = [action for action in actions(program, state) if isinstance(action, Execute)]
        if not todo:
            return
        kept = through_json(state)
        results = [settle(program, kept, todo[0].ticket, Succeeded(text="x"), MOMENT) for _ in range(2)]
        assert results[0] == results[1]
        assert kept == state
        state = results[0]


@settings(max_examples=50, deadline=None)
@given(workflows(), st.text(max_size=20))
def test_an_outcome_nobody_waits_for_is_refused(workflow: object, ticket: str) -> None:
    program = program_of(workflow)
    state = begin(program, "in", MOMENT)
    if isinstance(state, RunEnded) or ticket in {action.ticket for action in actions(program, state)}:
        return
    try:
        settle(program, state, ticket, Succeeded(text="x"), MOMENT)
    except Stale:
        return
    raise AssertionError("took an outcome of nothing")


@given(st.integers(0, 1000), st.floats(0, 1, exclude_max=True))
def test_waits_between_tries_grow_and_stay_bounded(failures: int, chance: float) -> None:
    assert 0 < retry_delay(failures, chance) <= RETRY_CAP_SECONDS
    assert retry_delay(failures, chance) <= 2 * retry_delay(failures + 1, chance)


def test_a_retry_is_not_before_its_time() -> None:
    program = program_of([{"id": "a", "kind": "function", "ref": "a", "max_retries": 1}])
    moment = DecisionContext(now=MOMENT.now + timedelta(hours=1), seed="run_1", sampling_seed="case")
    play(program, work=work)
    state = begin(program, "in", moment)
    assert not isinstance(state, RunEnded)
    assert actions(program, state)[0].not_before is None
