"""Usage, steps and conversations over HTTP: who may read them, and the counters of Prometheus."""

from __future__ import annotations

import pytest
from service_bench import APPROVE, DRAFT, Bench, spec_of

from kneo.records.conversation import ConversationEntry, EntryKind, EntryStatus
from kneo.store import agent_journal, runs, usage

AT = "2026-01-31T12:00:00.000000+00:00"


@pytest.fixture(scope="module")
def run_id(bench: Bench) -> str:
    """A run whose agent has asked a model once."""
    started = bench.client("operator").post(
        f"{bench.url}/v1/runs", json={"input": "hi", "spec": spec_of(DRAFT, APPROVE)}
    )
    run_id = str(started.json()["run_id"])
    parts = [{"part_kind": "text", "content": "Hello."}]
    entry = ConversationEntry(
        conversation="draft~0",
        name="model:1",
        number=1,
        kind=EntryKind.MODEL,
        status=EntryStatus.DONE,
        body={"messages": [{"kind": "response", "parts": parts, "timestamp": AT}]},
        facts={
            "agent": "writer",
            "provider": "openai",
            "model": "gpt",
            "input_tokens": 10,
            "output_tokens": 5,
            "cost_micros": 1_500_000,
        },
        started_at=AT,
        completed_at=AT,
    )
    with bench.store.write() as tx:
        run = runs.get(tx, run_id)
        assert run is not None
        agent_journal.append(tx, run_id, [entry])
        usage.record_usage(tx, run, [entry])
    return run_id


def test_a_viewer_reads_steps_and_usage(bench: Bench, run_id: str) -> None:
    viewer = bench.client("viewer")
    steps = viewer.get(f"{bench.url}/v1/runs/{run_id}/steps").json()
    [step] = steps["steps"]
    assert (step["path"], step["kind"], step["attempt"], step["status"]) == ("draft", "agent", 0, "completed")
    assert step["model"] == {"provider": "openai", "name": "gpt"}
    assert step["usage"]["total_tokens"] == 15
    assert steps["count"] == 1
    report = viewer.get(f"{bench.url}/v1/usage", params={"by": "model"}).json()
    assert [(row["provider"], row["model"], row["cost_micros"]) for row in report["usage"]] == [
        ("openai", "gpt", 1_500_000)
    ]
    assert viewer.get(f"{bench.url}/v1/usage", params={"by": "hour"}).status_code == 422


@pytest.mark.parametrize(
    ("role", "reads"), [("viewer", False), ("approver", False), ("operator", True), ("auditor", True)]
)
def test_conversations_need_a_scope_of_their_own(bench: Bench, run_id: str, role: str, reads: bool) -> None:
    answer = bench.client(role).get(f"{bench.url}/v1/runs/{run_id}/conversation")
    assert (answer.status_code, answer.json()["may_read_content"]) == (200, reads)
    [conversation] = answer.json()["conversations"]
    assert (conversation["step"], conversation["agent"]) == ("draft", "writer")
    [message] = conversation["messages"]
    assert (message["role"], message["text"], message["at"]) == ("assistant", "Hello." if reads else None, AT)


@pytest.mark.usefixtures("run_id")
def test_prometheus_counts_requests_tokens_and_cost(bench: Bench) -> None:
    text = bench.client("viewer").get(f"{bench.url}/metrics").text
    labels = 'environment="",model="gpt",provider="openai"'
    assert f"kneo_model_requests_total{{{labels}}} 1.0" in text
    assert f'kneo_model_tokens_total{{direction="output",{labels}}} 5.0' in text
    assert f"kneo_model_cost_dollars_total{{{labels}}} 1.5" in text
