"""Verified objects.

A value of these types is a proof: only a verifier creates one.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Protocol

from pydantic import JsonValue

from kneo.digest import Digest
from kneo.errors import Untrusted
from kneo.trust.dsse import Signer
from kneo.trust.statement import ApprovalStatement, BundleStatement

DSSE = "dsse"
HMAC = "hmac-v1"


class SignatureTerms(Protocol):
    """The protocol of the ``signatures`` block of an environment file. Empty terms admit nothing."""

    @property
    def accept(self) -> Sequence[str]:
        """Formats of bundles: ``dsse``, ``hmac-v1``."""
        ...

    @property
    def roles(self) -> Sequence[str]:
        """Roles of the trust root that may sign."""
        ...

    @property
    def threshold(self) -> int:
        """The number of different people that must have signed."""
        ...


@dataclass(frozen=True, kw_only=True)
class SignatureRule:
    """Signature terms as a plain value."""

    roles: tuple[str, ...]
    threshold: int = 1
    accept: tuple[str, ...] = (DSSE,)


SEAL = object()
"""The seal that the verifiers of this package pass to the types below; no other code uses it."""

UNSEQUENCED = 0
"""The ``seq`` of a bundle in a format that has none."""


def _check_seal(seal: object) -> None:
    if seal is not SEAL:
        msg = "only a verifier makes this"
        raise TypeError(msg)


@dataclass(frozen=True, kw_only=True)
class VerifiedBundle:
    """A verified bundle for one environment at one time under one trust root."""

    name: str
    version: str
    digest: Digest
    """The bundle's identity: SHA-256 of ``payload``."""

    seq: int
    prev: Digest | None
    spec: Mapping[str, JsonValue] = field(repr=False)
    """Parsed from the verified bytes themselves."""

    payload: bytes = field(repr=False)
    envelope: bytes = field(repr=False)
    """The file as read, kept for later verifications."""

    signers: tuple[Signer, ...]
    """The people whose signatures counted; never empty."""

    statement: BundleStatement | None = field(repr=False)
    """The in-toto statement; None for a bundle in the HMAC format."""

    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        _check_seal(seal)


@dataclass(frozen=True, kw_only=True)
class VerifiedApproval:
    """A signed decision about exactly the requested bundle, environment and policy."""

    statement: ApprovalStatement
    envelope: bytes = field(repr=False)
    signers: tuple[Signer, ...]
    """The deciders; never empty. The gate checks how many are required."""

    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        _check_seal(seal)


SEQUENCE_JUMP = 1_000
"""Largest gap of sequence numbers: an absurd number would make every later bundle a rollback."""


@dataclass(frozen=True)
class NewestAccepted:
    """The newest accepted bundle of a name."""

    seq: int
    digest: Digest


def check_sequence(bundle: VerifiedBundle, high_water: NewestAccepted | None, known_digests: Container[str]) -> None:
    """Refuse a rollback, a second history and an absurd gap.

    A digest that was accepted before passes: a release of it is a rollback promotion, which has its own gates.

    Args:
        bundle: The verified bundle.
        high_water: The newest accepted bundle of the name; None without one.
        known_digests: All accepted digests of this name.

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
        raise Untrusted(msg, code="LimitExceeded", hint="Sign it again; kneo spec bundle sign assigns the next number.")
    if high_water is not None and bundle.seq == mark + 1 and mark != UNSEQUENCED and bundle.prev != high_water.digest:
        msg = f"{what} follows {bundle.prev}, but {high_water.digest} was accepted as number {mark}."
        raise Untrusted(msg, code="Equivocation", hint="Sign it again in the folder of the accepted version.")
