"""Calls over HTTP: other programs call the tools of a released bundle, and people approve them first."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from config_repo import ConfigRepo
from console_pages import signed_in
from kneo_process import eventually
from served_agents import served_agents
from service_bench import Bench, Json, serving

from kneo.api.calls import CallQuestionView, CallView
from kneo.cli.calls import show_call
from kneo.cli.main import run
from kneo.cli.serve.controller import Repository, make_controller
from kneo.errors import NotFound
from kneo.platform import PlatformManager
from kneo.tasks import lifecycle

NUMBER = {"type": "number"}
ORDER = {"type": "object", "properties": {"id": {"type": "string"}, "amount": NUMBER}, "required": ["id"]}
BRANCH = {"type": "object", "properties": {"branch": {"type": "string"}}, "required": ["branch"]}
ADDED = """

def lookup(arguments):
    if arguments["id"] == "none":
        raise ValueError("no such order")
    return {"order": arguments["id"]}


def refund(arguments, key):
    with Path(__file__).with_name("refunds.jsonl").open("a") as log:
        log.write(json.dumps({**arguments, "key": key}) + "\\n")
    return {"refunded": arguments["amount"]}
"""


def spec(**changes: object) -> Json:
    """An agent without a model, whose tools other programs call."""
    finance = {"human": "finance"}
    tools = {
        "lookup": {"description": "Find an order.", "implementation": "lab_functions.lookup", "parameters": ORDER},
        "refund": {
            "description": "Refund an order.",
            "implementation": "lab_functions.refund",
            "parameters": ORDER,
            "capabilities": ["privileged"],
            "review": {"before": finance},
        },
        "delete_branch": {
            "description": "Delete a branch.",
            "parameters": BRANCH,
            "returns": {"type": "string"},
            "capabilities": ["privileged"],
            "timeout_seconds": 600,
            "review": {"before": finance, "external": {"human": "caller"}},
        },
    }
    return {
        "version": "v1",
        "targets": ["call"],
        "agent": {
            "name": "payments",
            "description": "Orders and refunds.",
            "tools": {"include": list(tools), "permissions": {}},
        },
        "tools": tools,
        "components": {"humans": {"finance": {"description": "May it be done?"}}},
        **changes,
    }


CALLS = [
    {"bundle": "payments", "callers": {"users": ["caller", "service", "admin"]}},
    {"bundle": "payments", "callers": {"users": ["viewer"]}, "tools": ["look*"]},
]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("calls")
    plain = spec(targets=[], agent={**spec()["agent"], "name": "plain"})
    with served_agents(
        folder,
        {"payments": spec(), "plain": plain},
        variables={"KNEO_SERV_CALL_WAIT_SECONDS": "1", "KNEO_SERV_PUBLIC_URL": "https://kneo.example"},
        calls=CALLS,
    ) as made:
        functions = folder / "house" / "lab_functions.py"
        functions.write_text(functions.read_text() + ADDED)
        yield made


def make(house: Bench, tool: str, *, role: str = "caller", wait: str = "30s", **arguments: object) -> Json:
    return post(house, tool, role=role, wait=wait, **arguments).json()


def post(
    house: Bench, tool: str, *, role: str = "caller", wait: str = "30s", key: str = "", **arguments: object
) -> httpx.Response:
    session = arguments.pop("session", None)
    body = {"environment": "prod", "bundle": "payments", "tool": tool, "arguments": arguments, "session_id": session}
    headers = {"Idempotency-Key": key} if key else {}
    return house.client(role).post("/calls", json=body, params={"wait": wait}, headers=headers)


def decide(house: Bench, call: Json, *, role: str = "reviewer", expect: int = 200, **decision: object) -> Json:
    (question,) = call["questions"] or asking(house, call)["questions"]
    return house.post(f"/human-tasks/{question['id']}/resume", decision, role=role, expect=expect)


def asking(house: Bench, call: Json) -> Json:
    """Return a call of the caller or of an admin once it asks people."""

    def look() -> Json | None:
        answers = (house.ask("GET", f"/calls/{call['id']}", role=role) for role in ("caller", "admin"))
        now = next(each.json() for each in answers if each.status_code == 200)
        return now if now["questions"] else None

    return eventually(look)


def refunds(house: Bench) -> list[Json]:
    log = house.folder / "refunds.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_a_call_without_a_gate_has_a_result_at_once(house: Bench) -> None:
    call = make(house, "lookup", id="7")
    assert (call["status"], call["outcome"], call["result"], call["arguments"]) == (
        "ended",
        "success",
        {"order": "7"},
        {"id": "7"},
    )
    assert (call["tool"], call["environment"], call["bundle"], call["version"], call["joined"]) == (
        "lookup",
        "prod",
        "payments",
        "1.0.0",
        False,
    )
    assert house.get(f"/calls/{call['id']}", role="caller")["result"] == {"order": "7"}
    failed = make(house, "lookup", id="none")
    assert (failed["status"], failed["outcome"], failed["result"]["error"]) == ("ended", "failed", "ValueError")
    assert house.get(f"/runs/{failed['id']}")["status"] == "succeeded"


def test_a_gated_call_waits_and_is_made_once_with_the_decided_arguments(house: Bench) -> None:
    waiting = asking(house, make(house, "refund", wait="1s", id="7", amount=20))
    assert (waiting["status"], waiting["result"], waiting["arguments"]) == ("waiting", None, None)
    assert waiting["questions"][0]["url"] == f"https://kneo.example/console/inbox/{waiting['questions'][0]['id']}"
    page = signed_in(house.url, "reviewer").get(f"/console/inbox/{waiting['questions'][0]['id']}")
    assert "refund is called with these arguments; then the calling program gets the result" in page.text
    assert "refund is not called; then the calling program gets your reason" in page.text
    again = make(house, "refund", wait="1s", id="7", amount=20)
    assert (again["id"], again["joined"]) == (waiting["id"], True)
    decide(house, waiting, decision="edited", arguments={"id": "7", "amount": 5})
    done = make(house, "refund", id="7", amount=20)
    assert (done["id"], done["joined"], done["result"], done["arguments"]) == (
        waiting["id"],
        True,
        {"refunded": 5},
        {"id": "7", "amount": 5},
    )
    assert [each["amount"] for each in refunds(house) if each["id"] == "7"] == [5]
    # The result was returned: the same arguments are another call now.
    other = make(house, "refund", wait="1s", id="7", amount=20)
    assert (other["id"] != waiting["id"], other["joined"], asking(house, other)["status"]) == (True, False, "waiting")
    rejected = decide(house, other, decision="rejected", comment="no")
    denied = house.get(f"/calls/{other['id']}", role="caller", wait="30s")
    assert (denied["status"], denied["outcome"]) == ("ended", "denied"), rejected
    assert "no" in json.dumps(denied["result"])


def test_a_key_binds_a_call_and_calls_with_a_key_never_join(house: Bench) -> None:
    first = post(house, "refund", key="k1", wait="1s", id="8", amount=1).json()
    assert post(house, "refund", key="k1", wait="1s", id="8", amount=1).json()["id"] == first["id"]
    assert post(house, "refund", key="k2", wait="1s", id="8", amount=1).json()["id"] != first["id"]
    assert make(house, "refund", wait="1s", id="8", amount=1)["joined"] is False
    conflict = post(house, "refund", key="k1", wait="1s", id="8", amount=2)
    assert (conflict.status_code, conflict.json()["error"]) == (409, "idempotency_key_conflict")
    decide(house, first, decision="approved")
    eventually(lambda: house.get(f"/calls/{first['id']}", role="caller")["status"] == "ended")
    # A repeated request gets the call as it is now.
    assert post(house, "refund", key="k1", wait="1s", id="8", amount=1).json()["result"] == {"refunded": 1}


def test_the_same_call_at_once_is_one_call(house: Bench) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: make(house, "refund", wait="1s", id="9", amount=9), range(8)))
    assert len({each["id"] for each in found}) == 1, found
    decide(house, asking(house, found[0]), decision="approved")
    assert make(house, "refund", id="9", amount=9)["result"] == {"refunded": 9}
    assert len([each for each in refunds(house) if each["id"] == "9"]) == 1


def test_a_client_that_gives_up_gets_the_result_when_it_comes_again(house: Bench) -> None:
    impatient = httpx.Client(
        base_url=house.client("caller").base_url, headers=house.client("caller").headers, timeout=0.7
    )
    body = {"environment": "prod", "bundle": "payments", "tool": "refund", "arguments": {"id": "10", "amount": 3}}
    with impatient, pytest.raises(httpx.ReadTimeout):
        impatient.post("/calls", json=body, params={"wait": "60s"})
    (waiting,) = [each for each in house.get("/calls", role="caller", status="waiting")["calls"] if each["questions"]][
        :1
    ]
    decide(house, waiting, decision="approved")
    eventually(lambda: house.get(f"/runs/{waiting['id']}")["status"] == "succeeded")
    done = make(house, "refund", id="10", amount=3)
    assert (done["id"], done["joined"], done["result"]) == (waiting["id"], True, {"refunded": 3})


@pytest.mark.parametrize(
    ("role", "tool", "environment", "bundle", "code"),
    [
        ("caller", "refund", "prod", "plain", "call_not_served"),
        ("caller", "refund", "prod", "unknown", "call_not_served"),
        ("caller", "refund", "nowhere", "payments", "call_not_served"),
        ("caller", "refund", "dev", "payments", "call_not_served"),
        ("caller", "refunds", "prod", "payments", "tool_not_found"),
    ],
)
def test_what_is_not_served_looks_like_what_does_not_exist(
    house: Bench, role: str, tool: str, environment: str, bundle: str, code: str
) -> None:
    body = {"environment": environment, "bundle": bundle, "tool": tool, "arguments": {"id": "1"}}
    refused = house.post("/calls", body, role=role, expect=404)
    assert refused["error"] == code
    events = house.get("/audit-events", event_type="run.refused")["events"]
    assert any(each["actor"] == role and each["metadata"]["error"] == code for each in events)


def test_callers_have_the_scope_and_their_own_list(house: Bench) -> None:
    assert house.post("/calls", {}, role="viewer", expect=403)["required_scope"] == "calls:make"
    tools = house.get("/calls/tools", role="caller", environment="prod", bundle="payments")["tools"]
    assert [each["name"] for each in tools] == ["lookup", "refund", "delete_branch"]
    assert (tools[0]["parameters"], tools[0]["has_effects"], tools[1]["has_effects"]) == (ORDER, False, True)
    misfit = house.post(
        "/calls",
        {"environment": "prod", "bundle": "payments", "tool": "lookup", "arguments": {"id": "7", "amount": "x"}},
        role="caller",
        expect=422,
    )
    assert (misfit["error"], misfit["message"]) == ("invalid_arguments", "$.amount: 'x' is not of type 'number'")


def test_a_caller_sees_its_own_calls_alone_and_starts_no_other_run(house: Bench) -> None:
    call = make(house, "lookup", id="11")
    for method, path in (("GET", ""), ("POST", "/begin"), ("POST", "/cancel")):
        answer = house.ask(method, f"/calls/{call['id']}{path}")
        assert (answer.status_code, answer.json()["error"]) == (404, "call_not_found")
    assert house.ask("POST", f"/calls/{call['id']}/result", {"result": 1}).status_code == 404
    assert house.get("/calls", environment="prod")["calls"] == []
    body = {"input": "x", "environment": "prod", "bundle": "payments"}
    assert house.ask("POST", "/runs", body, role="caller").status_code == 403
    assert house.ask("GET", f"/runs/{call['id']}", role="caller").status_code == 403
    for path in ("continue", "fork"):
        refused = house.post(f"/runs/{call['id']}/{path}", {"step": "payments"} if path == "fork" else {}, expect=409)
        assert refused["error"] == "call_not_repeatable"


def test_the_requester_approves_no_gate_of_its_call(house: Bench) -> None:
    call = make(house, "refund", role="admin", wait="1s", id="12", amount=1)
    refused = decide(house, call, role="admin", expect=403, decision="approved")
    assert refused["error"] == "separation_of_duties"
    house.post(f"/calls/{call['id']}/cancel")


def test_the_caller_makes_the_call_itself_once(house: Bench) -> None:
    waiting = asking(house, make(house, "delete_branch", wait="1s", branch="old"))
    begin, result = f"/calls/{waiting['id']}/begin", f"/calls/{waiting['id']}/result"
    early = house.post(begin, role="caller", expect=409)
    assert (early["error"], "waits for" in early["message"]) == ("call_not_allowed", True)
    decide(house, waiting, decision="edited", arguments={"branch": "older"})
    allowed = house.get(f"/calls/{waiting['id']}", role="caller", wait="30s")
    assert (allowed["status"], allowed["questions"], allowed["arguments"]) == ("allowed", [], None)
    assert house.post(result, {"result": "x"}, role="caller", expect=409)["error"] == "call_not_allowed"
    begun = house.post(begin, role="caller")
    assert begun["arguments"] == {"branch": "older"}
    assert begun["idempotency_key"].startswith(waiting["id"])
    again = house.post(begin, role="caller", expect=409)
    assert again["error"] == "call_begun"
    assert re.fullmatch(r".*: it was begun at 20[0-9T:.+-]+, and its result was not reported\.", again["message"])
    assert house.get(f"/calls/{waiting['id']}", role="caller")["status"] == "begun"
    for wrong in ({}, {"result": "x", "error": "y"}):
        assert house.ask("POST", result, wrong, role="caller").status_code == 422
    done = house.post(result, {"result": "deleted"}, role="caller")
    assert (done["status"], done["outcome"], done["result"], done["arguments"]) == (
        "ended",
        "success",
        "deleted",
        {"branch": "older"},
    )
    for path in (begin, result, f"/calls/{waiting['id']}/cancel"):
        body = {"result": 1} if path == result else {}
        assert house.post(path, body, role="caller", expect=409)["error"] == "call_ended"
    types = [each["event_type"] for each in house.get("/audit-events", run_id=waiting["id"])["events"]]
    assert {"call.begun", "call.reported"} <= set(types)
    receipts = house.get(f"/runs/{waiting['id']}/receipts")["receipts"]
    assert "caller" in json.dumps(receipts)


@pytest.mark.parametrize(
    ("report", "outcome"),
    [({"error": "no such branch"}, "failed"), ({"result": 7}, "failed"), ({"result": "ok"}, "success")],
)
def test_reports_are_checked_as_results_of_tools_are(house: Bench, report: Json, outcome: str) -> None:
    call = allowed(house, f"b-{json.dumps(report)}")
    house.post(f"/calls/{call['id']}/begin", role="caller")
    assert house.post(f"/calls/{call['id']}/result", report, role="caller")["outcome"] == outcome


def allowed(house: Bench, branch: str) -> Json:
    waiting = make(house, "delete_branch", wait="1s", branch=branch)
    decide(house, waiting, decision="approved")
    return house.get(f"/calls/{waiting['id']}", role="caller", wait="30s")


def test_people_do_not_answer_for_the_caller_who_does_not_release_the_call(house: Bench) -> None:
    call = make(house, "delete_branch", role="admin", wait="1s", branch="mine")
    decide(house, call, decision="approved")
    house.get(f"/calls/{call['id']}", role="admin", wait="30s")
    (task,) = house.get("/human-tasks", run_id=call["id"])["tasks"]
    house.post(f"/calls/{call['id']}/begin", role="admin")
    for role, path in (("admin", "resume"), ("service", "resume"), ("admin", "unclaim"), ("admin", "claim")):
        body = {"decision": "provided", "content": "x"} if path == "resume" else {}
        refused = house.post(f"/human-tasks/{task['continuation_id']}/{path}", body, role=role, expect=403)
        assert refused["error"] == "not_a_candidate"
    assert house.post(f"/calls/{call['id']}/begin", role="admin", expect=409)["error"] == "call_begun"
    house.post(f"/calls/{call['id']}/cancel", role="admin")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"tools": {"deny": ["refund", "delete_branch"]}}, "denies the tool"),
        ({"protocols": {"calls": []}}, "no longer serves"),
    ],
)
def test_what_is_denied_meanwhile_is_not_made_though_people_approved_it(
    tmp_path: Path, rules: Json, message: str
) -> None:
    repo = ConfigRepo(tmp_path / "repo")
    repo.bundle("payments", "1.0.0", spec())

    def release(house: Bench, **rules: object) -> None:
        repo.environment("prod", {"payments": "1.0.0"}, **{"protocols": {"calls": CALLS}, **rules})
        repo.commit("Release")
        make_controller(house.settings, house.store, source).run_once()

    source = Repository(str(repo.folder), "main", repo.pin, timedelta(seconds=60))
    with serving(tmp_path / "house", f"sqlite:///{tmp_path / 'kneo.sqlite'}") as house:
        functions = house.folder / "lab_functions.py"
        functions.write_text(functions.read_text() + ADDED)
        release(house)
        waiting = make(house, "refund", wait="1s", id="1", amount=1)
        ready = allowed(house, "denied")
        release(house, **rules)
        decide(house, waiting, decision="approved")
        denied = house.get(f"/calls/{waiting['id']}", role="caller", wait="30s")
        assert (denied["outcome"], message in json.dumps(denied["result"])) == ("denied", True)
        refused = house.post(f"/calls/{ready['id']}/begin", role="caller", expect=409)
        assert (refused["error"], message in refused["message"]) == ("call_not_allowed", True)
        assert refunds(house) == []


def test_a_begun_call_without_a_report_is_looked_up_by_people(house: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    call = allowed(house, "lost")
    house.post(f"/calls/{call['id']}/begin", role="caller")
    monkeypatch.setattr(house.store, "clock", Later(house.store.clock))
    lifecycle.process_due(house.store)
    monkeypatch.undo()
    now = house.get(f"/calls/{call['id']}", role="caller")
    assert (now["status"], len(now["questions"])) == ("waiting", 1)
    for path, body in (("begin", {}), ("result", {"result": "late"})):
        assert house.post(f"/calls/{call['id']}/{path}", body, role="caller", expect=409)["error"] == "call_begun"
    decide(house, now, decision="provided", content="it was deleted")
    done = house.get(f"/calls/{call['id']}", role="caller", wait="30s")
    assert (done["outcome"], done["result"]) == ("success", "it was deleted")


def test_each_caller_has_its_own_tools_and_calls_and_guardrails_check_what_callers_report(tmp_path: Path) -> None:
    keys = "caller:caller-key:caller;support:support-key:caller;reviewer:reviewer-key:reviewer;admin:admin-key:admin"
    account = {"id": "accounts", "type": "regex", "action": "redact", "config": {"patterns": [r"DE\d{6}"]}}
    agent = {**spec()["agent"], "guardrails": {"tool": [account]}}
    calls = [
        {"bundle": "pay*", "callers": {"users": ["caller"]}, "tools": ["delete_*"]},
        {"bundle": "payments", "callers": {"users": ["support"]}, "tools": ["look*"]},
    ]
    bundles = {"payments": spec(agent=agent)}
    with served_agents(tmp_path, bundles, variables={"KNEO_SERV_API_KEYS": keys}, calls=calls) as house:
        functions = house.folder / "lab_functions.py"
        functions.write_text(functions.read_text() + ADDED)
        at = {"environment": "prod", "bundle": "payments"}
        listed = {
            role: [each["name"] for each in house.get("/calls/tools", role=role, **at)["tools"]]
            for role in ("caller", "support")
        }
        assert listed == {"caller": ["delete_branch"], "support": ["lookup"]}
        assert house.get("/calls/tools", role="admin", expect=404, **at)["error"] == "call_not_served"
        unlisted, missing = post(house, "lookup", id="1"), post(house, "lookups", id="1")
        assert (unlisted.status_code, unlisted.json()["error"]) == (missing.status_code, missing.json()["error"])
        assert unlisted.json()["message"].replace("lookup", "lookups") == missing.json()["message"]
        call = allowed(house, "x")
        foreign = house.post(f"/calls/{call['id']}/begin", role="support", expect=404)
        assert foreign["error"] == "call_not_found"
        house.post(f"/calls/{call['id']}/begin", role="caller")
        done = house.post(f"/calls/{call['id']}/result", {"result": "paid DE123456"}, role="caller")
        assert (done["outcome"], "DE123456" in done["result"]) == ("success", False)
        chain = house.get(f"/runs/{call['id']}/receipts")
        actors = [each["receipt"]["actor"] for each in chain["receipts"]]
        assert actors == ["reviewer", "caller"]
        verdict = house.post("/receipts/verify", chain)
        assert verdict["valid"], verdict["problems"]


def test_the_command_makes_reads_and_cancels_calls(
    house: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("KNEO_SERV_API_KEY", "caller-key")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def kneo(*arguments: str) -> tuple[int, Json]:
        capsys.readouterr()
        status = run(["call", *arguments, "--service-url", house.url, "--json"])
        out = capsys.readouterr()
        return status, json.loads(out.out or out.err)

    at = ("--env", "prod", "--bundle", "payments")
    status, found = kneo("make", "lookup", *at, "--arguments", '{"id": "20"}', "--wait", "30s")
    assert (status, found["result"]) == (0, {"order": "20"})
    assert kneo("make", "lookup", *at, "--arguments", '{"id": "none"}')[0] == 1
    status, waiting = kneo("make", "refund", *at, "--arguments", '{"id": "20", "amount": 1}', "--wait", "1s")
    assert (status, asking(house, waiting)["status"]) == (0, "waiting")
    assert kneo("make", "refund", *at, "--arguments", '{"id": "20", "amount": 1}', "--wait", "1s")[1]["joined"] is True
    keyed = kneo("make", "refund", *at, "--arguments", '{"id": "20", "amount": 1}', "--wait", "1s", "--key", "c1")[1]
    assert keyed["id"] != waiting["id"]
    assert waiting["id"] in [each["id"] for each in kneo("list", "--env", "prod", "--waiting")[1]["calls"]]
    assert run(["call", "get", waiting["id"], "--service-url", house.url]) == 0
    assert "Waiting for approval: https://kneo.example/console/inbox/" in capsys.readouterr().err
    question = CallQuestionView(id="cont_1", prompt="", url="/console/inbox/cont_1")
    show_call(CallView(**{**waiting, "questions": [question]}), "https://other.example")
    assert "Waiting for approval: https://other.example/console/inbox/cont_1" in capsys.readouterr().err
    for each in (waiting, keyed):
        assert kneo("cancel", each["id"])[1]["error"]["type"] == "cancelled"
        assert kneo("get", each["id"])[0] == 1
    assert kneo("cancel", waiting["id"])[0] == 5
    assert kneo("get", "run_none")[0] == 4
    assert [each["name"] for each in kneo("tools", *at)[1]["tools"]] == ["lookup", "refund", "delete_branch"]


class Later:
    def __init__(self, clock: object) -> None:
        self._clock = clock

    def now(self) -> object:
        return self._clock.now() + timedelta(seconds=700)


def test_a_program_makes_calls_in_its_own_process(house: Bench) -> None:
    with PlatformManager(settings=house.settings) as platform:
        at = {"environment": "prod", "bundle": "payments", "requester": "caller"}
        done = platform.call_tool("lookup", {"id": "30"}, **at)
        assert json.loads(done.output_text) == {"outcome": "success", "result": {"order": "30"}}
        asked = platform.call_tool("refund", {"id": "30", "amount": 1}, **at)
        assert asked.human_intervention_required
        assert platform.call_tool("refund", {"id": "30", "amount": 1}, **at).run_id == asked.run_id
        with pytest.raises(NotFound, match="has no tool"):
            platform.call_tool("refunds", {}, **at)
        platform.cancel_run(asked.run_id)
