"""Answers over HTTP: one of many wins, a bad one leaves no trace, each question is asked once and in any order."""

from __future__ import annotations

from itertools import permutations

import pytest
from gate_house import House, Tree, spec_of
from gate_places import effect
from processes import at_once

ASK: Tree = {"id": "ask", "kind": "human", "ref": "ann"}


def paused(house: House, workflow: object, **humans: object) -> tuple[Tree, Tree]:
    run = house.start(spec_of(workflow, **humans))
    assert run["status"] == "paused", run
    return run, house.tasks(run)[0]


def test_of_twenty_answers_with_two_bodies_one_wins(house: House) -> None:
    run, task = paused(house, [ASK, effect("guarded")])
    bodies = ({"decision": "approved"}, {"decision": "provided", "content": "mine"})
    answers = at_once(20, lambda number: house.answer(task, **bodies[number % 2]))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 19
    assert {answer.json()["error"] for answer in answers if answer.status_code == 409} == {"human_task_decided"}
    assert house.ended(run)["status"] == "succeeded"
    assert house.did(run) == ["guarded"]


@pytest.mark.parametrize(
    ("said", "status", "error"),
    [
        ({"decision": "approved", "request_id": "req_other"}, 409, "request_mismatch"),
        ({"decision": "approved", "shoe_size": 43}, 422, "validation_error"),
        ({"decision": "maybe"}, 422, "validation_error"),
        ({"decision": "edited", "content": ""}, 422, "content_required"),
        ({"decision": "edited"}, 422, "content_required"),
        ({"decision": "selected", "selected_option": "blue"}, 422, "unknown_option"),
        ({"decision": "edited", "content": 3}, 422, "human_input_invalid"),
    ],
)
def test_a_bad_answer_leaves_no_trace(house: House, said: Tree, status: int, error: str | None) -> None:
    run, task = paused(house, [ASK, effect("guarded")], ann={"description": "?", "options": ["red", "green"]})
    before = house.at.get(f"/human-tasks/{task['continuation_id']}")
    refused = house.answer(task, **said)
    assert refused.status_code == status, refused.text
    assert error is None or refused.json()["error"] == error
    assert house.at.get(f"/human-tasks/{task['continuation_id']}") == before
    assert house.look(run)["status"] == "paused"
    assert house.did(run) == []


def test_two_edits_in_a_row_do_not_leak(house: House) -> None:
    steps = [{**effect("a"), "review": {"after": True}}, {**effect("b"), "review": {"after": True}}, effect("c")]
    run, first = paused(house, steps, default={"description": "Fine?"})
    house.answer(first, decision="edited", content="E1")
    (second,) = house.tasks(run)
    assert second["continuation_id"] != first["continuation_id"]
    assert "E1>b" in str(second["request"])
    house.answer(second, decision="approved")
    assert house.look(run)["output_text"] == "E1>b>c"


def test_each_round_of_a_loop_is_asked_about_once(house: House) -> None:
    loop = {
        "id": "x",
        "kind": "loop",
        "max_iterations": 5,
        "steps": [effect("a"), effect("b"), effect("c")],
        "review": {"each": {"human": "ann", "on_reject": "retry"}},
    }
    run, _ = paused(house, [loop])
    for rounds in range(1, 6):
        assert house.did(run) == ["a", "b", "c"] * rounds
        (task,) = house.tasks(run)
        house.answer(task, decision="rejected" if rounds < 5 else "approved", content="again")
    assert house.look(run)["status"] == "succeeded"
    assert house.did(run) == ["a", "b", "c"] * 5


ORDERS = tuple(permutations(range(3)))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "order" in metafunc.fixturenames:
        whole = metafunc.config.getoption("--every-gate", default=False)
        metafunc.parametrize("order", ORDERS if whole else ORDERS[5:])


def test_three_open_questions_take_answers_in_any_order_from_anywhere(house: House, order: tuple[int, ...]) -> None:
    gated = [{**effect(name), "review": {"before": {"human": "ann"}}} for name in ("p", "q", "r")]
    run, _ = paused(house, [{"id": "three", "kind": "parallel", "steps": gated}])
    tasks = house.tasks(run)
    assert len(tasks) == 3
    answered: list[str] = []
    for turn, index in enumerate(order):
        task = tasks[index]
        answered.append(str(task["step_id"]).split("/")[-1])
        if turn == 1:
            # Another process than the one that asked.
            request = str(task["request"]["request_id"])
            words = ["human", "resume", str(task["continuation_id"]), "--request-id", request, "--approve"]
            house.machine.kneo(*words)
        else:
            assert house.answer(task, decision="approved").status_code == 200
    assert house.ended(run)["status"] == "succeeded"
    assert sorted(house.did(run)) == sorted(answered) == ["p", "q", "r"]
