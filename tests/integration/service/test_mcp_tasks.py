"""Calls as tasks of MCP (``io.modelcontextprotocol/tasks``), and what is asked at clients, with the official client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from integration.service.test_call_trials import mcp_server, released
from integration.service.test_calls import ADDED, CALLS, asking, decide, refunds, spec
from integration.service.test_mcp_tools import connected, structured, text
from jsonschema import Draft202012Validator
from kneo_process import eventually
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, ElicitRequestParams, ElicitResult, Request, RequestParams, Result
from pydantic import ConfigDict
from served_agents import served_agents
from service_bench import Bench, Json

from kneo.extensions.protocols.mcp import gateway
from kneo.extensions.protocols.mcp.call_tasks import EXTENSION

TASK: Json = {
    "type": "object",
    "required": ["taskId", "status", "createdAt", "lastUpdatedAt", "ttlMs"],
    "properties": {
        "taskId": {"type": "string"},
        "status": {"enum": ["working", "input_required", "completed", "failed", "cancelled"]},
        "statusMessage": {"type": "string"},
        "createdAt": {"type": "string", "format": "date-time"},
        "lastUpdatedAt": {"type": "string", "format": "date-time"},
        "ttlMs": {"type": ["integer", "null"]},
        "pollIntervalMs": {"type": "integer"},
    },
}
"""What the extension says of a task, in our words; what a status adds is below."""

FORM: Json = {
    "type": "object",
    "required": ["method", "params"],
    "properties": {
        "method": {"const": "elicitation/create"},
        "params": {
            "type": "object",
            "required": ["message", "requestedSchema"],
            "properties": {"mode": {"const": "form"}, "message": {"type": "string"}},
        },
    },
}
ADDS: dict[str, Json] = {
    "completed": {"required": ["result"], "properties": {"result": {"type": "object", "required": ["content"]}}},
    "failed": {"required": ["error"]},
    "input_required": {
        "required": ["inputRequests"],
        "properties": {"inputRequests": {"type": "object", "minProperties": 1, "additionalProperties": FORM}},
    },
}


def fits(message: Json, result_type: str) -> Json:
    """Check a message of the server against what the extension says."""
    Draft202012Validator({**TASK, "required": [*TASK["required"], "resultType"]}).validate(message)
    Draft202012Validator(ADDS.get(str(message["status"]), {})).validate(message)
    assert message["resultType"] == result_type
    assert {"result", "error", "inputRequests"} & message.keys() == set(
        ADDS.get(str(message["status"]), {}).get("required", [])
    )
    return message


class Task(Result):
    result_type: Literal["task"] = "task"
    task_id: str
    model_config = ConfigDict(extra="allow")


class Seen(Result):
    model_config = ConfigDict(extra="allow")


class TaskParams(RequestParams):
    task_id: str
    input_responses: dict[str, Any] | None = None


class TaskRequest(Request[TaskParams, str]):
    method: str
    params: TaskParams


class Tasks(ClientExtension):
    """The extension at the client: it asks for the task until it has ended, and keeps what it saw."""

    identifier = EXTENSION

    def __init__(self, house: Bench, decision: Json | None = None) -> None:
        self.house, self.decision = house, decision
        self.created: Json = {}
        self.seen: list[Json] = []

    def claims(self) -> list[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=Task, resolve=self.resolve)]

    async def resolve(self, task: Task, context: ClaimContext) -> CallToolResult:
        self.created = fits(dumped(task), "task")
        if self.decision is not None:
            await asyncio.to_thread(decide, self.house, {"id": task.task_id, "questions": []}, **self.decision)
        while True:
            now = fits(dumped(await ask(context.session, "tasks/get", task.task_id)), "complete")
            self.seen.append(now)
            if now["status"] in {"completed", "cancelled"}:
                return CallToolResult.model_validate(now.get("result", {"content": []}))
            if now["status"] == "input_required":
                answers = {
                    key: {"action": "accept", "content": ANSWERS[key_of(each)]}
                    for key, each in now["inputRequests"].items()
                }
                await ask(
                    context.session, "tasks/update", task.task_id, {**answers, "cont_unknown": {"action": "accept"}}
                )
            await asyncio.to_thread(self.house.get, f"/calls/{task.task_id}", role="caller", wait="1s")


ANSWERS: dict[str, Json] = {"colour": {"colour": "red"}, "size": {"size": 3}}


def key_of(request: Json) -> str:
    (key,) = request["params"]["requestedSchema"]["properties"]
    return key


def dumped(model: Result) -> Json:
    return model.model_dump(by_alias=True, mode="json", exclude_unset=True)


async def ask(session: Any, method: str, task_id: str, responses: Json | None = None) -> Seen:
    params = TaskParams(task_id=task_id, input_responses=responses)
    return await session.send_request(TaskRequest(method=method, params=params), Seen)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with served_agents(tmp_path_factory.mktemp("tasks"), {"payments": spec()}, functions=ADDED, calls=CALLS) as made:
        yield made


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a task be returned at once instead of after five seconds."""
    assert gateway.TASK_SECONDS == 5.0
    monkeypatch.setattr(gateway, "TASK_SECONDS", 0.2)


def go(house: Bench, tool: str, arguments: Json, extension: Tasks, **options: Any) -> CallToolResult:
    async def work() -> CallToolResult:
        async with connected(house, extensions=[extension], **options) as client:
            return await client.call_tool(tool, arguments)

    return asyncio.run(work())


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("decision", "failed", "part"),
    [
        ({"decision": "edited", "arguments": {"id": "t1", "amount": 5}}, False, '"refunded": 5'),
        ({"decision": "rejected", "comment": "not today"}, True, "not today"),
    ],
)
def test_a_call_that_waits_is_a_task_which_completes_with_its_result(
    house: Bench, decision: Json, failed: bool, part: str
) -> None:
    extension = Tasks(house, decision)
    result = go(house, "refund", {"id": "t1", "amount": 9}, extension)
    assert (result.is_error, part in text(result)) == (failed, True)
    assert extension.created["taskId"].startswith("run_")
    assert extension.seen[-1]["status"] == "completed"
    assert extension.created["taskId"] == extension.seen[-1]["taskId"]


def test_a_call_that_waits_for_nobody_is_no_task_and_a_failed_one_no_failed_task(house: Bench) -> None:
    extension = Tasks(house)
    assert json.loads(text(go(house, "lookup", {"id": "7"}, extension))) == {"order": "7"}
    failed = go(house, "lookup", {"id": "none"}, extension)
    assert (failed.is_error, extension.created) == (True, {})


@pytest.mark.usefixtures("soon")
def test_a_task_shows_the_link_is_cancelled_and_belongs_to_its_caller(house: Bench) -> None:
    async def work() -> None:
        async with connected(house, extensions=[Tasks(house)]) as client:
            made = await client.session.call_tool("refund", {"id": "t2", "amount": 1}, allow_claimed=True)
            assert isinstance(made, Task), made
            link = await asyncio.to_thread(asking, house, {"id": made.task_id})
            now = dumped(await ask(client.session, "tasks/get", made.task_id))
            assert now["status"] == "working"
            assert (
                now["statusMessage"] == f"Waiting for approval: {house.url}/console/inbox/{link['questions'][0]['id']}"
            )
            for method, responses in (("tasks/get", None), ("tasks/update", {}), ("tasks/cancel", None)):
                async with connected(house, "admin", extensions=[Tasks(house)]) as other:
                    for task_id in (made.task_id, "run_none"):
                        with pytest.raises(MCPError) as refused:
                            await ask(other.session, method, task_id, responses)
                        assert (refused.value.error.code, "There is no call" in refused.value.error.message) == (
                            -32602,
                            True,
                        )
            question = link["questions"][0]["id"]
            for content in ({"decision": "approved"}, None):
                await ask(
                    client.session, "tasks/update", made.task_id, {question: {"action": "accept", "content": content}}
                )
            assert dumped(await ask(client.session, "tasks/get", made.task_id))["status"] == "working"
            for _ in range(2):
                assert "status" not in dumped(await ask(client.session, "tasks/cancel", made.task_id))
            assert (
                fits(dumped(await ask(client.session, "tasks/get", made.task_id)), "complete")["status"] == "cancelled"
            )

    asyncio.run(work())
    assert not [each for each in refunds(house) if each["id"] == "t2"]


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_client_without_the_extension_gets_no_task_and_asks_for_none(house: Bench, mode: str) -> None:
    async def work() -> None:
        async with connected(house, wait="1s", mode=mode) as client:
            made = await client.call_tool("refund", {"id": f"t3-{mode}", "amount": 1})
            assert structured(made)["status"] in {"waiting", "running"}
            with pytest.raises(MCPError) as refused:
                await ask(client.session, "tasks/get", structured(made)["call_id"])
            assert refused.value.error.code == -32021
            await asyncio.to_thread(house.post, f"/calls/{structured(made)['call_id']}/cancel", role="caller")

    asyncio.run(work())


# ---- links and forms at the client ------------------------------------------------------------------------------------


def person(house: Bench, shown: list[ElicitRequestParams], action: str = "accept", **decision: Any) -> Any:
    """Return a person at a client, who opens a link and decides there, and accepts whatever is asked."""

    async def answer(_context: object, params: ElicitRequestParams) -> ElicitResult:
        shown.append(params)
        if params.mode == "url" and decision:
            question = {"questions": [{"id": params.url.rpartition("/")[2]}]}
            await asyncio.to_thread(decide, house, question, **decision)
        return ElicitResult(action=action, content={"decision": "approved"} if params.mode == "url" else None)

    return answer


def test_a_client_that_opens_links_shows_the_console_and_the_call_continues(house: Bench) -> None:
    shown: list[ElicitRequestParams] = []

    async def work() -> CallToolResult:
        answer = person(house, shown, decision="approved")
        async with connected(house, elicitation_callback=answer) as client:
            return await client.call_tool("refund", {"id": "u1", "amount": 2})

    result = asyncio.run(work())
    assert json.loads(text(result)) == {"refunded": 2}
    (asked,) = shown
    assert (asked.mode, asked.url.startswith(f"{house.url}/console/inbox/cont_")) == ("url", True)
    assert "approves nothing" in asked.message
    assert house.get(f"/runs/{result.meta['kneo/call_id']}/receipts")["receipts"][0]["receipt"]["actor"] == "reviewer"


@pytest.mark.parametrize("action", ["accept", "decline", "cancel"])
def test_an_accepted_link_approves_nothing_and_a_declined_one_ends_the_wait(house: Bench, action: str) -> None:
    shown: list[ElicitRequestParams] = []

    async def work() -> CallToolResult:
        wait = "2s" if action == "accept" else "600s"
        async with connected(house, "admin", wait=wait, elicitation_callback=person(house, shown, action)) as client:
            return await client.call_tool("refund", {"id": f"u2-{action}", "amount": 2})

    result = structured(asyncio.run(work()))
    assert (result["status"], len(shown)) == ("waiting", 1)
    assert house.get(f"/calls/{result['call_id']}")["status"] == "waiting"
    house.post(f"/calls/{result['call_id']}/cancel")
    assert not [each for each in refunds(house) if each["id"] == f"u2-{action}"]


@pytest.mark.usefixtures("soon")
def test_a_client_that_opens_links_and_takes_tasks_shows_the_link_first(house: Bench) -> None:
    shown: list[ElicitRequestParams] = []
    extension = Tasks(house, {"decision": "approved"})
    result = go(house, "refund", {"id": "u3", "amount": 3}, extension, elicitation_callback=person(house, shown))
    assert (json.loads(text(result)), len(shown)) == ({"refunded": 3}, 1)
    assert extension.seen


def test_a_forged_state_reads_no_other_call_and_answers_none(house: Bench) -> None:
    foreign = asking(
        house,
        house.post(
            "/calls", {"environment": "prod", "bundle": "payments", "tool": "refund", "arguments": {"id": "u4"}}
        ),
    )

    async def work(state: str) -> CallToolResult:
        async with connected(house) as client:
            return await client.session.call_tool(
                "refund",
                {"id": "u4"},
                request_state=state,
                input_responses={
                    foreign["questions"][0]["id"]: ElicitResult(action="accept", content={"decision": "approved"})
                },
            )

    state = json.dumps({"call_id": foreign["id"], "shown": []})
    assert structured(asyncio.run(work(state)))["error"] == "call_not_found"
    assert structured(asyncio.run(work("{}")))["error"] == "invalid_request_state"
    assert house.get(f"/calls/{foreign['id']}")["status"] == "waiting"
    house.post(f"/calls/{foreign['id']}/cancel")


# ---- forms of the servers behind ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A bundle whose tool asks for a colour and a size; a table is ordered after an approval."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "tools.json").write_text("{}")
    name = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    with mcp_server(folder / "tools.json") as port:
        before = {"when": "args.name == 'table'", "human": "finance"}
        order = {"description": "Order.", "parameters": name, "mcp": {"server": "tests"}, "review": {"before": before}}
        permissions = {"allow_network": True, "allowed_domains": ["127.0.0.1"]}
        bundle = spec(
            agent={"name": "shop", "tools": {"include": ["order"], "permissions": permissions}},
            tools={"order": order},
            mcp_servers={"tests": {"transport": "http", "url": f"http://127.0.0.1:{port}/mcp"}},
        )
        inside = {"inside": [f"127.0.0.1:{port}"], "mcp": {"hosts": ["127.0.0.1"]}}
        with released(folder, bundle, protocols={"calls": [{"bundle": "shop"}]}, tools=inside) as (made, _):
            yield made


def at_forms(shown: list[ElicitRequestParams], *actions: str) -> Any:
    async def answer(_context: object, params: ElicitRequestParams) -> ElicitResult:
        shown.append(params)
        assert params.mode == "form"
        (field,) = params.requested_schema["properties"]
        action = actions[len(shown) - 1] if len(shown) <= len(actions) else "accept"
        return ElicitResult(action=action, content=ANSWERS[field] if action == "accept" else None)

    return answer


def test_forms_of_a_server_behind_are_answered_at_the_client(shop: Bench) -> None:
    shown: list[ElicitRequestParams] = []

    async def work() -> CallToolResult:
        async with connected(shop, bundle="shop", elicitation_callback=at_forms(shown)) as client:
            return await client.call_tool("order", {"name": "chair"})

    result = asyncio.run(work())
    assert [each.message for each in shown] == ["Which colour?", "Which size?"]
    assert {"name": "chair", "colour": "red", "size": 3}.items() <= json.loads(text(result)).items()


def test_a_declined_form_is_declined_to_the_server_behind(shop: Bench) -> None:
    shown: list[ElicitRequestParams] = []

    async def work() -> CallToolResult:
        async with connected(shop, bundle="shop", elicitation_callback=at_forms(shown, "decline")) as client:
            waiting = await client.call_tool("order", {"name": "stool"})
            return await client.call_tool("get_call", {"call_id": waiting.meta["kneo/call_id"]})

    result = asyncio.run(work())
    assert [each.message for each in shown] == ["Which colour?", "Which size?"]
    assert (result.is_error, "declin" in text(result)) == (True, True)


@pytest.mark.usefixtures("soon")
def test_forms_of_a_server_behind_are_answered_in_a_task(shop: Bench) -> None:
    shown: list[ElicitRequestParams] = []
    extension = Tasks(shop, {"decision": "approved"})
    options = {"bundle": "shop", "elicitation_callback": person(shop, shown)}
    result = go(shop, "order", {"name": "table"}, extension, **options)
    assert {"name": "table", "colour": "red", "size": 3}.items() <= json.loads(text(result)).items()
    assert [each.mode for each in shown] == ["url"], "the forms came with the task"
    assert {"input_required", "completed"} <= {each["status"] for each in extension.seen}


def test_a_client_without_forms_gets_the_link_of_a_form(shop: Bench) -> None:
    async def work() -> CallToolResult:
        async with connected(shop, bundle="shop", wait="1s", mode="legacy") as client:
            return await client.call_tool("order", {"name": "bench"})

    waiting = eventually(lambda: (now := structured(asyncio.run(work())))["url"] and now)
    assert waiting["url"].startswith(f"{shop.url}/console/inbox/cont_")
    shop.post(f"/calls/{waiting['call_id']}/cancel", role="caller")
