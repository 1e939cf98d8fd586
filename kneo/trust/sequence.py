"""Whether a verified bundle may follow what was accepted before under its name.

A signature says who vouches for a bundle, not that it is the newest. Without this check anybody who can write to the
repository could bring back an old version with a known weakness, properly signed.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from kneo.digest import Digest
from kneo.errors import Untrusted
from kneo.trust.verified import UNSEQUENCED, VerifiedBundle

SEQUENCE_JUMP = 1_000
"""How far ahead a sequence number may be. An absurd one would otherwise make every later bundle a rollback."""


@dataclass(frozen=True)
class NewestAccepted:
    """The newest bundle ever accepted under a name."""

    seq: int
    digest: Digest


def check_sequence(bundle: VerifiedBundle, high_water: NewestAccepted | None, known_digests: Container[str]) -> None:
    """Refuse a rollback, a second history and an absurd jump.

    A digest that was accepted before passes: going back to it is a rollback promotion, which has its own gates.

    Args:
        bundle: What was verified.
        high_water: The newest accepted under the same name; None when there is none yet.
        known_digests: Every digest ever accepted under this name.

    Raises:
        Untrusted: ``RollbackDetected``, ``Equivocation`` or ``LimitExceeded``.
    """
    if bundle.digest in known_digests or (high_water is not None and bundle.digest == high_water.digest):
        return
    what = f"{bundle.name} {bundle.version} (seq {bundle.seq})"
    mark = high_water.seq if high_water is not None else UNSEQUENCED
    if high_water is not None and bundle.seq == mark:
        if bundle.seq == UNSEQUENCED:
            return
        msg = f"{what} and the accepted {high_water.digest} have the same sequence number and different content."
        raise Untrusted(msg, code="Equivocation", hint="Find out who signed both, then sign a new version.")
    if bundle.seq < mark:
        msg = f"{what} was never accepted, and {mark} was accepted already."
        raise Untrusted(msg, code="RollbackDetected", hint="Sign it again as a new version.")
    if bundle.seq > mark + SEQUENCE_JUMP:
        msg = f"{what} is more than {SEQUENCE_JUMP} after {mark}."
        raise Untrusted(msg, code="LimitExceeded", hint="Sign it again; signing takes the next number by itself.")
    if high_water is not None and bundle.seq == mark + 1 and mark != UNSEQUENCED and bundle.prev != high_water.digest:
        msg = f"{what} follows {bundle.prev}, but {high_water.digest} was accepted as number {mark}."
        raise Untrusted(msg, code="Equivocation", hint="Sign it again beside the accepted version.")
