"""``kneo canary``: status, acts and results, on a local database."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from canary_bench import PLAN, CanaryBench, canary_bench
from integration.cli.conftest import Answer, Kneo

from kneo.store.engine import Store
from kneo.trust.dsse import parse_envelope
from kneo.trust.result import parse_result


@pytest.fixture
def bench(store: Store, tmp_path: Path, migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> CanaryBench:
    monkeypatch.setenv("KNEO_SERV_DATABASE_URL", migrated_url)
    bench = canary_bench(store, tmp_path)
    key = store.find_key()
    assert key is not None
    monkeypatch.setenv("KNEO_SERV_SERVICE_KEY", key.dump().decode())
    bench.declare("1.1.0", PLAN)
    return bench


@pytest.fixture
def canary(kneo: Kneo) -> Callable[..., str]:
    def call(*words: str, code: int = 0) -> str:
        answer: Answer = kneo("canary", *words)
        assert answer.status == code, answer.err
        return answer.out

    return call


def test_the_status_draws_shares_and_evidence(bench: CanaryBench, canary: Callable[..., str]) -> None:
    found = bench.start(12)
    bench.end(found, *bench.arm(found, "1.0.0")[:1])
    bench.reconcile()
    shown = canary("status", "prod/mail")
    assert "50 %" in shown
    assert "now" in shown
    assert "█" in shown
    assert "failed" in shown
    view = json.loads(canary("status", "prod/mail", "--json"))
    fixed = {"state", "version", "digest", "step", "share", "steps", "began_at", "runs", "control", "metrics", "next"}
    assert fixed | {"reason"} <= view.keys()
    assert view["metrics"][0].keys() == {"metric", "candidate_bad", "control_bad", "ratio", "evidence", "limit"}


def test_operators_pause_resume_abort_and_restart(bench: CanaryBench, canary: Callable[..., str]) -> None:
    bench.drop_lease()
    assert json.loads(canary("pause", "prod/mail", "--reason", "look", "--json"))["state"] == "paused"
    assert json.loads(canary("resume", "prod/mail", "--reason", "fine", "--json"))["state"] == "running"
    canary("abort", "prod/mail", "--reason", "wrong version")
    canary("pause", "prod/mail", "--reason", "look", code=5)
    canary("restart", "prod/mail", "--reason", "again")


def test_a_bundle_without_a_canary_ends_with_status_4(bench: CanaryBench, canary: Callable[..., str]) -> None:
    canary("status", "prod/other", code=4)
    canary("status", "prod", code=2)


def test_the_result_is_signed_once_the_canary_has_ended(
    bench: CanaryBench, canary: Callable[..., str], tmp_path: Path
) -> None:
    canary("result", "prod/mail", code=5)
    bench.end(bench.start(30))
    bench.later(timedelta(seconds=1))
    bench.reconcile()
    output = tmp_path / "canary.dsse.json"
    canary("result", "prod/mail", "--output", str(output))
    statement = parse_result(parse_envelope(output.read_bytes()).payload)
    assert (statement.predicate.result, statement.facts.type) == ("PASSED", "canary")
    assert statement.facts.metrics["failed"].value == "0"
    assert json.loads(canary("result", "prod/mail")) == json.loads(output.read_bytes())
