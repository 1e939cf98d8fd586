"""The loopback model server speaks its four formats: the providers' own libraries read it."""

from __future__ import annotations

import asyncio
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from model_server import FORMATS, Call, Format, ModelServer, Reply, model_server, overloaded
from pydantic_ai.direct import model_request, model_request_stream
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, ToolReturnPart
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.tools import ToolDefinition

TOOLS = [ToolDefinition(name=name, parameters_json_schema={"type": "object"}) for name in ("look", "pay")]
SCRIPT = [
    Reply("Let me see.", calls=[Call("look", {"id": 7}), Call("pay", {"amount": 5})], usage=(20, 8)),
    Reply("It is all done now."),
]


def client(server: ModelServer, wire: Format) -> tuple[Model, Any]:
    if wire in {"chat", "responses"}:
        sdk = importlib.import_module("openai").AsyncOpenAI(api_key="k", base_url=server.openai_url, max_retries=0)
        models = importlib.import_module("pydantic_ai.models.openai")
        provider = importlib.import_module("pydantic_ai.providers.openai").OpenAIProvider(openai_client=sdk)
        make = models.OpenAIChatModel if wire == "chat" else models.OpenAIResponsesModel
        return make("fake", provider=provider), sdk.close
    if wire == "anthropic":
        sdk = importlib.import_module("anthropic").AsyncAnthropic(api_key="k", base_url=server.url, max_retries=0)
        provider = importlib.import_module("pydantic_ai.providers.anthropic").AnthropicProvider(anthropic_client=sdk)
        return importlib.import_module("pydantic_ai.models.anthropic").AnthropicModel(
            "fake", provider=provider
        ), sdk.close
    google = importlib.import_module("google.genai")
    sdk = google.Client(vertexai=False, api_key="k", http_options=google.types.HttpOptions(base_url=server.url))
    provider = importlib.import_module("pydantic_ai.providers.google").GoogleProvider(client=sdk)
    return importlib.import_module("pydantic_ai.models.google").GoogleModel("fake", provider=provider), sdk.aio.aclose


async def ask(model: Model, messages: list[ModelMessage], *, streamed: bool) -> ModelResponse:
    parameters = ModelRequestParameters(function_tools=TOOLS)
    settings: Any = {"max_tokens": 100}
    if not streamed:
        return await model_request(model, messages, model_settings=settings, model_request_parameters=parameters)
    async with model_request_stream(
        model, messages, model_settings=settings, model_request_parameters=parameters
    ) as stream:
        async for _ in stream:
            pass
        return stream.get()


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("wire", FORMATS)
def test_the_library_of_each_format_reads_calls_texts_usage_and_errors(wire: Format, streamed: bool) -> None:
    async def talk(server: ModelServer) -> tuple[ModelResponse, ModelResponse]:
        model, close = client(server, wire)
        try:
            messages: list[ModelMessage] = [ModelRequest.user_text_prompt("Pay order 7.")]
            with pytest.raises(ModelHTTPError) as refused:
                await ask(model, messages, streamed=streamed)
            assert refused.value.status_code == 429
            first = await ask(model, messages, streamed=streamed)
            results = [ToolReturnPart(call.tool_name, "ok", call.tool_call_id) for call in first.tool_calls]
            return first, await ask(model, [*messages, first, ModelRequest(results)], streamed=streamed)
        finally:
            await close()

    with model_server([[overloaded(3), SCRIPT[0]], SCRIPT[1]]) as server:
        first, last = asyncio.run(talk(server))
    assert first.text == "Let me see."
    assert [(call.tool_name, call.args_as_dict()) for call in first.tool_calls] == [
        ("look", {"id": 7}),
        ("pay", {"amount": 5}),
    ]
    assert (first.usage.input_tokens, first.usage.output_tokens) == (20, 8)
    assert (last.text, last.finish_reason, last.model_name) == ("It is all done now.", "stop", "fake")
    assert [(each.format, each.streamed, each.turns, each.key) for each in server.requests] == [
        (wire, streamed, turns, "k") for turns in (0, 0, 1)
    ]


def test_scripts_are_chosen_by_model_and_by_what_the_request_holds() -> None:
    script = {"one": [Reply("1")], "two": lambda request: Reply("yes" if "please" in request.text else "no")}
    with model_server(script) as server:

        def say(model: str, text: str) -> httpx.Response:
            body = {"model": model, "messages": [{"role": "user", "content": text}]}
            return httpx.post(
                f"{server.openai_url}/chat/completions", json=body, headers={"Authorization": "Bearer k"}, timeout=240
            )

        def text(answer: httpx.Response) -> str:
            return str(answer.json()["choices"][0]["message"]["content"])

        assert [text(say("one", "x")), text(say("two", "x")), text(say("two", "please"))] == ["1", "no", "yes"]
        assert say("three", "x").status_code == 400
        assert httpx.post(f"{server.url}/nothing", json={}, timeout=240).status_code == 404


def test_the_server_runs_as_a_program(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text(
        json.dumps({"fake": [{"calls": [{"name": "pay", "arguments": {"amount": 5}}]}, {"text": "Paid."}]})
    )
    program = Path(__file__).parents[1] / "support" / "model_server.py"
    with subprocess.Popen([sys.executable, str(program), str(script)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            body = {"model": "fake", "messages": [{"role": "user", "content": "Pay."}]}
            answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=240).json()
        finally:
            process.kill()
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"] == {"name": "pay", "arguments": '{"amount": 5}'}
