"""Runs that end in the transaction that records them: those without an enabled step."""

from __future__ import annotations

from service_bench import DRAFT, Bench, spec_of


def test_a_run_without_enabled_steps_ends_like_any_other(bench: Bench) -> None:
    started = bench.start(spec_of({**DRAFT, "enabled": False}))
    run = bench.get(f"/runs/{started['run_id']}")
    assert run["status"] == "succeeded"
    assert run["completed_at"] == run["created_at"]
    events = bench.get(f"/audit-events?run_id={run['id']}")["events"]
    assert sorted(event["event_type"] for event in events) == ["run.created", "run.succeeded"]
    assert [event["type"] for event in bench.get(f"/runs/{run['id']}/trace")["events"]] == [
        "workflow_started",
        "workflow_completed",
    ]
