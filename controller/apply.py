"""Moving a plan into the registry: one transaction for the releases, their audit events and what is reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from controller.gates import Allowed
from controller.plan import Action, Promote, Retire, Rollback, kind_of
from controller.report import Report
from kneo import registry
from kneo.digest import digest_of_json
from kneo.errors import Transient
from kneo.registry import Change, Serving
from kneo.state.release import BundleRecord, Pending, Promotion
from kneo.store import requests
from kneo.store.engine import Tx
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


def apply(tx: Tx, environment: str, actions: Sequence[tuple[Action, Allowed]], change: Change) -> tuple[Promotion, ...]:
    """Do what was allowed, with what allowed it written down beside it; return that."""
    serving, retired = [], []
    for action, verdict in actions:
        because = replace(change, approvals=verdict.approvals)
        match action:
            case Promote() | Rollback():
                bundle = record_of(action.bundle, change.revision)
                serving.append(Serving(bundle=bundle, kind=kind_of(action), current=action.current, change=because))
            case Retire():
                retired.append(registry.retire(tx, action.current, change=because))
            case _:
                assert_never(action)
    return (*retired, *registry.promote(tx, environment, serving))


def write_report(tx: Tx, environment: str, report: Report, *, revision: str) -> tuple[Pending, ...]:
    """Record what a pass found out, and return what waits or is refused now and did not before.

    Writes nothing that is known already.
    """
    news: tuple[Pending, ...] = ()
    if report.pending is not None:
        news = registry.report_pending(tx, environment, report.pending, revision=revision)
    registry.report_conditions(tx, registry.environment_subject(environment), report.conditions)
    return news


def record_of(bundle: VerifiedBundle, revision: str) -> BundleRecord:
    """Spell a verified bundle as what the registry keeps of it."""
    statement = bundle.statement
    return BundleRecord(
        digest=bundle.digest,
        name=bundle.name,
        version=bundle.version,
        seq=bundle.seq,
        prev=bundle.prev,
        payload=bundle.payload,
        envelope=bundle.envelope,
        # A statement's own digest of its spec was checked when it was verified.
        spec_digest=statement.predicate.spec_digest if statement else digest_of_json(bundle.spec),
        signers=tuple(sorted({signer.principal for signer in bundle.signers})),
        first_seen_at="",
        revision=revision,
    )
