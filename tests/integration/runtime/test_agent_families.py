"""Families of workflows with agents: group chats, handoffs, parallel steps, agents that choose and agents that take over."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from agent_runs import MODEL, AgentRuns, MakeRuns
from model_server import Call, ModelRequest, Reply

from kneo.records.run import RunStatus
from kneo.spec.reading.load import load_tree


def agent(name: str, **more: object) -> dict[str, object]:
    return {"name": name, "system_prompt": f"You are {name}.", "model": MODEL, **more}


def step(name: str) -> dict[str, object]:
    return {"id": name, "kind": "agent", "ref": name}


def tree(workflow: dict[str, object], *agents: dict[str, object], **more: object) -> dict[str, object]:
    components = {"agents": {str(each["name"]): each for each in agents}}
    return {"agent": agent("root"), "workflow": workflow, "components": components, **more}


def inputs(runs: AgentRuns) -> list[tuple[str, str]]:
    """Return the agents that were asked, each with the last message of its request."""
    asked = []
    for request in runs.server.requests:
        system, *_, last = request.body["messages"]
        asked.append((str(system["content"]).split(".")[0].removeprefix("You are "), str(last["content"])))
    return asked


def names(request: ModelRequest) -> str:
    return str(request.body["messages"][0]["content"]).split(".")[0].removeprefix("You are ")


def counted(request: ModelRequest) -> Reply:
    """Answer with the agent's name and the number of messages that it was shown."""
    return Reply(f"{names(request)} {str(request.body['messages'][-1]['content']).count('[')}")


def test_participants_of_a_group_chat_are_given_the_whole_conversation(make: MakeRuns) -> None:
    runs = make(counted)
    chat = {"type": "group-chat", "participants": [step("pro"), step("con")], "rounds": 2}
    run = runs.drive(runs.begin(tree(chat, agent("pro"), agent("con"))))

    assert (run.status, run.output_text) == (RunStatus.SUCCEEDED, "con 3")
    so_far = "Go.\n\nThe conversation so far:\n\n[pro]\npro 0"
    assert inputs(runs) == [
        ("pro", "Go."),
        ("con", so_far),
        ("pro", f"{so_far}\n\n[con]\ncon 1"),
        ("con", f"{so_far}\n\n[con]\ncon 1\n\n[pro]\npro 2"),
    ]


def test_a_prompt_is_filled_in_at_the_start_and_no_value_of_a_run_is(make: MakeRuns) -> None:
    runs = make(lambda _request: Reply("{{ variables.company }}"))
    spec = tree({"type": "sequential", "steps": [step("a"), step("b")]}, agent("a"), agent("b"))
    spec["components"]["agents"]["b"]["system_prompt"] = "For {{ variables.company }}."  # type: ignore[index]
    runs.drive(runs.begin(load_tree({**spec, "variables": {"company": "Acme"}}).tree))
    first, second = runs.server.requests
    assert [each["content"] for each in second.body["messages"]] == ["For Acme.", "{{ variables.company }}"]
    assert "Acme" not in first.text


def test_participants_of_a_handoff_are_given_their_own_earlier_answers(make: MakeRuns) -> None:
    runs = make(counted)
    around = {
        "type": "handoff",
        "participants": [step("pro"), step("con")],
        "selector": {"type": "round_robin"},
        "max_iterations": 3,
    }
    runs.drive(runs.begin(tree(around, agent("pro"), agent("con"))))
    assert inputs(runs) == [
        ("pro", "Go."),
        ("con", "pro 0"),
        ("pro", "con 0\n\nYour earlier answers:\n\n[pro]\npro 0"),
    ]


def test_the_step_after_parallel_ones_is_given_all_outputs(make: MakeRuns) -> None:
    runs = make(lambda request: Reply(f"From {names(request)}."))
    both = {"id": "both", "kind": "parallel", "steps": [step("a"), step("b")]}
    run = runs.drive(runs.begin(tree({"type": "sequential", "steps": [both, step("c")]}, *map(agent, "abc"))))
    assert run.status is RunStatus.SUCCEEDED
    assert inputs(runs)[-1] == ("c", "[a]\nFrom a.\n\n[b]\nFrom b.")


OPS = {"human": "ops", "decisions": ["approved", "edited", "rejected"]}
BOTH = {"id": "both", "kind": "parallel", "steps": [step("a"), step("b")]}
GATES: dict[str, Sequence[dict[str, object]]] = {
    "after them": ({**BOTH, "review": {"after": OPS}}, step("c")),
    "before the next step": (BOTH, {**step("c"), "review": {"before": OPS}}),
    "between": (BOTH, {"id": "ask", "kind": "human", "ref": "ops"}, step("c")),
    "each time": (
        {"id": "again", "kind": "loop", "max_iterations": 1, "steps": [BOTH], "review": {"each": OPS}},
        step("c"),
    ),
    "choosing": (
        BOTH,
        {"id": "way", "kind": "router", "review": {"route": {"human": "ops"}}, "choices": {"on": {"steps": ["c"]}}},
    ),
}


@pytest.mark.parametrize("gate", GATES)
def test_a_person_decides_about_all_that_the_next_agent_is_given(make: MakeRuns, gate: str) -> None:
    runs = make(lambda request: Reply(f"From {names(request)}."))
    spec = tree({"type": "sequential", "steps": list(GATES[gate])}, *map(agent, "abc"))
    spec["components"] |= {"humans": {"ops": {"description": "Fine?"}}}  # type: ignore[operator]
    run = runs.drive(runs.begin(spec))
    [task] = runs.open(run)
    assert task.subject == "[a]\nFrom a.\n\n[b]\nFrom b."
    if gate == "choosing":
        runs.decide(task, "selected", selected_option="on")
    else:
        runs.decide(task, "approved")
    assert runs.drive(run).status is RunStatus.SUCCEEDED
    assert inputs(runs)[-1] == ("c", task.subject)


def test_outputs_that_a_person_replaced_are_not_passed_on(make: MakeRuns) -> None:
    runs = make(lambda request: Reply(f"From {names(request)}."))
    review = {"after": {"human": "ops", "decisions": ["approved", "edited", "rejected"]}}
    both = {"id": "both", "kind": "parallel", "steps": [step("a"), step("b")], "review": review}
    spec = tree({"type": "sequential", "steps": [both, step("c")]}, *map(agent, "abc"))
    spec["components"] |= {"humans": {"ops": {"description": "Fine?"}}}  # type: ignore[operator]
    run = runs.drive(runs.begin(spec))
    [task] = runs.open(run)
    runs.decide(task, "edited", content="Only this.")
    runs.drive(run)
    assert inputs(runs)[-1] == ("c", "Only this.")


ROUTER = {
    "id": "route",
    "kind": "router",
    "selector": {"agent": "desk"},
    "choices": {
        "sales": {"description": "Prices and orders.", "steps": ["sales"]},
        "support": {"steps": ["support"]},
    },
}


def routed(runs: AgentRuns, **more: object) -> dict[str, object]:
    desk = agent("desk", strategy="react", tools=["look"], **more)
    workflow = {"type": "sequential", "steps": [ROUTER]}
    tools = {"look": {"description": "Look.", "implementation": f"{runs.module}.look"}}
    return tree(workflow, desk, agent("sales"), agent("support"), tools=tools)


def test_an_agent_chooses_for_a_router_with_one_request_and_no_tools(make: MakeRuns) -> None:
    runs = make(lambda request: Reply('{"choice": "support"}' if names(request) == "desk" else "Restart it."))
    run = runs.drive(runs.begin(routed(runs)))

    assert (run.status, run.output_text) == (RunStatus.SUCCEEDED, "Restart it.")
    assert inputs(runs)[0] == (
        "desk",
        "Go.\n\nChoose what comes next. Answer with one of these names:\n- sales: Prices and orders.\n- support",
    )
    assert "look" not in runs.server.requests[0].text
    assert inputs(runs)[1] == ("support", "Go.")
    assert [(entry.conversation, entry.name) for entry in runs.journal(run)] == [
        ("route/support~0", "model:1"),
        ("route:select~0", "model:1"),
    ]


def test_an_agent_that_names_no_choice_is_asked_again_and_then_fails_the_step(make: MakeRuns) -> None:
    runs = make(lambda _request: Reply('{"choice": "management"}'))
    run = runs.drive(runs.begin(routed(runs)))
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error.type == "output_invalid"
    assert len(runs.server.requests) == 3


def test_the_provider_dummy_makes_no_choice(make: MakeRuns) -> None:
    runs = make(lambda _request: Reply("Restart it."))
    run = runs.drive(runs.begin(routed(runs, model={"provider": "dummy", "name": "echo"})))
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error.type == "unknown_choice"


TRANSFER = {
    "refund": {"description": "Hand over refunds.", "agent": "refunds", "transfer": True},
    "look": {"description": "Look.", "agent": "lookup"},
}


def transferring(**root: object) -> dict[str, object]:
    caller = agent("root", strategy="react", tools=["refund", "look"], **root)
    return {"agent": caller, "components": {"agents": {n: agent(n) for n in ("refunds", "lookup")}}, "tools": TRANSFER}


def test_an_agent_takes_over_and_its_answer_is_the_steps(make: MakeRuns) -> None:
    calls = [
        Call("look", {"input": "Order 7?"}),
        Call("refund", {"input": "Refund order 7."}),
        Call("refund", {"input": "Refund order 8."}),
    ]
    runs = make(lambda request: Reply(calls=calls) if names(request) == "root" else Reply(f"By {names(request)}."))
    run = runs.drive(runs.begin(transferring()))

    assert (run.status, run.output_text) == (RunStatus.SUCCEEDED, "By refunds.")
    assert sorted(inputs(runs)) == [("lookup", "Order 7?"), ("refunds", "Refund order 7."), ("root", "Go.")]
    second = next(entry for entry in runs.journal(run) if entry.facts.get("reason") == "arguments")
    assert "hands the task over once" in str(second.body["result"])


def test_the_answer_of_an_agent_that_takes_over_fits_the_schema_of_the_caller(make: MakeRuns) -> None:
    calls = [Call("refund", {"input": "Refund order 7."})]
    schema = {"type": "object", "properties": {"euros": {"type": "integer"}}, "required": ["euros"]}

    def run(answer: str) -> tuple[RunStatus, str | None, str | None]:
        runs = make(lambda request: Reply(calls=calls) if names(request) == "root" else Reply(answer))
        ended = runs.drive(runs.begin(transferring(output_schema=schema)))
        return ended.status, ended.output_text, ended.error.type if ended.error else None

    assert run('{"euros": 7}') == (RunStatus.SUCCEEDED, '{"euros":7}', None)
    assert run("Seven.") == (RunStatus.FAILED, None, "output_invalid")


def test_an_agent_that_fails_does_not_take_over(make: MakeRuns) -> None:
    calls = [Call("refund", {"input": "Refund order 7."})]
    runs = make(
        lambda request: (
            Reply("")
            if names(request) == "refunds"
            else Reply(calls=calls)
            if request.turns == 0
            else Reply("It did not work.")
        )
    )
    assert runs.drive(runs.begin(transferring())).output_text == "It did not work."
