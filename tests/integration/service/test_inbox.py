"""Working on the inbox over HTTP."""

from __future__ import annotations

import json

import pytest
from service_bench import APPROVE, DRAFT, PUBLISH, Bench, spec_of

from kneo.cli.main import run as kneo

Json = dict[str, object]

FIELDS = [{"name": "tone", "type": "str", "allowed_values": ["dry", "warm"]}]


def paused(bench: Bench, step: Json | None = None, **human: object) -> Json:
    """A run that waits for an answer of one human, or at one gate."""
    spec = spec_of(DRAFT, step or APPROVE, PUBLISH, humans={"editor": {"description": "Publish?", **human}})
    run = bench.start(spec)
    assert run["status"] == "paused", run
    return run


def task_of(bench: Bench, run: Json) -> Json:
    return bench.get(f"/human-tasks/{run['continuation_id']}", role="reviewer")


def act(bench: Bench, run: Json, verb: str, body: object = None, *, role: str = "reviewer", expect: int = 200) -> Json:
    return bench.post(f"/human-tasks/{run['continuation_id']}/{verb}", body, role=role, expect=expect)


def test_a_task_says_what_each_decision_leads_to(bench: Bench) -> None:
    gate = {"before": {"human": "editor", "fields": FIELDS}}
    run = paused(bench, {**PUBLISH, "id": "release", "review": gate}, quorum={"approvals": 2}, timeout_seconds=60)
    task = task_of(bench, run)
    assert (task["position"], task["step_path"], task["key"]) == ("before", "release", "release.before")
    assert task["request"]["schema"]["required"] == ["tone"]
    assert task["consequences"] == {
        "approved": {"next": ["release"]},
        "rejected": {"ends": "cancelled", "error": "human_rejected", "effect": "stop", "skips": ["release"]},
    }
    assert task["quorum"]["approvals"] == 2
    assert task["timeout"]["effect"] == "fail"
    assert task["request"]["subject_digest"].startswith("sha256:")


def test_votes_are_counted_until_there_are_enough(bench: Bench) -> None:
    run = paused(bench, quorum={"approvals": 2})
    first = bench.answer(run)
    assert (first["status"], [vote["actor"] for vote in first["votes"]]) == ("paused", ["reviewer"])
    assert bench.answer(run, role="approver")["status"] == "succeeded"


def test_runs_and_tasks_have_the_family_of_their_workflow(bench: Bench) -> None:
    chat = {"type": "group_chat", "participants": [DRAFT, {**APPROVE, "id": "ask"}]}
    run = bench.start({**spec_of(DRAFT, humans={"editor": {}}), "workflow": chat})
    agent = bench.start(spec_of(DRAFT), target="agent")
    kinds = [bench.get(f"/runs/{each['run_id']}{part}")["workflow_kind"] for each in (run, agent) for part in VIEWS]
    assert kinds == ["group-chat"] * 3 + ["agent"] * 3
    assert (run["metadata"]["workflow_kind"], agent["metadata"]["workflow_kind"]) == ("group-chat", "agent")
    assert run["metadata"]["trace_event_count"] == bench.get(f"/runs/{run['run_id']}/trace")["total"]

    def listed(path: str, kind: str) -> set[str]:
        page = bench.get(path, workflow_kind=kind, limit=1000)
        return {each["run_id"] for each in page["runs" if path == "/runs" else "tasks"]}

    assert task_of(bench, run)["workflow_kind"] == "group-chat"
    for word in ("group-chat", "group_chat"):
        assert run["run_id"] in listed("/human-tasks", word)
        assert run["run_id"] in listed("/runs", word)
    assert run["run_id"] in listed("/runs", "workflow")
    assert agent["run_id"] in listed("/runs", "agent")
    assert not {run["run_id"], agent["run_id"]} & listed("/runs", "sequential")


VIEWS = ("", "/recovery", "/replay")


def test_values_are_checked_and_handed_on(bench: Bench) -> None:
    run = paused(bench, {**PUBLISH, "id": "release", "review": {"before": {"human": "editor", "fields": FIELDS}}})
    refused = bench.answer(run, values={"tone": "loud"}, expect=422)
    assert (refused["error"], refused["fields"][0]["field"]) == ("human_input_invalid", "tone")
    assert task_of(bench, run)["status"] == "open"
    assert bench.answer(run, values={"tone": "dry"})["status"] == "succeeded"


@pytest.mark.parametrize(("action", "event"), [("assign", "human.assigned"), ("delegate", "human.delegated")])
def test_the_comment_of_a_handover_is_in_the_history(bench: Bench, action: str, event: str) -> None:
    run = paused(bench)
    assert act(bench, run, action, {"to": "approver", "comment": "x" * 20_001}, expect=422)["field"] == "comment"
    act(bench, run, action, {"to": "approver", "comment": "yours"})
    told = bench.get(f"/human-tasks/{run['continuation_id']}/history", role="viewer")["events"]
    assert (told[-1]["type"], told[-1]["data"]["comment"]) == (event, "yours")


def test_what_somebody_has_taken_others_leave_alone(bench: Bench) -> None:
    run = paused(bench)
    assert act(bench, run, "claim")["claimed_by"] == "reviewer"
    assert bench.answer(run, role="approver", expect=409)["error"] == "claimed_by_other"
    assert act(bench, run, "delegate", {"to": "approver", "comment": "yours"})["assignee"] == "approver"
    act(bench, run, "comments", {"text": "looks fine to me"})
    act(bench, run, "snooze", {"until": "2099-01-01T00:00:00Z"})
    assert bench.answer(run, role="approver")["status"] == "succeeded"
    told = bench.get(f"/human-tasks/{run['continuation_id']}/history", role="viewer")["events"]
    words = ["requested", "claimed", "delegated", "commented", "snoozed", "decision", "applied"]
    assert [event["type"] for event in told] == [f"human.{word}" for word in words]
    assert act(bench, run, "claim", expect=409)["error"] == "human_task_decided"


@pytest.mark.parametrize(
    ("verb", "body", "status"),
    [("assign", {}, 422), ("snooze", {"until": "soon"}, 422), ("comments", {"text": " "}, 422), ("claim", None, 403)],
)
def test_what_makes_no_sense_changes_nothing(bench: Bench, verb: str, body: object, status: int) -> None:
    run = paused(bench)
    before = task_of(bench, run)
    act(bench, run, verb, body, role="viewer" if status == 403 else "reviewer", expect=status)
    assert task_of(bench, run) == before


def test_the_list_filters_and_pages(bench: Bench) -> None:
    name = "filtered"
    runs = []
    for number in range(3):
        spec = spec_of(
            DRAFT, APPROVE, name=name, humans={"editor": {"description": f"No. {number}?", "priority": number}}
        )
        runs.append(bench.start(spec))
    page = bench.get("/human-tasks", workflow_name=name, limit=2)
    assert (page["count"], page["total"], page["next_after"]) == (2, 3, runs[1]["continuation_id"])
    rest = bench.get("/human-tasks", workflow_name=name, limit=2, after=page["next_after"])
    assert [task["id"] for task in rest["tasks"]] == [runs[2]["continuation_id"]]
    ranked = bench.get("/human-tasks", workflow_name=name, sort_by="priority", sort_order="desc")
    assert [task["priority"] for task in ranked["tasks"]] == [2, 1, 0]
    act(bench, runs[0], "claim")
    assert (
        bench.get("/human-tasks", workflow_name=name, status="claimed", claimed_by="me", role="reviewer")["total"] == 1
    )
    assert bench.get("/human-tasks", workflow_name=name, q="no. 1")["total"] == 1
    assert bench.get("/human-tasks", workflow_name=name, status="pending", candidate="me")["total"] == 3
    assert bench.get("/human-tasks", workflow_name=name, status="escalated")["total"] == 0
    assert bench.get("/human-tasks", status="waiting", expect=422)["error"] == "validation_error"


def test_many_are_answered_at_once_each_for_itself(bench: Bench) -> None:
    runs = [paused(bench), paused(bench)]
    items = [
        {
            "continuation_id": run["continuation_id"],
            "request_id": run["metadata"]["pending_human_request"]["request_id"],
            "decision": "approved",
        }
        for run in runs
    ]
    answer = bench.post("/human-tasks/batch", {"items": [*items, items[0]]}, role="reviewer")
    assert (answer["decided"], answer["refused"]) == (2, 1)
    assert answer["results"][2]["error"] == "human_task_decided"
    before = bench.get("/human-tasks/summary")
    paused(bench)
    assert bench.get("/human-tasks/summary")["waiting"] == before["waiting"] + 1


def test_a_value_answers_what_a_run_waits_for(bench: Bench) -> None:
    run = paused(bench, request_type="freeform", decisions=["provided", "rejected"])
    assert bench.post(f"/runs/{run['run_id']}/input", {"value": {"n": 1}}, role="reviewer")["status"] == "succeeded"
    assert bench.post(f"/runs/{run['run_id']}/input", {"value": 1}, expect=409)["error"] == "run_state_conflict"
    other = paused(bench, options=["red", "blue"], decisions=["selected", "rejected"])
    path = f"/runs/{other['run_id']}/input"
    assert bench.post(path, {"value": "green"}, expect=422)["error"] == "unknown_option"
    assert bench.post(path, {"abort": True, "reason": "no"})["status"] == "cancelled"


def test_a_run_that_asks_several_things_wants_a_key(bench: Bench) -> None:
    both = {"id": "both", "kind": "parallel", "steps": [{**APPROVE, "id": "legal"}, {**APPROVE, "id": "ops"}]}
    run = bench.start(spec_of(both, humans={"editor": {"decisions": ["approved", "rejected"]}}))
    path = f"/runs/{run['run_id']}/input"
    assert bench.post(path, {"value": True}, expect=409)["pending"] == ["both/legal.step", "both/ops.step"]
    assert bench.post(path, {"value": True, "key": "both/ops.step"})["status"] == "paused"
    assert bench.post(path, {"value": True, "key": "both/legal.step"})["status"] == "succeeded"


def open_question(bench: Bench, run: Json) -> Json:
    return bench.get(f"/runs/{run['run_id']}")["pending_human_request"]


def test_an_answer_that_is_sent_twice_decides_one_question(bench: Bench) -> None:
    steps = [
        {**APPROVE, "id": "first"},
        {**APPROVE, "id": "second"},
        {**APPROVE, "id": "third"},
        {**APPROVE, "id": "last"},
    ]
    run = bench.start(spec_of(*steps, humans={"editor": {"decisions": ["approved", "rejected"]}}))
    path = f"/runs/{run['run_id']}/input"
    assert bench.post(path, {"value": True})["status"] == "paused"
    for unnamed in ({"value": True}, {"abort": True}):
        refused = bench.post(path, unnamed, expect=409)
        assert (refused["error"], refused["pending"]) == ("question_not_named", ["second.step"])
        assert "second.step" in refused["hint"]
    assert bench.post(path, {"value": True, "key": "second.step"})["status"] == "paused"
    third = open_question(bench, run)
    assert (
        bench.post(path, {"value": True, "request_id": "req_of_another"}, expect=409)["error"] == "run_state_conflict"
    )
    assert bench.post(path, {"value": True, "request_id": third["request_id"]})["status"] == "paused"
    digest = {"value": True, "expect_digest": "sha256:" + "0" * 64}
    assert bench.post(path, digest, expect=409)["error"] == "subject_changed"
    seen = open_question(bench, run)["subject_digest"]
    assert bench.post(path, {**digest, "expect_digest": seen})["status"] == "succeeded"


def test_the_inbox_is_followed_as_it_fills_and_empties(bench: Bench) -> None:
    with bench.stream("/human-tasks/stream", role="viewer") as events:
        run = paused(bench)
        bench.answer(run)
        own = []
        for event in events:
            if event.data["continuation_id"] == run["continuation_id"]:
                own.append(event)
            if event.name == "human.applied":
                break
    assert [event.name for event in own] == ["human.requested", "human.decision", "human.applied"]
    headers = {"Last-Event-ID": str(own[0].id)}
    with bench.stream("/human-tasks/stream", **headers) as events:
        again = [next(events), next(events)]
    assert [event.id for event in again] == [event.id for event in own[1:]]


def test_the_command_does_the_same(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNEO_SERV_API_KEY", "reviewer-key")

    def call(*words: str, expect: int = 0) -> Json:
        assert kneo([*words, "--service-url", bench.url, "--json"]) == expect
        answer: Json = json.loads(capsys.readouterr().out)
        return answer

    run = paused(bench, request_type="freeform")
    task = str(run["continuation_id"])
    assert call("human", "claim", task)["claimed_by"] == "reviewer"
    assert call("human", "release", task)["claimed_by"] is None
    assert call("human", "assign", task, "--to", "approver")["assignee"] == "approver"
    call("human", "comment", task, "on it")
    call("human", "snooze", task, "--for", "1h")
    assert [event["type"] for event in call("human", "history", task)["events"]][-1] == "human.snoozed"
    assert call("human", "summary")["waiting"] >= 1
    events = bench.get(f"/human-tasks/{task}/history")["events"]
    assert (
        kneo(["human", "watch", "--after", events[0]["id"], "--count", "2", "--json", "--service-url", bench.url]) == 0
    )
    seen = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["type"] for event in seen] == ["human.claimed", "human.released"]
    twice = ["runs", "input", str(run["run_id"]), "--value", '{"a": 1, "a": 2}']
    assert kneo([*twice, "--service-url", bench.url]) == 2
    assert "'a' is written twice" in capsys.readouterr().err
    assert call("runs", "input", str(run["run_id"]), "--value", '{"a": 1}')["status"] == "succeeded"


def test_a_run_is_repeated_with_its_answers_or_with_others(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = paused(bench)
    bench.answer(run, comment="good")
    receipt = bench.get(f"/human-tasks/{run['continuation_id']}/receipt")
    monkeypatch.setenv("KNEO_SERV_API_KEY", "admin-key")
    base = ["runs", "replay", str(run["run_id"]), "--from", "draft", "--service-url", bench.url, "--json"]

    def call(*more: str) -> Json:
        assert kneo([*base, *more]) == 0
        answer: Json = json.loads(capsys.readouterr().out)
        return answer

    again = call()
    assert (again["status"], again["answers"][0]["reused"]) == ("succeeded", True)
    used = bench.get(f"/human-tasks/{again['answers'][0]['continuation_id']}/receipt")["receipt"]
    assert (used["by"], used["source"]) == ("replay", again["answers"][0]["receipt"])
    assert receipt["receipt"]["decision"] == used["decision"]
    assert call("--answer", "approve.step=rejected")["status"] == "cancelled"
    assert call("--ask", "all")["answers"][0]["reason"] == "the request asks it again"
    body = {"step": "draft", "answers": {"approve.step": "approved"}}
    assert (
        bench.post(f"/runs/{run['run_id']}/fork", body, role="operator", expect=403)["required_scope"] == "human:write"
    )


@pytest.mark.parametrize("through", ["http", "cli"])
def test_a_fork_with_another_input_is_asked_about(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, through: str
) -> None:
    run = paused(bench)
    bench.answer(run)
    if through == "http":
        body = {"step": "publish", "input": "EVIL"}
        forked = bench.post(f"/runs/{run['run_id']}/fork", body, role="operator")
    else:
        monkeypatch.setenv("KNEO_SERV_API_KEY", "operator-key")
        words = ["runs", "replay", str(run["run_id"]), "--from", "publish", "--input", "EVIL", "--json"]
        assert kneo([*words, "--service-url", bench.url]) == 0
        forked = json.loads(capsys.readouterr().out)
        assert forked["answers"][0]["reason"] == "its subject has changed"
    assert forked["status"] == "paused"
    task = task_of(bench, forked)
    assert (task["key"], task["request"]["subject"]["value"]) == ("approve.step", "EVIL")
    assert task["consequences"]["approved"]["next"] == ["publish"]
    read = bench.get(f"/runs/{forked['run_id']}")
    assert read["metadata"]["fork"]["gates"] == ["approve.step"]
    events = bench.get(f"/runs/{forked['run_id']}/trace")["events"]
    assert [one["type"] for one in events][:2] == ["workflow_started", "workflow_forked"]
    assert bench.answer(forked)["status"] == "succeeded"


def test_figures_about_reviewing_are_told_and_drawn(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "figured"
    for said in ({"decision": "approved"}, {"decision": "edited", "content": "better"}, {"decision": "rejected"}):
        bench.answer(bench.start(spec_of(DRAFT, APPROVE, PUBLISH, name=name)), **said)
    told = bench.get("/human-tasks/stats", role="viewer", since="1h", workflow_name=name)
    assert (told["tasks"], told["truncated"]) == (3, False)
    (gate,) = told["gates"]
    assert (gate["gate"], gate["by_people"]) == ("approve.step", 3)
    assert gate["decisions"] == {"approved": 1, "edited": 1, "rejected": 1}
    assert gate["edit_distance"] == 1.0
    assert bench.get("/human-tasks/stats", since="soon", expect=422)["error"] == "validation_error"
    bench.get("/human-tasks/stats", since="400d", expect=422)
    monkeypatch.setenv("KNEO_SERV_API_KEY", "viewer-key")
    words = ["human", "stats", "--since", "1h", "--workflow", name, "--service-url", bench.url]
    assert kneo([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gates"] == [gate]
    assert kneo(words) == 0
    drawn = capsys.readouterr().out
    assert "figured/approve.step" in drawn
    assert "██████▒▒▒▒▒░░░░░" in drawn
    assert kneo([*words[:4], "--workflow", "none", *words[6:]]) == 0
    assert "No decisions in this period" in capsys.readouterr().out


def test_an_inbox_in_which_nothing_can_wait_says_why_and_where_to_look(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = paused(bench)
    listed = bench.get("/inbox", role="viewer")
    assert (listed["items"], listed["count"]) == ([], 0)
    assert listed["note"] == (
        "viewer decides neither tasks nor releases: that takes the scope human:write or releases:decide, as the roles reviewer and "
        "approver have."
    )
    assert run["continuation_id"] in {item["id"] for item in bench.get("/inbox", role="viewer", show="all")["items"]}
    for role in ("reviewer", "approver", "admin"):
        assert bench.get("/inbox", role=role)["note"] is None
    assert bench.get("/inbox", role="viewer", show="all")["note"] is None

    monkeypatch.setenv("KNEO_SERV_API_KEY", "viewer-key")
    assert kneo(["inbox", "--service-url", bench.url]) == 0
    shown = capsys.readouterr().out
    assert str(listed["note"]) in shown
    assert "kneo inbox --show all" in shown
