"""A simulation foresees every run: whatever steps say and people answer, the run is one of its branches."""

from __future__ import annotations

import random
import re
from itertools import count, islice

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_workflows import EFFECTS, named, questions, workflows
from run_simulator import Boom, decision, play

from kneo.errors import Invalid
from kneo.records.task import Decision
from kneo.runtime.interpreter.node import Ask, Execute
from kneo.runtime.simulate.report import Simulator
from kneo.spec.models.spec import Spec

ROUND = re.compile(r"[#@][0-9]+|:fallback")


def anybody(chance: random.Random) -> object:
    def answer(ask: Ask) -> Decision:
        kind = chance.choice(ask.gate.decisions).value
        if kind == "selected":
            return decision(kind, chance.choice(ask.options or ("x", "other")))
        return decision(kind, chance.choice("xo"))

    return answer


@settings(max_examples=40, deadline=None)
@given(workflows(), st.lists(questions([*EFFECTS, "retry"]), min_size=2, max_size=2))
def test_every_run_is_foreseen(workflow: dict, humans: list[dict]) -> None:
    numbers = count()
    workflow = named(workflow, numbers)
    functions = {f"fire{n}": {"implementation": "app.fire"} for n in range(next(numbers))}
    spec = Spec.model_validate(
        {
            "agent": {"name": "root"},
            "workflow": workflow,
            "components": {
                "workflows": {"inner": [{"id": "deep", "kind": "function", "ref": "calm"}]},
                "functions": {**functions, "calm": {"implementation": "app.calm"}},
                "humans": {"stops": {"description": "?"}, **{f"h{n}": human for n, human in enumerate(humans)}},
            },
        }
    )
    try:
        simulator = Simulator.of(spec, limit=1000, rows=1000)
    except Invalid:
        return
    simulation = simulator.everything()
    assume(simulation.cut == 0)
    assume(simulation.branches <= 1000)
    foreseen = {(frozenset(ROUND.sub("", place) for place in each.ran), each.status) for each in simulation.outcomes}
    for seed in range(5):
        chance, ran = random.Random(seed), set()

        def work(execute: Execute) -> str:
            ran.add(ROUND.sub("", execute.ticket.rpartition(":")[0]))  # noqa: B023 - runs within this round
            if execute.activity.path in simulator.layout.caught and chance.random() < 0.25:  # noqa: B023
                raise Boom(execute.activity.path)
            return chance.choice("xo")  # noqa: B023

        story = play(simulator.program, work=work, answer=anybody(chance))
        assert (frozenset(ran), story.ended.status.value) in foreseen


@settings(max_examples=10, deadline=None)
@given(workflows(), st.lists(questions(EFFECTS), min_size=2, max_size=2))
def test_there_are_as_many_branches_as_it_says_and_all_differ(workflow: dict, humans: list[dict]) -> None:
    spec = Spec.model_validate(
        {
            "agent": {"name": "root"},
            "workflow": workflow,
            "components": {
                "workflows": {"inner": [{"id": "deep", "kind": "function", "ref": "calm"}]},
                "functions": {name: {"implementation": f"app.{name}"} for name in ("fire", "calm")},
                "humans": {"stops": {"description": "?"}, **{f"h{n}": human for n, human in enumerate(humans)}},
            },
        }
    )
    try:
        simulation = Simulator.of(spec, limit=2000, rows=2000).everything()
    except Invalid:
        return
    listed = list(islice(simulation.outcomes, 2000))
    assert len(listed) == min(simulation.branches, 2000)
    assert len({(each.choices, each.ran, each.status, each.error) for each in listed}) == len(listed)
