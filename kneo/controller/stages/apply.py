"""Write the changes of releases that gates allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

from kneo import registry
from kneo.controller.stages.gates import Allowed
from kneo.controller.stages.plan import Action, Promote, Retire, Rollback, kind_of
from kneo.records.release import Promotion
from kneo.registry import BundlePromotion, ReleaseChange
from kneo.store.engine import Tx


def apply(
    tx: Tx, environment: str, actions: Sequence[tuple[Action, Allowed]], change: ReleaseChange
) -> tuple[Promotion, ...]:
    """Write allowed actions with the approvals that allowed them; return the promotions."""
    serving, retired = [], []
    for action, verdict in actions:
        because = replace(change, approvals=verdict.approvals, attestations=verdict.attestations, canary=verdict.canary)
        match action:
            case Promote() | Rollback():
                bundle, kind = action.bundle.record, kind_of(action)
                serving.append(BundlePromotion(bundle=bundle, kind=kind, current=action.current, change=because))
            case Retire():
                retired.append(registry.retire(tx, action.current, change=because))
            case _:
                assert_never(action)
    return (*retired, *registry.promote(tx, environment, serving))
