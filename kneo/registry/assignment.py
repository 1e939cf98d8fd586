"""The assignment of new runs to a canary or to the release, at random and the same for all runs of a session."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from kneo.digest import canonical_json
from kneo.records.canary import Canary, control_share
from kneo.records.release import Release
from kneo.store import canaries
from kneo.store.engine import Tx


@dataclass(frozen=True, kw_only=True)
class NewRun:
    """A new run, as it is assigned: a session by its requester and name, any other run by its id."""

    run_id: str
    requester: str
    session: str | None = None


def assign(tx: Tx, canary: Canary, new: NewRun) -> bool:
    """Return whether a canary gets a new run, and count the run where it is compared."""
    position = position_of(canary.salt, new)
    candidate = position < canary.share
    is_control = position >= 1 - control_share(canary.share)
    if canary.share and canary.counts and (candidate or is_control) and _is_first(tx, canary, new):
        canaries.count_run(tx, canary, new.run_id, candidate=candidate)
    return candidate


def _is_first(tx: Tx, canary: Canary, new: NewRun) -> bool:
    """Return whether a run is the first one of its session: the others of a session depend on it."""
    if new.session is None:
        return True
    return canaries.is_first_of_session(tx, canary, new.requester, new.session, new.run_id)


def position_of(salt: str, new: NewRun) -> float:
    """Return a number from 0 to 1 that a caller can neither choose nor foresee."""
    known = [new.requester, new.session] if new.session is not None else [new.run_id]
    digest = hmac.digest(bytes.fromhex(salt), canonical_json(known), hashlib.sha256)
    return int.from_bytes(digest[:8]) / 2**64


def candidate_release(canary: Canary) -> Release:
    """Return the version of a canary in the form of a release."""
    return Release(
        environment=canary.environment,
        bundle=canary.bundle,
        version=canary.version,
        digest=canary.digest,
        revision=canary.revision,
        promotion_id=canary.id,
        since=canary.began_at,
    )
