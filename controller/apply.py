"""Moving a plan into the registry: one transaction for the releases, their audit events and what is reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from controller.plan import Action, Promote, Retire, Rollback
from controller.report import Report
from kneo import registry
from kneo.digest import digest_of_json
from kneo.errors import Transient
from kneo.spec.environment import Environment
from kneo.state.release import BundleRecord, PromotionKind, Release
from kneo.store import releases, requests
from kneo.store.engine import Tx, lock_table
from kneo.trust.verified import VerifiedBundle


@dataclass(frozen=True)
class Lease:
    """Proof that this controller is the one that may write, checked in the transaction it protects."""

    name: str
    owner: str
    fence: int


def check_lease(tx: Tx, lease: Lease) -> None:
    """Refuse to write for a controller that lost its lease.

    Raises:
        Transient: another controller took over.
    """
    if not requests.holds_lease(tx, lease.name, lease.owner, lease.fence):
        msg = "Another controller took over; this one wrote nothing."
        raise Transient(msg, code="LeaseLost")


def apply(
    tx: Tx,
    environment: Environment,
    declaration: bytes,
    actions: Sequence[Action],
    observed: Mapping[str, Release],
    report: Report,
    *,
    revision: str,
) -> None:
    """Do what was allowed and record how the environment now stands.

    Raises:
        Transient: the registry is not what the plan was made against.
    """
    name = environment.name
    lock_table(tx, f"environment/{name}")
    if {item.bundle: item for item in releases.list_releases(tx, name)} != dict(observed):
        msg = f"The releases of {name} changed while a plan for them was made."
        raise Transient(msg, code="RegistryMoved")
    registry.accept_environment(tx, name, declaration, environment.policy_digest, revision)
    for action in actions:
        _apply_one(tx, name, action, revision)
    write_report(tx, name, report, revision=revision)


def _apply_one(tx: Tx, environment: str, action: Action, revision: str) -> None:
    match action:
        case Promote() | Rollback():
            kind = PromotionKind.PROMOTE if isinstance(action, Promote) else PromotionKind.ROLLBACK
            registry.promote(
                tx,
                environment=environment,
                bundle=_record(action.bundle, revision),
                kind=kind,
                current=action.current,
                revision=revision,
            )
        case Retire():
            registry.retire(tx, action.current, revision=revision)
        case _:
            assert_never(action)


def write_report(tx: Tx, environment: str, report: Report, *, revision: str) -> None:
    """Record what a pass found out; writes nothing that is known already."""
    if report.pending is not None:
        registry.report_pending(tx, environment, report.pending, revision=revision)
    registry.report_conditions(tx, registry.environment_subject(environment), report.conditions)


def _record(bundle: VerifiedBundle, revision: str) -> BundleRecord:
    return BundleRecord(
        digest=bundle.digest,
        name=bundle.name,
        version=bundle.version,
        seq=bundle.seq,
        prev=bundle.prev,
        payload=bundle.payload,
        envelope=bundle.envelope,
        spec_digest=digest_of_json(bundle.spec),
        signers=tuple(signer.principal for signer in bundle.signers),
        first_seen_at="",
        revision=revision,
    )
