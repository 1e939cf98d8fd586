"""What has passed a verifier. A value of these types is the proof: nothing else makes one."""

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
    """Anything shaped like the ``signatures`` block of an environment file. Empty terms admit nothing."""

    @property
    def accept(self) -> Sequence[str]:
        """Formats of bundles: ``dsse``, ``hmac-v1``."""
        ...

    @property
    def roles(self) -> Sequence[str]:
        """Roles of the trust root whose people may sign."""
        ...

    @property
    def threshold(self) -> int:
        """How many different people must have signed."""
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
    """Parsed from the very bytes that were verified."""

    payload: bytes = field(repr=False)
    envelope: bytes = field(repr=False)
    """The file as it was read: kept so that everything can be verified again later."""

    signers: tuple[Signer, ...]
    """Whose signatures counted; never empty."""

    statement: BundleStatement | None = field(repr=False)
    """The in-toto statement; None for a bundle in the HMAC format."""

    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        _check_seal(seal)


@dataclass(frozen=True, kw_only=True)
class VerifiedApproval:
    """A signed decision about exactly the bundle, environment and policy that were asked about."""

    statement: ApprovalStatement
    envelope: bytes = field(repr=False)
    signers: tuple[Signer, ...]
    """Who decided; never empty. Whether they may decide alone is the gate's question."""

    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        _check_seal(seal)


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
        raise Untrusted(msg, code="Equivocation", hint="Sign it again in the folder of the accepted version.")
