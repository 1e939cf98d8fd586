"""Message authentication codes (MACs) of stored records: HMAC-SHA256 with a secret of the service key.

A MAC shows that a process with the service key wrote a record. A person who can write to the database, and does not have the key, can
remove a record or restore an earlier one, and cannot make or change one. A MAC is one byte for its format, the id of the key
(4 bytes) and the code (32 bytes).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from kneo.errors import Invalid, Untrusted

if TYPE_CHECKING:
    from kneo.trust.keys import PrivateKey

PURPOSE = "record mac"

FORMAT, ID_BYTES = b"\x01", 4

_HEAD = len(FORMAT) + ID_BYTES

ADOPT = "After an upgrade, or after the service key was replaced: kneo maintenance adopt --help."


class RecordTampered(Untrusted):
    """A record is not what a process with the service key wrote."""

    default_code = "record_tampered"


class RecordUnauthenticated(Untrusted):
    """A record has no MAC, or one of another key."""

    default_code = "record_unauthenticated"


class _Secret:
    """The secret of one service key."""

    def __init__(self, key: PrivateKey) -> None:
        self.key = key.derive(PURPOSE)
        self.head = FORMAT + hashlib.sha256(b"kneo record key\0" + self.key).digest()[:ID_BYTES]

        self._begun: dict[str, hmac.HMAC] = {}
        """The code of each kind before its body: a copy takes 1.6 µs, a code from the key 2.7 µs, and a run makes dozens."""

    def mac(self, kind: str, body: bytes) -> bytes:
        begun = self._begun.get(kind)
        if begun is None:
            begun = self._begun[kind] = hmac.new(self.key, kind.encode() + b"\0", "sha256")
        code = begun.copy()
        code.update(body)
        return self.head + code.digest()


class RecordMacs:
    """The MACs that the processes of one installation write and check.

    Without a service key none is written, and a record that has one is refused.

    Args:
        find_key: Finds the service key.
        checks: Whether a record without a valid MAC is refused. Without it MACs are written only.
    """

    def __init__(self, find_key: Callable[[], PrivateKey | None], *, checks: bool = True) -> None:
        self._find_key = find_key
        self.checks = checks

    @cached_property
    def _secret(self) -> _Secret | None:
        key = self._find_key()
        return _Secret(key) if key is not None else None

    def make(self, kind: str, body: bytes) -> bytes | None:
        """Return the MAC of a record; ``None`` without a key.

        Args:
            kind: What is recorded; a MAC of one kind is none of another.
            body: The record in a form that is the same for equal records only.
        """
        return self._secret.mac(kind, body) if self._secret is not None else None

    @property
    def head(self) -> bytes | None:
        """The format and the key id with which each MAC of this process begins; ``None`` without a key."""
        return self._secret.head if self._secret is not None else None

    def is_own(self, mac: bytes) -> bool:
        """Return whether a MAC names the key of this process, whether it is valid or not."""
        return mac[:_HEAD] == self.head

    def is_valid(self, kind: str, body: bytes, mac: bytes | None) -> bool:
        """Return whether ``check`` accepts a record."""
        try:
            self.check(kind, body, mac, kind)
        except (Untrusted, Invalid):
            return False
        return True

    def check(self, kind: str, body: bytes, mac: bytes | None, name: str) -> None:
        """Check the MAC of a record.

        Args:
            kind: As in ``make``.
            body: As in ``make``.
            mac: The stored MAC.
            name: The record, for messages.

        Raises:
            RecordTampered: ``record_tampered``: the record was changed, or belongs elsewhere.
            RecordUnauthenticated: ``record_unauthenticated``: it has no MAC, or one of another key.
            Invalid: ``no_service_key``: it has a MAC, and this process has no key.
        """
        if not self.checks:
            return
        secret = self._secret
        if secret is None:
            if mac is not None:
                msg = f"{name} is authenticated with the service key of its installation, which this process does not have."
                hint = "Set KNEO_SERV_SERVICE_KEY to the key of all services, workers and controllers."
                raise Invalid(msg, code="no_service_key", hint=hint)
            return
        if mac is not None and hmac.compare_digest(mac, secret.mac(kind, body)):
            return
        if mac is not None and self.is_own(mac):
            msg = f"{name} was changed in the database by something other than Kneo."
            hint = "Find out who can write to the database, then restore it from a backup."
            raise RecordTampered(msg, hint=hint)
        why = (
            "has no message authentication code: an earlier version of Kneo wrote it, or something other than Kneo"
            if mac is None
            else f"is authenticated with another service key ({mac[len(FORMAT) : _HEAD].hex()})"
        )
        raise RecordUnauthenticated(f"{name} {why}.", hint=ADOPT)


def no_macs() -> RecordMacs:
    """Return MACs without a key."""
    return RecordMacs(lambda: None)
