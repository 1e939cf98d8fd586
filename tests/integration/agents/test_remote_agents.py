"""Tools that are agents of other services, over Agent2Agent: the official SDK serves the agent that is called."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from a2a.utils.signing import create_agent_card_signer
from foreign_agent import ForeignAgent, foreign_agent
from raw_web import WebCall, page, raw_web
from rules_now import inside_prod
from tool_calls import KEY, backend_context, filtered, tool_call

from kneo.agents.turn import GIVEN_UP, AnswerRequired, ToolBackend, ToolCall
from kneo.errors import KneoError
from kneo.extensions.protocols.a2a.client import RemoteAgents
from kneo.records.task import Decision, DecisionKind
from kneo.redaction import REDACTED
from kneo.trust.keys import PrivateKey

HERE = {"tools": {"permissions": {"allow_network": True, "allowed_domains": ["127.0.0.1"]}}}
SECRETS = {"PAINTER_KEY": "hunter2hunter2"}
Json = dict[str, Any]


def make(
    url: str, arguments: Json, *, agent: Mapping[str, object] = HERE, a2a: Json | None = None, **tool: Any
) -> ToolCall:
    declared = {"url": url, **(a2a or {})}
    return tool_call(arguments, name="painter", agent=agent, environment="prod", a2a=declared, **tool)


def backend(url: str) -> ToolBackend:
    rules = inside_prod(int(url.rpartition(":")[2]))
    return filtered(RemoteAgents(backend_context(SECRETS.get, rules, seconds=120)))


def with_agent(work: Callable[[ForeignAgent], Awaitable[None]], version: str = "1.0") -> None:
    async def main() -> None:
        async with foreign_agent(version) as agent:
            await work(agent)

    asyncio.run(main())


async def refused(call: ToolCall, url: str) -> KneoError:
    with pytest.raises(KneoError) as found:
        await backend(url).call(call)
    return found.value


def answered(call: ToolCall, asked: AnswerRequired, kind: DecisionKind, **more: Any) -> ToolCall:
    at = "2026-01-31T00:00:00.000000+00:00"
    decision = Decision(
        kind=kind, content=None, selected_option=None, comment=None, actor="ann", by="person", at=at, **more
    )
    return replace(call, state=json.loads(json.dumps(asked.state)), answer=decision)


# ---- messages and results -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.0", "0.3"])
def test_an_agent_is_sent_the_input_under_the_key_of_the_call(version: str) -> None:
    async def work(agent: ForeignAgent) -> None:
        kept: list[Mapping[str, object]] = []

        async def keep(state: Mapping[str, object]) -> None:
            kept.append(state)

        made = make(agent.url, {"input": "a fence"}, a2a={"secret_headers": {"Authorization": "Bearer ${PAINTER_KEY}"}})
        assert await backend(agent.url).call(replace(made, keep=keep)) == "done: a fence"
        assert (agent.received, agent.message_ids) == (["a fence"], [KEY])
        assert set(agent.authorization) == {"Bearer hunter2hunter2"}
        assert len(kept) <= 1  # the task may have ended before it was read

    with_agent(work, version)


def test_arguments_of_declared_parameters_are_data_and_so_is_the_result() -> None:
    async def work(agent: ForeignAgent) -> None:
        arguments = {"colour": "red", "metres": 3}
        parameters = {"type": "object", "properties": {"colour": {}, "metres": {}}}
        result = await backend(agent.url).call(make(agent.url, arguments, parameters=parameters))
        assert result == {"given": arguments, "count": 2}
        assert isinstance(result["given"]["metres"], int)

    with_agent(work)


def test_an_agent_may_respond_with_a_message_alone() -> None:
    async def work(agent: ForeignAgent) -> None:
        assert await backend(agent.url).call(make(agent.url, {"input": "talk"})) == "a plain message"

    with_agent(work)


def test_a_task_that_failed_is_an_error_with_its_message() -> None:
    async def work(agent: ForeignAgent) -> None:
        error = await refused(make(agent.url, {"input": "fail"}), agent.url)
        assert error.code == "remote_agent_failed"
        assert "ended its task as failed: no such order" in error.message

    with_agent(work)


# ---- interruptions --------------------------------------------------------------------------------------------------


def test_an_interrupted_call_continues_to_read_its_task_and_sends_no_second_message() -> None:
    async def work(agent: ForeignAgent) -> None:
        kept: asyncio.Queue[Mapping[str, object]] = asyncio.Queue()
        call = replace(make(agent.url, {"input": "work"}), keep=kept.put)
        first = asyncio.create_task(backend(agent.url).call(call))
        state = await kept.get()
        first.cancel()  # as where its process ends
        await asyncio.wait([first])
        assert agent.cancelled == []
        agent.may_end.set()
        assert await backend(agent.url).call(replace(call, state=state)) == "done: work"
        assert agent.message_ids == [KEY]

    with_agent(work)


@pytest.mark.parametrize("ending", ["given up", "too slow"])
def test_a_task_that_nobody_waits_for_is_cancelled(ending: str) -> None:
    async def work(agent: ForeignAgent) -> None:
        kept: asyncio.Queue[Mapping[str, object]] = asyncio.Queue()
        more = {"timeout_seconds": 5} if ending == "too slow" else {}
        call = replace(make(agent.url, {"input": "work"}, **more), keep=kept.put)
        calling = asyncio.create_task(backend(agent.url).call(call))
        state = await kept.get()
        if ending == "given up":
            calling.cancel(GIVEN_UP)
        (error,) = await asyncio.gather(calling, return_exceptions=True)
        assert getattr(error, "code", None) == ("remote_agent_timeout" if more else None)
        assert agent.cancelled == [state["task_id"]]

    with_agent(work)


def test_a_busy_service_is_read_again_and_a_refusal_ends_the_call() -> None:
    async def work(agent: ForeignAgent) -> None:
        kept: asyncio.Queue[Mapping[str, object]] = asyncio.Queue()
        call = replace(make(agent.url, {"input": "work"}), keep=kept.put)
        calling = asyncio.create_task(backend(agent.url).call(call))
        state = await kept.get()
        agent.status = 503
        before = len(agent.authorization)
        while len(agent.authorization) < before + 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        agent.status = 0
        agent.may_end.set()
        assert await calling == "done: work"
        agent.status = 403
        error = await refused(replace(call, state=state), agent.url)
        assert (error.code, error.details["status"]) == ("http_status", 403)

    with_agent(work)


def test_a_lost_response_is_no_second_message() -> None:
    """The connection ends after the message: whether the agent has begun is not known, and the call fails."""

    async def main() -> None:
        def answer(call: WebCall) -> bytes:
            if call.method == "GET":
                interface = {"url": f"{url}/rpc", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}
                return page(json.dumps({"name": "painter", "supportedInterfaces": [interface]}).encode())
            return b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\nconnection: close\r\n\r\n{"

        async with raw_web(answer) as web:
            url = f"http://127.0.0.1:{web.port}"
            sending = asyncio.create_task(refused(make(url, {"input": "a fence"}, timeout_seconds=3), url))
            error = await sending
            assert error.code in {"http_failed", "remote_agent_timeout"}, error
            assert [call.method for call in web.calls] == ["GET", "POST"]

    asyncio.run(main())


# ---- questions ------------------------------------------------------------------------------------------------------


def test_a_question_of_the_agent_goes_to_a_person_and_the_answer_to_the_same_task() -> None:
    async def work(agent: ForeignAgent) -> None:
        call = make(agent.url, {"input": "ask"})
        with pytest.raises(AnswerRequired, match="Which colour") as asked:
            await backend(agent.url).call(call)
        assert asked.value.schema["required"] == ["answer"]
        declined = answered(call, asked.value, DecisionKind.REJECTED)
        given = answered(call, asked.value, DecisionKind.PROVIDED, values={"answer": "red"})
        assert await backend(agent.url).call(given) == "done: red"
        # The same answer again, as after a crash: the task has ended, and nothing is sent.
        assert await backend(agent.url).call(given) == "done: red"
        assert agent.received == ["ask", "red"]
        assert agent.message_ids == [KEY, f"{KEY}:answer-1"]
        with pytest.raises(AnswerRequired) as again:
            await backend(agent.url).call(replace(call, key=f"{call.key}-2"))
        assert again.value.state["task_id"] != asked.value.state["task_id"]
        error = await refused(replace(declined, state=again.value.state), agent.url)
        assert "declined" in error.message
        assert agent.cancelled == [again.value.state["task_id"]]

    with_agent(work)


# ---- hosts, keys, bounds --------------------------------------------------------------------------------------------


def test_the_host_rules_of_tools_hold_for_the_card_and_for_the_address_in_it() -> None:
    async def work(agent: ForeignAgent) -> None:
        made = make(agent.url, {"input": "x"}, agent={"tools": {"permissions": {"allowed_domains": ["a.example"]}}})
        assert (await refused(made, agent.url)).code == "domain_denied"
        metadata = make("http://169.254.169.254", {"input": "x"})
        assert (await refused(metadata, agent.url)).code == "domain_denied"
        agent.card.supported_interfaces[0].url = "http://169.254.169.254/rpc"
        assert (await refused(make(agent.url, {"input": "x"}), agent.url)).code == "domain_denied"
        anywhere = {"tools": {"permissions": {"allow_network": True, "allowed_domains": ["*"]}}}
        assert (await refused(make(agent.url, {"input": "x"}, agent=anywhere), agent.url)).code == "url_denied"
        agent.card.supported_interfaces[0].url = "https://169.254.169.254/rpc"
        assert (await refused(make(agent.url, {"input": "x"}, agent=anywhere), agent.url)).code == "address_denied"
        assert agent.received == []

    with_agent(work)


def test_secrets_go_to_the_host_of_the_url_alone_and_never_come_back() -> None:
    async def main() -> None:
        async with foreign_agent() as agent, raw_web(lambda call: page(str(call.headers).encode(), 400)) as other:
            ports = (int(agent.url.rpartition(":")[2]), other.port)

            async def rules(_environment: str | None) -> Any:
                rule = await inside_prod(ports[0])("prod")
                return rule.model_copy(update={"inside": tuple(f"127.0.0.1:{port}" for port in ports)})

            made = make(agent.url, {"input": "x"}, a2a={"secret_headers": {"Authorization": "Bearer ${PAINTER_KEY}"}})
            agent.card.supported_interfaces[0].url = f"http://127.0.0.1:{other.port}/rpc"
            with pytest.raises(KneoError):
                await RemoteAgents(backend_context(SECRETS.get, rules)).call(made)
            assert [call.headers.get("authorization") for call in other.calls] == [None]
            echo = make(
                f"http://127.0.0.1:{other.port}", {"input": "x"}, a2a={"secret_headers": {"X-Key": "${PAINTER_KEY}"}}
            )
            with pytest.raises(KneoError) as found:
                await filtered(RemoteAgents(backend_context(SECRETS.get, rules))).call(echo)
            assert other.calls[-1].headers["x-key"] == "hunter2hunter2"
            assert "hunter2hunter2" not in str(found.value)
            assert "REDACTED" in str(found.value)

    asyncio.run(main())


@pytest.mark.parametrize(
    "place", ["redirect", "host", "encoding", "status", "refusal", "card", "failed", "question", "result"]
)
def test_a_secret_is_in_no_error_question_or_result_of_an_agent(place: str) -> None:
    secret, url = SECRETS["PAINTER_KEY"], ""
    parts = [{"text": f"{'.' * 3_900}Which colour? {secret}" * 2}]

    def answer(call: WebCall) -> bytes:
        if call.target == f"/{secret}":
            return b"nonsense\r\n\r\n"
        match place, call.method:
            case "redirect", _:
                return page(status=302, location=f"/{secret}")
            case "host", _:
                return page(status=302, location=f"https://{secret}.evil.example/")
            case "encoding", _:
                return page(b"x", content_encoding=f"{'x' * 40}{secret}")
            case "status", _:
                return page(f"{'.' * 995}{secret}".encode(), status=403)
            case "card", _:
                return page(json.dumps({"name": secret, "supportedInterfaces": secret}).encode())
            case _, "GET":
                interface = {"url": f"{url}/rpc", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}
                return page(json.dumps({"name": "painter", "supportedInterfaces": [interface]}).encode())
            case "refusal", _:
                error = {"code": -32001, "message": f"{'.' * 995}{secret}"}
                return page(json.dumps({"jsonrpc": "2.0", "id": json.loads(call.body)["id"], "error": error}).encode())
        states = {"failed": "FAILED", "question": "INPUT_REQUIRED", "result": "COMPLETED"}
        message = {"messageId": "m-1", "role": "ROLE_AGENT", "parts": parts}
        task = {"id": "t-1", "contextId": "c-1", "status": {"state": f"TASK_STATE_{states[place]}", "message": message}}
        return page(
            json.dumps({"jsonrpc": "2.0", "id": json.loads(call.body)["id"], "result": {"task": task}}).encode()
        )

    async def main() -> str:
        nonlocal url
        async with raw_web(answer) as web:
            url = f"http://127.0.0.1:{web.port}"
            anywhere = {"tools": {"permissions": {"allow_network": True, "allowed_domains": ["127.0.0.1"]}}}
            call = make(url, {"input": "x"}, agent=anywhere, a2a={"secret_headers": {"X-Key": "${PAINTER_KEY}"}})
            try:
                shown = str(await backend(url).call(call))
            except AnswerRequired as question:
                shown = f"{question.prompt} {question.schema}"
            except KneoError as error:
                shown = f"{error} {error.details}"
            assert web.calls[0].headers["x-key"] == secret
            return shown

    shown = asyncio.run(main())
    assert "hunter2h" not in shown, shown
    assert REDACTED in shown, shown
    assert len(shown) < 5_000 or place != "question"


def test_only_a_card_that_a_key_of_the_spec_has_signed_is_used() -> None:
    async def work(agent: ForeignAgent) -> None:
        key, other = PrivateKey.generate(), PrivateKey.generate(algorithm="p256")
        jwk = key.public.jwk()

        async def code(*keys: Json) -> str | None:
            made = make(agent.url, {"input": "talk"}, a2a={"keys": list(keys)})
            try:
                await backend(agent.url).call(made)
            except KneoError as error:
                return error.code
            return None

        assert await code(jwk) == "card_untrusted"
        signed = create_agent_card_signer(key.dump(), {"kid": jwk["kid"], "alg": "EdDSA", "jku": None, "typ": "JOSE"})
        signed(agent.card)
        assert await code(jwk) is None
        assert await code(other.public.jwk(), jwk) is None
        for wrong in (other.public.jwk(), {"kty": "oct", "k": jwk["x"]}, {"kty": "OKP"}, {}):
            assert await code(wrong) == "card_untrusted", wrong
        agent.card.description = "Pays everybody."
        assert await code(jwk) == "card_untrusted"

    with_agent(work)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"x" * 2_000_000,
        b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
        b'{"jsonrpc":"2.0","id":"1","result":{}}',
        b'{"jsonrpc":"2.0","id":"1","result":{"task":{"id":""}}}',
        b'{"jsonrpc":"2.0","id":"1","result":{"task":{"id":"' + b"t" * 600 + b'"}}}',
        b'{"jsonrpc":"2.0","id":"1","error":{"code":-32602,"message":"no"}}',
    ],
    ids=["empty", "list", "null", "long", "deep", "nothing", "no id", "long id", "error"],
)
@pytest.mark.parametrize("where", ["card", "message"])
def test_a_malformed_response_is_a_failed_call(body: bytes, where: str) -> None:
    async def main() -> None:
        def answer(call: WebCall) -> bytes:
            if where == "card" or call.method == "POST":
                return page(body, content_type="application/json")
            interface = {"url": f"{url}/rpc", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}
            return page(json.dumps({"name": "painter", "supportedInterfaces": [interface]}).encode())

        async with raw_web(answer) as web:
            url = f"http://127.0.0.1:{web.port}"
            error = await refused(make(url, {"input": "x"}), url)
            assert error.code in {"remote_agent_failed", "response_too_large"}, error

    asyncio.run(main())


def test_without_the_extra_a_call_names_it() -> None:
    program = """
import asyncio, sys
sys.modules["a2a"] = None
from kneo.extensions.protocols.a2a.client import RemoteAgents
try:
    asyncio.run(RemoteAgents(None).call(None))
except Exception as error:
    print(error.code, error)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=240)
    assert done.stdout.startswith("a2a_not_installed")
    assert "pip install 'kneo[a2a]'" in done.stdout
