"""Replies of a model and results of tools that are no sound JSON: an honest run goes on, and every view of it is readable."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from console_pages import Browser, signed_in
from model_server import Call, ModelServer, Reply, model_server
from service_bench import Bench, Json, serving

MODEL = {"provider": "openai", "name": "m", "extra": {"api": "chat"}}
FREE = {"type": "object", "additionalProperties": True}

FUNCTIONS = """

def pay(arguments):
    with Path(__file__).with_name("paid").open("a") as file:
        file.write(repr(arguments) + chr(10))
    return {"paid": True}


def odd(arguments):
    deep = []
    for _ in range(arguments.get("deep", 0)):
        deep = [deep]
    return {"half": chr(0xD800), chr(0xDC00): chr(0), "deep": deep, "large": 2**63 + 1}


def half(arguments):
    return chr(0xD800) + "text" + chr(0)


def fails(arguments):
    raise ValueError(chr(0xD800))
"""

DEEP = "[" * 5_000 + "]" * 5_000


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server([]) as server:
        yield server


@pytest.fixture
def bench(migrated_url: str, tmp_path: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.base_url("anthropic"))
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "key")
    monkeypatch.setattr("service_bench.MORE_FUNCTIONS", FUNCTIONS)
    with serving(tmp_path / "house", migrated_url) as bench:
        yield bench
    Browser.close_all()


def spec(**agent: object) -> Json:
    tools = {
        name: {"description": f"{name}.", "implementation": f"lab_functions.{name}", "parameters": FREE}
        for name in ("pay", "odd", "half", "fails")
    }
    asked = {**tools["pay"], "implementation": "lab_functions.pay", "review": {"before": True}}
    return {
        "version": "v1",
        "agent": {
            "name": "teller",
            "model": MODEL,
            "strategy": "react",
            "tools": {"include": [*tools, "asked"], "permissions": {"allow_network": False}},
            **agent,
        },
        "tools": {**tools, "asked": asked},
    }


def paid(bench: Bench) -> list[str]:
    file = bench.folder / "paid"
    return file.read_text().splitlines() if file.exists() else []


def assert_readable(bench: Bench, run_id: str) -> None:
    """Read a run by every route and on every page."""
    for path in ("", "/trace", "/steps", "/checkpoints", "/conversation", "/conversation?whole=true", "/replay"):
        answer = bench.client("admin").get(f"{bench.url}/v1/runs/{run_id}{path}")
        assert answer.status_code == 200, (path, answer.text[:500])
        answer.json()
    for path in (
        "/v1/runs",
        "/v1/human-tasks",
        f"/v1/human-tasks?run_id={run_id}&status=all",
        "/v1/inbox",
        "/v1/usage",
    ):
        assert bench.client("admin").get(f"{bench.url}{path}").status_code == 200, path
    browser = signed_in(bench.url, "admin")
    for path in ("runs", "inbox", "usage", f"runs/{run_id}", f"runs/{run_id}/steps/1", f"runs/{run_id}/conversation"):
        page = browser.client.get(f"/console/{path}")
        assert page.status_code == 200, (path, page.text[-500:])


HOSTILE: Mapping[str, list[Call]] = {
    "arguments 5,000 deep": [Call("pay", written=f'{{"x": {DEEP}}}')],
    "arguments 500 deep": [Call("pay", written=f'{{"x": {"[" * 500}{"]" * 500}}}')],
    "arguments 100 deep": [Call("pay", written=f'{{"x": {"[" * 100}{"]" * 100}}}')],
    "half a surrogate pair": [Call("pay", {"x": "\ud800"})],
    "half a surrogate pair in a key": [Call("pay", {"\udc00": 1})],
    "half a surrogate pair as it is": [Call("pay", written='{"x": "\ud800"}')],
    "infinity": [Call("pay", written='{"x": 1e999}')],
    "minus infinity": [Call("pay", written='{"x": [-1e999]}')],
    "no number": [Call("pay", written='{"x": NaN}')],
    "a number of 100 digits": [Call("pay", written=f'{{"x": 1{"0" * 100}}}')],
    "a number of 10,000 digits": [Call("pay", written=f'{{"x": 1{"0" * 10_000}}}')],
    "a key twice": [Call("pay", written='{"x": 1, "x": 2}')],
    "no JSON": [Call("pay", written="\ud800")],
    "NUL": [Call("pay", written="\0")],
    "a name of half a surrogate pair": [Call("\ud800", {"x": 1})],
    "a name with NUL": [Call("pay\0", {"x": 1})],
    "a long name": [Call("pay" * 100_000, {"x": 1})],
    "an id of half a surrogate pair": [Call("other", {"x": 1}, id="\ud800")],
    "a gated call 5,000 deep": [Call("asked", written=f'{{"x": {DEEP}}}')],
    "a gated call with infinity": [Call("asked", written='{"x": 1e999}')],
    "a gated call with half a surrogate pair": [Call("asked", {"x": "\ud800"})],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_call_is_refused_and_everything_stays_readable(bench: Bench, server: ModelServer, what: str) -> None:
    server.script = [Reply(calls=[Call("pay", {"amount": 5})]), Reply(calls=HOSTILE[what]), Reply("Done.")]
    run = bench.post("/runs", {"spec": spec(), "input": "Go."})
    assert (run["status"], run["output_text"]) == ("succeeded", "Done."), run
    assert paid(bench) == ["{'amount': 5}"]
    assert_readable(bench, str(run["run_id"]))


@pytest.mark.parametrize("name", ["odd", "half", "fails"])
@pytest.mark.parametrize("deep", [0, 500])
def test_a_hostile_result_of_a_tool_is_readable(bench: Bench, server: ModelServer, name: str, deep: int) -> None:
    server.script = [Reply(calls=[Call(name, {"deep": deep})]), Reply("Done.")]
    run = bench.post("/runs", {"spec": spec(), "input": "Go."})
    assert (run["status"], run["output_text"]) == ("succeeded", "Done."), run
    if name == "odd" and not deep:
        assert str(2**63 + 1) in server.requests[-1].text
    assert_readable(bench, str(run["run_id"]))


@pytest.mark.parametrize("text", ["Half \ud800 a pair", "NUL \0", "\udfff"])
def test_a_hostile_text_is_readable(bench: Bench, server: ModelServer, text: str) -> None:
    server.script = [Reply(calls=[Call("pay", {"amount": 5})]), Reply(text, model="m\ud800")]
    run = bench.post("/runs", {"spec": spec(), "input": "Go."})
    assert (run["status"], "\ufffd" in str(run["output_text"])) == ("succeeded", True), run
    assert_readable(bench, str(run["run_id"]))


@pytest.mark.parametrize("answer", ['{"x": "\\ud800"}', f'{{"x": {DEEP}}}', '{"x": 1e999}', '{"x": NaN}'])
def test_a_hostile_answer_is_asked_for_again(bench: Bench, server: ModelServer, answer: str) -> None:
    large = {"x": 2**63 + 1}
    server.script = [Reply(answer), Reply(json.dumps(large))]
    run = bench.post("/runs", {"spec": spec(output_schema=FREE, strategy="simple", tools=None), "input": "Go."})
    assert run["status"] == "succeeded", run
    assert json.loads(str(run["output_text"])) == large or "\ufffd" in str(run["output_text"])
    assert_readable(bench, str(run["run_id"]))


@pytest.mark.parametrize("number", [2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1])
def test_integers_of_64_bits_are_kept_exactly(bench: Bench, server: ModelServer, number: int) -> None:
    server.script = [
        Reply(calls=[Call("pay", {"id": number})]),
        Reply(calls=[Call("asked", {"id": number})]),
        Reply("Done."),
    ]
    run = bench.post("/runs", {"spec": spec(), "input": "Go."})
    assert run["status"] == "paused", run
    assert_readable(bench, str(run["run_id"]))
    task = bench.get(f"/human-tasks/{run['continuation_id']}")
    assert str(number) in json.dumps(task["request"])
    bench.answer(run, decision="edited", arguments={"id": number, "amount": 1})
    assert paid(bench) == [f"{{'id': {number}}}", f"{{'amount': 1, 'id': {number}}}"]
    assert_readable(bench, str(run["run_id"]))
