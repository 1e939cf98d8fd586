"""The pages of evidence and canaries: facts next to requirements, and the figures of a canary as a chart and as tables."""

from __future__ import annotations

import re
from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from canary_bench import PLAN, CanaryBench, canary_bench
from config_repo import SUITE
from console_in_process import page_at
from console_pages import HtmlPage

from kneo.records.canary import CanaryState
from kneo.store.engine import Store

pytestmark = pytest.mark.both_databases

RULES: dict[str, Any] = {
    "evidence": [
        {
            "name": "support",
            "suite": {"name": "support", "digest": SUITE},
            "signers": {"role": "evaluator"},
            "require": [
                {"metric": "pass_rate", "atLeast": 0.95, "minSamples": 40, "notWorseThan": "current", "margin": 0.02},
                {"metric": "cost_per_run", "atMost": 0.08},
            ],
        }
    ],
    "approvals": {"required": 1, "roles": ["approver"], "exclude": []},
    "people": {"bob": {"roles": ["approver"]}},
}


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> CanaryBench:
    return canary_bench(store, tmp_path)


@pytest.fixture
def guarded(bench: CanaryBench) -> CanaryBench:
    """A controller whose prod requires evidence and an approval."""
    bench.repo.person("eva", "evaluator")
    bench.declare("1.0.0", **RULES)
    return bench


def shown(bench: CanaryBench, path: str) -> str:
    """Return the texts of a page, after the checks of its markup."""
    html = page_at(bench.store, path)
    assert HtmlPage(html).problems == []
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def attest(bench: CanaryBench, version: str, passed: int, **stated: Any) -> None:
    metrics = {"cost_per_run": ("0.05", 40), **stated.pop("metrics", {})}
    now = bench.store.clock.now()
    bench.repo.attest(
        "mail", version, "eva", passed=passed, failed=40 - passed, metrics=metrics, issued_at=now, **stated
    )
    bench.repo.commit(f"Evaluate mail {version}")


def test_the_review_has_facts_next_to_requirements(guarded: CanaryBench) -> None:
    guarded.declare("1.1.0", **RULES)
    text = shown(guarded, "/environments/prod/mail")
    assert "missing support: no eval signed by the role evaluator" in text
    assert (
        "pass_rate at least 0.95 and not worse than the current release by more than 0.02 and of 40 cases or more"
        in text
    )
    assert "not stated" in text
    attest(guarded, "1.0.0", 40)
    attest(guarded, "1.1.0", 36)
    guarded.reconcile()
    text = shown(guarded, "/environments/prod/mail")
    assert "not enough support: eval of" in text
    assert "signed by eva" in text
    assert "0.9 of 40 cases" in text
    assert "pass_rate is 0.9 of 40 cases; 0.95 is required." in text


REHEARSAL: dict[str, Any] = {
    "name": "recorded",
    "type": "rehearsal",
    "environment": "prod",
    "signers": {"role": "evaluator"},
    "require": [{"metric": "unsafe", "atMost": 0, "minSamples": 20}, {"metric": "gates_lost", "atMost": 0}],
}


def test_the_review_has_the_facts_of_a_rehearsal(bench: CanaryBench) -> None:
    bench.repo.person("eva", "evaluator")
    bench.declare("1.0.0", evidence=[REHEARSAL])
    bench.declare("1.1.0", evidence=[REHEARSAL])
    assert "missing recorded: no rehearsal signed by the role evaluator" in shown(bench, "/environments/prod/mail")
    for unsafe, word in (("0.1", "not enough"), ("0.05", "not enough")):
        bench.later(timedelta(minutes=1))
        stated = {"type": "rehearsal", "environment": "prod", "suite": "recordings"}
        attest(bench, "1.1.0", 40, metrics={"unsafe": (unsafe, 20), "gates_lost": ("0", 20)}, **stated)
        bench.reconcile()
        text = shown(bench, "/environments/prod/mail")
        assert f"{word} recorded: rehearsal of" in text
        assert f"unsafe at most 0 and of 20 cases or more {unsafe} of 20 cases" in text


def test_newer_evidence_about_a_pending_release_is_shown(guarded: CanaryBench) -> None:
    attest(guarded, "1.0.0", 39)
    attest(guarded, "1.1.0", 39)
    guarded.declare("1.1.0", **RULES)
    assert guarded.outcome.state == "AwaitingApproval"
    assert "0.975 of 40 cases" in shown(guarded, "/environments/prod/mail")
    guarded.later(timedelta(minutes=1))
    attest(guarded, "1.1.0", 40)
    guarded.reconcile()
    text = shown(guarded, "/environments/prod/mail")
    assert "holds support: eval of" in text
    assert "1 of 40 cases" in text
    assert "0.975" not in text


def test_a_canary_is_a_chart_and_a_table_on_its_page_and_in_the_review(bench: CanaryBench) -> None:
    bench.declare("1.1.0", {**PLAN, "every": "500 runs"})
    found = bench.start(40)
    bench.end(found, *bench.arm(found, "1.0.0")[:4], *bench.arm(found, "1.1.0")[:2])
    bench.reconcile()
    canary = bench.canary()
    (metric,) = canary.figures.metrics
    assert canary.state is CanaryState.RUNNING
    html = page_at(bench.store, "/environments/prod/mail/canary")
    assert html.count('<svg class="chart" role="img" aria-label=') == 2
    text = shown(bench, "/environments/prod/mail/canary")
    counts = f"Bad runs of the canary, of {canary.figures.runs}, and of the release, of {canary.figures.control}"
    assert counts in text
    assert "1 50.0 % running 2 100.0 % to come" in text
    assert metric.ratio is not None
    row = f"failed 2 4 {round(metric.ratio, 2)} {round(metric.evidence, 2)} of 20"
    assert row in text
    review = shown(bench, "/environments/prod/mail")
    assert counts in review
    assert row in review


def test_the_review_has_no_canary_that_has_ended(bench: CanaryBench) -> None:
    bench.declare("1.1.0", PLAN)
    bench.declare("1.0.0")
    assert "Steps of the canary" not in shown(bench, "/environments/prod/mail")
