"""The gate coverage proof against the interpreter: where nobody ever agrees, it makes no call that was not reported.

Random workflows of every family are run for real. Every question is rejected, or left to its deadline; steps fail at
random and say random things. A privileged step that runs all the same must be among the findings.
"""

from __future__ import annotations

import random
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st
from random_workflows import EFFECTS, gates, named, questions, workflows
from run_simulator import Boom, decision, play

from kneo.errors import Invalid
from kneo.records.task import Decision
from kneo.runtime.interpreter.node import Ask, Execute
from kneo.runtime.program.compiler import compile_program
from kneo.spec.lint import check
from kneo.spec.models.environment import EnvironmentGate, with_gates
from kneo.spec.models.spec import Spec


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


MATCHES = [{"steps": ["*"]}, {"capabilities": ["shell"]}, {"kinds": ["steps", "loop", "condition"]}, {"refs": ["*1"]}]


@st.composite
def added(draw: st.DrawFn) -> tuple[EnvironmentGate, ...]:
    """Questions of an environment, weak ones too."""
    count = draw(st.integers(0, 2))
    places = [{place: draw(gates(EFFECTS)) for place in draw(st.sampled_from(PLACES))} for _ in range(count)]
    return tuple(
        EnvironmentGate.model_validate({"name": f"g{number}", "match": draw(st.sampled_from(MATCHES)), **asked})
        for number, asked in enumerate(places)
    )


PLACES = [["before"], ["after"], ["before", "after"]]


@settings(max_examples=150, deadline=None)
@given(
    workflows(),
    workflows().filter(lambda inner: "workflow" not in str(inner)),
    st.lists(questions([*EFFECTS, "retry"]), min_size=2, max_size=2),
    added(),
)
def test_no_call_runs_unagreed_and_unreported(
    outer: dict, inner: dict, humans: list[dict], environment: tuple[EnvironmentGate, ...]
) -> None:
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
    spec = with_gates(spec, environment)
    try:
        program = compile_program(spec, "workflow")
    except Invalid:
        return  # fallbacks in a circle, a disabled start: refused before anything runs
    reported = "".join(d.message for d in check(spec) if d.code == "E_PRIVILEGED_UNGATED")
    for seed in range(5):
        chance, fired = random.Random(seed), set()

        def work(execute: Execute) -> str:
            if execute.activity.ref.startswith("fire"):
                fired.add(f"function {execute.activity.ref} (")  # noqa: B023 - runs within this round
            if chance.random() < 0.25:  # noqa: B023
                raise Boom(execute.activity.path)
            return chance.choice("xy")  # noqa: B023

        play(program, work=work, answer=nobody_agrees(chance), choose=chance.randrange)
        assert {call for call in fired if call not in reported} == set()
