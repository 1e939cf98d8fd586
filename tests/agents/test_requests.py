"""Requests to models through the providers' real libraries: recorded, repeated, postponed, bounded, without secrets."""

from __future__ import annotations

import asyncio
import logging
import traceback
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from model_server import FORMATS, Call, Format, Reply, events, model_server, overloaded, read_request
from model_turns import KEY, PROVIDERS, Conversation, Listener
from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelRequest
from pydantic_ai.tools import ToolDefinition

from kneo.agents.providers import ProviderConnection
from kneo.agents.turn import Postponed
from kneo.errors import KneoError
from kneo.records.conversation import EntryStatus
from kneo.settings import ModelSettings
from kneo.spec.models.providers import PROVIDERS as MODEL_PROVIDERS
from kneo.spec.policy import ModelPrice, ModelRules

TOOLS = [ToolDefinition(name=name, parameters_json_schema={"type": "object"}) for name in ("look", "pay")]
SHAPES = pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
MORE = ModelRequest.user_text_prompt("More.")
WIRES = pytest.mark.parametrize("wire", FORMATS)


def run(conversation: Conversation, **request: Any) -> Any:
    return asyncio.run(conversation.ask(**request))


def refusal(conversation: Conversation, kind: type[BaseException] = KneoError) -> Any:
    with pytest.raises(kind) as refused:
        run(conversation)
    return refused.value


# ---- replies ----------------------------------------------------------------------------------------------------


@SHAPES
@WIRES
def test_a_reply_is_an_entry_of_the_journal_before_it_is_used(wire: Format, streamed: bool) -> None:
    listener = Listener()
    calls = [Call("look", {"id": 7}, id="x"), Call("pay", {"amount": 5}, id="x")]
    with model_server([Reply("Let me see.", calls=calls, usage=(20, 8)), Reply("Done.")]) as server:
        conversation = Conversation(server, PROVIDERS[wire], deltas=listener if streamed else None)
        reply = run(conversation, function_tools=TOOLS)
    entry = conversation.journal.entries["model:1"]
    assert (entry.number, entry.status, entry.conversation) == (1, EntryStatus.DONE, "answer~0")
    recorded = ModelMessagesTypeAdapter.validate_python(entry.body["messages"])
    assert [message.parts for message in recorded[1:]] == [reply.parts]
    assert [(call.tool_name, call.args_as_dict()) for call in reply.tool_calls] == [
        ("look", {"id": 7}),
        ("pay", {"amount": 5}),
    ]
    assert len({call.tool_call_id for call in reply.tool_calls}) == 2
    facts = {"agent": "clerk", "provider": PROVIDERS[wire]["provider"], "model": "fake", "input_tokens": 20, "tries": 1}
    assert facts.items() <= entry.facts.items()
    assert entry.facts["output_tokens"] == 8
    assert conversation.journal.events("model_completed") == [{**entry.facts, "request": 1}]
    assert [each.streamed for each in server.requests] == [streamed]
    assert listener.text == ("Let me see." if streamed else "")


@WIRES
def test_settings_and_the_system_prompt_reach_the_wire(wire: Format) -> None:
    model = {**PROVIDERS[wire], "temperature": 0.25, "max_tokens": 77}
    with model_server([Reply("Hi.")]) as server:
        run(Conversation(server, model))
        (sent,) = server.requests
    body = sent.body
    if wire == "gemini":
        assert (body["generationConfig"]["temperature"], body["generationConfig"]["maxOutputTokens"]) == (0.25, 77)
        assert body["systemInstruction"]["parts"][0]["text"] == "Be brief."
    else:
        names = {"chat": "max_completion_tokens", "responses": "max_output_tokens", "anthropic": "max_tokens"}
        assert (body["temperature"], body[names[wire]], body["model"]) == (0.25, 77, "fake")
        assert "Be brief." in sent.text
    assert sent.key == KEY


def test_anthropic_is_always_told_a_bound() -> None:
    with model_server([Reply("Hi.")]) as server:
        run(Conversation(server, PROVIDERS["anthropic"]))
    assert server.requests[0].body["max_tokens"] == 4_096


def test_a_compatible_server_gets_max_tokens_and_no_key_of_anybody() -> None:
    with model_server([Reply("Hi.")]) as server:
        conversation = Conversation(server, {"provider": "ollama", "max_tokens": 9})
        run(conversation)
    assert (server.requests[0].body["max_tokens"], server.requests[0].key) == (9, "none")
    assert "cost_micros" not in conversation.journal.entries["model:1"].facts


@WIRES
def test_call_ids_are_distinct_and_fit_into_keys(wire: Format) -> None:
    ids = ["a:b>c", "", "x" * 200, "call_0_0", "call_0_0", "ok-1"]
    with model_server([Reply(calls=[Call("look", {"n": n}, id=each) for n, each in enumerate(ids)])]) as server:
        reply = run(Conversation(server, PROVIDERS[wire]), function_tools=TOOLS)
    made = [call.tool_call_id for call in reply.tool_calls]
    assert len(set(made)) == len(ids)
    assert all(each.replace("-", "").replace("_", "").isalnum() and len(each) <= 64 for each in made)
    assert [call.args_as_dict()["n"] for call in reply.tool_calls] == list(range(len(ids)))
    assert made[-1] == "ok-1"


@SHAPES
@WIRES
def test_a_reply_is_read_up_to_a_number_of_bytes(wire: Format, streamed: bool) -> None:
    settings = ModelSettings(reply_bytes=50_000)
    with model_server([Reply("short"), Reply("long " * 20_000)]) as server:
        conversation = Conversation(server, PROVIDERS[wire], settings=settings, deltas=Listener() if streamed else None)
        first = run(conversation)
        assert first.text == "short"
        with pytest.raises(KneoError, match="reply above 50000 bytes") as failed:
            asyncio.run(conversation.go_on([ModelRequest.user_text_prompt("Hello."), first, MORE]))
    assert failed.value.code == "model_refused"
    assert len(server.requests) == 2, "a reply that is too large is not requested again"


@WIRES
def test_a_compressed_reply_that_nobody_asked_for_is_not_read(wire: Format) -> None:
    with model_server([Reply("Hi.", headers={"Content-Encoding": "gzip"})]) as server:
        assert "compressed reply" in refusal(Conversation(server, PROVIDERS[wire])).message
    assert [request.headers["accept-encoding"] for request in server.requests] == ["identity"]


# ---- what fails, and is repeated --------------------------------------------------------------------------------


@SHAPES
@WIRES
@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 503, 529])
def test_an_error_that_may_pass_is_repeated_with_growing_waits(wire: Format, streamed: bool, status: int) -> None:
    error = Reply("Later.", status=status)
    with model_server([[error, error, Reply("Done.")]]) as server:
        conversation = Conversation(server, PROVIDERS[wire], deltas=Listener() if streamed else None)
        assert run(conversation).text == "Done."
    assert conversation.waits == [0.25, 0.5]
    assert len(server.requests) == 3
    assert [each["reason"] for each in conversation.journal.events("model_retried")] == [f"status {status}"] * 2
    assert conversation.journal.entries["model:1"].facts["tries"] == 3


@pytest.mark.parametrize(
    ("status", "code"), [(429, "model_overloaded"), (500, "model_unreachable"), (529, "model_overloaded")]
)
def test_used_up_tries_say_which_failure_it_was(status: int, code: str) -> None:
    with model_server([Reply("Later.", status=status)]) as server:
        conversation = Conversation(server, PROVIDERS["anthropic"], settings=ModelSettings(retries=2))
        error = refusal(conversation)
    assert (error.code, len(server.requests)) == (code, 3)
    assert len(conversation.journal.events("model_retried")) == 2
    assert not conversation.journal.entries


def test_an_unreachable_server_is_tried_and_then_named() -> None:
    with model_server([]) as server:
        pass
    env = {"OPENAI_BASE_URL": f"http://user:hunter2@127.0.0.1:{server.port}/v1?key=hunter2", "OPENAI_API_KEY": KEY}
    conversation = Conversation(server, PROVIDERS["chat"], env=env)
    error = refusal(conversation)
    assert error.code == "model_unreachable"
    assert error.message == (
        f"The model openai/fake at 127.0.0.1:{server.port} gave no reply in 4 tries: ModelConnectionError."
    )
    assert f"reaches 127.0.0.1:{server.port}" in error.hint
    assert "OPENAI_BASE_URL" in error.hint
    assert "hunter2" not in str(error)
    assert conversation.waits == [0.25, 0.5, 1.0]


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://api.example/v1", "api.example:443"),
        ("http://api.example", "api.example:80"),
        ("https://[2001:db8::1]/v1", "[2001:db8::1]:443"),
        ("https://a:b@api.example:8443", "api.example:8443"),
        ("https://api.example:x/v1", "its address"),
        ("nonsense", "its address"),
    ],
)
def test_an_address_is_named_by_host_and_port_alone(url: str, address: str) -> None:
    connection = ProviderConnection(provider=MODEL_PROVIDERS["openai"], wire="chat", base_url=url, key=None)
    assert connection.address == address


@SHAPES
@WIRES
@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_is_final_and_repeats_nothing_of_the_provider(
    wire: Format, streamed: bool, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with model_server([Reply("" if status == 401 else f"No: {KEY}", status=status)]) as server:
        conversation = Conversation(server, PROVIDERS[wire], deltas=Listener() if streamed else None)
        error = refusal(conversation)
    assert (error.code, len(server.requests), conversation.waits) == ("model_refused", 1, [])
    shown = "".join(traceback.format_exception(error))
    assert KEY not in shown + caplog.text + repr(conversation.journal) + repr(error.details)
    assert error.__cause__ is None
    assert error.__context__ is None


@WIRES
def test_a_reply_is_streamed_only_while_somebody_reads(wire: Format) -> None:
    listener = Listener(reads=False)
    with model_server([Reply("Plain."), Reply("Streamed.")]) as server:
        conversation = Conversation(server, PROVIDERS[wire], deltas=listener)
        first = run(conversation)
        listener.reads = True
        asyncio.run(conversation.ask("Again.", before=[ModelRequest.user_text_prompt("Hello."), first]))
    assert (first.text, listener.text, listener.ended) == ("Plain.", "Streamed.", [2])
    assert [each.streamed for each in server.requests] == [False, True]


@WIRES
@pytest.mark.parametrize("hard", [False, True], ids=["cleanly", "hard"])
@pytest.mark.parametrize("calls", [False, True], ids=["text", "calls"])
def test_a_stream_that_is_cut_after_any_event_is_never_an_answer(wire: Format, hard: bool, calls: bool) -> None:
    whole = Reply("One two three four.", calls=[Call("pay", {"amount": 5})] if calls else ())
    paths = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "anthropic": "/v1/messages"}
    probe = read_request(
        paths.get(wire, "/v1beta/models/fake:streamGenerateContent"),
        {},
        {"model": "fake", "messages": [], "input": [], "contents": [], "stream": True},
    )
    assert probe is not None
    pieces = events(probe, whole)
    said = next(n for n, each in enumerate(pieces) if any(word in each for word in FINISHED[wire]))
    for cut in range(len(pieces)):
        listener = Listener()
        with model_server([[replace(whole, cut=cut, hard=hard), whole]]) as server:
            conversation = Conversation(server, PROVIDERS[wire], deltas=listener)
            reply = run(conversation, function_tools=TOOLS)
        assert reply.text == "One two three four."
        assert [call.args_as_dict() for call in reply.tool_calls] == ([{"amount": 5}] if calls else [])
        assert listener.text == "One two three four."
        assert len(server.requests) == 2 or cut > said, f"cut after {cut} of {len(pieces)} events was taken for a reply"


FINISHED: dict[Format, tuple[bytes, ...]] = {
    "chat": (b'"finish_reason": "stop"', b'"finish_reason": "tool_calls"'),
    "responses": (b"response.completed",),
    "anthropic": (b'"type": "message_delta"',),
    "gemini": (b"finishReason",),
}
"""The words with which each format says that a reply is whole."""


@WIRES
def test_a_stream_whose_end_never_says_why_is_no_reply(wire: Format) -> None:
    with model_server([Reply("Half of", finish=None)]) as server:
        error = refusal(Conversation(server, PROVIDERS[wire], deltas=Listener(), settings=ModelSettings(retries=1)))
    assert (error.code, len(server.requests)) == ("model_unreachable", 2)


@SHAPES
def test_a_reply_that_never_comes_ends_with_its_time_limit(streamed: bool) -> None:
    with model_server([[Reply("Half", hold=True, cut=1), Reply("Done.")]]) as server:
        settings = ModelSettings(timeout_seconds=0.5)
        conversation = Conversation(
            server, PROVIDERS["chat"], deltas=Listener() if streamed else None, settings=settings
        )
        assert run(conversation).text == "Done."
    assert conversation.journal.events("model_retried")[0]["reason"] in {
        "timeout",
        "ModelAPIError",
        "ModelTimeoutError",
    }


# ---- waits that a provider asks for -----------------------------------------------------------------------------


@SHAPES
@WIRES
def test_a_short_wait_is_obeyed_and_a_long_one_postpones(wire: Format, streamed: bool) -> None:
    with model_server([[overloaded(0.05), overloaded(3), overloaded(300), Reply("Done.")]]) as server:
        conversation = Conversation(server, PROVIDERS[wire], deltas=Listener() if streamed else None)
        assert refusal(conversation, Postponed).seconds == 3
        assert conversation.waits == [0.05]
        assert refusal(conversation, Postponed).seconds == 300
        waiting = conversation.journal.entries["model:1"]
        assert (waiting.status, waiting.body) == (EntryStatus.WAITING, {})
        assert run(conversation).text == "Done."
    assert conversation.journal.entries["model:1"].status is EntryStatus.DONE
    assert [each["seconds"] for each in conversation.journal.events("model_postponed")] == [3, 300]


def test_patience_with_a_provider_ends_over_all_entries_of_a_turn() -> None:
    with model_server([overloaded(300)]) as server:
        conversation = Conversation(server, PROVIDERS["chat"], settings=ModelSettings(patience_seconds=700))
        for _ in range(2):
            postponed = refusal(conversation, Postponed)
            conversation.clock.advance(timedelta(seconds=postponed.seconds))
        assert refusal(conversation).code == "model_overloaded"
    assert len(server.requests) == 3


def test_short_waits_that_a_provider_asks_for_spend_no_try() -> None:
    with model_server([[*[overloaded(1)] * 6, Reply("Later.", status=500), Reply("Done.")]]) as server:
        conversation = Conversation(server, PROVIDERS["chat"])
        assert run(conversation).text == "Done."
    assert conversation.waits == [1.0] * 6 + [0.25]
    assert conversation.journal.entries["model:1"].facts["tries"] == 8


@pytest.mark.parametrize("asked", [1, 0.01])
def test_patience_with_short_waits_ends_too_and_no_server_is_flooded(asked: float) -> None:
    with model_server([overloaded(asked)]) as server:
        conversation = Conversation(server, PROVIDERS["chat"], settings=ModelSettings(patience_seconds=30))
        error = refusal(conversation)
    assert error.code == "model_overloaded"
    assert 20 < sum(conversation.waits) <= 30
    assert min(conversation.waits) >= asked
    assert len(server.requests) == len(conversation.waits) + 1 < 35


def test_patience_counts_short_and_long_waits_together() -> None:
    with model_server([[overloaded(300), overloaded(1)]]) as server:
        conversation = Conversation(server, PROVIDERS["chat"], settings=ModelSettings(patience_seconds=310))
        conversation.clock.advance(timedelta(seconds=refusal(conversation, Postponed).seconds))
        assert refusal(conversation).code == "model_overloaded"
    assert sum(conversation.waits) <= 10


def test_a_fallback_is_asked_when_the_first_asks_to_wait_again_and_again() -> None:
    model = {**PROVIDERS["chat"], "name": "big", "fallbacks": [{"provider": "anthropic", "name": "small"}]}
    with model_server({"big": [overloaded(1)], "small": [Reply("Small here.")]}) as server:
        conversation = Conversation(server, model)
        assert run(conversation).text == "Small here."
    assert conversation.waits == [1.0] * 3


def test_a_date_as_retry_after_is_a_wait_too() -> None:
    date = {"Retry-After": "Thu, 01 Jan 2026 00:00:30 GMT"}
    with model_server([Reply("Later.", status=503, headers=date)]) as server:
        assert refusal(Conversation(server, PROVIDERS["responses"]), Postponed).seconds == 30


@pytest.mark.parametrize("header", ["soon", "nan", "-5", ""])
def test_a_wait_that_makes_no_sense_is_one_of_ours(header: str) -> None:
    with model_server([[Reply("Later.", status=429, headers={"Retry-After": header}), Reply("Done.")]]) as server:
        conversation = Conversation(server, PROVIDERS["chat"])
        assert run(conversation).text == "Done."
    assert conversation.waits in ([0.25], [0.0])


def test_a_wait_of_years_is_an_hour() -> None:
    with model_server([Reply("Later.", status=429, headers={"Retry-After": "9" * 400})]) as server:
        conversation = Conversation(server, PROVIDERS["chat"], settings=ModelSettings(patience_seconds=1e6))
        assert refusal(conversation, Postponed).seconds == 3_600


# ---- fallbacks, budgets, prices ---------------------------------------------------------------------------------


def test_a_fallback_answers_when_the_first_is_overloaded_and_is_named() -> None:
    script = {"big": [overloaded(60), Reply("Second.")], "small": [Reply("Small here.")]}
    model = {**PROVIDERS["chat"], "name": "big", "fallbacks": [{"provider": "anthropic", "name": "small"}]}
    with model_server(script) as server:
        conversation = Conversation(server, model)
        assert run(conversation).text == "Small here."
    entry = conversation.journal.entries["model:1"]
    assert (entry.facts["provider"], entry.facts["model"], entry.facts["tries"]) == ("anthropic", "small", 2)
    assert conversation.journal.events("model_fallback") == [
        {"provider": "anthropic", "model": "small", "instead_of": "big"}
    ]
    assert [each.format for each in server.requests] == ["chat", "anthropic"]


def test_a_refusal_is_not_carried_to_a_fallback() -> None:
    model = {**PROVIDERS["chat"], "name": "big", "fallbacks": [{"provider": "anthropic", "name": "small"}]}
    with model_server({"big": [Reply("No.", status=400)], "small": [Reply("Yes.")]}) as server:
        assert refusal(Conversation(server, model)).code == "model_refused"
    assert len(server.requests) == 1


def test_the_token_budget_is_checked_before_each_request() -> None:
    with model_server([Reply("Hi.", usage=(60, 30)), Reply("More.")]) as server:
        model = {**PROVIDERS["chat"], "max_tokens": 40}
        conversation = Conversation(server, model, token_budget=100)
        run(conversation)
        error = refusal(conversation)
    assert (error.code, len(server.requests)) == ("token_budget_exceeded", 1)


@pytest.mark.parametrize(
    ("model", "prices", "cost"),
    [
        ({"provider": "ollama", "name": "mine"}, {}, None),
        ({"provider": "ollama", "name": "mine"}, {"mine": ModelPrice(input=0.2, output=0.8)}, 1_000 * 0.2 + 500 * 0.8),
        ({"provider": "openai", "name": "gpt-4o-mini"}, {}, 1_000 * 0.15 + 500 * 0.6),
        ({"provider": "openai", "name": "gpt-4o-mini"}, {"gpt-4o-mini": ModelPrice(input=1, output=1)}, 1_500),
        ({"provider": "openai", "name": "no-such-model"}, {}, None),
    ],
)
def test_the_cost_of_a_reply_is_stated_known_or_unknown(
    model: dict[str, str], prices: dict[str, ModelPrice], cost: float | None
) -> None:
    with model_server([Reply("Hi.", usage=(1_000, 500))]) as server:
        conversation = Conversation(server, model, rules=ModelRules(prices=prices))
        run(conversation)
    assert conversation.journal.entries["model:1"].facts.get("cost_micros") == cost


def test_a_reply_without_usage_has_no_known_cost() -> None:
    with model_server([Reply("Hi.", usage=(0, 0))]) as server:
        conversation = Conversation(server, {"provider": "openai", "name": "gpt-4o-mini"})
        run(conversation)
    assert "cost_micros" not in conversation.journal.entries["model:1"].facts
