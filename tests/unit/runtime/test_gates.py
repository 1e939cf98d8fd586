"""Questions: where they stand, what an answer does, and that nothing rejected ever runs."""

from __future__ import annotations

from itertools import product

import pytest
from run_simulator import MOMENT, Boom, append, decision, fn, human, play, program_of, spec_of
from shapes import BODY, CONTAINERS, HOLDERS, guarded

from kneo.digest import canonical_json
from kneo.records.run import RunStatus
from kneo.records.task import Decision
from kneo.runtime.engine.questions import consequences
from kneo.runtime.interpreter.node import Ask, Succeeded, TaskDecided, TaskOpened
from kneo.runtime.interpreter.program import actions, begin, settle
from kneo.runtime.program.compiler import compile_program
from kneo.spec.models.spec import Spec
from kneo.spec.reading.load import load_tree


def always(kind: str, text: str | None = None, **more: object) -> object:
    return lambda _ask: decision(kind, text, **more)


def in_turn(*decisions: Decision) -> object:
    left = iter(decisions)
    return lambda _ask: next(left)


def reviewed(step: dict[str, object], **gates: object) -> dict[str, object]:
    return {**step, "review": gates}


@pytest.mark.parametrize(("container", "holder"), list(product(CONTAINERS, HOLDERS)))
def test_nothing_runs_before_it_is_approved_or_after_it_is_rejected(container: str, holder: str) -> None:
    step = reviewed(CONTAINERS[container], before={"human": "ann", "on_reject": "skip"})
    workflows = {"inner": BODY, "outer": [step]}
    program = program_of(HOLDERS[holder](step), workflows=workflows)
    # The answer comes only after everything else that could be done.
    late = play(program, answer=always("approved"), choose=lambda _count: 0)
    assert late.asked
    assert guarded(late.did)
    rejected = play(program, answer=always("rejected"))
    assert guarded(rejected.did) == []
    assert rejected.ended.status is RunStatus.SUCCEEDED
    stopped = play(program, answer=always("rejected", effect="stop"))
    assert (stopped.ended.status, stopped.error) == (RunStatus.CANCELLED, "human_rejected")
    assert guarded(stopped.did) == []


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_human_step_pauses_wherever_it_stands(holder: str) -> None:
    step = {"id": "x", "kind": "steps", "steps": [human("q"), fn("b")]}
    program = program_of(HOLDERS[holder](step), workflows={"outer": [step]})
    story = play(program, answer=always("rejected"))
    assert len(story.asked) == 1
    assert guarded(story.did) == []
    assert (story.ended.status, story.error) == (RunStatus.CANCELLED, "human_rejected")
    assert guarded(play(program, answer=always("approved")).did)


@pytest.mark.parametrize(
    ("kind", "text", "flows"),
    [("approved", None, "in"), ("edited", "E", "E"), ("provided", "P", "P"), ("selected", "S", "S")],
)
def test_what_a_human_step_hands_on(kind: str, text: str | None, flows: str) -> None:
    assert play(program_of([human("q"), fn("b")]), answer=always(kind, text)).output == f"{flows}>b"


@pytest.mark.parametrize(
    ("effect", "status", "output", "error"),
    [
        ("stop", RunStatus.CANCELLED, None, "human_rejected"),
        ("cancel", RunStatus.CANCELLED, None, "cancelled"),
        ("fail", RunStatus.FAILED, None, "human_rejected"),
        ("skip", RunStatus.SUCCEEDED, "in>b", None),
        ("continue", RunStatus.SUCCEEDED, "Rejected by human reviewer: no>b", None),
        ("retry", RunStatus.CANCELLED, None, "human_rejected"),
    ],
)
def test_effects_of_rejecting_at_a_human_step(
    effect: str, status: RunStatus, output: str | None, error: str | None
) -> None:
    program = program_of([human("q"), fn("b")], humans={"ann": {"on_reject": effect}})
    story = play(program, answer=always("rejected", "no"))
    assert (story.ended.status, story.output, story.error) == (status, output, error)


def test_fail_is_not_caught_as_if_it_were_an_error() -> None:
    group = {"id": "s", "kind": "steps", "steps": [human("q")], "on_error": "continue", "max_retries": 3}
    story = play(program_of([group, fn("b")], humans={"ann": {"on_reject": "fail"}}), answer=always("rejected"))
    assert story.ended.status is RunStatus.FAILED
    assert story.did == []


def test_a_human_step_sends_the_step_before_it_back() -> None:
    program = program_of(
        [fn("a"), fn("b"), human("q"), fn("c")], humans={"ann": {"on_reject": "retry", "max_retries": 2}}
    )
    story = play(program, answer=in_turn(decision("rejected", "shorter"), decision("approved")))
    assert story.did == ["a:0", "b:0", "b#2:0", "c:0"]
    assert story.output == "in>a[shorter]>b>c"
    assert story.asked == ["q.step", "q#2.step"]
    worn = play(program, answer=always("rejected", "no"))
    assert (worn.error, worn.did) == ("human_rejected", ["a:0", "b:0", "b#2:0", "b#3:0"])


def test_a_node_of_a_graph_is_sent_back() -> None:
    nodes = {"a": fn("a"), "q": human("q"), "c": fn("c")}
    edges = [{"from": "a", "to": "q"}, {"from": "q", "to": "c"}]
    program = program_of(
        {"type": "graph", "start": "a", "nodes": nodes, "edges": edges}, humans={"ann": {"on_reject": "retry"}}
    )
    story = play(program, answer=in_turn(decision("rejected", "shorter"), decision("approved")))
    assert story.did == ["a:0", "a#2:0", "c:0"]


def test_in_a_parallel_branch_there_is_nothing_to_send_back() -> None:
    program = program_of(
        {"type": "concurrent", "participants": [fn("a"), human("q")]}, humans={"ann": {"on_reject": "retry"}}
    )
    assert play(program, answer=always("rejected")).error == "human_rejected"


def test_after_a_step_its_result_is_judged() -> None:
    def run(*answers: Decision, **gate: object) -> object:
        program = program_of([reviewed(fn("a"), after={"human": "ann", **gate}), fn("b")])
        return play(program, answer=in_turn(*answers))

    assert run(decision("approved")).output == "in>a>b"
    assert run(decision("edited", "E")).output == "E>b"
    assert run(decision("rejected")).error == "human_rejected"
    assert run(decision("rejected"), on_reject="skip").output == "in>b"
    again = run(decision("rejected", "no"), decision("rejected", "nope"), decision("approved"), on_reject="retry")
    assert again.did == ["a:0", "a:1", "a:2", "b:0"]
    assert again.output == "in[nope]>a>b"
    assert again.asked == ["a.after", "a@1.after", "a@2.after"]
    worn = run(decision("rejected"), decision("rejected"), on_reject="retry", max_retries=1)
    assert (worn.error, worn.did) == ("human_rejected", ["a:0", "a:1"])
    assert run(decision("rejected"), on_reject="retry", max_retries=0).did == ["a:0"]


@pytest.mark.parametrize("kind", ["steps", "parallel", "workflow", "router"])
def test_an_edit_of_a_container_flows_downstream(kind: str) -> None:
    step = reviewed(CONTAINERS[kind], after={"human": "ann"})
    program = program_of([step, fn("b")], workflows={"inner": BODY})
    assert play(program, answer=always("edited", "E")).output == "E>b"


def test_an_edit_does_not_leak_into_the_next_review() -> None:
    steps = [reviewed(fn("a"), after=True), reviewed(fn("b"), after=True)]
    story = play(program_of(steps), answer=in_turn(decision("edited", "E"), decision("approved")))
    assert story.output == "E>b"


def test_a_person_decides_in_the_place_of_a_condition() -> None:
    step = {
        "id": "x",
        "kind": "condition",
        "steps": [fn("a")],
        "else": [fn("b")],
        "review": {"before": {"human": "ann"}},
    }
    program = program_of([step])
    assert play(program, answer=always("approved")).output == "in>x/a"
    assert play(program, answer=always("rejected")).output == "in>x/b"
    never = {**step, "when": {"type": "never"}}
    assert play(program_of([never]), answer=always("approved")).output == "in>x/a"
    skip = {**step, "review": {"before": {"human": "ann", "on_reject": "skip"}}}
    assert play(program_of([skip]), answer=always("rejected")).output == "in"


def test_each_round_of_a_loop_is_looked_at_once() -> None:
    steps = [fn("a"), fn("b"), fn("c")]
    loop = {
        "id": "l",
        "kind": "loop",
        "steps": steps,
        "max_iterations": 5,
        "review": {"each": {"human": "ann", "on_reject": "retry"}},
    }
    rejections = [decision("rejected", str(number)) for number in range(4)]
    story = play(program_of([loop]), answer=in_turn(*rejections, decision("approved")))
    assert story.asked == [f"l#{number}.each" for number in range(1, 6)]
    assert len(story.did) == 15
    assert story.ended.status is RunStatus.SUCCEEDED
    assert play(program_of([loop]), answer=always("rejected")).error == "human_rejected"
    assert len(play(program_of([loop]), answer=always("approved")).did) == 3
    assert play(program_of([loop, fn("d")]), answer=always("edited", "E")).output == "E>d"
    drop = {**loop, "review": {"each": {"human": "ann", "on_reject": "skip"}}}
    assert play(program_of([drop, fn("d")]), answer=always("rejected")).output == "in>d"


def test_the_next_round_hears_what_was_said() -> None:
    loop = {"id": "l", "kind": "loop", "steps": [fn("a")], "review": {"each": {"human": "ann", "on_reject": "retry"}}}
    story = play(program_of([loop]), answer=in_turn(decision("rejected", "more"), decision("approved")))
    assert story.output == "in>l/a[more]>l/a"


def test_a_person_chooses_the_way() -> None:
    choices = {"x": {"steps": [fn("a")], "description": "quick"}, "y": {"steps": [fn("b")]}}
    step = {"id": "r", "kind": "router", "choices": choices, "review": {"route": {"human": "ann"}}}
    seen: list[Ask] = []

    def answer(ask: Ask) -> Decision:
        seen.append(ask)
        return decision("selected", "y")

    assert play(program_of([step]), answer=answer).output == "in>r/b"
    assert seen[0].options == ("x", "y")
    assert seen[0].facts["choices"] == {"x": "quick", "y": None}
    assert play(program_of([step]), answer=always("selected", "z")).error == "unknown_choice"
    nobody = {key: value for key, value in step.items() if key != "review"}
    assert play(program_of([nobody]), answer=always("selected", "x")).output == "in>r/a"


def test_a_rejected_result_goes_another_way() -> None:
    choices = {"x": {"steps": [fn("a")]}, "y": {"steps": [fn("b")]}}
    step = {
        "id": "r",
        "kind": "router",
        "choices": choices,
        "selector": {"default": "x"},
        "review": {"after": {"human": "ann", "on_reject": "retry", "max_retries": 1}},
    }
    answers = in_turn(decision("rejected", "other"), decision("selected", "y"), decision("approved"))
    story = play(program_of([step]), answer=answers)
    assert story.asked == ["r.after", "r@1.route", "r@1.after"]
    assert story.output == "in[other]>r/b"


def test_an_error_asks() -> None:
    tries = iter([True] * 9)

    def broken(_execute: object) -> str:
        next(tries)
        raise Boom

    program = program_of([reviewed(fn("a"), error={"human": "ann", "max_retries": 2}), fn("b")])
    offered: list[tuple[str, ...]] = []

    def retry(ask: Ask) -> Decision:
        offered.append(ask.options)
        return decision("selected", "retry" if "retry" in ask.options else "stop")

    story = play(program, work=broken, answer=retry)
    assert story.did == ["a:0", "a:1", "a:2"]
    assert offered == [("retry", "skip", "stop")] * 2 + [("skip", "stop")]
    assert (story.ended.status, story.error) == (RunStatus.FAILED, "boom")

    def only_a(execute: object) -> str:
        if execute.activity.id == "a":
            raise Boom
        return append(execute)

    assert play(program, work=only_a, answer=always("selected", "skip")).output == "in>b"


def test_three_gates_of_one_step_ask_in_order() -> None:
    tries = iter([True, False])

    def work(execute: object) -> str:
        if next(tries):
            raise Boom
        return append(execute)

    program = program_of([reviewed(fn("a"), before=True, after=True, error=True)])
    answers = in_turn(decision("approved"), decision("selected", "retry"), decision("approved"))
    assert play(program, work=work, answer=answers).asked == ["a.before", "a.error", "a.after"]


def test_a_gate_with_a_condition_asks_where_it_holds_or_breaks() -> None:
    def asked(text: str, **gate: object) -> list[str]:
        program = program_of([reviewed(fn("a"), after={"human": "ann", **gate})])
        return play(program, text, answer=always("approved")).asked

    euro = {"type": "output_contains", "value": "€"}
    assert asked("5 €", when=euro) == ["a.after"]
    assert asked("5", when=euro) == []
    assert asked("5", when={"type": "output_contains"}) == ["a.after"]
    assert asked("5", when=euro, sample=1.0) == ["a.after"]
    assert asked("5", when=euro, sample=0.0) == []
    assert asked("5", key="money") == ["money.after"]


def test_three_questions_stand_open_at_once_and_take_any_order() -> None:
    program = program_of({"type": "concurrent", "participants": [human("p"), human("q"), human("r")]})
    orders = {
        play(program, answer=always("provided", "x"), choose=choose).output
        for choose in (lambda _n: 0, lambda n: n - 1)
    }
    assert orders == {"x"}


def test_several_ways_are_taken_one_after_the_other() -> None:
    router = {
        "id": "r",
        "kind": "router",
        "choices": {"x": {"steps": [fn("a")]}, "y": {"steps": [fn("a"), human("q")]}, "z": {"steps": [fn("c")]}},
        "review": {"route": {"human": "ann", "multiple": True}},
    }
    several = decision("selected", "y", selected_options=("y", "x", "y"))
    answers = {"r.route": several, "r/q.step": decision("approved"), "r:choice3/q.step": decision("edited", "E")}
    story = play(program_of([router, fn("b")]), answer=answers)
    assert story.did == ["r/a:0", "r:choice2/a:0", "r:choice3/a:0", "b:0"]
    assert story.output == "E>b"


def test_consequences_say_what_happens_next() -> None:
    steps = [fn("a"), reviewed(fn("b"), before={"human": "ann", "on_reject": "skip"}), human("q"), fn("c")]
    program = program_of(steps, humans={"ann": {"assignee": "ann", "prompt": "Send {{ input }} now?"}})
    told: list[object] = []

    def answer(ask: Ask) -> Decision:
        return decision("rejected" if ask.key == "b.before" else "approved")

    state = begin(program, "in", MOMENT)
    state = settle(program, state, "a:0", Succeeded(text="A"), MOMENT)
    for _ in range(2):
        ask = next(iter(actions(program, state)))
        told.append(consequences(program, state, ask, MOMENT))
        asked = settle(program, state, ask.ticket, TaskOpened(task_id="t"), MOMENT)
        state = settle(program, asked, ask.ticket, TaskDecided(decision=answer(ask)), MOMENT)
    question = {"key": "q.step", "human": "ann", "prompt": "Send … now?"}
    assert told[0] == {
        "approved": {"next": ["b"]},
        "rejected": {"next": [], "asks": [question], "effect": "skip", "skips": ["b"]},
    }
    assert told[1] == {
        "approved": {"next": ["c"]},
        "edited": {"next": ["c"]},
        "provided": {"next": ["c"]},
        "rejected": {"ends": "cancelled", "error": "human_rejected", "effect": "stop"},
    }


def _asked_first(steps: list[dict[str, object]], **parts: object) -> dict[str, object]:
    """The consequences that a person reads who is asked before anything runs."""
    program = program_of(steps, **parts)
    state = begin(program, "in", MOMENT)
    return consequences(program, state, next(iter(actions(program, state))), MOMENT)


def _condition(when: dict[str, object]) -> dict[str, object]:
    return {"id": "c", "kind": "condition", "when": when, "steps": [fn("publish")], "else": [fn("log")]}


EITHER = {"depends_on": "answer", "branches": [{"next": ["c/log"]}, {"next": ["c/publish"]}]}


def test_a_consequence_that_depends_on_the_text_of_the_person_lists_its_branches() -> None:
    forward = {"ann": {"on_reject": "continue"}}
    told = _asked_first([human("q"), _condition({"type": "output_contains", "value": "Urgent"})], humans=forward)
    assert told == {
        "approved": {"next": ["c/log"]},
        "edited": EITHER,
        "provided": EITHER,
        "rejected": {**EITHER, "effect": "continue"},
    }
    whole = {"type": "output_equals", "value": "Rejected by human reviewer: send it"}
    assert _asked_first([human("q"), _condition(whole)], humans=forward)["rejected"] == {**EITHER, "effect": "continue"}
    both = {"all_of": [{"type": "output_contains", "value": word} for word in ("red", "green", "blue")]}
    assert _asked_first([human("q"), _condition(both)])["edited"] == EITHER
    neither = {"type": "output_equals", "value": "in"}
    assert _asked_first([human("q"), _condition(neither)])["approved"] == {"next": ["c/publish"]}


def test_a_consequence_that_depends_on_a_form_lists_its_branches() -> None:
    form = {"ann": {"fields": [{"name": "urgent", "type": "bool"}, {"name": "team", "type": "str"}]}}
    told = _asked_first(
        [human("q"), _condition({"type": "variable_equals", "key": "q.team", "value": "red"})], humans=form
    )
    assert told["approved"] == EITHER
    told = _asked_first(
        [human("q"), _condition({"type": "variable_equals", "key": "other.team", "value": "red"})], humans=form
    )
    assert told["approved"] == {"next": ["c/log"]}


def test_a_condition_elsewhere_does_not_make_a_consequence_depend_on_the_text() -> None:
    told = _asked_first([human("q"), fn("a"), _condition({"type": "output_contains", "value": "urgent"})])
    assert [told[kind] for kind in ("approved", "edited", "provided")] == [{"next": ["a"]}] * 3


def test_options_have_consequences_of_their_own() -> None:
    choices = {"x": {"steps": [fn("a")]}, "y": {"steps": []}}
    router = {"id": "r", "kind": "router", "choices": choices, "review": {"route": {"human": "ann"}}}
    program = program_of([router, fn("b")])
    state = begin(program, "in", MOMENT)
    ask = next(iter(actions(program, state)))
    assert consequences(program, state, ask, MOMENT) == {
        "selected": {"options": {"x": {"next": ["r/a"]}, "y": {"next": ["b"]}}}
    }


def test_beside_other_questions_a_decision_may_lead_nowhere_yet() -> None:
    program = program_of({"type": "concurrent", "participants": [human("p"), human("q")]})
    state = begin(program, "in", MOMENT)
    first = next(iter(actions(program, state)))
    state = settle(program, state, first.ticket, TaskOpened(task_id="other"), MOMENT)
    second = next(iter(actions(program, state)))
    assert consequences(program, state, second, MOMENT)["approved"] == {"next": [], "waits": ["p.step"]}


def ways_offered(choices: dict[str, object], **route: object) -> tuple[str, ...]:
    """What a person is offered at a router, once its spec was frozen: a frozen map has lost its order."""
    step = {"id": "r", "kind": "router", "choices": choices, "review": {"route": {"human": "ann", **route}}}
    loaded = load_tree(spec_of([step]).model_dump(mode="json", by_alias=True, exclude_unset=True))
    frozen = Spec.model_validate_json(canonical_json(loaded.tree))
    program = compile_program(frozen, "workflow")
    [ask] = actions(program, begin(program, "in", MOMENT))
    assert isinstance(ask, Ask)
    assert ask.options is not None
    return ask.options


def test_ways_are_offered_in_the_order_of_the_spec() -> None:
    named = {name: {"steps": [fn("a")]} for name in ("now", "later", "never")}
    assert ways_offered(named) == ("now", "later", "never")
    assert ways_offered(dict(sorted(named.items()))) == ("later", "never", "now")


def test_a_gate_may_leave_some_ways_out() -> None:
    named = {name: {"steps": [fn("a")]} for name in ("now", "later", "never")}
    assert ways_offered(named, options=["never", "now"]) == ("never", "now")


def test_a_name_with_a_sign_of_places_is_no_other_place() -> None:
    gate = {"before": True}
    inner = {"id": "g", "kind": "steps", "steps": [reviewed(fn("a"), **gate)]}
    names = ["g/a", "g#2", "g@1", "a:1"]
    program = program_of([inner, *({**reviewed(fn("a"), **gate), "id": name} for name in names)])
    asked = play(program, answer=always("approved")).asked
    assert asked == ["g/a.before", "g%2Fa.before", "g%232.before", "g%401.before", "a%3A1.before"]
