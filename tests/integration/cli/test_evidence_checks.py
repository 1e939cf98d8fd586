"""The checks of evidence of ``kneo doctor``: each test makes exactly one thing wrong."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from canary_bench import PLAN, CanaryBench, canary_bench
from config_repo import SUITE, ConfigRepo
from installation_key import find_key

from kneo.api.canaries import find_result, sign_result
from kneo.cli.checks import Diagnosis, Level
from kneo.cli.serve.evidence_checks import check_evidence, check_suites
from kneo.digest import canonical_json, digest_of
from kneo.records.canary import CanaryState
from kneo.settings import Settings, from_env
from kneo.store.engine import Store
from kneo.trust.root_edit import add_key

RULE: dict[str, Any] = {
    "name": "support",
    "suite": {"name": "support", "digest": SUITE},
    "signers": {"role": "evaluator"},
    "require": [{"metric": "pass_rate", "atLeast": 0.95}],
    "maxAge": "14d",
}
RULES: dict[str, Any] = {
    "evidence": [RULE],
    "approvals": {"required": 1, "roles": ["approver"], "exclude": []},
    "people": {"bob": {"roles": ["approver"]}},
}


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> CanaryBench:
    return canary_bench(store, tmp_path)


def check(bench: CanaryBench) -> Diagnosis:
    settings: Settings = from_env({"KNEO_SERV_TRUST_ROOT": bench.repo.pin}, bench.folder)
    return check_evidence(settings, bench.store)


def _pending(bench: CanaryBench) -> None:
    """Let mail 1.1.0 have its evidence, and wait for an approval."""
    bench.repo.person("eva", "evaluator")
    bench.declare("1.0.0", **RULES)
    bench.repo.attest("mail", "1.1.0", "eva", issued_at=bench.store.clock.now())
    bench.declare("1.1.0", **RULES)
    assert bench.outcome.state == "AwaitingApproval"


@pytest.mark.parametrize(
    ("days", "message"),
    [
        (10, None),
        (12, "evidence support about mail 1.1.0 in prod expires in 48 hours."),
        (15, "evidence support about mail 1.1.0 in prod has expired."),
    ],
)
def test_evidence_about_a_pending_release_that_expires(bench: CanaryBench, days: int, message: str | None) -> None:
    _pending(bench)
    bench.later(timedelta(days=days))
    found = check(bench)
    assert (found.level, found.message if message else None) == (Level.WARNING if message else Level.OK, message)


def test_evidence_about_a_release_does_not_have_to_be_renewed(bench: CanaryBench) -> None:
    _pending(bench)
    bench.decide("bob")
    bench.reconcile()
    assert bench.served() == {"mail": "1.1.0"}
    bench.later(timedelta(days=20))
    assert check(bench).level is Level.OK


def _roll_back(bench: CanaryBench) -> None:
    bench.declare("1.1.0", {**PLAN, "every": "500 runs"})
    found = bench.start(60)
    bench.end(found, *bench.arm(found, "1.1.0"))
    bench.reconcile()
    assert bench.canary().state is CanaryState.ROLLED_BACK


def test_a_result_of_a_canary_that_git_does_not_have(bench: CanaryBench) -> None:
    root = add_key(bench.repo.root, find_key().public, principal="service", roles=["controller"])
    bench.repo.next_root(root)
    bench.repo.commit("Trust the controller")
    bench.reconcile()
    _roll_back(bench)
    found = check(bench)
    assert (found.level, found.message) == (Level.WARNING, "Git has no result of the canary of prod/mail.")
    assert found.hint is not None
    assert "kneo canary result prod/mail" in found.hint
    statement = find_result(bench.canary())
    assert statement is not None
    with bench.store.read() as tx:
        envelope = sign_result(tx, statement)
    bench.repo.write("bundles/mail/1.1.0.evidence/canary.dsse.json", canonical_json(envelope))
    bench.repo.commit("Keep the result")
    bench.reconcile()
    assert check(bench).level is Level.OK


def test_no_result_is_missed_where_none_counts(bench: CanaryBench) -> None:
    _roll_back(bench)
    assert check(bench).level is Level.OK


def test_a_pinned_suite_that_is_not_the_one_in_evals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = ConfigRepo(tmp_path / "repo")
    monkeypatch.chdir(repo.folder)
    content = {
        "apiVersion": "kneo/v1",
        "kind": "Suite",
        "metadata": {"name": "support"},
        "spec": {"cases": [{"id": "a", "input": "x", "expect": [{"status": "succeeded"}]}]},
    }
    text = yaml.safe_dump(content).encode()
    pinned = {**RULE, "suite": {"name": "support", "digest": digest_of(text)}}
    repo.environment("prod", {}, evidence=[pinned])
    settings = from_env({}, repo.folder)
    assert check_suites(settings).level is Level.OK, "suites may be elsewhere"
    repo.write("evals/support.yaml", text)
    repo.write("evals/broken.yaml", b"no: suite")
    assert check_suites(settings).level is Level.OK
    repo.write("evals/support.yaml", text + b"# changed\n")
    found = check_suites(settings)
    assert found.level is Level.WARNING
    assert f"prod pins suite support at {digest_of(text)}, and evals/support.yaml is sha256:" in found.message
    repo.write("evals/support/before.yaml", text)
    assert check_suites(settings).level is Level.OK, "one of the files is the pinned one"
