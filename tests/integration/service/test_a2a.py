"""Served agents over Agent2Agent, with the official client over HTTP."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import httpx
import pytest
from a2a.client import A2ACardResolver, A2AClientError, ClientConfig, create_client
from a2a.helpers import get_artifact_text, get_data_parts, new_data_part, new_text_part
from a2a.types import (
    CancelTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
    Message,
    Part,
    Role,
    SendMessageRequest,
    SubscribeToTaskRequest,
    Task,
    TaskState,
)
from a2a.utils.errors import A2AError
from a2a.utils.signing import InvalidSignaturesError, create_signature_verifier
from jwt import PyJWK
from rules_now import inside_prod
from served_agents import lab_announcement, served_agents, without_library
from service_bench import Bench
from tool_calls import KEY, backend_context, tool_call

from kneo.agents.turn import AnswerRequired
from kneo.extensions.protocols.a2a.client import RemoteAgents
from kneo.extensions.protocols.a2a.tasks import ENDED
from kneo.records.run import RunStatus
from kneo.records.task import Decision, DecisionKind

ASKS = {"requested": "before"}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A service over prod, which serves three of four bundles over Agent2Agent, and dev, which serves none."""
    folder = tmp_path_factory.mktemp("a2a")
    steps = lab_announcement()["workflow"]["steps"]
    later = [{**steps[1], "id": "later"}, {**steps[1], "id": "last"}]
    bundles = {"asked": steps[:2], "plain": steps[:1], "hidden": steps[:1], "twice": [*steps[:2], *later]}
    specs = {name: lab_announcement(made) for name, made in bundles.items()}
    with served_agents(folder, specs, a2a=["asked", "plain", "twice"]) as made:
        yield made


class Caller:
    """The official client of one agent, with the key of a role."""

    def __init__(self, house: Bench, bundle: str, role: str, *, streaming: bool, environment: str = "prod") -> None:
        self.url = f"{house.url}/v1/a2a/{environment}/{bundle}"
        self.http = httpx.AsyncClient(headers={"Authorization": f"Bearer {role}-key"}, timeout=240)
        self.streaming = streaming

    async def __aenter__(self) -> Self:
        config = ClientConfig(httpx_client=self.http, streaming=self.streaming)
        self.client = await create_client(self.url, config)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        await self.http.aclose()

    async def send(self, *parts: Part, message_id: str | None = None, **fields: str) -> list[Any]:
        message = Message(role=Role.ROLE_USER, parts=parts, message_id=message_id or uuid4().hex, **fields)
        return [event async for event in self.client.send_message(SendMessageRequest(message=message))]

    async def task(self, *parts: Part, message_id: str | None = None, **fields: str) -> Task:
        (event,) = await self.send(*parts, message_id=message_id, **fields)
        return event.task


def calling(
    house: Bench, bundle: str = "plain", role: str = "service", *, streaming: bool = False, **more: Any
) -> Caller:
    return Caller(house, bundle, role, streaming=streaming, **more)


def text(value: str) -> Part:
    return new_text_part(value)


def question(task: Task) -> dict[str, Any]:
    (data,) = get_data_parts(task.status.message.parts)
    return data


def test_a_message_runs_the_released_bundle_and_the_same_message_gets_the_same_run(house: Bench) -> None:
    async def work() -> None:
        async with calling(house) as caller:
            task = await caller.task(text("hello"), message_id="m-1", context_id="talk")
            assert task.status.state == TaskState.TASK_STATE_COMPLETED
            assert "hello" in get_artifact_text(task.artifacts[0])
            assert (task.context_id, task.metadata["bundle"]) == ("talk", "plain")
            again = await caller.task(text("hello"), message_id="m-1", context_id="talk")
            assert again.id == task.id
            with pytest.raises(A2AError, match="another request"):
                await caller.task(text("other"), message_id="m-1", context_id="talk")
            read = await caller.client.get_task(GetTaskRequest(id=task.id))
            assert read.status.state == task.status.state
        run = house.get(f"/runs/{task.id}")
        assert (run["session_id"], run["metadata"]["requester"]) == ("talk", "service")
        assert run["metadata"]["release"]["environment"] == "prod"
        assert run["metadata"]["caller_metadata"]["protocol"] == "a2a"
        async with calling(house, role="admin") as other:
            assert (await other.task(text("hello"), message_id="m-1", context_id="talk")).id != task.id

    asyncio.run(work())


def test_the_same_message_at_the_same_time_starts_one_run(house: Bench) -> None:
    async def work() -> None:
        async with calling(house) as caller:
            tasks = await asyncio.gather(*(caller.task(text("once"), message_id="m-once") for _ in range(5)))
        assert len({task.id for task in tasks}) == 1

    asyncio.run(work())
    found = house.get("/runs", environment="prod", q="once")
    assert found["count"] == 1, found


def test_a_gate_is_input_required_and_only_who_may_answer_it_over_http_answers_it_here(house: Bench) -> None:
    async def work() -> None:
        async with calling(house, "asked", "operator") as caller:
            task = await caller.task(text("news"))
            assert task.status.state == TaskState.TASK_STATE_INPUT_REQUIRED
            asked = question(task)
            assert asked["url"] == f"{house.url}/console/inbox/{asked['continuation_id']}"
            assert "approved" in asked["decisions"]
            assert asked["url"] in task.status.message.parts[0].text
            # An operator starts runs and does not answer questions.
            with pytest.raises(A2AClientError, match="403"):
                await caller.task(text("approved"), task_id=task.id)
        async with calling(house, "asked", "service") as answering:
            with pytest.raises(A2AError, match="not answered by this text"):
                await answering.task(text("I think this is approved."), task_id=task.id)
            wrong = {"decision": "approved", "expect_digest": "sha256:" + "0" * 64}
            with pytest.raises(A2AError, match="is not what you saw"):
                await answering.task(new_data_part(wrong), task_id=task.id)
            decision = {"decision": "edited", "content": "better news", "continuation_id": asked["continuation_id"]}
            done = await answering.task(new_data_part(decision), message_id="a-1", task_id=task.id)
            assert done.status.state == TaskState.TASK_STATE_COMPLETED
            assert get_artifact_text(done.artifacts[0]) == "better news"
            again = await answering.task(new_data_part(decision), message_id="a-1", task_id=task.id)
            assert again.status.state == done.status.state
            with pytest.raises(A2AError, match="asks nothing"):
                await answering.task(text("approved"), task_id=task.id)
        decided = house.get(f"/human-tasks/{asked['continuation_id']}")["decision"]
        assert (decided["actor"], decided["kind"]) == ("service", "edited")

    asyncio.run(work())


def test_a_word_that_is_sent_twice_approves_one_question(house: Bench) -> None:
    async def work() -> None:
        async with calling(house, "twice", "service") as caller:
            task = await caller.task(text("news"))
            first = question(task)
            task = await caller.task(text("approved"), task_id=task.id)
            second = question(task)
            assert second["continuation_id"] != first["continuation_id"]
            for unnamed in (text("approved"), text("rejected"), new_data_part({"decision": "approved"})):
                with pytest.raises(A2AError, match="has to name its question"):
                    await caller.task(unnamed, task_id=task.id)
            named = {"decision": "approved", "request_id": second["request_id"]}
            task = await caller.task(new_data_part(named), task_id=task.id)
            with pytest.raises(A2AError, match="asks nothing"):
                await caller.task(new_data_part(named), task_id=task.id)
            third = {"decision": "approved", "key": question(task)["key"]}
            done = await caller.task(new_data_part(third), task_id=task.id)
            assert done.status.state == TaskState.TASK_STATE_COMPLETED

    asyncio.run(work())


def test_a_caller_lists_its_own_tasks_of_the_agent_in_pages_and_by_state(house: Bench) -> None:
    async def work() -> None:
        async with calling(house, "asked", "admin") as admin, calling(house, role="admin") as plain:
            await admin.task(text("of another caller"), context_id="listed")
            await plain.task(text("of another agent"), context_id="listed")
        async with calling(house, "asked") as caller:
            sent = [await caller.task(text(f"listed {number}"), context_id="listed") for number in range(3)]
            done = await caller.task(text("approved"), task_id=sent[0].id)
            assert done.status.state == TaskState.TASK_STATE_COMPLETED

            async def listed(**request: Any) -> list[str]:
                found, token = [], ""
                while True:
                    page = await caller.client.list_tasks(
                        ListTasksRequest(context_id="listed", page_token=token, **request)
                    )
                    found += [task.id for task in page.tasks]
                    token = page.next_page_token
                    if not token:
                        assert page.total_size == len(found)
                        return found

            waiting = [sent[2].id, sent[1].id]
            assert await listed() == await listed(page_size=1) == [done.id, *waiting]
            assert await listed(status=TaskState.TASK_STATE_INPUT_REQUIRED) == waiting
            assert await listed(status=TaskState.TASK_STATE_COMPLETED) == [done.id]
            for state in (TaskState.TASK_STATE_WORKING, TaskState.TASK_STATE_FAILED, TaskState.TASK_STATE_SUBMITTED):
                assert await listed(status=state) == []
            assert await listed(status_timestamp_after=done.status.timestamp) == [done.id]

            whole = await caller.client.list_tasks(
                ListTasksRequest(context_id="listed", include_artifacts=True, page_size=1)
            )
            assert "listed 0" in get_artifact_text(whole.tasks[0].artifacts[0])
            assert whole.tasks[0].history[0].parts[0].text == "listed 0"
            bare = await caller.client.list_tasks(ListTasksRequest(context_id="listed", history_length=0))
            assert [(len(task.artifacts), len(task.history)) for task in bare.tasks] == [(0, 0)] * 3
            assert question(bare.tasks[1])["continuation_id"]

    asyncio.run(work())


def test_a_page_of_tasks_is_no_longer_than_the_setting_for_lists(tmp_path: Path) -> None:
    spec = lab_announcement(lab_announcement()["workflow"]["steps"][:1])

    async def work(small: Bench) -> None:
        async with calling(small) as caller:
            tasks = [await caller.task(text("hello")) for _ in range(3)]
            first = await caller.client.list_tasks(ListTasksRequest(page_size=50))
            rest = await caller.client.list_tasks(ListTasksRequest(page_size=50, page_token=first.next_page_token))
            assert (first.page_size, len(first.tasks), len(rest.tasks)) == (2, 2, 1)
            assert {task.id for page in (first, rest) for task in page.tasks} == {task.id for task in tasks}

    with served_agents(tmp_path, {"plain": spec}, variables={"KNEO_SERV_MAX_LIST_ITEMS": "2"}, a2a=["plain"]) as small:
        asyncio.run(work(small))


@pytest.mark.parametrize(
    "request_", [{"page_size": 0}, {"page_size": 101}, {"page_token": "x"}, {"page_token": "10000"}]
)
def test_a_list_is_bounded(house: Bench, request_: dict[str, Any]) -> None:
    async def work() -> None:
        async with calling(house) as caller:
            with pytest.raises(A2AError, match="page_"):
                await caller.client.list_tasks(ListTasksRequest(**request_))

    asyncio.run(work())


def test_every_run_that_has_ended_has_a_state_that_says_so() -> None:
    assert {status for status in RunStatus if status.is_final} == set(ENDED)


def test_a_stream_ends_at_the_question_and_again_at_the_end(house: Bench) -> None:
    async def work() -> None:
        async with calling(house, "asked", streaming=True) as caller:
            events = await caller.send(text("streamed"))
            assert events[0].HasField("task")
            last = events[-1].status_update
            assert last.status.state == TaskState.TASK_STATE_INPUT_REQUIRED
            task_id = events[0].task.id
            after = await caller.send(text("approved"), task_id=task_id)
            assert after[-1].status_update.status.state == TaskState.TASK_STATE_COMPLETED
            (output,) = [event.artifact_update for event in after if event.HasField("artifact_update")]
            assert "streamed" in get_artifact_text(output.artifact)
            with pytest.raises(A2AError, match="has ended"):
                [one async for one in caller.client.subscribe(SubscribeToTaskRequest(id=task_id))]

    asyncio.run(work())


def test_a_paused_task_is_cancelled_and_an_ended_one_is_not(house: Bench) -> None:
    async def work() -> None:
        async with calling(house, "asked") as caller:
            task = await caller.task(text("never mind"))
            cancelled = await caller.client.cancel_task(CancelTaskRequest(id=task.id))
            assert cancelled.status.state == TaskState.TASK_STATE_CANCELED
            other = await caller.task(text("never mind either"))
            await caller.task(text("approved"), task_id=other.id)
            with pytest.raises(A2AError, match="succeeded"):
                await caller.client.cancel_task(CancelTaskRequest(id=other.id))

    asyncio.run(work())
    assert not house.get("/human-tasks", q="never mind", status="unresolved")["tasks"]


def test_only_what_the_environment_names_is_served_and_tasks_stay_with_their_agent(house: Bench) -> None:
    client = house.client("service")
    for path, status, error in (
        ("prod/hidden", 403, "protocol_not_enabled"),
        ("dev/plain", 403, "protocol_not_enabled"),
        ("prod/unknown", 403, "bundle_not_approved"),
        ("nowhere/plain", 404, "environment_not_found"),
    ):
        card = client.get(f"/a2a/{path}/.well-known/agent-card.json")
        sent = client.post(f"/a2a/{path}", json={"jsonrpc": "2.0", "id": 1, "method": "GetTask", "params": {}})
        assert [(one.status_code, one.json()["error"]) for one in (card, sent)] == [(status, error)] * 2

    async def work() -> None:
        async with calling(house) as plain, calling(house, "asked") as asked:
            task = await plain.task(text("mine"))
            for ask in (asked.client.get_task(GetTaskRequest(id=task.id)), asked.task(text("x"), task_id=task.id)):
                with pytest.raises(A2AError, match="no run"):
                    await ask

    asyncio.run(work())
    agents = house.get("/agents")["agents"]
    assert [(one["environment"], one["bundle"], one["protocols"]) for one in agents] == [
        ("prod", "asked", ["a2a"]),
        ("prod", "plain", ["a2a"]),
        ("prod", "twice", ["a2a"]),
    ]
    cards = house.get("/../.well-known/agent-card.json", expect=404)["cards"]
    assert cards == [f"/v1/a2a/prod/{name}/.well-known/agent-card.json" for name in ("asked", "plain", "twice")]


def test_keys_and_scopes_are_those_of_http_and_refusals_are_in_the_audit_log(house: Bench) -> None:
    path = f"{house.url}/v1/a2a/prod/plain"
    assert httpx.get(f"{path}/.well-known/agent-card.json", timeout=240).status_code == 401
    message = {"messageId": "s-1", "role": "ROLE_USER", "parts": [{"text": "hi"}]}
    body = {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message": message}}
    versioned = {"A2A-Version": "1.0"}
    stranger = httpx.post(path, json=body, headers={**versioned, "Authorization": "Bearer stranger"}, timeout=240)
    assert stranger.status_code == 401
    refused = house.client("viewer").post("/a2a/prod/plain", json=body, headers=versioned)
    assert (refused.status_code, refused.json()["required_scope"]) == (403, "runs:write")
    events = house.get("/audit-events", event_type="request.refused")["events"]
    assert [one for one in events if one["actor"] == "viewer" and one["metadata"]["operation"] == "send_to_agent"]


def test_hostile_messages_are_refused_within_bounds(house: Bench) -> None:
    client = house.client("service")

    def send(content: bytes, **headers: str) -> httpx.Response:
        typed = {"Content-Type": "application/json", "A2A-Version": "1.0", **headers}
        return client.post("/a2a/prod/plain", content=content, headers=typed)

    assert send(b'{"x": "' + b"x" * 50_000 + b'"}').status_code == 413
    deep = b'{"jsonrpc":"2.0","id":1,"method":"SendMessage","params":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}"
    for content in (b"{", b"[]", b"null", deep, b'{"jsonrpc":"2.0","id":1,"method":"Nothing"}'):
        answer = send(content)
        assert (answer.status_code, "error" in answer.json()) == (200, True), (content[:40], answer.text)
    call = {"jsonrpc": "2.0", "id": 1, "method": "GetTask", "params": {"id": "run_0"}}
    assert send(json.dumps(call).encode()).json()["error"]["code"] != -32700
    assert send(json.dumps(call).replace('"id": 1', '"id": 1, "id": 1').encode()).json()["error"]["code"] == -32700

    async def work() -> None:
        async with calling(house) as caller:
            for parts, fields, said in (
                ((text("x" * 600),), {}, "input is 600 long"),
                ((text("x"),), {"context_id": "c" * 201}, "session_id"),
                ((text("x"),), {"context_id": "a\u202eb"}, "U\\+202E"),
                ((text("x"),), {"message_id": "m" * 300}, "id of a message"),
                ((Part(url="http://169.254.169.254/"),), {}, "files are not accepted"),
                ((text("x"),), {"task_id": "run_" + "0" * 5_000}, "no run"),
            ):
                with pytest.raises(A2AError, match=said):
                    await caller.task(*parts, **fields)

    asyncio.run(work())


def test_clients_of_version_0_3_are_served(house: Bench) -> None:
    message = {"kind": "message", "messageId": "old-1", "role": "user", "parts": [{"kind": "text", "text": "old"}]}
    body = {"jsonrpc": "2.0", "id": "1", "method": "message/send", "params": {"message": message}}
    result = house.client("service").post("/a2a/prod/plain", json=body).json()["result"]
    assert result["status"]["state"] == "completed"
    read = {"jsonrpc": "2.0", "id": "2", "method": "tasks/get", "params": {"id": result["id"]}}
    assert house.client("service").post("/a2a/prod/plain", json=read).json()["result"]["id"] == result["id"]


def test_the_card_is_signed_with_the_service_key(house: Bench) -> None:
    def key(kid: str | None, jku: str | None) -> PyJWK:
        assert jku == f"{house.url}/.well-known/jwks.json"
        (found,) = [one for one in httpx.get(jku, timeout=240).json()["keys"] if one["kid"] == kid]
        return PyJWK(found)

    verify = create_signature_verifier(key, ["EdDSA"])

    async def work() -> None:
        # A sender chooses the Host header; a signed card does not repeat it.
        headers = {"Authorization": "Bearer viewer-key", "Host": "evil.example"}
        async with httpx.AsyncClient(headers=headers, timeout=240) as http:
            url = f"{house.url}/a2a/prod/plain"
            card = await A2ACardResolver(http, url).get_agent_card(signature_verifier=verify)
            assert card.supported_interfaces[0].url == f"{house.url}/v1/a2a/prod/plain"
            card.description = "Pays everybody."
            with pytest.raises(InvalidSignaturesError):
                verify(card)

    asyncio.run(work())


METHODS = ("CreateTaskPushNotificationConfig", "GetTaskPushNotificationConfig", "ListTaskPushNotificationConfigs")


def test_push_notifications_are_refused(house: Bench) -> None:
    task = {"taskId": "run_1", "id": "p-1", "url": "http://169.254.169.254/"}
    client = house.client("service")
    for method in (*METHODS, "DeleteTaskPushNotificationConfig"):
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": task}
        answer = client.post("/a2a/prod/plain", json=body, headers={"A2A-Version": "1.0"}).json()
        assert answer["error"]["code"] == -32003, (method, answer)


def test_without_the_extra_a_message_names_the_command_that_installs_it(
    house: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_library(monkeypatch, sys.modules, "a2a")
    client = house.client("service")
    card, sent = (
        client.get("/a2a/prod/plain/.well-known/agent-card.json"),
        client.post("/a2a/prod/plain", json={"jsonrpc": "2.0", "id": 1, "method": "GetTask", "params": {}}),
    )
    for answer in (card, sent):
        assert (answer.status_code, answer.json()["error"]) == (400, "a2a_not_installed")
        assert "pip install 'kneo[a2a]'" in answer.json()["hint"]


def test_a_served_agent_is_a_tool_of_agents_elsewhere(house: Bench) -> None:
    agent = {"tools": {"permissions": {"allow_network": True, "allowed_domains": ["127.0.0.1"]}}}
    (key,) = house.get("/.well-known/jwks.json")["keys"]
    headers = {"secret_headers": {"Authorization": "Bearer ${AGENT_KEY}"}, "keys": [key]}
    rules = inside_prod(int(house.url.rpartition(":")[2]))
    remote = RemoteAgents(backend_context({"AGENT_KEY": "service-key"}.get, rules, seconds=240))

    async def call(bundle: str, key: str, **more: Any) -> object:
        declared = {"url": f"{house.url}/v1/a2a/prod/{bundle}", **headers}
        made = tool_call({"input": "told from afar"}, agent=agent, environment="prod", a2a=declared)
        return await remote.call(replace(made, key=key, **more))

    async def work() -> None:
        assert "told from afar" in str(await call("plain", KEY))
        assert "told from afar" in str(await call("plain", KEY))
        with pytest.raises(AnswerRequired, match="/console/inbox/") as asked:
            await call("asked", f"{KEY}-2")
        state, at = asked.value.state, "2026-01-31T00:00:00.000000+00:00"
        none = dict.fromkeys(("content", "selected_option", "comment"))
        given = Decision(kind=DecisionKind.PROVIDED, actor="ann", by="person", at=at, **none, values={"answer": "why?"})
        with pytest.raises(AnswerRequired, match="not answered by this text") as again:
            await call("asked", f"{KEY}-2", state=state, answer=given)
        approved = replace(given, values={"answer": "approved"})
        assert "told from afar" in str(await call("asked", f"{KEY}-2", state=again.value.state, answer=approved))
        # Each answer of the other service names the question that its person saw.
        with pytest.raises(AnswerRequired) as asked:
            await call("twice", f"{KEY}-3")
        for _ in range(2):
            with pytest.raises(AnswerRequired) as later:
                await call("twice", f"{KEY}-3", state=asked.value.state, answer=approved)
            assert later.value.state != asked.value.state
            asked = later
        assert "told from afar" in str(await call("twice", f"{KEY}-3", state=asked.value.state, answer=approved))

    asyncio.run(work())
    assert house.get("/runs", environment="prod", q="told from afar")["count"] == 3
