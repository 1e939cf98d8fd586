"""Times over HTTP: texts where people read them, seconds where the published clients compute with them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import build_task
from service_bench import Bench

from kneo.api.task_views import HumanTaskView
from kneo.clock import parse_time


def test_times_that_decide_something_are_seconds_as_the_published_clients_read_them(bench: Bench) -> None:
    run = bench.paused(timeout_seconds=3_600)
    for item in (bench.get(f"/runs/{run['run_id']}"), bench.get("/runs", limit=1)["runs"][0]):
        started = parse_time(item["started_at"]).timestamp()
        assert item["deadline_at"] == pytest.approx(started + 3_600)
    bench.answer(run)


def test_an_escalated_question_says_since_when_and_when_it_had_to_be_answered_at_first() -> None:
    task = build_task(created_at="2026-01-31T12:00:00+00:00", timeout_seconds=60)
    before = HumanTaskView.of(task)
    assert (before.escalated_at, "escalated_at" in before.pending_human_request) == (None, False)
    after = HumanTaskView.of(replace(task, escalated_at="2026-01-31T12:01:01+00:00"))
    asked = parse_time(task.created_at).timestamp()
    request = after.pending_human_request
    assert after.escalated_at == request["escalated_at"] == asked + 61
    assert request["original_expires_at"] == asked + 60
