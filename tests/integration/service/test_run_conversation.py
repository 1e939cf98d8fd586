"""The run of an agent: its model, the API, the command line and the console show the same calls, with what a person changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

import pytest
from console_pages import signed_in
from kneo_process import eventually
from model_server import Call, ModelServer, Reply, model_server
from service_bench import Bench

from kneo.cli.main import run as run_kneo

MODEL = {"provider": "openai", "name": "m", "extra": {"api": "chat"}}
EUROS = {"type": "object", "properties": {"amount": {"type": "integer"}, "to": {"type": "string"}}}
PAY = {
    "description": "Pay.",
    "title": "Pay {amount} EUR",
    "implementation": "lab_functions.pay",
    "parameters": EUROS,
    "capabilities": ["privileged"],
    "review": {"before": {"human": "boss"}},
}
SECRET = "violet orchard"

Show = Callable[..., str]


@pytest.fixture
def kneo(bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Show:
    def show(*words: str, role: str = "admin") -> str:
        monkeypatch.setenv("KNEO_SERV_API_KEY", f"{role}-key")
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        assert run_kneo([*words, "--service-url", bench.url]) == 0
        return capsys.readouterr().out

    return show


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    script = [Reply(SECRET, calls=[Call("pay", {"amount": 20, "to": SECRET})], usage=(200, 20)), Reply("Paid.")]
    with model_server(script) as opened:
        monkeypatch.setenv("OPENAI_API_KEY", "key")
        monkeypatch.setenv("OPENAI_BASE_URL", opened.openai_url)
        yield opened


def start(bench: Bench, **agent: object) -> Mapping[str, object]:
    """Start a run whose agent wants to pay 20 euros, up to its question."""
    teller = {"name": "teller", "model": MODEL, "strategy": "react", "tools": ["pay"], **agent}
    spec = {
        "version": "v1",
        "agent": teller,
        "workflow": {"type": "sequential", "name": "pay", "steps": [{"id": "work", "kind": "agent", "ref": "teller"}]},
        "tools": {"pay": PAY},
        "components": {"humans": {"boss": {"prompt": "Pay this?", "decisions": ["approved", "edited", "rejected"]}}},
    }
    run = bench.start(spec, input="Invoice 7, please.")
    assert run["status"] == "paused", run
    return run


def finished(bench: Bench, run: Mapping[str, object], decision: str, **said: object) -> str:
    bench.answer(run, decision=decision, **said)  # type: ignore[arg-type]
    id_ = str(run["run_id"])
    eventually(lambda: bench.get(f"/runs/{id_}")["status"] == "succeeded")
    return id_


def calls(view: Mapping[str, object]) -> list[dict[str, object]]:
    [conversation] = view["conversations"]  # type: ignore[misc]
    return [call for message in conversation["messages"] for call in message["tool_calls"]]


def test_an_edited_call_is_the_same_for_model_api_command_line_and_console(
    bench: Bench, kneo: Show, server: ModelServer
) -> None:
    run = finished(bench, start(bench), "edited", arguments={"amount": 15, "to": SECRET})
    read = server.requests[-1].text
    assert '"amount":15' in read.replace("\\", "").replace(": ", ":")
    assert '"amount":20' not in read.replace("\\", "").replace(": ", ":")
    view = bench.get(f"/runs/{run}/conversation")
    [call] = calls(view)
    assert (call["title"], call["outcome"], call["edited_by"]) == ("Pay 15 EUR", "succeeded", "reviewer")
    assert json.loads(str(call["arguments"])) == {"amount": 15, "to": SECRET}
    assert json.loads(str(call["requested"])) == {"amount": 20, "to": SECRET}
    assert call["edits"] == [{"argument": "amount", "requested": "20", "made": "15"}]
    assert call["decisions"] == [{"by": "reviewer", "decision": "edited"}]
    assert "15" in str(call["result"])
    [conversation] = view["conversations"]
    roles = [(each["role"], (each["usage"] or {}).get("total_tokens")) for each in conversation["messages"]]
    assert roles == [("user", None), ("assistant", 220), ("assistant", 15)]
    printed = kneo("runs", "conversation", run)
    page = signed_in(bench.url, "admin").get(f"/console/runs/{run}")
    for shown in (printed, page.text):
        assert "Pay 15 EUR" in shown
        assert "edited by reviewer: amount 20 → 15" in shown
        assert "220 tokens" in shown
        assert "Invoice 7, please." in shown
    assert page.html.index('id="conversation"') < page.html.index("graph-title") < page.html.index("steps-title")


@pytest.mark.parametrize(
    ("decision", "outcome", "words"),
    [("approved", "succeeded", "approved by reviewer"), ("rejected", "not made", "rejected by reviewer")],
)
def test_a_call_shows_its_outcome_and_who_decided(
    bench: Bench, kneo: Show, server: ModelServer, decision: str, outcome: str, words: str
) -> None:
    begun = start(bench)
    [call] = calls(bench.get(f"/runs/{begun['run_id']}/conversation"))
    assert (call["outcome"], call["decisions"], call["result"]) == ("waiting", [], None)
    run = finished(bench, begun, decision)
    [call] = calls(bench.get(f"/runs/{run}/conversation"))
    assert (call["outcome"], call["edits"]) == (outcome, [])
    for shown in (kneo("runs", "conversation", run), signed_in(bench.url, "admin").get(f"/console/runs/{run}").text):
        assert words in shown
        assert outcome in shown
    assert server.requests


def test_callers_without_content_see_the_rows_without_texts(bench: Bench, kneo: Show, server: ModelServer) -> None:
    run = finished(bench, start(bench), "edited", arguments={"amount": 15, "to": SECRET})
    view = bench.get(f"/runs/{run}/conversation", role="viewer")
    [call] = calls(view)
    assert view["may_read_content"] is False
    assert (call["title"], call["outcome"], call["edited_by"]) == ("pay", "succeeded", "reviewer")
    assert call["decisions"] == [{"by": "reviewer", "decision": "edited"}]
    [conversation] = view["conversations"]
    assert [each["usage"]["total_tokens"] for each in conversation["messages"] if each["usage"]] == [220, 15]
    talk = signed_in(bench.url, "viewer").get(f"/console/runs/{run}").html
    talk = talk[talk.index('id="conversation"') : talk.index("graph-title")]
    shown = [
        json.dumps(view),
        kneo("runs", "conversation", run, role="viewer"),
        talk,
        signed_in(bench.url, "viewer").get(f"/console/runs/{run}/conversation").html,
    ]
    for text in shown:
        assert "pay" in text
        assert "reviewer" in text
        assert SECRET not in text
        assert "Invoice 7" not in text
        assert "Paid." not in text
        assert "20 → 15" not in text
    assert server.requests


def test_a_guardrail_shows_where_it_changed_a_text(bench: Bench, kneo: Show, server: ModelServer) -> None:
    rule = {"id": "no-names", "type": "keyword", "action": "redact", "config": {"keywords": ["Paid"]}}
    run = finished(bench, start(bench, guardrails={"output": [rule]}), "approved")
    [conversation] = bench.get(f"/runs/{run}/conversation")["conversations"]
    at = [each["role"] for each in conversation["messages"]]
    assert at == ["user", "assistant", "assistant", "guardrail", "assistant"]
    hit = conversation["messages"][3]["guardrail"]
    assert (hit["id"], hit["stage"], hit["outcome"]) == ("no-names", "output", "redacted")
    for shown in (kneo("runs", "conversation", run), signed_in(bench.url, "admin").get(f"/console/runs/{run}").text):
        assert "no-names" in shown
        assert "redacted" in shown
        assert "[withheld: a guardrail checks it]" in shown
    assert server.requests
