"""The table of rejections in the guide to gates: every cell is executed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from run_simulator import MOMENT, Boom, Story, decision, fn, human, play, program_of, spec_of

from kneo.function_context import WaitRequest
from kneo.records.run import RunStatus
from kneo.records.task import Decision
from kneo.runtime.interpreter.node import Ask, Execute, RunEnded, StepWaiting, Succeeded, TaskDecided, TaskOpened
from kneo.runtime.interpreter.program import actions, begin, settle, waiting
from kneo.runtime.program.compiler import compile_program
from kneo.runtime.simulate.report import Simulator
from kneo.sdk.workflow import HumanReview
from kneo.sdk.workflow.types import gates
from kneo.spec.lint import check
from kneo.spec.models.environment import EnvironmentGate, with_gates
from kneo.spec.models.spec import Spec
from kneo.spec.reading.load import load_tree

GUIDE = Path(__file__).parents[3] / "docs/guides/people/gates.md"
HEADER = "| position | left out |"


def table() -> dict[tuple[str, str | None], str]:
    """Read the cells of the table by position and effect; None is what is left out."""
    lines = GUIDE.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(HEADER))
    head = [cell.strip() for cell in lines[start].strip("|").split("|")]
    cells: dict[tuple[str, str | None], str] = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        row = [cell.strip() for cell in line.strip("|").split("|")]
        for effects, cell in zip(head[1:], row[1:], strict=True):
            for effect in effects.replace("`", "").split(", "):
                cells[row[0].replace("`", ""), None if effect == "left out" else effect] = cell
    return cells


TABLE = table()
CELLS = sorted(TABLE, key=str)


def workflow(position: str, gate: dict[str, object]) -> list[dict[str, object]]:
    """Three steps in a row; the question stands at the second."""
    match position:
        case "step of kind human":
            return [fn("a"), human("q"), fn("c")]
        case "before of a condition":
            asked = {"id": "x", "kind": "condition", "when": {"type": "always"}, "steps": [fn("b")], "else": [fn("d")]}
            return [fn("a"), {**asked, "review": {"before": gate}}, fn("c")]
        case "each":
            loop = {"id": "x", "kind": "loop", "steps": [fn("b")], "max_iterations": 2}
            return [fn("a"), {**loop, "review": {"each": gate}}, fn("c")]
        case "route":
            router = {"id": "x", "kind": "router", "choices": {"y": {"steps": [fn("b")]}}, "review": {"route": gate}}
            return [fn("a"), router, fn("c")]
        case "context.wait":
            return [fn("a"), fn("b"), fn("c")]
        case _:
            return [fn("a"), {**fn("b"), "review": {position: gate}}, fn("c")]


def spec(position: str, effect: str | None) -> Spec:
    says = {} if effect is None else {"on_reject": effect}
    inherited = position in {"step of kind human", "context.wait"}
    humans = {"ann": {"description": "Fine?", **(says if inherited else {})}}
    return spec_of(workflow(position, {"human": "ann", **says}), humans=humans)


def first(word: Decision) -> Callable[[Ask], Decision]:
    """Answer the first question with this, and agree to the others."""
    said: list[Decision] = [word]
    return lambda _ask: said.pop() if said else decision("approved")


def rejected(position: str, effect: str | None) -> Story:
    program = compile_program(spec(position, effect), "workflow")
    if position != "context.wait":
        return play(program, answer=first(decision("rejected", "no")))
    return waited(program)


def waited(program: object) -> Story:
    """Run with a function ``b`` that asks in its middle; what it is told stands in the story as ``told``."""
    state = begin(program, "in", MOMENT)
    story = Story(ended=RunEnded(status=RunStatus.RUNNING, output=None))
    while not isinstance(state, RunEnded):
        todo = actions(program, state)
        ask = next((one for one in todo if isinstance(one, Ask)), None)
        if ask is not None:
            state = settle(program, state, ask.ticket, TaskOpened(task_id="t"), MOMENT)
            continue
        open_asks = list(waiting(program, state).values())
        if open_asks:
            story.asked.append(open_asks[0].key)
            said = TaskDecided(decision=decision("rejected", "no"))
            state = settle(program, state, open_asks[0].ticket, said, MOMENT)
            continue
        execute = todo[0]
        assert isinstance(execute, Execute)
        state = settle(program, state, execute.ticket, did(execute, story), MOMENT)
    story.ended = state
    return story


def did(execute: Execute, story: Story) -> object:
    if execute.activity.id == "b" and not execute.answers:
        return StepWaiting(request=WaitRequest(prompt="May I?", index=0, human="ann"))
    told = [f"told {given.reason}" for given in execute.answers if given.declined]
    story.did.extend([f"{execute.ticket}", *told])
    return Succeeded(text=f"{execute.value.text}>{execute.activity.path}")


EXPECTED: dict[str, Callable[[Story, str], bool]] = {
    "run ends": lambda story, _: story.output is None and "c:0" not in story.did and not guarded_ran(story),
    "input passes on": lambda story, _: story.output == "in>a>c" and not guarded_ran(story),
    "rejection passes on": lambda story, _: story.output == "Rejected by human reviewer: no>c",
    "result passes on": lambda story, _: story.output == "in>a>b>c",
    "other branch": lambda story, _: story.output == "in>a>x/d>c",
    "step before runs again": lambda story, _: story.did == ["a:0", "a#2:0", "c:0"] and story.output == "in[no]>a>c",
    "runs again": lambda story, _: story.output in {"in>a[no]>b>c", "in>a>x/b[no]>x/b>c"},
    "rounds go on": lambda story, _: story.output == "in>a>x/b>x/b>c" and len(story.asked) == 2,
    "function receives it": lambda story, _: "told no" in story.did and story.output == "in>a>b>c",
}
"""What a cell of the table means for a run whose question is answered with a rejection and the feedback ``no``."""

ENDS = {
    "stop": (RunStatus.CANCELLED, "human_rejected"),
    "cancel": (RunStatus.CANCELLED, "cancelled"),
    "fail": (RunStatus.FAILED, "human_rejected"),
}


def guarded_ran(story: Story) -> bool:
    """Whether ``b`` ran after the question before it was asked; after a step it has run by then."""
    after = any(".after" in key or ".each" in key for key in story.asked)
    return not after and any(ticket.startswith(("b", "x/b")) for ticket in story.did)


def test_the_table_is_whole() -> None:
    positions = {position for position, _ in TABLE}
    assert len(positions) == 8
    assert {effect for _, effect in TABLE} == {None, "stop", "cancel", "fail", "skip", "retry", "else", "continue"}
    assert set(TABLE.values()) <= {*EXPECTED, "refused"}


@pytest.mark.parametrize(("position", "effect"), CELLS)
def test_each_cell_is_what_a_run_does(position: str, effect: str | None) -> None:
    cell = TABLE[position, effect]
    if cell == "refused":
        assert refused(position, effect)
        return
    story = rejected(position, effect)
    assert len(story.asked) >= 1
    assert EXPECTED[cell](story, position), (cell, story.did, story.ended)
    if cell == "run ends":
        assert (story.ended.status, story.error) == ENDS.get(effect or "stop", ENDS["stop"])
    else:
        assert story.ended.status is RunStatus.SUCCEEDED


def refused(position: str, effect: str | None) -> bool:
    """Whether a spec with this is not valid; where nothing is written, whether a rejection is no answer there."""
    if effect is None:
        program = compile_program(spec(position, None), "workflow")
        asks: list[Ask] = []

        def answer(ask: Ask) -> Decision:
            asks.append(ask)
            return decision("selected", (ask.options or ("",))[0])

        def work(execute: Execute) -> str:
            if position == "error" and execute.activity.id == "b" and not asks:
                raise Boom
            return execute.value.text

        play(program, work=work, answer=answer)
        return bool(asks) and all("rejected" not in {kind.value for kind in ask.gate.decisions} for ask in asks)
    gate = {"human": "ann", "on_reject": effect}
    tree = {
        "agent": {"name": "root"},
        "workflow": workflow(position, gate),
        "components": {
            "functions": {name: {"implementation": f"app.{name}"} for name in "abcd"},
            "humans": {"ann": {}},
        },
    }
    found = load_tree(tree, rules=check).diagnostics
    return "E_REVIEW_REJECT" in {one.code for one in found}


@pytest.mark.parametrize("position", ["before", "after"])
def test_gates_of_an_environment_have_the_same_default(position: str) -> None:
    gate = EnvironmentGate.model_validate({"name": "env", "match": {"refs": ["b"]}, position: {"human": {}}})
    program = compile_program(with_gates(spec_of([fn("a"), fn("b"), fn("c")]), (gate,)), "workflow")
    story = play(program, answer=first(decision("rejected", "no")))
    assert (story.ended.status, story.error) == ENDS["stop"]
    assert EXPECTED[TABLE[position, None]](story, position)


def test_python_workflows_write_their_own_default() -> None:
    """Their guide says ``skip``; what a spec leaves out is another matter."""
    confirmed, reviewed = HumanReview(requires_confirmation=True), HumanReview(requires_output_review=True)
    assert gates("Step", "s", confirmed)["review"]["before"]["on_reject"] == "skip"
    assert gates("Condition", "s", confirmed)["review"]["before"]["on_reject"] == "else"
    assert gates("Step", "s", reviewed)["review"]["after"]["on_reject"] == "skip"
    assert gates("Loop", "s", HumanReview(requires_iteration_review=True))["review"]["each"]["on_reject"] == "skip"


@pytest.mark.parametrize(("when", "said", "output"), [("never", "approved", "x/b"), ("always", "rejected", "x/d")])
def test_at_a_condition_the_person_decides_and_not_when(when: str, said: str, output: str) -> None:
    [_, step, _] = workflow("before of a condition", {"human": "ann"})
    program = program_of([{**step, "when": {"type": when}}])
    assert play(program, answer=first(decision(said))).output == f"in>{output}"
    narrow = {**step["review"]["before"], "when": {"type": "output_contains", "value": "unheard of"}}
    unasked = play(program_of([{**step, "when": {"type": when}, "review": {"before": narrow}}]))
    assert (unasked.asked, unasked.output) == ([], f"in>{'x/d' if when == 'never' else 'x/b'}")


# A simulation executes no function, so that none asks in its middle.
FORESEEN = [cell for cell in CELLS if TABLE[cell] != "refused" and cell[0] != "context.wait"]


@pytest.mark.parametrize(("position", "effect"), FORESEEN)
def test_simulations_foresee_each_cell(position: str, effect: str | None) -> None:
    story = rejected(position, effect)
    ran = tuple(ticket.rpartition(":")[0] for ticket in story.did)
    simulation = Simulator.of(spec(position, effect)).everything()
    assert (ran, story.ended.status.value) in {(each.ran, each.status) for each in simulation.outcomes}
