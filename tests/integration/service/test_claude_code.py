"""Hooks of Claude Code, with the payloads that it sends: people approve calls of its own tools."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from integration.service.test_calls import decide
from kneo_process import eventually
from served_agents import served_agents
from service_bench import Bench, Json

COMMAND = {
    "type": "object",
    "properties": {"command": {"type": "string"}, "description": {"type": "string"}},
    "required": ["command"],
}


def spec() -> Json:
    bash = {
        "description": "Run a command.",
        "parameters": COMMAND,
        "capabilities": ["shell"],
        "review": {"before": {"human": "lead"}, "external": {"human": "caller"}},
    }
    permissions = {"allow_shell": True}
    return {
        "version": "v1",
        "targets": ["call"],
        "agent": {"name": "coding", "tools": {"include": ["Bash"], "permissions": permissions}},
        "tools": {"Bash": bash},
        "components": {"humans": {"lead": {"description": "May it run?"}}},
    }


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with served_agents(tmp_path_factory.mktemp("hooks"), {"coding": spec()}, calls=[{"bundle": "coding"}]) as made:
        yield made


def event(name: str, use: str, command: str, **more: object) -> Json:
    return {
        "session_id": "3f6e2c1a-session",
        "transcript_path": "/srv/app/.claude/3f6e2c1a.jsonl",
        "cwd": "/srv/app",
        "permission_mode": "default",
        "hook_event_name": name,
        "tool_name": "Bash",
        "tool_input": {"command": command, "description": "Run it"},
        "tool_use_id": use,
        **more,
    }


def hook(house: Bench, body: Json, *, wait: str = "30s", path: str = "prod/coding", role: str = "caller") -> Json:
    answer = house.client(role).post(f"/hooks/claude-code/{path}", json=body, params={"wait": wait})
    assert answer.status_code == 200, answer.text
    return answer.json()


def decided(answer: Json) -> tuple[str, str]:
    found = answer["hookSpecificOutput"]
    return found["permissionDecision"], found.get("permissionDecisionReason", "")


def waiting(house: Bench) -> Json:
    return eventually(lambda: next(iter(house.get("/calls", role="caller", status="waiting")["calls"]), None))


def test_an_approved_call_runs_with_the_decided_input_and_is_reported(house: Bench) -> None:
    kind, reason = decided(hook(house, event("PreToolUse", "toolu_1", "make clean"), wait="1s"))
    assert (kind, "Waiting for approval, try again" in reason) == ("deny", True)
    call = waiting(house)
    decide(house, call, decision="edited", arguments={"command": "make check"})
    answer = hook(house, event("PreToolUse", "toolu_2", "make clean"))
    assert decided(answer)[0] == "allow"
    assert answer["hookSpecificOutput"]["updatedInput"] == {"command": "make check"}
    assert house.get(f"/calls/{call['id']}", role="caller")["status"] == "begun"
    assert decided(hook(house, event("PreToolUse", "toolu_2", "make clean")))[0] == "deny"
    assert decided(hook(house, event("PreToolUse", "toolu_3", "make clean")))[0] == "deny"
    assert hook(house, event("PostToolUse", "toolu_2", "make check", tool_response={"stdout": "ok"})) == {}
    done = house.get(f"/calls/{call['id']}", role="caller")
    assert (done["outcome"], done["result"]) == ("success", {"stdout": "ok"})


def test_a_rejected_call_is_denied_with_the_reason_and_a_failure_is_reported(house: Bench) -> None:
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(hook, house, event("PreToolUse", "toolu_4", "rm -rf /"))
        decide(house, waiting(house), decision="rejected", comment="not that")
        kind, reason = decided(answer.result(60))
        assert (kind, "not that" in reason) == ("deny", True)
        answer = thread.submit(hook, house, event("PreToolUse", "toolu_5", "make test"))
        call = waiting(house)
        decide(house, call, decision="approved")
        assert decided(answer.result(60))[0] == "allow"
    assert hook(house, event("PostToolUseFailure", "toolu_5", "make test", error="exit status 2")) == {}
    failed = house.get(f"/calls/{call['id']}", role="caller")
    assert (failed["outcome"], "exit status 2" in json.dumps(failed["result"])) == ("failed", True)


def test_a_call_is_not_begun_for_a_client_that_has_gone(house: Bench) -> None:
    impatient = httpx.Client(
        base_url=house.client("caller").base_url, headers=house.client("caller").headers, timeout=0.7
    )
    with impatient, pytest.raises(httpx.ReadTimeout):
        impatient.post(
            "/hooks/claude-code/prod/coding", json=event("PreToolUse", "toolu_11", "sleep"), params={"wait": "60s"}
        )
    call = waiting(house)
    decide(house, call, decision="approved")
    eventually(lambda: house.get(f"/calls/{call['id']}", role="caller")["status"] == "allowed")
    assert decided(hook(house, event("PreToolUse", "toolu_12", "sleep")))[0] == "allow"
    hook(house, event("PostToolUse", "toolu_12", "sleep", tool_response="ok"))


def test_what_goes_wrong_denies_the_call(house: Bench) -> None:
    unknown = event("PreToolUse", "toolu_6", "ls") | {"tool_name": "Write"}
    misfit = event("PreToolUse", "toolu_7", "ls") | {"tool_input": {"command": 7}}
    nameless = event("PreToolUse", "toolu_8", "ls") | {"tool_use_id": None}
    for body in (unknown, misfit, nameless):
        assert decided(hook(house, body))[0] == "deny"
    assert hook(house, event("PostToolUse", "toolu_9", "ls", tool_response="x")) == {}
    assert hook(house, {"hook_event_name": "Stop"}) == {}


def test_only_what_is_not_served_or_not_json_is_an_error(house: Bench) -> None:
    body = event("PreToolUse", "toolu_10", "ls")
    assert house.ask("POST", "/hooks/claude-code/prod/other", body, role="caller").status_code == 404
    assert house.ask("POST", "/hooks/claude-code/prod/coding", body, role="viewer").status_code == 403
    client = house.client("caller")
    assert client.post("/hooks/claude-code/prod/coding", content="{").status_code in {400, 422}
