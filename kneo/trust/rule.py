"""What an environment asks of the signatures on a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

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
