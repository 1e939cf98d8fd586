"""A rejection stands until the person who made it approves later; and when decisions count at all. On both databases."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from controller_bench import Bench
from sqlalchemy import delete, select, update

from kneo import registry
from kneo.controller.stages.report import Ready
from kneo.digest import Digest
from kneo.errors import Invalid, Untrusted
from kneo.spec.environment import parse_environment
from kneo.store import releases
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.tables import environment_files
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


# ---- rules that change under a rejection ------------------------------------------------------------------------------

LEADS: dict[str, object] = {"required": 1, "roles": ["approver", "lead"], "exclude": []}
PEOPLE: dict[str, object] = {
    "bob": {"roles": ["lead"]},
    "cid": {"roles": ["approver"]},
    "ann": {"roles": ["approver"]},
}


def _declare(bench: Bench, message: str, *, releases: dict[str, str] | None = None, **changes: object) -> str:
    """Commit the rules of prod, with changes; return its state."""
    people = {name: person for name, person in PEOPLE.items() if name not in changes.get("without", ())}
    spec = {"approvals": {**LEADS, **changes.get("approvals", {})}, "people": {**people, **changes.get("people", {})}}
    bench.repo.environment("prod", {"mail": "1.0.0"} if releases is None else releases, **spec)
    return _state(bench, message)


@pytest.fixture
def rejected(store: Store, tmp_path: Path) -> Bench:
    """A release that bob, a lead, rejected through the service."""
    made = Bench(store, tmp_path)
    made.repo.bundle("mail", "1.0.0")
    assert _declare(made, "Release mail") == "AwaitingApproval"
    made.decide("bob", decision=ApprovalDecision.REJECT)
    assert made.reconcile().outcomes["prod"].state == "Rejected"
    return made


@pytest.mark.parametrize(
    "change",
    [
        {"without": ("bob",)},
        {"people": {"bob": {"roles": ["reader"]}}},
        {"approvals": {"roles": ["approver"]}},
        {"approvals": {"signed": True}},
    ],
    ids=["bob leaves", "another role", "fewer roles", "signed"],
)
def test_rules_that_end_a_rejection_need_the_approvals_of_the_rules_in_force(
    rejected: Bench, change: dict[str, object]
) -> None:
    assert _declare(rejected, "Change the rules", **change) == "AwaitingApproval"
    (waits,) = rejected.pending()
    assert waits.kind == "policy"
    assert "the rejection of mail by bob would no longer count" in waits.message
    for number in range(2):
        assert _state(rejected, f"Another commit {number}") == "AwaitingApproval"
    assert rejected.served() == {}

    rejected.decide("cid")
    rejected.reconcile()
    (ended,) = (item["overruled"] for item in rejected.events("environment.changed") if item["overruled"])
    assert ended == [rejected.events("release.rejected")[0]["approval"]]
    assert rejected.reconcile().outcomes["prod"].state == "AwaitingApproval", (
        "the rejection is ended, and no approval given"
    )
    if "signed" in str(change):
        rejected.repo.approve("prod", "mail", "1.0.0", "ann")
        assert _state(rejected, "Ann approves with her key") == "Ready"
    else:
        rejected.decide("cid")
        assert rejected.reconcile().outcomes["prod"] == Ready(1)


def test_a_rejection_of_a_version_that_is_not_declared_now_is_not_ended_by_the_way(rejected: Bench) -> None:
    assert _declare(rejected, "Take mail back", releases={}) == "Ready"
    assert _declare(rejected, "Bob leaves", releases={}, without=("bob",)) == "AwaitingApproval"
    assert _declare(rejected, "Release mail again", without=("bob",)) == "AwaitingApproval"
    assert rejected.pending()[0].kind == "policy"


def test_a_rule_about_who_may_not_approve_ends_no_rejection(store: Store, tmp_path: Path) -> None:
    bench = Bench(store, tmp_path)
    bench.repo.bundle("mail", "1.0.0")
    _declare(bench, "Release mail")
    bench.decide("ann", decision=ApprovalDecision.REJECT)
    assert bench.reconcile().outcomes["prod"].state == "Rejected"
    assert _declare(bench, "Exclude authors, one of whom is ann", approvals={"exclude": ["author"]}) == "Rejected"
    bench.decide("cid")
    assert _state(bench, "Another commit") == "Rejected"


def _member(bench: Bench, name: str) -> None:
    """Give a person a key that is not one of approvers."""
    bench.repo.person(name, "member")
    _state(bench, f"Trust {name}")


@pytest.mark.parametrize(("person", "state"), [("bob", "Rejected"), ("eve", "Ready")])
def test_a_rejection_counts_by_the_rules_that_it_names(store: Store, tmp_path: Path, person: str, state: str) -> None:
    bench = Bench(store, tmp_path)
    _member(bench, person)
    bench.repo.bundle("mail", "1.0.0")
    assert _declare(bench, "Release mail") == "AwaitingApproval"
    path = _decide(bench, person, ApprovalDecision.REJECT)
    rejection = path.read_bytes()
    path.unlink()
    assert _declare(bench, "Bob leaves", without=("bob",)) == "AwaitingApproval"
    assert bench.pending()[0].bundle == "mail", "nothing that the controller saw stands against it"
    path.write_bytes(rejection)
    _decide(bench, "ann")
    assert _state(bench, "Merge what was signed before, and ann approves") == state


@pytest.mark.parametrize("attack", ["removed", "replaced"])
def test_a_rejection_counts_where_a_person_at_the_database_takes_away_the_rules_that_it_names(
    store: Store, tmp_path: Path, attack: str
) -> None:
    bench = Bench(store, tmp_path)
    _member(bench, "bob")
    bench.repo.bundle("mail", "1.0.0")
    assert _declare(bench, "Release mail") == "AwaitingApproval"
    path = _decide(bench, "bob", ApprovalDecision.REJECT)
    rejection = path.read_bytes()
    path.unlink()
    _declare(bench, "Bob leaves", without=("bob",))
    with store.write() as tx:
        kept = {row.policy_digest: row.declaration for row in tx.connection.execute(select(environment_files))}
        (digest,) = (digest for digest, text in kept.items() if b"bob" in text)
        named = environment_files.c.policy_digest == digest
        if attack == "removed":
            tx.connection.execute(delete(environment_files).where(named))
        else:
            other = kept[digest].replace(b"bob", b"bea")
            tx.connection.execute(update(environment_files).where(named).values(declaration=other))
    path.write_bytes(rejection)
    _decide(bench, "ann")
    assert _state(bench, "Merge what was signed before, and ann approves") == "Rejected"


def test_a_person_who_left_withdraws_a_rejection_under_the_rules_that_it_named(store: Store, tmp_path: Path) -> None:
    bench = Bench(store, tmp_path)
    _member(bench, "bob")
    bench.repo.bundle("mail", "1.0.0")
    _declare(bench, "Release mail")
    now = bench.store.clock.now()
    files = [
        _decide(bench, "bob", ApprovalDecision.REJECT, at=now - 2 * MINUTE),
        _decide(bench, "bob", at=now - MINUTE, file="later"),
    ]
    texts = [path.read_bytes() for path in files]
    for path in files:
        path.unlink()
    _declare(bench, "Bob leaves", without=("bob",))
    files[0].write_bytes(texts[0])
    _decide(bench, "ann")
    assert _state(bench, "Bob's rejection arrives") == "Rejected"
    files[1].write_bytes(texts[1])
    assert _state(bench, "Bob's later approval arrives") == "Ready"


def test_a_rejection_of_the_first_file_elsewhere_is_not_ended_by_the_way(rejected: Bench) -> None:
    rejected.repo.environment("staging", {})
    assert rejected.reconcile().outcomes
    rejected.repo.commit("Add staging")
    assert rejected.reconcile().outcomes["staging"].state == "AwaitingApproval"
    rejected.decide("bob", "staging", ApprovalDecision.REJECT)
    assert rejected.reconcile().outcomes["staging"].state == "Rejected"
    rejected.store.clock.advance(MINUTE)
    rejected.decide("bob")  # the rejection in prod is withdrawn
    assert rejected.reconcile().outcomes["prod"] == Ready(1)
    assert _declare(rejected, "Bob leaves", without=("bob",)) == "AwaitingApproval"
    assert "the rejection of environments/staging.yaml by bob would no longer count" in rejected.pending()[0].message


def test_a_rebuilt_registry_ends_the_same_rejections(store: Store, tmp_path: Path) -> None:
    bench = Bench(store, tmp_path)
    _member(bench, "bob")
    bench.repo.bundle("mail", "1.0.0")
    _declare(bench, "Release mail")
    _decide(bench, "bob", ApprovalDecision.REJECT)
    assert _state(bench, "Bob rejects") == "Rejected"
    assert _declare(bench, "Bob leaves", without=("bob",)) == "AwaitingApproval"
    assert _rebuilt(bench, tmp_path / "one") == ("AwaitingApproval", {})
    _decide(bench, "ann")
    assert _state(bench, "Ann approves mail, and not the rules") == "AwaitingApproval"
    bench.repo.agree("prod", "ann")
    assert _state(bench, "Ann approves the rules") == "Rejected", "by the rules from before this commit"
    assert bench.reconcile().outcomes["prod"] == Ready(1)
    assert _rebuilt(bench, tmp_path / "two")[0] == "Rejected"
    bench.repo.commit("Another commit")
    assert _rebuilt(bench, tmp_path / "three") == ("Ready", {"mail": "1.0.0"})
