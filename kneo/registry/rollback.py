"""The release that a rollback returns to."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kneo.errors import NotFound
from kneo.records.release import PromotionKind, Release
from kneo.registry.served import find_served
from kneo.store import releases
from kneo.store.engine import Tx
from kneo.trust.verify import UNSEQUENCED


@dataclass(frozen=True)
class RollbackTarget:
    """The present release of a bundle, and the one that a rollback returns to."""

    current: Release
    target: Release
    goes_back: bool
    """Whether the target is the earlier version. Versions without a sequence number have no order, and none goes back."""


def rollback_target(tx: Tx, environment: str, bundle: str, version: str | None) -> RollbackTarget:
    """Return what a rollback of a bundle would replace, and by what.

    Args:
        tx: An open transaction.
        environment: Name of the environment.
        bundle: Name of the bundle.
        version: A version or digest that was released here before; None for the previous one.

    Raises:
        NotFound: the bundle is not released here, or the version never was.
    """
    current = find_served(tx, environment, bundle)
    if current is None:
        msg = f"{bundle[:200]} is not released to {environment}."
        raise NotFound(msg, code="not_served", hint=f"Show its releases: kneo status {environment}")
    target = _released_before(tx, current, version)
    before, after = releases.bundle(tx, target.digest), releases.bundle(tx, current.digest)
    goes_back = before is not None and after is not None and UNSEQUENCED < before.seq < after.seq
    return RollbackTarget(current, target, goes_back)


def _released_before(tx: Tx, current: Release, version: str | None) -> Release:
    for promotion in releases.list_promotions(tx, current.environment, current.bundle):
        if promotion.kind is PromotionKind.RETIRE or promotion.to_digest in {None, current.digest}:
            continue
        if version in {None, promotion.version, promotion.to_digest}:
            return replace(
                current,
                version=str(promotion.version),
                digest=str(promotion.to_digest),
                revision=promotion.revision,
            )
    what = f"Version {version[:100]}" if version else "Another version"
    msg = f"{what} of {current.bundle[:200]} was never released to {current.environment}."
    hint = f"Show its history: kneo history {current.environment} {current.bundle}"
    raise NotFound(msg, code="never_served", hint=hint)
