"""A rejection stands until the person who made it approves later; and when decisions count at all. On both databases."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from controller_bench import Bench

from kneo import registry
from kneo.controller.stages.report import Ready
from kneo.digest import Digest
from kneo.errors import Invalid, Untrusted
from kneo.spec.environment import parse_environment
from kneo.store import releases
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.trust.dsse import serialise, sign
from kneo.trust.statement import PAYLOAD_TYPE, ApprovalDecision, build_approval

RULE: dict[str, object] = {"required": 1, "roles": ["approver"], "signed": True}
MINUTE = timedelta(minutes=1)


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    """A release that waits, and two people who may approve it with keys of their own."""
    made = Bench(store, tmp_path)
    made.repo.person("bob", "approver")
    made.repo.person("cid", "approver")
    made.repo.commit("Trust bob and cid")
    made.reconcile()
    made.repo.bundle("mail", "1.0.0")
    made.repo.environment("prod", {"mail": "1.0.0"}, approvals=RULE)
    made.repo.commit("Release mail")
    assert made.reconcile().outcomes["prod"].state == "AwaitingApproval"
    return made


def _decide(
    bench: Bench,
    person: str,
    decision: ApprovalDecision = ApprovalDecision.APPROVE,
    *,
    at: datetime | None = None,
    file: str = "",
) -> Path:
    return bench.repo.approve("prod", "mail", "1.0.0", person, decision=decision, issued_at=at, file=file or None)


def _state(bench: Bench, message: str) -> str:
    bench.repo.commit(message)
    return bench.reconcile().outcomes["prod"].state


def _delete(bench: Bench, rejection: Path) -> None:
    rejection.unlink()


def _replace(bench: Bench, rejection: Path) -> None:
    rejection.write_bytes(b"{}")


def _hide(bench: Bench, rejection: Path) -> None:
    for number in range(100):
        (rejection.parent / f"0{number}.dsse.json").write_bytes(b"{}")


def _bring_an_older_approval(bench: Bench, rejection: Path) -> None:
    _decide(bench, "bob", at=bench.store.clock.now() - 10 * MINUTE, file="held-back")


def _tighten(bench: Bench, rejection: Path) -> None:
    bench.repo.environment("prod", {"mail": "1.0.0"}, approvals=RULE, atomic=True)


def _wait_until_it_expired(bench: Bench, rejection: Path) -> None:
    bench.store.clock.advance(timedelta(days=20))


@pytest.mark.parametrize(
    "attempt", [_delete, _replace, _hide, _bring_an_older_approval, _tighten, _wait_until_it_expired]
)
def test_somebody_without_a_key_does_not_undo_a_rejection(bench: Bench, attempt: Callable[[Bench, Path], None]) -> None:
    rejection = _decide(bench, "bob", ApprovalDecision.REJECT)
    assert _state(bench, "Bob rejects") == "Rejected"
    attempt(bench, rejection)
    _decide(bench, "cid")
    assert _state(bench, "Cid approves") == "Rejected"
    assert bench.served() == {}


def test_whoever_rejected_takes_it_back_by_approving_later(bench: Bench) -> None:
    now = bench.store.clock.now()
    _decide(bench, "bob", ApprovalDecision.REJECT, at=now - 2 * MINUTE)
    assert _state(bench, "Bob rejects") == "Rejected"
    _decide(bench, "bob", at=now - MINUTE, file="later")
    assert _state(bench, "Bob approves after all") == "Ready"
    assert bench.served() == {"mail": "1.0.0"}


def test_a_rejection_among_rubbish_counts_when_it_is_seen_first(bench: Bench) -> None:
    rejection = _decide(bench, "bob", ApprovalDecision.REJECT)
    _hide(bench, rejection)
    _decide(bench, "cid")
    assert _state(bench, "Bob rejects, cid approves, and a hundred others write nothing") == "Rejected"


def test_an_approval_counts_though_its_file_is_gone(bench: Bench) -> None:
    bench.repo.environment("prod", {"mail": "1.0.0"}, approvals=RULE | {"required": 2})
    approval = _decide(bench, "bob")
    assert _state(bench, "Require two, and bob approves") == "AwaitingApproval"
    approval.unlink()
    _decide(bench, "cid")
    assert _state(bench, "Cid approves") == "Ready"


def test_the_reason_of_a_rejection_is_told(bench: Bench) -> None:
    envelope = _envelope(bench, ApprovalDecision.REJECT, reason="It promises too much")
    with bench.store.write() as tx:
        registry.record_signed_decision(tx, envelope, registry.trust_root(tx, bench.repo.pin).keys)
    outcome = bench.reconcile().outcomes["prod"]
    assert outcome.state == "Rejected"
    assert "bob rejected mail 1.0.0. Reason: It promises too much" in bench.pending()[0].message
    assert bench.events("release.rejected")[0]["reason"] == "It promises too much"


def test_a_decision_that_came_with_git_and_then_over_http_is_recorded_as_both(bench: Bench) -> None:
    path = _decide(bench, "bob", ApprovalDecision.REJECT)
    assert _state(bench, "Bob rejects") == "Rejected"
    assert _origins(bench) == ["git"]
    with bench.store.write() as tx:
        root = registry.trust_root(tx, bench.repo.pin)
        first = registry.record_signed_decision(tx, path.read_bytes(), root.keys)
        again = registry.record_signed_decision(tx, path.read_bytes(), root.keys)
    assert (first, first.origin) == (again, "registry")
    assert _origins(bench) == ["registry"]
    assert len(bench.events("release.rejected")) == 1


def _origins(bench: Bench) -> list[str]:
    with bench.store.read() as tx:
        return [record.origin for record in releases.list_approvals(tx, "prod") if record.subject_name == "mail"]


def test_a_decision_dated_ahead_counts_for_nothing_yet(bench: Bench) -> None:
    _decide(bench, "bob", at=bench.store.clock.now() + timedelta(hours=1))
    assert _state(bench, "Bob approves in an hour") == "AwaitingApproval"
    envelope = _envelope(bench, ApprovalDecision.APPROVE, at=bench.store.clock.now() + timedelta(hours=1))
    with bench.store.write() as tx:
        keys = registry.trust_root(tx, bench.repo.pin).keys
        with pytest.raises(Untrusted) as refused:
            registry.record_signed_decision(tx, envelope, keys)
    assert refused.value.code == "NotYetValid"
    bench.store.clock.advance(timedelta(hours=2))
    assert bench.reconcile().outcomes["prod"] == Ready(1)


def test_nobody_signs_for_longer_than_a_year(bench: Bench) -> None:
    with pytest.raises(Invalid) as refused:
        _envelope(bench, ApprovalDecision.APPROVE, days=367)
    assert refused.value.code == "Malformed"


def test_an_empty_database_hears_the_same_from_git_alone(bench: Bench, tmp_path: Path) -> None:
    now = bench.store.clock.now()
    bench.repo.agree("prod")
    bench.repo.agree("dev")
    _decide(bench, "bob", ApprovalDecision.REJECT, at=now - 2 * MINUTE)
    _decide(bench, "cid", at=now - 2 * MINUTE)
    assert _state(bench, "Bob rejects, cid approves") == "Rejected"
    assert _rebuilt(bench, tmp_path / "one") == ("Rejected", {})
    _decide(bench, "bob", at=now - MINUTE, file="later")
    assert _state(bench, "Bob approves after all") == "Ready"
    assert _rebuilt(bench, tmp_path / "two") == ("Ready", {"mail": "1.0.0"})


def _rebuilt(bench: Bench, folder: Path) -> tuple[str, dict[str, str]]:
    folder.mkdir()
    again = Bench.__new__(Bench)
    again.__dict__ |= bench.__dict__
    again.store, again.folder = open_store(f"sqlite:///{folder / 'again.sqlite'}", bench.store.clock), folder
    state, served = again.reconcile().outcomes["prod"].state, again.served()
    again.store.close()
    return state, served


def test_an_expired_trust_root_admits_no_decision_and_no_promotion(bench: Bench) -> None:
    bench.repo.environment("dev", {"mail": "1.0.0"})
    assert _state(bench, "Release mail to dev") == "AwaitingApproval"
    assert bench.served("dev") == {"mail": "1.0.0"}
    bench.store.clock.advance(timedelta(days=366))
    at = bench.store.clock.now() - MINUTE
    bench.repo.approve("prod", "mail", "1.0.0", "bob", issued_at=at, days=370)
    assert _state(bench, "Bob approves after the end") == "Expired"
    assert (bench.pending()[0].gate, bench.served(), bench.served("dev")) == ("trust", {}, {"mail": "1.0.0"})


def test_an_approval_from_before_the_end_does_not_promote_after_it(bench: Bench) -> None:
    bench.store.clock.advance(timedelta(days=364))
    envelope = _envelope(bench, ApprovalDecision.APPROVE, person="cid", at=bench.store.clock.now())
    with bench.store.write() as tx:
        registry.record_signed_decision(tx, envelope, registry.trust_root(tx, bench.repo.pin).keys)
    bench.store.clock.advance(timedelta(days=2))
    assert bench.reconcile().outcomes["prod"].state == "Expired"
    assert bench.served() == {}


def _envelope(
    bench: Bench,
    decision: ApprovalDecision,
    *,
    person: str = "bob",
    at: datetime | None = None,
    days: int = 7,
    reason: str | None = None,
) -> bytes:
    file = bench.repo.folder / "environments/prod.yaml"
    issued = at or bench.store.clock.now()
    statement = build_approval(
        bundle_name="mail",
        bundle_digest=Digest(str(bench.pending()[0].subject)),
        environment="prod",
        policy_digest=parse_environment(file.read_bytes(), file=file.name).policy_digest,
        decision=decision,
        issued_at=issued,
        expires=issued + timedelta(days=days),
        reason=reason,
    )
    return serialise(sign(PAYLOAD_TYPE, statement.payload, bench.repo.people[person]))
