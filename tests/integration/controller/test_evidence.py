"""The evidence gate through the whole controller: signed results in Git decide, and nothing else does. On both databases."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from config_repo import SUITE
from controller_bench import Bench
from operation_context import operation_context
from pydantic_core import to_json
from sqlalchemy import Delete, Update, delete, update

from kneo.api.promotion_receipts import list_promotion_receipts
from kneo.clock import ManualClock, SystemClock
from kneo.controller.approval_receipts import ReceiptTerms, check_attestation
from kneo.controller.stages import attestations as stages
from kneo.controller.stages.evidence import _memories
from kneo.controller.stages.report import Ready
from kneo.digest import Digest
from kneo.errors import Invalid
from kneo.store import releases
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.requests import ControllerRequest
from kneo.store.tables import attestations
from kneo.trust.dsse import add_signature, parse_envelope, serialise
from kneo.trust.result import VerifiedResult, verify_result
from kneo.trust.root import verify_chain

pytestmark = pytest.mark.both_databases

OTHER = Digest("sha256:" + "6" * 64)


def rule(**changes: object) -> dict[str, object]:
    return {
        "name": "support",
        "suite": {"name": "support", "digest": SUITE},
        "signers": {"role": "evaluator"},
        "require": [{"metric": "pass_rate", "atLeast": 0.95, "minSamples": 40}],
        **changes,
    }


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    """A controller of a repository with an evaluator, whose prod requires evidence."""
    bench = Bench(store, tmp_path)
    bench.repo.person("eva", "evaluator")
    _require(bench, {}, rule())
    bench.repo.commit("Require evidence")
    bench.reconcile()
    bench.repo.bundle("mail", "1.0.0")
    return bench


def _require(bench: Bench, releases: dict[str, str], *rules: dict[str, object], **spec: object) -> None:
    bench.repo.environment("prod", releases, evidence=list(rules), **spec)


def _release(bench: Bench, version: str = "1.0.0", *rules: dict[str, object]) -> str:
    """Declare a version of mail; return the reason that blocks it, or Ready."""
    _require(bench, {"mail": version}, *(rules or (rule(),)))
    bench.repo.commit(f"Release mail {version}")
    return bench.reconcile().outcomes["prod"].state


def _later(bench: Bench, by: timedelta) -> None:
    assert isinstance(bench.store.clock, ManualClock)
    bench.store.clock.advance(by)


def test_a_release_waits_for_its_evidence_and_a_right_statement_opens_the_gate(bench: Bench) -> None:
    assert _release(bench) == "AwaitingEvidence"
    pending = bench.pending()[0]
    expected = f"No evidence support about mail 1.0.0 signed by evaluator for suite {SUITE}."
    assert (pending.gate, pending.message, pending.who) == ("evidence", expected, ("eva",))
    bench.repo.attest("mail", "1.0.0", "eva")
    bench.repo.commit("Add evidence")
    assert isinstance(bench.reconcile().outcomes["prod"], Ready)
    assert bench.served() == {"mail": "1.0.0"}
    (accepted,) = bench.events("attestation.accepted")
    (promoted,) = bench.events("release.promoted")
    assert promoted["attestations"] == [accepted["attestation"]]


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ({"digest": OTHER}, "AwaitingEvidence"),
        ({"suite_digest": OTHER}, "AwaitingEvidence"),
        ({"type": "rehearsal", "environment": "prod"}, "AwaitingEvidence"),
        ({"environment": "dev"}, "AwaitingEvidence"),
        ({"scripted": True}, "AwaitingEvidence"),
        ({"passed": 37, "failed": 3}, "EvidenceFailed"),
        ({"passed": 39}, "EvidenceFailed"),
        ({"metrics": {"pass_rate": ("0.94", 40)}}, "EvidenceFailed"),
    ],
    ids=str,
)
def test_a_statement_that_does_not_fit_blocks(bench: Bench, statement: dict[str, object], reason: str) -> None:
    bench.repo.attest("mail", "1.0.0", "eva", **statement)
    assert _release(bench) == reason
    assert bench.served() == {}


def test_the_message_names_the_bound_that_is_missed(bench: Bench) -> None:
    bench.repo.attest("mail", "1.0.0", "eva", metrics={"pass_rate": ("0.91", 40)})
    _release(bench)
    assert bench.pending()[0].message == "Evidence support: pass_rate is 0.91 of 40 cases; 0.95 is required."


def test_a_person_of_another_role_signs_no_evidence(bench: Bench) -> None:
    bench.repo.person("bob", "approver")
    bench.repo.attest("mail", "1.0.0", "bob")
    assert _release(bench) == "AwaitingEvidence"


def test_the_signer_of_the_bundle_signs_no_evidence_by_any_key_or_spelling(bench: Bench) -> None:
    with pytest.raises(Invalid, match="has two spellings"):
        bench.repo.person("Ann", "evaluator")
    bench.repo.person("ann", "evaluator")
    bench.repo.attest("mail", "1.0.0", "ann")
    assert _release(bench) == "AwaitingEvidence"


def test_an_author_is_excluded_where_the_rule_says_so(bench: Bench) -> None:
    key = bench.repo.person("cid", "release")
    bench.repo.person("ann", "evaluator")
    bench.repo.commit("Trust them")
    bench.reconcile()
    bench.repo.bundle("mail", "1.1.0", keys=[key])
    bench.repo.attest("mail", "1.1.0", "ann")
    both = {"role": "evaluator", "exclude": ["bundle_signer", "author"]}
    assert _release(bench, "1.1.0", rule(signers=both)) == "AwaitingEvidence"
    assert _release(bench, "1.1.0") == "AwaitingEvidence", "the rule before it holds until the next commit"
    bench.repo.commit("Nothing")
    assert isinstance(bench.reconcile().outcomes["prod"], Ready)


def test_a_key_that_was_revoked_before_the_first_sight_does_not_count(bench: Bench) -> None:
    bench.repo.attest("mail", "1.0.0", "eva")
    bench.repo.revoke("eva")
    assert _release(bench) == "AwaitingEvidence"


def test_the_newest_statement_decides_and_deleting_its_file_changes_nothing(bench: Bench) -> None:
    now = SystemClock().now()
    bench.repo.attest("mail", "1.0.0", "eva", issued_at=now - timedelta(hours=1))
    failing = bench.repo.attest("mail", "1.0.0", "eva", passed=1, failed=39, issued_at=now)
    assert _release(bench) == "EvidenceFailed"
    failing.unlink()
    bench.repo.commit("Delete the failing result")
    assert bench.reconcile().outcomes["prod"].state == "EvidenceFailed"
    later = now + timedelta(minutes=1)
    _later(bench, timedelta(minutes=2))
    bench.repo.attest("mail", "1.0.0", "eva", issued_at=later)
    bench.repo.commit("Evaluate again")
    assert isinstance(bench.reconcile().outcomes["prod"], Ready)


def test_a_statement_that_was_removed_from_the_database_blocks(bench: Bench) -> None:
    _tamper(bench, delete(attestations))
    assert bench.reconcile().outcomes["prod"].state == "EvidenceLost"


def test_a_statement_that_was_dated_back_in_the_database_blocks(bench: Bench) -> None:
    _tamper(bench, update(attestations).values(issued_at="2020-01-01T00:00:00.000Z"))
    assert bench.reconcile().outcomes["prod"].state == "EvidenceFailed", "what was verified is remembered"
    _memories.clear()
    assert bench.reconcile().outcomes["prod"].state == "EvidenceLost", "as in another process"


def _tamper(bench: Bench, change: Delete | Update) -> None:
    """Change the row of the newest result, which fails, and delete its file."""
    now = SystemClock().now()
    bench.repo.attest("mail", "1.0.0", "eva", issued_at=now - timedelta(hours=1))
    failing = bench.repo.attest("mail", "1.0.0", "eva", passed=1, failed=39, issued_at=now)
    assert _release(bench) == "EvidenceFailed"
    digest = parse_envelope(failing.read_bytes()).digest
    failing.unlink()
    with bench.store.write() as tx:
        tx.connection.execute(change.where(attestations.c.payload_digest == digest))
    bench.repo.commit("Delete the failing result")


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The attestations whose signatures were verified."""
    seen: list[bytes] = []

    def counted(envelope: bytes, **options: Any) -> VerifiedResult:
        seen.append(envelope)
        return verify_result(envelope, **options)

    monkeypatch.setattr(stages, "verify_result", counted)
    return seen


def test_each_statement_is_verified_once_under_a_trust_root(bench: Bench, verified: list[bytes]) -> None:
    now, reconciler, lease = SystemClock().now(), bench.reconciler(), bench.lease()

    def release(**changes: object) -> tuple[str, int]:
        _require(bench, {"mail": "1.0.0"}, rule(**changes))
        bench.repo.commit("Release")
        verified.clear()
        return reconciler.reconcile(lease).outcomes["prod"].state, len(verified)

    for minute in range(20):
        bench.repo.attest("mail", "1.0.0", "eva", passed=1, failed=39, issued_at=now - timedelta(minutes=minute))
    assert release() == ("EvidenceFailed", 40), "once in the commit, and once as it is recorded"
    assert release(maxAge="31d") == ("EvidenceFailed", 0)
    bench.repo.attest("mail", "1.0.0", "eva", passed=2, failed=38, issued_at=now + timedelta(minutes=1))
    assert release(maxAge="32d") == ("EvidenceFailed", 2), "the new one"
    assert "0.05 of 40 cases" in bench.pending()[0].message
    bench.repo.revoke("eva", compromised_since=bench.repo.now - timedelta(days=1))
    assert release() == ("AwaitingEvidence", 42), "under another trust root the files and the rows are verified again"
    assert release(maxAge="31d") == ("AwaitingEvidence", 0)


def test_of_two_statements_of_one_time_the_review_shows_the_one_that_blocks(bench: Bench) -> None:
    now, shown = SystemClock().now(), set()
    for cost in range(4):
        metrics = {"cost_per_run": (str(cost), 40)}
        bench.repo.attest(
            "mail", "1.0.0", "eva", issued_at=now, metrics=metrics, passed=40 if cost else 1, failed=0 if cost else 39
        )
        assert _release(bench) == "EvidenceFailed"
        with bench.store.read() as tx:
            plan = releases.pending_plan(tx, bench.pending()[0].id)
        assert plan is not None
        shown.add(json.dumps(plan.content["facts"]))
    assert len(shown) == 1


def test_old_evidence_does_not_count(bench: Bench) -> None:
    issued = SystemClock().now() - timedelta(days=16, minutes=5)
    bench.repo.attest("mail", "1.0.0", "eva", issued_at=issued)
    assert _release(bench, "1.0.0", rule(maxAge="14d")) == "EvidenceExpired"
    assert bench.pending()[0].message == "Evidence support: It is 16 days old; 14 are allowed."


def test_evidence_that_is_dated_in_the_future_counts_once_that_time_has_come(bench: Bench) -> None:
    bench.repo.attest("mail", "1.0.0", "eva", issued_at=SystemClock().now() + timedelta(hours=2))
    assert _release(bench) == "AwaitingEvidence"
    assert bench.events("attestation.accepted") == []
    reconciler = bench.reconciler()
    assert reconciler.reconcile(bench.lease()).outcomes["prod"].state == "AwaitingEvidence"
    _later(bench, timedelta(hours=3))
    assert isinstance(reconciler.reconcile(bench.lease()).outcomes["prod"], Ready)


def test_scripted_results_count_where_the_rule_allows_them(bench: Bench) -> None:
    bench.repo.attest("mail", "1.0.0", "eva", scripted=True)
    assert _release(bench) == "AwaitingEvidence"
    assert _release(bench, "1.0.0", rule(allowScripted=True)) == "AwaitingEvidence", "the rule is weaker"
    bench.repo.commit("Nothing")
    assert isinstance(bench.reconcile().outcomes["prod"], Ready)


def test_a_release_is_compared_with_the_current_one(bench: Bench) -> None:
    compared = rule(require=[{"metric": "pass_rate", "notWorseThan": "current", "margin": 0.02}])
    _require(bench, {}, compared)
    bench.repo.commit("Compare")
    bench.reconcile()
    for version in ("1.1.0", "1.2.0", "1.3.0"):
        bench.repo.bundle("mail", version)
    first = bench.repo.attest("mail", "1.0.0", "eva", passed=96, failed=4)
    text = first.read_bytes()
    first.unlink()
    bench.repo.attest("mail", "1.1.0", "eva", passed=95, failed=5)
    bench.repo.attest("mail", "1.2.0", "eva", passed=94, failed=6)
    bench.repo.attest("mail", "1.3.0", "eva", passed=90, failed=10)
    bench.repo.environment("prod", {"mail": "1.0.0"})
    bench.repo.agree("prod")
    bench.repo.commit("Release without evidence")
    bench.reconcile()
    bench.repo.commit("Nothing")
    bench.reconcile()
    assert bench.served() == {"mail": "1.0.0"}
    assert _release(bench, "1.1.0", compared) == "EvidenceIncomparable"
    assert "The current release has none." in bench.pending()[0].message
    first.write_bytes(text)
    assert _release(bench, "1.1.0", compared) == "Ready", (
        "evidence of the current release is read, which Git declares no more"
    )
    assert _release(bench, "1.3.0", compared) == "EvidenceFailed"
    assert "worse than 0.95 of the current release with a margin of 0.02" in bench.pending()[0].message
    assert _release(bench, "1.2.0", compared) == "Ready"


def test_a_version_that_was_released_before_needs_no_new_evidence(bench: Bench) -> None:
    bench.repo.attest("mail", "1.0.0", "eva")
    assert _release(bench, "1.0.0", rule(maxAge="1d")) == "Ready"
    bench.repo.bundle("mail", "1.1.0")
    bench.repo.attest("mail", "1.1.0", "eva")
    assert _release(bench, "1.1.0", rule(maxAge="1d")) == "Ready"
    _later(bench, timedelta(days=2))
    assert _release(bench, "1.0.0", rule(maxAge="1d")) == "Ready"
    assert bench.served() == {"mail": "1.0.0"}


def test_every_rule_has_to_hold(bench: Bench) -> None:
    bench.repo.attest("mail", "1.0.0", "eva")
    other = rule(name="cost", require=[{"metric": "cost_per_run", "atMost": 0.08}])
    assert _release(bench, "1.0.0", rule(), other) == "EvidenceFailed"
    bench.repo.attest("mail", "1.0.0", "eva", metrics={"cost_per_run": ("0.081", 40)})
    bench.repo.commit("State the cost")
    assert bench.reconcile().outcomes["prod"].state == "EvidenceFailed"
    assert "cost_per_run is 0.081 of 40 cases; at most 0.08 is allowed." in bench.pending()[0].message


def test_a_weaker_rule_waits_for_approval_and_a_stricter_one_does_not(bench: Bench) -> None:
    approvals = {"required": 1, "roles": ["approver"]}
    strict = rule(require=[{"metric": "pass_rate", "atLeast": 0.99, "minSamples": 40}])
    _require(bench, {}, rule(), approvals=approvals)
    bench.repo.commit("Require approvals")
    bench.reconcile()
    _require(bench, {}, strict, approvals=approvals)
    bench.repo.commit("Raise")
    assert isinstance(bench.reconcile().outcomes["prod"], Ready)
    _require(bench, {}, rule(), approvals=approvals)
    bench.repo.commit("Lower")
    outcome = bench.reconcile().outcomes["prod"]
    assert outcome.state == "AwaitingApproval"
    assert "the requirement of pass_rate in the evidence support is removed or eased" in bench.pending()[0].message


def test_a_plan_shows_the_gate_and_reads_the_files_of_its_commit(bench: Bench) -> None:
    def gates() -> list[str]:
        request = ControllerRequest(id="ask_1", kind="plan", payload={}, actor="ann", status="open", result=None)
        planned = bench.reconciler().handlers["plan"](request, bench.lease())["environments"]
        assert isinstance(planned, list)
        return [gate["reason"] for item in planned if item["name"] == "prod" for gate in item["gates"]]

    _require(bench, {"mail": "1.0.0"}, rule())
    bench.repo.commit("Release")
    assert gates() == ["AwaitingEvidence"]
    bench.repo.attest("mail", "1.0.0", "eva")
    bench.repo.commit("Add evidence")
    assert gates() == []
    assert bench.events("attestation.accepted") == []


def test_a_rebuilt_registry_decides_the_same(
    bench: Bench, tmp_path: Path, migrated_file: Callable[[str], Path]
) -> None:
    def commit(message: str) -> None:
        bench.repo.git("add", "-A")
        at = bench.store.clock.now().isoformat()
        bench.repo.git("commit", "-q", "--allow-empty", "-m", message, dated=at)
        bench.reconcile()

    aged = rule(maxAge="10d")
    bench.repo.attest("mail", "1.0.0", "eva")
    _require(bench, {"mail": "1.0.0"}, aged)
    commit("Release 1.0.0")
    bench.repo.bundle("mail", "1.1.0")
    failing = bench.repo.attest("mail", "1.1.0", "eva", passed=1, failed=39)
    _require(bench, {"mail": "1.1.0"}, aged)
    commit("Release 1.1.0, which fails")
    failing.unlink()
    _later(bench, timedelta(days=20))
    commit("Delete the failing result")
    assert bench.served() == {"mail": "1.0.0"}
    again = Bench.__new__(Bench)
    again.__dict__ |= bench.__dict__
    again.store = open_store(f"sqlite:///{migrated_file('again.sqlite')}", bench.store.clock)
    again.folder = tmp_path / "again"
    assert again.reconcile().outcomes["prod"].state == bench.reconcile().outcomes["prod"].state
    assert again.served() == bench.served() == {"mail": "1.0.0"}
    again.store.close()


def test_a_second_signature_of_a_recorded_statement_counts_from_its_own_first_sight(bench: Bench) -> None:
    bench.repo.person("bob", "approver")
    path = bench.repo.attest("mail", "1.0.0", "bob")
    assert _release(bench) == "AwaitingEvidence"
    path.write_bytes(serialise(add_signature(parse_envelope(path.read_bytes()), bench.repo.people["eva"])))
    bench.repo.commit("Sign it as an evaluator too")
    assert isinstance(bench.reconcile().outcomes["prod"], Ready)


def test_a_file_that_is_no_attestation_changes_nothing(bench: Bench) -> None:
    bench.repo.write("bundles/mail/1.0.0.evidence/x.dsse.json", b"{}")
    bench.repo.attest("mail", "1.0.0", "eva")
    assert _release(bench) == "Ready"


def test_the_receipts_of_a_promotion_have_its_attestations_and_are_verified_offline(bench: Bench) -> None:
    bench.repo.attest("mail", "1.0.0", "eva")
    assert _release(bench) == "Ready"
    with bench.store.read() as tx:
        done = releases.latest_promotion(tx, "prod", "mail")
    assert done is not None
    view = json.loads(to_json(list_promotion_receipts(operation_context(bench.store), done.id)))
    (attestation,) = view["attestations"]
    root = verify_chain(
        bench.repo.pin,
        [path.read_bytes() for path in sorted((bench.repo.folder / "environments/roots").glob("*.json"))]
        + [(bench.repo.folder / "environments/trust.json").read_bytes()],
        SystemClock().now(),
    )
    terms = ReceiptTerms(
        root=root,
        service_keys=(),
        file_of=lambda _: pytest.fail("no rules are read"),
        before=None,
        seen_at=bench.store.clock.now(),
    )
    checked = check_attestation(attestation, terms)
    assert checked.problems == ()
    assert "eva stated PASSED about mail" in "".join(checked.sentences())
    attestation["statement"]["predicate"]["result"] = "FAILED"
    assert [problem.field for problem in check_attestation(attestation, terms).problems] == ["predicate"]
    attestation["envelope"]["payload"] = attestation["envelope"]["payload"][:-8] + "AAAAAAA="
    assert check_attestation(attestation, terms).problems


REHEARSAL: dict[str, object] = {
    "name": "rehearsal",
    "type": "rehearsal",
    "environment": "prod",
    "signers": {"role": "evaluator"},
    "require": [{"metric": "unsafe", "atMost": 0, "minSamples": 20}, {"metric": "gates_lost", "atMost": 0}],
}


def _rehearsed(bench: Bench, unsafe: str, *, person: str = "eva", **fields: object) -> None:
    metrics = {"unsafe": (unsafe, 20), "gates_lost": ("0", 20)}
    stated = {"type": "rehearsal", "environment": "prod", "suite": "recordings", "metrics": metrics, **fields}
    bench.repo.attest("mail", "1.0.0", person, **stated)


@pytest.mark.parametrize(
    ("unsafe", "fields", "reason"),
    [
        ("0", {}, "Ready"),
        ("0.05", {}, "EvidenceFailed"),
        ("0", {"environment": "dev"}, "AwaitingEvidence"),
        ("0", {"type": "eval"}, "AwaitingEvidence"),
        ("0", {"person": "ann"}, "AwaitingEvidence"),
        ("0", {"metrics": {"unsafe": ("0", 19), "gates_lost": ("0", 19)}}, "EvidenceFailed"),
    ],
    ids=str,
)
def test_a_rehearsal_opens_the_gate_where_it_fits(
    bench: Bench, unsafe: str, fields: dict[str, object], reason: str
) -> None:
    bench.repo.person("ann", "evaluator")
    _require(bench, {}, REHEARSAL)
    bench.repo.agree("prod")
    bench.repo.commit("Require a rehearsal")
    bench.reconcile()
    bench.repo.commit("Nothing")
    bench.reconcile()
    _rehearsed(bench, unsafe, **fields)  # type: ignore[arg-type]
    assert _release(bench, "1.0.0", REHEARSAL) == reason


def test_the_newest_rehearsal_decides(bench: Bench) -> None:
    _require(bench, {}, rule(), REHEARSAL)
    bench.repo.commit("Require a rehearsal too")
    bench.reconcile()
    bench.repo.attest("mail", "1.0.0", "eva")
    now = SystemClock().now()
    _rehearsed(bench, "0", issued_at=now - timedelta(hours=1))
    _rehearsed(bench, "0.1", issued_at=now)
    assert _release(bench, "1.0.0", rule(), REHEARSAL) == "EvidenceFailed"
