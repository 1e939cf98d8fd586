"""The gate coverage proof against the interpreter: where nobody ever agrees, it makes no call that was not reported.

Random workflows of every family are run for real. Every question is rejected, or left to its deadline; steps fail at
random and say random things. A privileged step that runs all the same must be among the findings.
"""

from __future__ import annotations

import random
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st
from run_simulator import Boom, decision, play

from kneo.errors import Invalid
from kneo.runtime.decide import Ask, Execute
from kneo.runtime.program import compile_program
from kneo.spec.models import Spec
from kneo.spec.rules import check
from kneo.state.task import Decision

EFFECTS = ["stop", "cancel", "fail", "skip", "continue"]
SILENCES = ["approve", "continue", "skip", "cancel", "reject"]
CONDITION = st.sampled_from(
    [
        {"type": "always"},
        {"type": "never"},
        {"type": "output_contains", "value": "x"},
        {"type": "status_is", "value": "failed"},
    ]
)


@st.composite
def questions(draw: st.DrawFn, effects: list[str]) -> dict:
    gate: dict = {"on_reject": draw(st.sampled_from(effects))}
    if draw(st.integers(0, 3)) == 0:
        gate |= {"timeout_seconds": 5, "on_timeout": draw(st.sampled_from(SILENCES))}
    return gate


@st.composite
def gates(draw: st.DrawFn, effects: list[str]) -> dict:
    gate = draw(questions(effects))
    if draw(st.integers(0, 3)) == 0:
        gate["when"] = draw(CONDITION)
    return gate


@st.composite
def reviews(draw: st.DrawFn, kind: str) -> dict:
    places = {"condition": ["before"], "loop": ["before", "each"], "router": ["before", "after", "route"]}
    review = {}
    for place in [*places.get(kind, ["before", "after"]), "error"]:
        if draw(st.integers(0, 2)):
            continue
        if place == "error":
            review[place] = {"options": draw(st.sampled_from([["retry", "stop"], ["retry", "skip", "stop"]]))}
        elif place == "route":
            review[place] = {"timeout_seconds": 5, "on_timeout": draw(st.sampled_from(["skip", "cancel", "reject"]))}
        else:
            before = EFFECTS + (["else"] if kind == "condition" else [])
            review[place] = draw(gates(before if place == "before" else [*EFFECTS, "retry"]))
    return review


@st.composite
def steps(draw: st.DrawFn, depth: int) -> list[dict]:
    found = [draw(a_step(depth)) for _ in range(draw(st.integers(1, 3)))]
    for number, step in enumerate(found):
        step["id"] = f"{number}"
        if step.get("on_error") == "fallback":
            step["fallback_ref"] = f"{draw(st.integers(0, len(found) - 1))}"
    return found


@st.composite
def a_step(draw: st.DrawFn, depth: int) -> dict:
    kinds = ["function"] * 3 + ["human"] * 2 + ["workflow"]
    kind = draw(st.sampled_from(kinds + ["steps", "parallel", "condition", "loop", "router"] * bool(depth)))
    step: dict = {"kind": kind, "enabled": draw(st.integers(0, 9)) > 0}
    if draw(st.integers(0, 3)) == 0:
        step["on_error"] = draw(st.sampled_from(["continue", "retry", "fallback"]))
    match kind:
        case "function":
            step["ref"] = draw(st.sampled_from(["fire", "calm"]))
        case "human":
            step["ref"] = draw(st.sampled_from(["stops", "stops", "h0", "h1"]))
        case "workflow":
            step["ref"] = "inner"
        case "condition":
            step |= {"when": draw(CONDITION), "steps": draw(steps(depth - 1)), "else": draw(steps(depth - 1))}
        case "router":
            ways = {name: {"steps": draw(steps(depth - 1))} for name in "xy"}
            step |= {
                "choices": ways,
                "selector": {"conditions": [{"when": draw(CONDITION), "choice": "x"}], "default": "y"},
            }
        case _:
            step["steps"] = draw(steps(depth - 1))
    review = draw(reviews(kind)) if kind != "human" else {}
    return {**step, "review": review} if review else step


@st.composite
def workflows(draw: st.DrawFn) -> dict:
    members = draw(steps(2))
    match draw(st.sampled_from(["sequential", "sequential", "graph", "concurrent", "handoff", "group-chat"])):
        case "sequential":
            return {"type": "sequential", "steps": members}
        case "graph":
            names = st.sampled_from([step["id"] for step in members])
            ways = st.fixed_dictionaries({"from": names, "to": names}, optional={"condition": CONDITION})
            nodes = {step["id"]: step for step in members}
            edges = draw(st.lists(ways, max_size=5))
            return {"type": "graph", "start": "0", "nodes": nodes, "edges": edges, "max_steps": 6}
        case family:
            return {"type": family, "participants": members}


def named(step: object, numbers: count) -> object:
    """Give every privileged function a name of its own, so that a run tells which step called it."""
    if isinstance(step, list):
        return [named(inner, numbers) for inner in step]
    if not isinstance(step, dict):
        return step
    found = {key: named(inner, numbers) for key, inner in step.items()}
    return {**found, "ref": f"fire{next(numbers)}"} if found.get("ref") == "fire" else found


def nobody_agrees(chance: random.Random) -> object:
    def answer(ask: Ask) -> Decision:
        human = ask.gate.human
        if ask.gate.position == "error":
            offered = [word for word in ask.options or () if word != "retry" or chance.random() < 0.3]
            return decision("selected", chance.choice(offered or ["stop"]))
        if human.timeout_seconds and chance.random() < 0.5:
            return {
                "approve": decision("approved"),
                "continue": decision("approved"),
                "skip": decision("rejected", effect="skip"),
                "cancel": decision("rejected", effect="cancel"),
                "reject": decision("rejected"),
            }[human.on_timeout]
        return decision("rejected", "no")

    return answer


@settings(max_examples=150, deadline=None)
@given(
    workflows(),
    workflows().filter(lambda inner: "workflow" not in str(inner)),
    st.lists(questions([*EFFECTS, "retry"]), min_size=2, max_size=2),
)
def test_no_call_runs_unagreed_and_unreported(outer: dict, inner: dict, humans: list[dict]) -> None:
    numbers = count()
    outer, inner = named(outer, numbers), named(inner, numbers)
    functions = {f"fire{n}": {"implementation": "app.fire", "capabilities": ["shell"]} for n in range(next(numbers))}
    spec = Spec.model_validate(
        {
            "agent": {"name": "root"},
            "workflow": outer,
            "components": {
                "workflows": {"inner": inner},
                "functions": {**functions, "calm": {"implementation": "app.calm"}},
                "humans": {"stops": {"description": "?"}, **{f"h{n}": human for n, human in enumerate(humans)}},
            },
        }
    )
    try:
        program = compile_program(spec, "workflow")
    except Invalid:
        return  # fallbacks in a circle, a disabled start: refused before anything runs
    reported = "".join(d.message for d in check(spec) if d.code == "E_PRIVILEGED_UNGATED")
    for seed in range(5):
        chance, fired = random.Random(seed), set()

        def work(execute: Execute) -> str:
            if execute.leaf.ref.startswith("fire"):
                fired.add(f"function {execute.leaf.ref} (")  # noqa: B023 - runs within this round
            if chance.random() < 0.25:  # noqa: B023
                raise Boom(execute.leaf.path)
            return chance.choice("xy")  # noqa: B023

        play(program, work=work, answer=nobody_agrees(chance), choose=chance.randrange)
        assert {call for call in fired if call not in reported} == set()
