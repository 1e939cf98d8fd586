"""Approvals that should not count, each brought by a commit of its own beside a bundle that waits for one."""

from __future__ import annotations

from datetime import timedelta

import pytest
from siege import EVIL, Attempts, Siege

from kneo.digest import Digest, digest_of
from kneo.spec.environment import parse_environment
from kneo.store.engine import Store
from kneo.trust.dsse import Envelope, serialise
from kneo.trust.keys import PrivateKey
from kneo.trust.root import TRUST_ROOT_TYPE
from kneo.trust.statement import ApprovalDecision, build_approval

ATTEMPTS = Attempts()
refused = ATTEMPTS.refused


@pytest.fixture(scope="module")
def siege(shared_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Siege:
    return Siege(shared_store, tmp_path_factory.mktemp("siege"))


def _waiting(siege: Siege) -> Digest:
    """Name a bundle in the environment that asks for an approval; two people signed it."""
    payload = siege.payload()
    siege.plant(siege.signed(payload, siege.repo.key, siege.bob), environment="pair")
    return digest_of(payload)


def _approval(siege: Siege, subject: Digest, **changes: object) -> bytes:
    """What somebody entitled to would sign, but for these fields."""
    file = siege.repo.folder / "environments/pair.yaml"
    fields = {
        "bundle_name": "mail",
        "bundle_digest": subject,
        "environment": "pair",
        "policy_digest": parse_environment(file.read_bytes(), file=file.name).policy_digest,
        "decision": ApprovalDecision.APPROVE,
        "issued_at": siege.now - timedelta(hours=1),
        "expires": siege.now + timedelta(days=1),
    }
    return build_approval(**{**fields, **changes}).payload


def _cast(siege: Siege, envelope: Envelope, version: str = EVIL) -> None:
    siege.repo.write(f"bundles/mail/{version}.approvals/some.dsse.json", serialise(envelope))


def _by(siege: Siege, key: PrivateKey, **changes: object) -> None:
    _cast(siege, siege.signed(_approval(siege, _waiting(siege), **changes), key))


@refused("AwaitingApproval", "pair")
def none_at_all(siege: Siege) -> None:
    _waiting(siege)


@refused("AwaitingApproval", "pair")
def by_somebody_nobody_knows(siege: Siege) -> None:
    _by(siege, siege.repo.stranger)


@refused("AwaitingApproval", "pair")
def by_somebody_of_another_role(siege: Siege) -> None:
    _by(siege, siege.dan)


@refused("AwaitingApproval", "pair")
def by_one_who_signed_the_bundle(siege: Siege) -> None:
    _by(siege, siege.repo.key)


@refused("AwaitingApproval", "pair")
def of_another_bundle(siege: Siege) -> None:
    _by(siege, siege.cid, bundle_digest=siege.head)


@refused("AwaitingApproval", "pair")
def for_another_environment(siege: Siege) -> None:
    _by(siege, siege.cid, environment="prod")


@refused("AwaitingApproval", "pair")
def under_other_rules(siege: Siege) -> None:
    _by(siege, siege.cid, policy_digest=siege.repo.pin)


@refused("AwaitingApproval", "pair")
def that_has_expired(siege: Siege) -> None:
    _by(siege, siege.cid, expires=siege.now - timedelta(seconds=1))


@refused("AwaitingApproval", "pair")
def made_of_a_rejection(siege: Siege) -> None:
    made = siege.signed(_approval(siege, _waiting(siege), decision=ApprovalDecision.REJECT), siege.cid)
    turned = made.payload.replace(b'"decision":"reject"', b'"decision":"approve"')
    assert turned != made.payload
    _cast(siege, Envelope(made.payload_type, turned, made.signatures))


@refused("AwaitingApproval", "pair")
def signed_as_something_else(siege: Siege) -> None:
    _cast(siege, siege.signed(_approval(siege, _waiting(siege)), siege.cid, kind=TRUST_ROOT_TYPE))


@refused("AwaitingApproval", "pair")
def beside_another_version(siege: Siege) -> None:
    _cast(siege, siege.signed(_approval(siege, _waiting(siege)), siege.cid), version="1.1.0")


@refused("Rejected", "pair")
def outweighed_by_a_rejection(siege: Siege) -> None:
    subject = _waiting(siege)
    _cast(siege, siege.signed(_approval(siege, subject), siege.cid))
    later = siege.signed(
        _approval(siege, subject, decision=ApprovalDecision.REJECT, expires=siege.now + timedelta(days=2)), siege.cid
    )
    siege.repo.write(f"bundles/mail/{EVIL}.approvals/later.dsse.json", serialise(later))


@pytest.mark.parametrize("name", ATTEMPTS)
def test_it_counts_for_nothing_and_nothing_changes(siege: Siege, name: str) -> None:
    reason, environment, attempt = ATTEMPTS[name]
    siege.withstand(attempt, reason, environment)


def test_the_one_that_is_asked_for_opens_the_gate(siege: Siege) -> None:
    def honest(siege: Siege) -> None:
        _by(siege, siege.cid, issued_at=siege.now)

    assert siege.attempt(honest).outcomes["pair"].state == "Ready"
    assert siege.bench.served("pair") == {"mail": EVIL}
