"""Questions about tool calls: what the candidates read before they decide, and what everybody reads afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from console_pages import HtmlPage, signed_in
from kneo_process import eventually
from model_server import Call, ModelServer, Reply, model_server
from service_bench import Bench, Json

LOOK_UP = """

def lookup_order(arguments):
    return {"order": arguments["order"], "paid": 20, "password": "hunter2-secret"}


def refund(arguments, key):
    return {"refunded": arguments["euros"]}
"""


def spec(**refund: object) -> Json:
    """A support agent that looks an order up and refunds it, after finance was asked."""
    number = {"type": "integer"}
    return {
        "version": "v1",
        "agent": {
            "name": "support",
            "model": {"provider": "openai", "name": "m", "extra": {"api": "chat"}},
            "strategy": "react",
            "tools": ["lookup_order", "refund"],
        },
        "workflow": {
            "type": "sequential",
            "name": "help",
            "steps": [{"id": "answer", "kind": "agent", "ref": "support"}],
        },
        "tools": {
            "lookup_order": {
                "description": "Look an order up.",
                "implementation": "lab_functions.lookup_order",
                "parameters": {"type": "object", "properties": {"order": number}, "required": ["order"]},
            },
            "refund": {
                "description": "Refund an order.",
                "title": "Refund {euros} EUR for order {order}",
                "implementation": "lab_functions.refund",
                "parameters": {"type": "object", "properties": {"order": number, "euros": number}},
                "capabilities": ["privileged"],
                "review": {"before": {"human": "finance", "on_reject": "tell_agent"}},
                **refund,
            },
        },
        "components": {"humans": {"finance": {"prompt": "Is this refund right?"}}},
    }


@pytest.fixture
def server(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    functions = bench.folder / "lab_functions.py"
    if "lookup_order" not in functions.read_text():
        functions.write_text(functions.read_text() + LOOK_UP)
    calls = [
        Reply(calls=[Call("lookup_order", {"order": 7})]),
        Reply(calls=[Call("refund", {"order": 7, "euros": 20})]),
        Reply("Done."),
    ]
    with model_server(calls) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "key")
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        yield server


def paused(bench: Bench, **refund: object) -> Json:
    run = bench.start(spec(**refund), input="Please refund order 7.")
    assert run["status"] == "paused", run
    return run


def task_of(bench: Bench, run: Json, role: str = "reviewer") -> Json:
    return bench.get(f"/human-tasks/{run['continuation_id']}", role=role)


def test_the_title_of_the_tool_is_the_headline_everywhere(bench: Bench, server: ModelServer) -> None:
    run = paused(bench)
    title = "Refund 20 EUR for order 7"
    task = task_of(bench, run)
    assert (task["headline"], task["request"]["title"], task["request"]["prompt"]) == (
        title,
        title,
        "Is this refund right?",
    )
    [row] = [each for each in bench.get("/inbox", role="reviewer")["items"] if each["id"] == task["id"]]
    assert (row["headline"], row["excerpt"]) == (title, "")
    browser = signed_in(bench.url, "reviewer")
    page = browser.get(f"/console/inbox/{task['id']}")
    assert f"<h1>{title}</h1>" in page.html
    assert "refund is called with these arguments; then support continues" in page.text
    assert "refund is called with your arguments" in page.text
    assert "refund is not called; then support reads your reason and continues" in page.text
    assert title in browser.get("/console/inbox").text


def test_without_a_title_the_call_is_the_headline(bench: Bench, server: ModelServer) -> None:
    task = task_of(bench, paused(bench, title=None))
    assert task["headline"] == "refund(order: 7, euros: 20)"
    assert task["consequences"]["approved"]["calls"] == ["refund"]


def test_a_candidate_reads_what_the_agent_looked_up_and_no_secret(bench: Bench, server: ModelServer) -> None:
    run = paused(bench)
    hidden = bench.get(f"/runs/{run['run_id']}/conversation", role="reviewer")
    assert '"paid"' not in json.dumps(hidden)
    [call] = task_of(bench, run)["metadata"]["facts"]["calls"]
    assert (call["tool"], call["title"], call["outcome"]) == ("lookup_order", "lookup_order(order: 7)", "succeeded")
    assert json.loads(call["result_preview"])["paid"] == 20
    assert "hunter2" not in json.dumps(call)
    page = signed_in(bench.url, "reviewer").get(f"/console/inbox/{run['continuation_id']}")
    assert "lookup_order(order: 7)" in page.text
    assert "hunter2" not in page.text
    # Whoever may not decide reads the question alone; so does everyone once it is decided.
    assert "calls" not in task_of(bench, run, "viewer")["metadata"]["facts"]
    bench.answer(run, decision="approved")
    assert "calls" not in task_of(bench, run)["metadata"]["facts"]
    assert "calls" in task_of(bench, run, "auditor")["metadata"]["facts"]


@pytest.mark.parametrize(("shows", "shown"), [([], []), (["refund"], []), (["lookup_order"], ["lookup_order"])])
def test_a_tool_says_which_calls_belong_to_its_questions(
    shows: list[str], shown: list[str], bench: Bench, server: ModelServer
) -> None:
    facts = task_of(bench, paused(bench, shows=shows))["metadata"]["facts"]
    assert [call["tool"] for call in facts["calls"]] == shown


def test_after_an_edit_everybody_reads_the_call_that_was_made(bench: Bench, server: ModelServer) -> None:
    run = paused(bench)
    ended = bench.answer(run, decision="edited", arguments={"order": 7, "euros": 15})
    assert ended["status"] == "succeeded", ended
    # The model reads the call as it was made, and that a person changed it.
    asked = json.loads(server.requests[-1].text)["messages"]
    [made] = [call for each in asked for call in each.get("tool_calls", ()) if call["function"]["name"] == "refund"]
    assert json.loads(made["function"]["arguments"]) == {"order": 7, "euros": 15}
    assert "A person changed the arguments" in server.requests[-1].text
    assert '"euros": 20' not in server.requests[-1].text.replace("\\", "")
    # So do the people who read the conversation; what the model asked for stays.
    [conversation] = bench.get(f"/runs/{run['run_id']}/conversation", role="auditor")["conversations"]
    calls = [call for message in conversation["messages"] for call in message["tool_calls"]]
    [refund] = [call for call in calls if call["name"] == "refund"]
    assert json.loads(refund["arguments"]) == {"order": 7, "euros": 15}
    assert json.loads(refund["requested"]) == {"order": 7, "euros": 20}
    assert refund["edited_by"] == "reviewer"
    assert [call["edited_by"] for call in calls if call["name"] == "lookup_order"] == [None]
    trace = bench.get(f"/runs/{run['run_id']}/trace", role="auditor")
    assert "edited_by" in json.dumps(trace)


def test_the_person_of_a_link_reads_the_same_and_edits_the_arguments(bench: Bench, server: ModelServer) -> None:
    run = paused(bench)
    made = bench.post(f"/human-tasks/{run['continuation_id']}/links", {"person": "reviewer"}, role="service")
    with httpx.Client(base_url=bench.url, timeout=240) as client:
        page = HtmlPage(client.get(made["path"]).text)
        assert "Refund 20 EUR for order 7" in page.text
        assert "lookup_order(order: 7)" in page.text
        assert "hunter2" not in page.html
        [form] = page.forms
        sent = form.values(decision="edited", **{"arguments.euros": "15"})
        answered = client.post(made["path"], data=sent)
        assert "edited by reviewer" in HtmlPage(answered.text).text, answered.text[-500:]
    eventually(lambda: bench.get(f"/runs/{run['run_id']}")["status"] == "succeeded")
    asked = json.loads(server.requests[-1].text)["messages"]
    [refund] = [call for each in asked for call in each.get("tool_calls", ()) if call["function"]["name"] == "refund"]
    assert json.loads(refund["function"]["arguments"]) == {"order": 7, "euros": 15}
