"""Moving a plan into the registry: one transaction for the releases, their audit events and what is reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from controller.stages.gates import Allowed
from controller.stages.plan import Action, Promote, Retire, Rollback, kind_of
from kneo import registry
from kneo.errors import Transient
from kneo.records.release import Promotion
from kneo.registry import BundlePromotion, ReleaseChange
from kneo.store import requests
from kneo.store.engine import Tx


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
    tx: Tx, environment: str, actions: Sequence[tuple[Action, Allowed]], change: ReleaseChange
) -> tuple[Promotion, ...]:
    """Do what was allowed, with what allowed it written down beside it; return that."""
    serving, retired = [], []
    for action, verdict in actions:
        because = replace(change, approvals=verdict.approvals)
        match action:
            case Promote() | Rollback():
                bundle, kind = action.bundle.record, kind_of(action)
                serving.append(BundlePromotion(bundle=bundle, kind=kind, current=action.current, change=because))
            case Retire():
                retired.append(registry.retire(tx, action.current, change=because))
            case _:
                assert_never(action)
    return (*retired, *registry.promote(tx, environment, serving))
