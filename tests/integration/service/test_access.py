"""Who sees what: every operation as each role, for subjects in an environment with access, in one without and for made-up ones.

The cases are generated from the table of operations.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from datetime import timedelta
from difflib import unified_diff
from inspect import Parameter
from pathlib import Path
from urllib.parse import urlencode

import pytest
from access_house import LIMITED, MADE_UP, TERMS, House, declare, filled, opened, without_ids
from config_repo import announcement
from console_pages import signed_in
from fastapi.routing import APIRoute
from sqlalchemy import event
from typer._click import Command, Context

import kneo.api
from kneo import registry
from kneo.api.operation import ANY_KEY, Operation, operations_of
from kneo.cli.main import LazyGroup, _group, run
from kneo.clock import ManualClock, monotonic
from kneo.registry import access
from kneo.service.app import routers
from kneo.service.console.app import AREAS
from kneo.service.hidden_reads import HiddenReads
from kneo.store.engine import Tx

OPERATIONS: dict[str, Operation[..., object]] = {
    operation.id: operation
    for module in pkgutil.iter_modules(kneo.api.__path__)
    for operation in operations_of(importlib.import_module(f"kneo.api.{module.name}"))
}

QUERY = {"who": "me", "tool": "refund"}
"""Values of required parameters that name no subject."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with opened(tmp_path_factory.mktemp("access")) as house:
        yield house


def _path(operation: Operation[..., object], values: dict[str, str]) -> str:
    known = {**values, "name": values["bundle"]} if "/bundles/" in operation.path and "bundle" in values else values
    path = re.sub(r"\{(\w+)\}", lambda match: known.get(match[1], "1.0.0"), operation.path)
    required = (
        each.name
        for each in operation.signature.parameters.values()
        if each.default is Parameter.empty and f"{{{each.name}}}" not in operation.path and each.name != operation.body
    )
    query = {name.removesuffix("_"): known.get(name, QUERY.get(name, "1.0.0")) for name in required}
    return f"{path}?{urlencode(query)}" if query else path


def _body(operation: Operation[..., object], environment: str, bundle: str) -> object:
    """Return a body that is read, for operations that have one."""
    bodies = {
        "create_run": {"input": "x", "bundle": bundle, "environment": environment},
        "run_spec": {"input": "x", "bundle": bundle, "environment": environment},
        "fork_run": {"step": "draft"},
        "suspend_environment": {"reason": "x"},
        "hold_release": {"bundle": bundle, "reason": "x"},
        "unhold_release": {"bundle": bundle},
        "rollback_release": {"bundle": bundle, "reason": "x"},
        "assign_human_task": {"to": "viewer"},
        "delegate_human_task": {"to": "viewer"},
        "snooze_human_task": {"until": "2030-01-01T00:00:00Z"},
        "comment_human_task": {"text": "x"},
        "resume_human_task": {"request_id": "req_x", "decision": "approved"},
        "put_run_input": {"value": "x"},
        "continue_workflow_run": {"step_requirements": [{"step_id": "approve", "confirmed": True}]},
        "get_answer_to_sign": {"decision": "approved"},
        "create_grant": {**TERMS, "bundle": bundle},
        "get_grant_to_sign": {**TERMS, "bundle": bundle},
        **{f"{change}_canary": {"reason": "x"} for change in ("pause", "resume", "promote", "abort", "restart")},
        "report_call": {"result": None},
        "create_call": {"environment": environment, "bundle": bundle, "tool": "refund"},
    }
    if operation.body is None:
        return None
    if operation.path.startswith("/specs/") and operation.id not in bodies:
        return {"spec": announcement(), "environment": environment}
    return bodies.get(operation.id, {})


def _may(role: str, operation: Operation[..., object]) -> bool:
    from kneo.roles import may, scopes_of

    return all(scope == ANY_KEY or may(scopes_of([role]), scope) for scope in operation.scopes)


NAMED = [each for each in OPERATIONS.values() if each.about is not None and "{" in each.path]


def _answer(
    house: House, role: str, method: str, path: str, body: object, values: dict[str, str]
) -> tuple[int, str, dict[str, str]]:
    """Return the whole response, without what differs from request to request."""
    answer = house.bench.ask(method, path, body, role=role)
    headers = {name: value for name, value in answer.headers.items() if name not in {"date", "content-length"}}
    headers = {name: value for name, value in headers.items() if "request" not in name}
    return answer.status_code, without_ids(answer.text, values), headers


def _both(house: House, role: str, operation: Operation[..., object], query: str = "") -> tuple[object, object]:
    """Return the responses about a subject in the hidden environment, and about a made-up one."""
    first, second = (
        _answer(
            house,
            role,
            operation.method,
            _path(operation, values) + query.format(**values),
            _body(operation, values["environment"], values["bundle"]),
            values,
        )
        for values in (house.theirs, {**house.theirs, **MADE_UP})
    )
    return first, second


@pytest.mark.parametrize("role", LIMITED)
def test_a_subject_in_an_environment_without_access_is_one_that_does_not_exist(house: House, role: str) -> None:
    compared = [operation for operation in NAMED if _may(role, operation)]
    for operation in compared:
        hidden, made_up = _both(house, role, operation)
        assert hidden[0] == 404, (operation.id, hidden)
        assert hidden == made_up, operation.id
    assert compared


@pytest.mark.parametrize("role", ["operator", "approver", "service", "caller"])
def test_a_subject_without_access_takes_the_statements_that_a_made_up_one_takes(house: House, role: str) -> None:
    """The time of a response follows from the statements; counting the request in memory adds microseconds."""
    executed: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        executed.append(statement)

    engine = house.bench.store.engine
    compared = [operation for operation in NAMED if _may(role, operation)]
    _both(house, role, compared[0])  # a process reads the access rules of all environments once, and keeps them
    for operation in compared:
        path = [_path(operation, values) for values in (house.theirs, {**house.theirs, **MADE_UP})]
        body = _body(operation, MADE_UP["environment"], MADE_UP["bundle"])
        counts = []
        for one in path:
            executed.clear()
            event.listen(engine, "before_cursor_execute", note)
            house.bench.ask(operation.method, one, body, role=role)
            event.remove(engine, "before_cursor_execute", note)
            counts.append([each for each in executed if each.startswith("SELECT") and "runs.status" not in each])
        assert counts[0] == counts[1], operation.id


FILTERS = ("environment", "bundle", "run_id", "session_id", "requester", "workflow_id")


@pytest.mark.parametrize("role", LIMITED)
def test_a_filter_or_a_body_that_names_an_environment_without_access_is_one_that_names_a_made_up_one(
    house: House, role: str
) -> None:
    for operation in OPERATIONS.values():
        if "{" in operation.path or operation.about is None or not _may(role, operation):
            continue
        names = [name for name in FILTERS if name in operation.signature.parameters and name in MADE_UP]
        for name in names or [""]:
            query = f"{'&' if '?' in _path(operation, MADE_UP) else '?'}{name}={{{name}}}" if name else ""
            hidden, made_up = _both(house, role, operation, query)
            assert hidden == made_up, (operation.id, name)


@pytest.mark.parametrize("role", LIMITED)
def test_lists_and_counts_leave_out_an_environment_without_access(house: House, role: str) -> None:
    for operation in OPERATIONS.values():
        if operation.method != "GET" or "{" in operation.path or not _may(role, operation):
            continue
        answer = house.bench.ask("GET", operation.path, role=role)
        assert answer.status_code in {200, 404, 422, 503}, (operation.id, answer.text)
        for mark in (*(value for value in house.theirs.values() if len(value) > 8), "theirs"):
            assert mark not in answer.text, (operation.id, mark, answer.text)
    counted = house.bench.ask("GET", "/human-tasks/summary", role=role)
    assert counted.status_code == 403 or counted.json()["waiting"] == 1


@pytest.mark.parametrize("role", LIMITED)
def test_a_subject_in_an_environment_with_access_is_read_as_before(house: House, role: str) -> None:
    for identity in ("get_run", "get_human_task", "get_environment", "get_promotion", "list_links", "get_bundle"):
        operation = OPERATIONS[identity]
        if _may(role, operation):
            answer = house.bench.ask("GET", _path(operation, house.mine), role=role)
            assert answer.status_code == 200, (identity, answer.text)


@pytest.mark.parametrize("role", LIMITED)
def test_a_subject_with_access_names_nothing_of_an_environment_without(house: House, role: str) -> None:
    for operation in NAMED:
        if operation.method == "GET" and _may(role, operation):
            answer = house.bench.ask("GET", _path(operation, {**MADE_UP, **house.mine}), role=role)
            marks = {value for value in house.theirs.values() if len(value) > 8} - set(MADE_UP.values())
            for mark in (*marks, "theirs"):
                assert mark not in answer.text, (operation.id, mark)


def test_each_operation_states_what_it_is_about() -> None:
    about_the_service = {each.id for each in OPERATIONS.values() if each.about is None}
    assert about_the_service == {
        "accept_rewrite",
        "get_audit_checkpoint",
        "get_me",
        "get_receipt_key",
        "get_source",
        "list_credentials",
        "verify_receipts",
    }
    for operation in OPERATIONS.values():
        names = set(re.findall(r"\{(\w+)\}", operation.path)) & (
            MADE_UP.keys() - {"link_id", "session_id", "reference"}
        )
        if operation.about is not None and names:
            assert names & set(operation.about.parameters), f"{operation.id} does not check {names}"


def test_the_admin_reads_both_environments_with_their_teams(house: House) -> None:
    listed = house.bench.get("/environments")["environments"]
    assert {each["name"]: each["team"] for each in listed} == {"mine": "team-mine", "theirs": "team-theirs"}
    (own,) = house.bench.get("/environments", role="viewer")["environments"]
    assert (own["name"], own["team"]) == ("mine", "team-mine")


def test_the_stream_of_a_run_without_access_is_that_of_a_made_up_run(house: House) -> None:
    answers = [
        house.bench.ask("GET", f"/runs/{run}/events", role="viewer") for run in (house.theirs["run_id"], "run_x")
    ]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].text.replace(house.theirs["run_id"], "run_x") == answers[1].text


def test_the_stream_of_tasks_leaves_out_an_environment_without_access(house: House) -> None:
    with house.bench.stream("/human-tasks/stream", role="viewer", **{"Last-Event-ID": "0"}) as events:
        house.bench.post(f"/human-tasks/{house.theirs['continuation_id']}/comments", {"text": "hidden"})
        house.bench.post(f"/human-tasks/{house.mine['continuation_id']}/comments", {"text": "shown"})
        for event in events:
            assert event.data["run_id"] == house.mine["run_id"]
            if event.name == "human.commented":
                break


def test_metrics_of_a_limited_caller_have_no_counts_of_the_service(house: House) -> None:
    limited, whole = (house.bench.client(role).get(f"{house.bench.url}/metrics").text for role in ("viewer", "admin"))
    assert "kneo_runs{" in whole
    assert "kneo_runs" not in limited
    assert "theirs" not in limited


def test_access_check_names_the_line_or_the_role_that_decides(house: House) -> None:
    def ask(who: str, environment: str, scope: str, role: str = "admin") -> dict[str, object]:
        (found,) = house.bench.get(f"/environments/{environment}/access", role=role, who=who, scope=scope)["scopes"]
        return found

    text = (house.repo.folder / "environments/mine.yaml").read_text().splitlines()
    line = next(number for number, each in enumerate(text, 1) if each.strip().startswith("- who"))
    given = ask("viewer", "mine", "runs:read")
    assert (given["allowed"], given["because"]) == (
        True,
        f"environments/mine.yaml:{line} gives admin, and the role viewer has runs:read.",
    )
    assert ask("viewer", "mine", "runs:write")["because"] == "the role viewer does not have runs:write."
    assert not ask("viewer", "theirs", "runs:read")["allowed"]
    assert ask("admin", "theirs", "runs:write")["allowed"]
    assert not ask("nobody-known", "mine", "runs:read")["allowed"]
    assert ask("me", "mine", "runs:read", role="viewer")["allowed"]
    refused = house.bench.get("/environments/theirs/access", role="viewer", expect=404, who="me")
    assert refused["error"] == "environment_not_found"


def test_the_command_answers_as_the_service_does(
    house: House, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNEO_SERV_API_KEY", "admin-key")
    words = ["access", "check", "viewer", "theirs", "--scope", "runs:read", "--json", "--service-url", house.bench.url]
    assert run(words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer.keys() == {"who", "environment", "scopes"}
    assert answer["scopes"][0]["allowed"] is False
    monkeypatch.setenv("KNEO_SERV_API_KEY", "viewer-key")
    assert run(words) == 4
    assert json.loads(capsys.readouterr().out)["error"] == "environment_not_found"
    assert run(["status", "--json", "--service-url", house.bench.url]) == 0
    assert "theirs" not in capsys.readouterr().out


def test_refused_reads_are_recorded_by_count_in_the_environment(house: House) -> None:
    reads = HiddenReads(house.bench.store)
    for _ in range(3):
        reads.count("viewer", "theirs")
    reads.record()
    recorded = house.bench.get("/audit-events", event_type="access.refused", environment="theirs")["events"]
    assert ("viewer", 3) in [(event["actor"], event["metadata"]["count"]) for event in recorded]


def test_a_request_about_a_hidden_environment_is_counted_and_one_about_a_made_up_one_is_not(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[tuple[str, str]] = []
    monkeypatch.setattr(HiddenReads, "count", lambda _self, caller, name: counted.append((caller, name)))
    for name in ("theirs", "no-such-one"):
        house.bench.get(f"/environments/{name}", role="viewer", expect=404)
    assert counted == [("viewer", "theirs")]


def test_a_run_beyond_the_quota_of_the_queue_is_refused(house: House) -> None:
    house.repo.environment("small", {}, inlineSpecs=True, quotas={"queued": 0})
    house.accept("Limit")
    refused = house.bench.start(role="admin", environment="small", expect=429)
    assert (refused["error"], refused["quota"]) == ("quota_exceeded", "queued")


def test_requests_beyond_the_quota_are_refused_and_those_without_access_do_not_count(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    minute = house.bench.store.clock.now().replace(second=20, microsecond=0)
    monkeypatch.setattr(house.bench.store, "clock", ManualClock(minute))
    rules = {"access": [{"who": {"users": ["viewer"]}, "may": ["viewer"]}], "quotas": {"requests_per_minute": 3}}
    house.repo.environment("busy", {}, inlineSpecs=True, **rules)
    house.accept("Limit requests")
    run = house.bench.start(role="admin", environment="busy")
    path = f"/runs/{run['run_id']}"
    for _ in range(5):
        assert house.bench.ask("GET", path, role="operator").status_code == 404
    assert house.bench.ask("GET", path, role="viewer").status_code == 200
    assert house.bench.ask("GET", "/runs", role="viewer").status_code == 200, "it is about no environment"
    assert house.bench.ask("GET", "/runs?environment=busy", role="viewer").status_code == 200
    for _ in range(4):
        refused = house.bench.ask("GET", path, role="viewer")
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "40"), (
            "the next minute, however many are refused"
        )
    assert refused.json()["quota"] == "requests_per_minute"
    assert house.bench.ask("GET", f"/runs/{house.mine['run_id']}", role="viewer").status_code == 200
    page = signed_in(house.bench.url, "viewer").client.get(f"/console/runs/{run['run_id']}")
    assert (page.status_code, "requests_per_minute" in page.text) == (429, True)
    house.bench.store.clock.advance(timedelta(seconds=41))
    assert house.bench.ask("GET", path, role="viewer").status_code == 200


def test_a_page_says_what_a_person_may_do_and_which_line_says_so(house: House) -> None:
    browser = signed_in(house.bench.url, "viewer")
    page = browser.get("/console/access?environment=mine")
    assert "What viewer may do in mine" in page.text
    assert re.search(r"environments/mine\.yaml:\d+ gives", page.text)
    other = browser.get("/console/access?environment=mine&who=caller")
    assert "What caller may do in mine" in other.text
    assert "theirs" not in browser.client.get("/console/access?environment=mine").text
    for name in ("theirs", MADE_UP["environment"]):
        browser.get(f"/console/access?environment={name}", expect=404)
    assert "/console/access?environment=mine" in browser.client.get("/console/environments/mine").text


def test_narrowed_access_ends_open_streams_and_counts_in_the_next_request(house: House) -> None:
    began = house.repo
    with house.bench.stream(f"/runs/{house.mine['run_id']}/events", role="auditor") as events:
        next(events)
        names = [role for role in LIMITED if role != "auditor"]
        declare(began, "mine", access=[{"who": {"users": names}, "may": ["admin"]}])
        house.accept("Narrow")
        begun = monotonic()
        last = list(events)[-1]
        assert (last.name, last.data) == ("end", {"error": "environment_not_found"})
        assert monotonic() - begun < 2
    assert house.bench.ask("GET", f"/runs/{house.mine['run_id']}", role="auditor").status_code == 404


# ---- the console, protocols and the command line --------------------------------------------------------------------

PAGES = [route for area in AREAS for route in area.routes]

READERS = ["operator", "auditor", "viewer"]


def _difference(one: str, other: str) -> list[str]:
    return list(unified_diff(one.splitlines(), other.splitlines(), lineterm="", n=0))


@pytest.mark.parametrize("role", LIMITED)
def test_a_page_or_form_about_an_environment_without_access_is_one_about_a_made_up_one(house: House, role: str) -> None:
    made_up, browser = {**house.theirs, **MADE_UP}, signed_in(house.bench.url, role).client
    for route in PAGES:
        if "{" not in route.path:
            continue
        pages = []
        for values in (house.theirs, made_up):
            form = {"data": {"reason": "x", "decision": "approved"}} if route.method == "POST" else {}
            address, same_origin = f"/console{filled(route.path, values)}", {"sec-fetch-site": "same-origin"}
            answer = browser.request(route.method, address, headers=same_origin, **form)
            pages.append((answer.status_code, without_ids(answer.text, values)))
        assert pages[0][0] in {403, 404}, (route, pages[0])
        assert pages[0] == pages[1], (route, _difference(pages[0][1], pages[1][1]))


@pytest.mark.parametrize("role", READERS)
def test_pages_and_search_leave_out_an_environment_without_access(house: House, role: str) -> None:
    browser = signed_in(house.bench.url, role).client
    addresses = [route.path for route in PAGES if "{" not in route.path and route.method == "GET"]
    addresses += [f"/find?q={name}" for name in ("their", "flow", "bundle")]
    addresses += [f"/runs?environment={name}" for name in ("mine", "")]
    for address in addresses:
        answer = browser.get(f"/console{address}", follow_redirects=True)
        assert answer.status_code in {200, 403, 404, 422, 503}, (address, answer.status_code)
        text = answer.text.replace("q=their", "").replace('value="their"', "").replace("<q>their</q>", "")
        for mark in (*(value for value in house.theirs.values() if len(value) > 8), "theirs"):
            assert mark not in text, (address, mark)
    found = [browser.get(f"/console/find?q={house.theirs[name]}") for name in ("run_id", "continuation_id")]
    assert [answer.status_code for answer in found] == [200, 200], "not led to it"


PROTOCOLS = [
    route
    for router in routers()
    for route in router.routes
    if isinstance(route, APIRoute) and route.operation_id not in OPERATIONS
]

MESSAGES: dict[str, object] = {
    "send_to_agent": {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "SendMessage",
        "params": {"message": {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "x"}]}},
    },
    "send_to_mcp_server": {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}},
    "send_to_bundle_tools": {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}},
    "answer_claude_code_hook": {
        "hook_event_name": "PreToolUse",
        "session_id": "s",
        "tool_use_id": "t",
        "tool_name": "refund",
        "tool_input": {},
    },
}


@pytest.mark.parametrize("role", LIMITED)
def test_a_route_of_a_protocol_without_access_is_one_for_a_made_up_environment(
    house: House, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = [route for route in PROTOCOLS if "{" in route.path and route.operation_id != "receive_hook"]
    named = {"get_agent_card", "get_protected_resource", *MESSAGES, "stream_run_events"}
    assert {route.operation_id for route in compared} == named
    tools = {"send_to_bundle_tools", "answer_claude_code_hook"}
    for route in compared:
        answers = []
        for values in (house.theirs, {**house.theirs, **MADE_UP}):
            bundle = values["bundle"].replace("bundle-", "tools-" if route.operation_id in tools else "bundle-")
            path = filled(route.path, {**values, "bundle": bundle})
            # Without the environment's name the message, which repeats the caller's words, is the same.
            method, body = next(iter(route.methods)), MESSAGES.get(route.operation_id)
            monkeypatch.setattr(access, "_tables", {})  # a service that has just started has read no rules of access
            status, text, headers = _answer(house, role, method, path, body, {**values, "bundle": bundle})
            answers.append((status, text.replace("'theirs'", "ID").replace("theirs", "ID"), headers))
        assert answers[0] == answers[1], route.operation_id
        assert answers[0][0] in {403, 404}, (route.operation_id, answers[0])


def test_what_was_read_to_find_the_reach_of_a_caller_is_not_read_for_the_caller(house: House) -> None:
    def find_reach(tx: Tx) -> frozenset[str]:
        assert registry.find_declared(tx, "theirs") is not None
        return frozenset({"mine"})

    with house.bench.store.limited(find_reach).read() as tx:
        assert registry.find_declared(tx, "theirs") is None
        assert registry.find_declared(tx, "mine") is not None


def test_lists_of_protocols_leave_out_an_environment_without_access(house: House) -> None:
    served = house.bench.get("/agents", role="viewer")["agents"]
    assert {each["environment"] for each in served} == {"mine"}
    single = house.bench.ask("GET", "/.well-known/agent-card.json", role="viewer")
    assert "theirs" not in single.text


ARGUMENTS = {
    "RUN_ID": "{run_id}",
    "TASK_OR_RUN": "{run_id}",
    "RUN_OR_DIGEST": "{run_id}",
    "SESSION": "{session_id}",
    "TASK": "{continuation_id}",
    "LINK": "{link_id}",
    "CALL": "{call_id}",
    "ID": "{grant_id}",
    "PROMOTION": "{promotion_id}",
    "SEQ": "{seq}",
    "ENV": "{name}",
    "ENV/BUNDLE": "{name}/{bundle}",
    "ENV/BUNDLE@VERSION": "{name}/{bundle}@1.0.0",
    "BUNDLE": "{bundle}",
    "NAME@VERSION": "{bundle}@1.0.0",
    "STEP": "draft",
    "TEXT": "x",
    "WHO": "me",
    "SPEC": "spec.json",
    "FILE": "file.json",
    "TOOL": "refund",
}
"""The arguments of commands, by their names in the help."""

FILTERING = {"--env": "{name}", "--environment": "{name}", "--bundle": "{bundle}", "--run-id": "{run_id}"}
"""The options that name a subject, which each command is given that has them."""

NEEDED = {
    "--input": "x",
    "--to": "viewer",
    "--tool": "refund",
    "--uses": "1",
    "--expires": "1d",
    "--reason": "x",
    "--key": "x",
    "--against": "5",
    "--output": "statement.json",
}
"""The options that some commands need."""

CHOICES = {
    "runs fork": ["--from", "draft"],
    "runs input": ["--value", "x"],
    "task decide": ["--approve"],
    "task link create": ["--person", "reviewer"],
    "task snooze": ["--until", "2030-01-01T00:00:00Z"],
    "task statement": ["--approve"],
}
"""The options of commands that need one of several."""

FOREGROUND = {
    "agent chat": "it reads lines from a terminal",
    "task review": "it reads keys from a terminal",
    "task watch": "it follows tasks until it is interrupted",
    "mcp serve": "it serves until its input ends",
}
"""Commands that last; the operations that they call are those of the table."""


def _commands() -> Iterator[tuple[str, Command]]:
    """Yield the commands that call a service, each with its words."""

    def walk(group: LazyGroup, parent: Context, words: tuple[str, ...]) -> Iterator[tuple[str, Command]]:
        for name in group.list_commands(parent):
            command = group.get_command(parent, name)
            if isinstance(command, LazyGroup):
                yield from walk(command, Context(command, info_name=name, parent=parent), (*words, name))
            elif command is not None and any("--service-url" in each.opts for each in command.params):
                yield " ".join((*words, name)), command

    root = _group()
    yield from walk(root, Context(root, info_name="kneo"), ())


def _words(line: str, command: Command, *, subjects: bool = True) -> list[str]:
    """Return the arguments and options of a command; without ``subjects`` those that it needs."""
    words = []
    options = {name: each.required for each in command.params for name in each.opts}
    for each in command.params:
        name = re.sub(r"[][]", "", each.metavar or each.name or "").upper()
        is_chosen = subjects and (name != "SPEC" or "--bundle" not in options)  # either of them is run
        if each.param_type_name == "argument" and (each.required or is_chosen):
            words.append(ARGUMENTS[name])
    given = {**NEEDED, **FILTERING} if subjects else NEEDED
    for name, is_required in options.items():
        if name in given and (is_required or name in FILTERING):
            words += [name, given[name]]
    return words + CHOICES.get(line, [])


def _command(
    house: House, capsys: pytest.CaptureFixture[str], line: str, words: list[str], values: dict[str, str]
) -> tuple[int, str]:
    words = [word.format(**values) for word in words]
    code = run([*line.split(), *words, "--json", "--service-url", house.bench.url])
    answer = capsys.readouterr()
    text = without_ids(answer.out + answer.err, values)
    return code, text.replace("theirs", "ID").replace(values["name"], "ID")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of commands, with the files that they read."""
    (tmp_path / "spec.json").write_text(json.dumps(announcement()))
    (tmp_path / "file.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("role", ["operator", "approver", "service", "caller"])
def test_a_command_about_an_environment_without_access_is_one_about_a_made_up_one(
    house: House, role: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNEO_SERV_API_KEY", f"{role}-key")
    commands = dict(_commands())
    refused = []
    assert commands.keys() >= FOREGROUND.keys()
    for line, command in commands.items():
        words = _words(line, command)
        if line in FOREGROUND or not any("{" in word for word in words):
            continue
        hidden = _command(house, capsys, line, words, house.theirs)
        assert hidden == _command(house, capsys, line, words, {**house.theirs, **MADE_UP}), line
        refused += [line] if hidden[0] == 2 else []
    assert refused == [], "they were not called"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("role", ["operator", "approver", "service", "caller"])
def test_a_command_without_a_subject_leaves_out_an_environment_without_access(
    house: House, role: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNEO_SERV_API_KEY", f"{role}-key")
    lists = {
        line: words
        for line, command in _commands()
        if "{" not in "".join(words := _words(line, command, subjects=False))
    }
    for line, words in lists.items():
        if line not in FOREGROUND:
            run([*line.split(), *words, "--json", "--service-url", house.bench.url])
            answer = capsys.readouterr()
            assert "theirs" not in answer.out + answer.err, line
    assert lists.keys() >= {"runs list", "task list", "inbox", "status", "usage", "audit list", "call list"}


# Last: what it asks for is in the audit log of the environment with access, with the caller's own words.
@pytest.mark.parametrize("role", ["operator", "approver", "service", "caller"])
def test_a_name_of_an_environment_without_access_beside_a_subject_with_access_is_a_made_up_one(
    house: House, role: str
) -> None:
    compared = 0
    for operation in OPERATIONS.values():
        if not _may(role, operation):
            continue
        for name in (
            "bundle",
            "continuation_id",
            "link_id",
            "run_id",
            "session_id",
            "environment",
            "approval_id",
        ):
            answers = []
            for other in (house.theirs[name], MADE_UP.get(name, "made-up")):
                values = {**MADE_UP, **house.mine, name: other}
                body = _body(operation, values["environment"], values["bundle"])
                path = _path(operation, values)
                query = name if name in FILTERS and name in operation.signature.parameters else ""
                path += f"{'&' if '?' in path else '?'}{query}={other}" if query else ""
                if other not in path and other not in json.dumps(body):
                    continue
                status, text, headers = _answer(house, role, operation.method, path, body, {**values, "seq": "x"})
                answers.append((status, text.replace(other, "ID"), headers))
            if len(answers) == 2 and answers[0][0] >= 400:
                assert answers[0] == answers[1], (operation.id, name)
                compared += 1
    assert compared > 3
