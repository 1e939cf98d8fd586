"""Starts of runs with an inline spec: runs that end at once, and databases that are followed by a controller."""

from __future__ import annotations

from pathlib import Path

from service_bench import DRAFT, Bench, serving, spec_of

from kneo.store import requests


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


def test_no_run_starts_while_the_registry_is_rebuilt(tmp_path: Path) -> None:
    with serving(tmp_path, f"sqlite:///{tmp_path / 'kneo.sqlite'}", workers=0) as bench:
        with bench.store.write() as tx:
            requests.begin_rebuild(tx, "https://git.example/config.git", "main")
        refused = bench.start(expect=503)
        assert (refused["error"], bench.get("/runs")["count"]) == ("registry_rebuilding", 0)
        with bench.store.write() as tx:
            requests.end_rebuild(tx)
        # A repository is followed, and no commit of it declares an environment yet.
        assert bench.start(expect=403)["error"] == "bundle_not_approved"
