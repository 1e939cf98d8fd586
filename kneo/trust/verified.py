"""What has passed a verifier. A value of these types is the proof: nothing else makes one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field

from pydantic import JsonValue

from kneo.digest import Digest
from kneo.trust.signers import Signer
from kneo.trust.statement import ApprovalStatement, BundleStatement

SEAL = object()
"""Held out by the verifiers of this package when they make one of the types below, and by nobody else."""

UNSEQUENCED = 0
"""The ``seq`` of a bundle in a format that has none."""


def _check_seal(seal: object) -> None:
    if seal is not SEAL:
        msg = "only a verifier makes this"
        raise TypeError(msg)


@dataclass(frozen=True, kw_only=True)
class VerifiedBundle:
    """One spec, frozen and vouched for, fit for one environment at one time under one trust root."""

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
