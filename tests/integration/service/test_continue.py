"""Going on with a paused run by its requirements, as workflow libraries do over HTTP."""

from __future__ import annotations

import pytest
from service_bench import APPROVE, DRAFT, PUBLISH, Bench, spec_of

Json = dict[str, object]

REVIEWED = {**PUBLISH, "review": {"before": {"human": "editor"}}}
TONE = {"name": "tone", "allowed_values": ["dry", "warm"]}


def paused(bench: Bench, *steps: Json, **editor: object) -> Json:
    run = bench.start(spec_of(DRAFT, *steps, humans={"editor": {"description": "Publish?", **editor}}))
    assert run["status"] == "paused", run
    return run


def go_on(bench: Bench, run: Json, *said: Json, expect: int = 200, role: str = "reviewer", **more: object) -> Json:
    body = {"step_requirements": list(said), **more}
    return bench.post(f"/workflows/lab/runs/{run['run_id']}/continue", body, role=role, expect=expect)


def test_a_step_is_confirmed_and_runs(bench: Bench) -> None:
    done = go_on(bench, paused(bench, REVIEWED), {"step_id": "publish", "confirmed": True})
    assert (done["status"], done["is_paused"], done["step_requirements"]) == ("succeeded", False, [])
    assert done["content"] == done["output_text"]


def test_a_rejected_step_does_not_run(bench: Bench) -> None:
    run = paused(bench, {**PUBLISH, "review": {"before": {"human": "editor", "on_reject": "cancel"}}})
    assert go_on(bench, run, {"confirmed": False, "rejection_feedback": "no"})["status"] == "cancelled"


def test_requirements_come_back_and_are_sent_as_they_were_shown(bench: Bench) -> None:
    run = paused(bench, APPROVE, REVIEWED)
    between = go_on(bench, run, {"step_name": "approve", "confirmed": True})
    [required] = between["step_requirements"]
    assert (between["is_paused"], required["step_id"], required["requires_confirmation"]) == (True, "publish", True)
    assert go_on(bench, run, {**required, "confirmed": True})["status"] == "succeeded"


@pytest.mark.parametrize(
    ("gate", "said", "status"),
    [
        ({"fields": [TONE]}, {"user_input": {"tone": "dry"}}, "succeeded"),
        ({"fields": [TONE]}, {"user_input": {"tone": "loud"}}, 422),
        ({}, {"confirmed": True, "subject_digest": "sha256:other"}, 409),
        ({}, {"selected_choices": ["red"]}, 422),
        ({}, {"edited_output": "better"}, 422),
        ({}, {"confirmed": True, "step_id": "other"}, 409),
        ({}, {"step_id": "publish"}, 409),
        ({}, {"confirmed": False, "value": 1}, 400),
        ({}, {"edited_output": "a", "value": 1}, 400),
    ],
)
def test_what_is_said_has_to_fit_the_stored_question(bench: Bench, gate: Json, said: Json, status: object) -> None:
    run = paused(bench, {**PUBLISH, "review": {"before": {"human": "editor", **gate}}})
    if isinstance(status, int):
        go_on(bench, run, said, expect=status)
        assert bench.get(f"/runs/{run['run_id']}")["status"] == "paused"
    else:
        assert go_on(bench, run, said)["status"] == status


def test_an_output_is_edited_and_a_way_is_chosen(bench: Bench) -> None:
    ways = {name: {"steps": [{**PUBLISH, "id": name}]} for name in ("slow", "fast")}
    router = {"id": "way", "kind": "router", "choices": ways, "review": {"route": {"human": "editor"}}}
    run = bench.start(spec_of({**DRAFT, "review": {"after": {"human": "editor"}}}, router))
    [way] = go_on(bench, run, {"edited_output": "mine"})["step_requirements"]
    assert (way["available_choices"], way["subject"]) == (["slow", "fast"], "mine")
    assert go_on(bench, run, {"step_id": "way", "selected_choices": ["fast"]})["content"].endswith("mine")


def test_a_requirement_without_a_name_answers_the_first_question_only(bench: Bench) -> None:
    both_gates = {**PUBLISH, "review": {"before": {"human": "editor"}, "after": {"human": "editor"}}}
    for unnamed in ({"confirmed": True}, {"step_id": "publish", "confirmed": True}):
        run = paused(bench, both_gates)
        [after] = go_on(bench, run, unnamed)["step_requirements"]
        refused = go_on(bench, run, unnamed, expect=409)
        assert (refused["error"], refused["pending"]) == ("question_not_named", ["publish.after"])
        assert go_on(bench, run, {"key": after["key"], "confirmed": True})["status"] == "succeeded"


def test_what_nobody_answered_still_waits(bench: Bench) -> None:
    """A caller that resolves one of two, and sends both, drops neither."""
    both = {"id": "both", "kind": "parallel", "steps": [{**APPROVE, "id": "legal"}, {**APPROVE, "id": "ops"}]}
    run = paused(bench, both)
    left = go_on(bench, run, {"step_id": "both/legal", "confirmed": True}, {"step_id": "both/ops"})
    assert [one["step_id"] for one in left["step_requirements"]] == ["both/ops"]
    go_on(
        bench, run, {"key": "both/ops.step", "confirmed": True}, {"step_id": "both/ops", "confirmed": True}, expect=400
    )
    assert go_on(bench, run, {"step_id": "both/ops", "confirmed": True})["status"] == "succeeded"


def test_of_several_answers_one_may_be_refused(bench: Bench) -> None:
    both = {"id": "both", "kind": "parallel", "steps": [{**APPROVE, "id": "legal"}, {**APPROVE, "id": "ops"}]}
    run = paused(bench, both)
    said = [{"step_id": "both/legal", "selected_choices": ["x"]}, {"step_id": "both/ops", "confirmed": True}]
    told = go_on(bench, run, *said)
    assert [one["key"] for one in told["refused"]] == ["both/legal.step"]
    assert [one["step_id"] for one in told["step_requirements"]] == ["both/legal"]


def test_a_run_is_gone_on_with_once_and_only_by_who_may(bench: Bench) -> None:
    run = paused(bench, REVIEWED)
    said = {"confirmed": True}
    go_on(bench, run, said, role="viewer", expect=403)
    go_on(bench, run, said, session_id="another", expect=404)
    go_on(bench, run, said, stream=True, expect=400)
    other = f"/workflows/other/runs/{run['run_id']}/continue"
    bench.post(other, {"step_requirements": [said]}, role="reviewer", expect=404)
    assert go_on(bench, run, said)["status"] == "succeeded"
    assert go_on(bench, run, said, expect=409)["error"] == "run_state_conflict"


def test_in_the_background_it_answers_at_once(bench: Bench) -> None:
    run = paused(bench, REVIEWED)
    assert go_on(bench, run, {"confirmed": True}, background=True)["status"] in {"running", "succeeded"}
