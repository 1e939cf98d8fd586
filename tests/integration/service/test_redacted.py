"""What goes out goes without secrets, and what is worked on stays whole."""

from __future__ import annotations

import json

from service_bench import DRAFT, Bench, spec_of

from kneo.store import audit, runs

SECRET = "hunter2-abcdefgh"
INPUT = f"Ask ann@example.com, password={SECRET}"


def test_no_answer_about_a_run_carries_a_secret_and_its_steps_work_on_the_whole_text(bench: Bench) -> None:
    more = {"metadata": {"api_key": SECRET, "note": f"token: {SECRET}", "owner": "bob@example.com"}}
    run = bench.paused(input=INPUT, **more)
    path = f"/runs/{run['run_id']}"
    told = [run, *(bench.get(f"{path}{part}") for part in ("", "/trace", "/checkpoints", "/checkpoints/diff"))]
    told += [bench.get(f"{path}{part}") for part in ("/replay", "/recovery", "/graph", "/policy-report")]
    told += [bench.get("/runs", limit=1), bench.get("/audit-events", run_id=run["run_id"])]
    with bench.stream(f"{path}/events") as events:
        told.append([next(events).data for _ in range(3)])
    for answer in told:
        assert SECRET not in json.dumps(answer)
    status = bench.get(path)
    assert status["input_text"] == "Ask ann@example.com, password=[REDACTED]"
    assert status["metadata"]["caller_metadata"] == {
        "api_key": "[REDACTED]",
        "note": "token=[REDACTED]",
        "owner": "[REDACTED_EMAIL]",
    }
    with bench.store.read() as tx:
        stored = runs.get(tx, str(run["run_id"]))
    assert stored is not None
    assert stored.input_text == INPUT
    done = bench.answer(run)
    assert done["output_text"] == "published: Final answer: Ask ann@example.com, password=[REDACTED]"
    published = (bench.folder / "published.jsonl").read_text()
    assert SECRET in published


def test_the_audit_log_is_shown_without_secrets_and_with_the_people(bench: Bench) -> None:
    facts = {"error": f"password={SECRET}", "api_key": SECRET, "assignee": "ann@example.com"}
    with bench.store.write() as tx:
        audit.record(tx, "test.happened", actor="bob@example.com", run_id="run_audited", metadata=facts)
    event = bench.get("/audit-events", run_id="run_audited")["events"][0]
    shown = {"error": "password=[REDACTED]", "api_key": "[REDACTED]", "assignee": "ann@example.com"}
    assert (event["actor"], event["metadata"], event["payload"]) == ("bob@example.com", shown, shown)


def test_who_judges_a_text_reads_it_whole(bench: Bench) -> None:
    run = bench.paused(input="Write to ann@example.com")
    task = bench.get(f"/human-tasks/{run['continuation_id']}", role="reviewer")
    assert "ann@example.com" in str(task["request"]["context"])
    bench.answer(run)


def test_an_error_does_not_say_where_the_service_runs(bench: Bench) -> None:
    spec = spec_of(DRAFT, {"id": "leak", "kind": "function", "ref": "leak"}, functions={"leak": LEAK})
    failed = bench.start(spec)
    assert failed["error"] == {"type": "RuntimeError", "message": "no [PATH], token=[REDACTED]"}


LEAK = {"implementation": "lab_functions.leak"}
