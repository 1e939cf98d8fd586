"""What real providers send: recorded exchanges, and a live server where one is named. Asserted on rows, never on words."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from model_cassettes import CASSETTES, playing, recording
from model_server import FORMATS, Call, Format, Reply, model_server
from model_turns import KEY, PROVIDERS, Conversation, Listener
from pydantic_ai.messages import ModelRequest, ToolReturnPart
from pydantic_ai.tools import ToolDefinition

from kneo.settings import process_environment, read_secret

LOOK = ToolDefinition(
    name="look",
    description="Look up the total of an order.",
    parameters_json_schema={"type": "object", "properties": {"order": {"type": "integer"}}, "required": ["order"]},
)
PROMPT = "Use the tool look for order 7, then tell me its total."
ENV = process_environment("KNEO_TEST_RECORD", "KNEO_TEST_MODEL_URL", "KNEO_TEST_MODEL")

REAL: Mapping[Format, tuple[str, str, str, str]] = {
    "chat": ("https://api.openai.com/v1", "OPENAI_API_KEY", "OPENAI_BASE_URL", "gpt-5-mini"),
    "responses": ("https://api.openai.com/v1", "OPENAI_API_KEY", "OPENAI_BASE_URL", "gpt-5-mini"),
    "anthropic": ("https://api.anthropic.com", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "claude-haiku-4-5"),
    "gemini": (
        "https://generativelanguage.googleapis.com",
        "GOOGLE_API_KEY",
        "GOOGLE_GEMINI_BASE_URL",
        "gemini-2.5-flash",
    ),
}
"""The address, the variable of the key, the variable of the address and the model that is recorded, for each format."""


def converse(model: Mapping[str, Any], env: Mapping[str, str], *, streamed: bool) -> Conversation:
    """Have a conversation with one tool call; check what any model's journal has."""
    listener = Listener()
    deltas = listener if streamed else None
    conversation = Conversation(None, {"max_tokens": 400, **model}, env=env, deltas=deltas)  # type: ignore[arg-type]
    reply = asyncio.run(conversation.ask(PROMPT, function_tools=[LOOK]))
    assert [call.tool_name for call in reply.tool_calls] == ["look"]
    results = [ToolReturnPart(call.tool_name, "20 EUR", call.tool_call_id) for call in reply.tool_calls]
    first = ModelRequest.user_text_prompt(PROMPT, instructions="Be brief.")
    last = asyncio.run(conversation.go_on([first, reply, ModelRequest(results)], function_tools=[LOOK]))
    assert "20" in (last.text or "")
    assert listener.text == (last.text if streamed else "")
    entries = list(conversation.journal.entries.values())
    assert [entry.name for entry in entries] == ["model:1", "model:2"]
    for entry in entries:
        assert isinstance(entry.facts["input_tokens"], int)
        assert entry.facts["input_tokens"] > 0
        assert entry.facts["finish_reason"] in {"tool_call", "stop"}
    return conversation


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("wire", FORMATS)
def test_a_recorded_provider_is_understood(wire: Format, streamed: bool) -> None:
    upstream, key, address, name = REAL[wire]
    file = CASSETTES / f"{wire}-{'streamed' if streamed else 'plain'}.json"
    with ExitStack() as stack:
        if ENV.get("KNEO_TEST_RECORD"):
            secret = read_secret(key)
            if secret is None:
                pytest.skip(f"{key} is not set")
            proxy = stack.enter_context(recording(upstream.removesuffix("/v1"), file))
        elif file.is_file():
            secret, proxy = KEY, stack.enter_context(playing(file))
        else:
            pytest.skip(f"{file.name} is not recorded: KNEO_TEST_RECORD=1 {key}=… pytest {Path(__file__).name}")
        env = {key: secret, address: f"{proxy}/v1" if upstream.endswith("/v1") else proxy}
        converse({**PROVIDERS[wire], "name": name}, env, streamed=streamed)
        if ENV.get("KNEO_TEST_RECORD"):
            stack.close()
            assert secret not in file.read_text()


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("wire", FORMATS)
def test_what_is_recorded_is_played_back_and_holds_no_key(wire: Format, streamed: bool, tmp_path: Path) -> None:
    _, key, address, _ = REAL[wire]
    file = tmp_path / "cassette.json"
    model = {**PROVIDERS[wire], "name": "fake"}
    suffix = "/v1" if wire in {"chat", "responses"} else ""
    with model_server([Reply(calls=[Call("look", {"order": 7})]), Reply("The total is 20 EUR.")]) as server:
        with recording(server.url, file) as proxy:
            recorded = converse(model, {key: KEY, address: proxy + suffix}, streamed=streamed)
        asked = len(server.requests)
    assert asked == 2
    assert KEY not in file.read_text()
    with playing(file) as player:
        played = converse(model, {key: "another key", address: player + suffix}, streamed=streamed)
    assert [entry.facts["output_tokens"] for entry in played.journal.entries.values()] == [
        entry.facts["output_tokens"] for entry in recorded.journal.entries.values()
    ]


def test_another_request_than_the_recorded_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cassette.json"
    with model_server([Reply("Hi.")]) as server, recording(server.url, file) as proxy:
        env = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": f"{proxy}/v1"}
        asyncio.run(Conversation(server, PROVIDERS["chat"], env=env).ask("Hello."))
    with pytest.raises(AssertionError, match="1 recorded"), playing(file) as player:  # noqa: PT012
        env["OPENAI_BASE_URL"] = f"{player}/v1"
        with pytest.raises(Exception, match="status 400"):
            asyncio.run(Conversation(server, PROVIDERS["chat"], env=env).ask("Something else."))


@pytest.mark.skipif("KNEO_TEST_MODEL_URL" not in ENV, reason="KNEO_TEST_MODEL_URL and KNEO_TEST_MODEL name no server")
@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
def test_a_live_server_is_understood(streamed: bool) -> None:
    env = {"OPENAI_COMPATIBLE_BASE_URL": ENV["KNEO_TEST_MODEL_URL"]}
    key = read_secret("KNEO_TEST_MODEL_KEY")
    env |= {"OPENAI_COMPATIBLE_API_KEY": key} if key else {}
    converse({"provider": "openai-compatible", "name": ENV["KNEO_TEST_MODEL"]}, env, streamed=streamed)
