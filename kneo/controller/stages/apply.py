"""Write allowed changes to the registry, in the transaction of the lease holder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from kneo import registry
from kneo.controller.stages.gates import Allowed
from kneo.controller.stages.plan import Action, Promote, Retire, Rollback, kind_of
from kneo.errors import Transient
from kneo.records.release import Promotion
from kneo.registry import BundlePromotion, ReleaseChange
from kneo.store import requests
from kneo.store.engine import Tx


@dataclass(frozen=True)
class Lease:
    """The controller lease, checked in every transaction that it protects."""

    name: str
    owner: str
    fence: int


def check_lease(tx: Tx, lease: Lease) -> None:
    """Check that this controller still holds the lease.

    Raises:
        Transient: another controller took over.
    """
    if not requests.holds_lease(tx, lease.name, lease.owner, lease.fence):
        msg = "Another controller took over; this one wrote nothing."
        raise Transient(msg, code="LeaseLost")


def apply(
    tx: Tx, environment: str, actions: Sequence[tuple[Action, Allowed]], change: ReleaseChange
) -> tuple[Promotion, ...]:
    """Write allowed actions with the approvals that allowed them; return the promotions."""
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
