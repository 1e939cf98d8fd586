"""How each family and container moves a text along."""

from __future__ import annotations

import pytest
from run_simulator import Boom, append, decision, fn, human, play, program_of

from kneo.errors import Invalid
from kneo.records.run import RunStatus
from kneo.runtime.program.compiler import compile_program
from kneo.spec.models.spec import Spec


def contains(value: str) -> dict[str, object]:
    return {"type": "output_contains", "value": value}


def test_a_sequence_hands_on_what_each_step_said() -> None:
    story = play(program_of([fn("a"), fn("b", enabled=False), fn("c")]))
    assert (story.ended.status, story.output) == (RunStatus.SUCCEEDED, "in>a>c")
    assert story.did == ["a:0", "c:0"]


def test_an_empty_sequence_ends_at_once() -> None:
    assert play(program_of({"type": "sequential", "steps": [fn("a", enabled=False)]})).output == "in"


def test_concurrent_participants_are_all_ready_at_once() -> None:
    story = play(
        program_of({"type": "concurrent", "participants": [fn("a"), fn("b"), fn("c")]}), choose=lambda n: n - 1
    )
    assert story.most == 3
    assert story.output == "in>c"
    assert story.ended.outputs == {"a": "in>a", "b": "in>b", "c": "in>c"}
    assert story.did == ["c:0", "b:0", "a:0"]


def test_the_most_turns_of_concurrent_participants_are_one_each() -> None:
    flow = {"type": "concurrent", "participants": [fn("a"), fn("b")]}
    assert play(program_of({**flow, "max_iterations": 2})).output == "in>b"
    with pytest.raises(Invalid, match="max_iterations 1"):
        program_of({**flow, "max_iterations": 1})


def test_a_handoff_follows_its_sequence() -> None:
    participants = [fn("a"), fn("b"), fn("c")]
    named = {
        "type": "handoff",
        "participants": participants,
        "selector": {"type": "sequence", "sequence": ["c", "a", "c"]},
    }
    assert play(program_of(named)).output == "in>c>a>c"
    assert play(program_of({"type": "handoff", "participants": participants})).output == "in>a>b>c"


def test_a_handoff_goes_round_up_to_its_limit() -> None:
    around = {"type": "handoff", "participants": [fn("a"), fn("b")], "selector": {"type": "round_robin"}}
    assert play(program_of(around)).output == "in>a>b"
    story = play(program_of({**around, "max_iterations": 3}))
    assert story.output == "in>a>b>a"
    assert story.did == ["a:0", "b:0", "a#2:0"]


def test_a_handoff_that_is_cut_short_failed() -> None:
    story = play(program_of({"type": "handoff", "participants": [fn("a"), fn("b")], "max_iterations": 1}))
    assert (story.ended.status, story.error) == (RunStatus.FAILED, "max_iterations")


def test_a_group_chat_ends_after_its_most_turns() -> None:
    chat = {"type": "group-chat", "participants": [fn("a"), fn("b")], "rounds": 2}
    assert play(program_of({**chat, "max_iterations": 3})).output == "in>a>b>a"
    assert play(program_of({**chat, "max_iterations": 9})).output == "in>a>b>a>b"
    unheard = play(program_of({**chat, "max_iterations": 1}))
    assert (unheard.error, unheard.did) == ("max_iterations", ["a:0"])


def test_a_group_chat_speaks_in_rounds() -> None:
    story = play(program_of({"type": "group-chat", "participants": [fn("a"), fn("b")], "rounds": 2}))
    assert story.output == "in>a>b>a>b"
    assert len(set(story.did)) == 4


def graph(**more: object) -> dict[str, object]:
    nodes = {name: fn(name) for name in "abc"}
    edges = [
        {"from": "a", "to": "b", "condition": contains("go")},
        {"from": "a", "to": "c"},
        {"from": "b", "to": "a", "condition": contains("again")},
    ]
    return {"type": "graph", "start": "a", "nodes": nodes, "edges": edges, **more}


def test_a_graph_takes_the_first_edge_that_holds() -> None:
    assert play(program_of(graph()), "GO").output == "GO>a>b"
    assert play(program_of(graph()), "stay").output == "stay>a>c"


def test_a_graph_ends_at_its_limit() -> None:
    story = play(program_of(graph(max_steps=5)), "go again")
    assert (story.ended.status, story.error) == (RunStatus.FAILED, "max_iterations")
    assert story.did == ["a:0", "b:0", "a#2:0", "b#2:0", "a#3:0"]


def test_disabled_nodes_and_their_edges_are_not_there() -> None:
    nodes = {"a": fn("a"), "b": fn("b", enabled=False), "c": fn("c")}
    assert play(program_of(graph(nodes=nodes)), "go").output == "go>a>c"


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ({"type": "always"}, True),
        ({"type": "never"}, False),
        (contains("IN>A"), True),
        ({**contains("IN>A"), "case_sensitive": True}, False),
        ({"type": "output_equals", "value": "in>a"}, True),
        ({"type": "metadata_equals", "key": "node_kind", "value": "function"}, True),
        ({"type": "metadata_equals", "key": "node_kind", "value": "agent"}, False),
        ({"type": "variable_equals", "key": "said", "value": "in>a"}, True),
        ({"type": "variable_equals", "key": "other", "value": "in>a"}, False),
        ({"type": "status_is", "value": "completed"}, True),
        ({"type": "status_is", "value": "failed"}, False),
        ({"all_of": [{"type": "always"}, {"type": "never"}]}, False),
        ({"any_of": [{"type": "always"}, {"type": "never"}]}, True),
        ({"not": {"type": "never"}}, True),
    ],
)
def test_conditions(condition: dict[str, object], holds: bool) -> None:
    nodes = {"a": fn("a", save_as="said"), "b": fn("b")}
    edges = [{"from": "a", "to": "b", "condition": condition}]
    story = play(program_of({"type": "graph", "start": "a", "nodes": nodes, "edges": edges}))
    assert (story.output == "in>a>b") is holds


def test_a_condition_without_what_it_needs_fails_the_run() -> None:
    broken = {"id": "x", "kind": "condition", "when": {"type": "output_contains"}, "steps": [fn("a")]}
    assert play(program_of([broken])).error == "condition_error"


def test_containers() -> None:
    inner = [fn("a"), {"id": "p", "kind": "parallel", "steps": [fn("b"), fn("c")]}]
    story = play(program_of([{"id": "s", "kind": "steps", "steps": inner}, fn("d")]))
    assert story.output == "in>s/a>s/p/c>d"
    assert story.did == ["s/a:0", "s/p/b:0", "s/p/c:0", "d:0"]


def test_a_condition_goes_one_way_or_the_other() -> None:
    step = {"id": "x", "kind": "condition", "when": contains("yes"), "steps": [fn("a")], "else": [fn("b")]}
    assert play(program_of([step, fn("c")]), "yes").output == "yes>x/a>c"
    assert play(program_of([step, fn("c")]), "no").output == "no>x/b>c"
    bare = {key: value for key, value in step.items() if key != "else"}
    assert play(program_of([bare, fn("c")]), "no").output == "no>c"


def test_a_loop_goes_on_until_it_is_good() -> None:
    step = {"id": "l", "kind": "loop", "steps": [fn("a")], "max_iterations": 4, "until": contains("l/a>l/a")}
    story = play(program_of([step]))
    assert story.output == "in>l/a>l/a"
    assert story.did == ["l#1/a:0", "l#2/a:0"]
    never = {**step, "until": {"type": "never"}}
    assert len(play(program_of([never])).did) == 4


def test_a_router_chooses_by_conditions_and_by_a_function() -> None:
    choices = {"x": {"steps": [fn("a"), fn("b")]}, "y": {"steps": [fn("c")]}}
    by = [{"when": contains("x"), "choice": "x"}, {"when": contains("y"), "choice": "y"}]
    step = {"id": "r", "kind": "router", "choices": choices, "selector": by}
    assert play(program_of([step]), "x!").output == "x!>r/a>r/b"
    assert play(program_of([step]), "y!").output == "y!>r/c"
    assert play(program_of([step]), "z").error == "unknown_choice"
    step["selector"] = {"conditions": by, "default": "y"}
    assert play(program_of([step]), "z").output == "z>r/c"
    step["selector"] = "choose"
    program = program_of([step])
    assert play(program, work=lambda e: "y\n" if e.activity.ref == "choose" else append(e)).output == "in>r/c"
    assert (
        play(program, work=lambda e: "nowhere" if e.activity.ref == "choose" else append(e)).error == "unknown_choice"
    )


def test_workflows_nest() -> None:
    inner = {"type": "concurrent", "participants": [fn("a"), {"id": "w", "kind": "workflow", "ref": "deep"}]}
    workflows = {"mid": inner, "deep": [fn("b"), human("q")]}
    story = play(
        program_of([{"id": "n", "kind": "workflow", "ref": "mid"}, fn("c")], workflows=workflows),
        answer=lambda _ask: decision("approved"),
    )
    assert story.asked == ["n/w/q.step"]
    assert story.output == "in>n/w/b>c"


def failing(*paths: str) -> object:
    def work(execute: object) -> str:
        if execute.activity.path in paths:
            raise Boom(execute.activity.path)
        return append(execute)

    return work


def test_a_failure_ends_the_run_unless_it_is_caught() -> None:
    assert play(program_of([fn("a"), fn("b")]), work=failing("a")).ended.status is RunStatus.FAILED
    caught = play(program_of([fn("a", on_error="continue"), fn("b")]), work=failing("a"))
    assert caught.output == "in>b"
    group = {"id": "s", "kind": "steps", "steps": [fn("a"), fn("b")], "on_error": "continue"}
    assert play(program_of([group, fn("c")]), work=failing("s/b")).output == "in>c"


def test_status_is_failed_after_a_caught_failure() -> None:
    nodes = {"a": fn("a", on_error="continue"), "b": fn("b")}
    edges = [{"from": "a", "to": "b", "condition": {"type": "status_is", "value": "failed"}}]
    program = program_of({"type": "graph", "start": "a", "nodes": nodes, "edges": edges})
    assert play(program, work=failing("a")).output == "in>b"
    assert play(program).output == "in>a"


def test_a_fallback_runs_in_place_and_again_at_its_own() -> None:
    story = play(program_of([fn("a", on_error="fallback", fallback_ref="b"), fn("b"), fn("c")]), work=failing("a"))
    assert story.output == "in>b>b>c"
    assert story.did == ["a:0", "a:fallback:0", "b:0", "c:0"]


def test_a_disabled_fallback_stands_in_for_nobody() -> None:
    steps = [fn("a", on_error="fallback", fallback_ref="b"), fn("b", enabled=False), fn("c")]
    story = play(program_of(steps), work=failing("a"))
    assert (story.ended.status, story.did) == (RunStatus.FAILED, ["a:0"])


def test_fallbacks_do_not_go_round_in_circles() -> None:
    with pytest.raises(Invalid, match="circles"):
        program_of([fn("a", on_error="fallback", fallback_ref="b"), fn("b", on_error="fallback", fallback_ref="a")])


def test_retries_have_names_of_their_own_and_wait() -> None:
    tries = iter([True, True, False])
    waits = []

    def work(execute: object) -> str:
        waits.append(execute.not_before)
        if next(tries):
            raise Boom
        return append(execute)

    story = play(program_of([fn("a", max_retries=2)]), work=work)
    assert story.did == ["a:0", "a:1", "a:2"]
    assert story.output == "in>a"
    assert waits[0] is None
    assert waits[0:1] + sorted(waits[1:]) == waits


def test_a_container_is_retried_as_a_whole() -> None:
    tries = iter([True, False])
    group = {"id": "s", "kind": "steps", "steps": [fn("a"), fn("b")], "on_error": "retry"}
    program = program_of([group])

    def work(execute: object) -> str:
        if execute.activity.id == "b" and next(tries):
            raise Boom
        return append(execute)

    assert play(program, work=work).did == ["s/a:0", "s/b:0", "s@1/a:0", "s@1/b:0"]


def test_when_one_branch_fails_the_others_finish_and_nobody_is_asked() -> None:
    workflow = {
        "type": "concurrent",
        "participants": [fn("a"), {"id": "s", "kind": "steps", "steps": [fn("b"), human("q")]}],
    }
    story = play(program_of(workflow), work=failing("a"))
    assert (story.error, story.asked) == ("boom", [])
    assert story.did == ["a:0", "s/b:0"]


def test_variables_of_branches_come_together() -> None:
    branches = [fn("a", save_as="x"), fn("b", save_as="x"), fn("c", save_as="y")]
    check = {
        "all_of": [
            {"type": "variable_equals", "key": "x", "value": "in>p/b"},
            {"type": "variable_equals", "key": "y", "value": "in>p/c"},
        ]
    }
    steps = [
        {"id": "p", "kind": "parallel", "steps": branches},
        {"id": "q", "kind": "condition", "when": check, "steps": [fn("d")]},
    ]
    for order in (lambda _n: 0, lambda n: n - 1):
        assert play(program_of(steps), choose=order).output == "in>p/c>q/d"


def test_ids_with_signs_that_mean_something_stay_apart() -> None:
    workflow = {"type": "concurrent", "participants": [fn("a"), fn("a#2"), fn("a/b"), fn("a:0")]}
    story = play(program_of(workflow), choose=lambda n: n - 1)
    assert len(set(story.did)) == 4
    assert story.ended.status is RunStatus.SUCCEEDED


def test_what_is_not_honoured_is_refused() -> None:
    with pytest.raises(Invalid) as caught:
        program_of([human("q")], humans={"ann": {"calendar": "work"}})
    assert caught.value.code == "unsupported_spec"
    with pytest.raises(Invalid):
        program_of([{"id": "s", "kind": "steps", "steps": [fn("a")], "timeout_seconds": 5}])


def test_a_step_costs_the_depth_and_not_the_length() -> None:
    def largest(count: int) -> int:
        steps = [fn(f"s{number}") for number in range(count)]
        return play(program_of(steps), work=lambda _execute: "out").largest

    assert largest(500) <= largest(10) + 20


def test_a_step_may_name_the_root_agent() -> None:
    agent = {"name": "writer", "model": {"provider": "dummy", "name": "dummy"}}
    steps = [{"id": "s", "kind": "agent", "ref": "writer"}]
    spec = Spec.model_validate({"agent": agent, "workflow": {"type": "sequential", "steps": steps}})
    program = compile_program(spec, "workflow")
    assert program.agents["writer"] is spec.agent


def test_a_workflow_answers_as_an_agent() -> None:
    inner = {"type": "sequential", "steps": [fn("a"), human("ann"), fn("b")]}
    tree = {
        "agent": {"name": "root", "as_agent": "inner"},
        "components": {
            "agents": {"team": {"name": "team", "as_agent": "inner"}},
            "workflows": {"inner": inner},
            "functions": {name: {"implementation": f"m.{name}"} for name in "abc"},
            "humans": {"ann": {"description": "Fine?"}},
        },
    }
    team = {"id": "t", "kind": "agent", "ref": "team"}
    program = compile_program(Spec.model_validate({**tree, "workflow": [team, fn("c")]}), "workflow")
    story = play(program, answer=lambda _ask: decision("approved"))
    assert (story.output, story.did, story.asked) == (
        "in>t/a>t/b>c",
        ["t/a:0", "t/b:0", "c:0"],
        ["t/ann.step"],
    )
    for target, workflow in (("workflow", None), ("agent", [fn("c")])):
        alone = compile_program(Spec.model_validate({**tree, "workflow": workflow}), target)
        assert play(alone, answer=lambda _ask: decision("approved")).output == "in>root/a>root/b"
    refused = play(program, answer=lambda _ask: decision("rejected"))
    assert (refused.ended.status, refused.did) == (RunStatus.CANCELLED, ["t/a:0"])
    timed = {**tree, "workflow": [{**team, "timeout_seconds": 5}]}
    with pytest.raises(Invalid, match="timeout_seconds"):
        compile_program(Spec.model_validate(timed), "workflow")


def test_the_root_agent_is_a_guardrail_like_any_other() -> None:
    tree = {"agent": {"name": "root", "model": {"provider": "dummy", "name": "dummy"}}}
    guard = {"id": "g", "kind": "guardrail", "ref": "root"}
    program = compile_program(Spec.model_validate({**tree, "workflow": [guard]}), "workflow")
    assert play(program).did == ["g:0"]
