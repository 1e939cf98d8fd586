"""Trust roots on disk: the newest in ``trust.json``, earlier ones in ``roots/<N>.json``.

A complete root is never edited: the first change begins the next version and keeps the old one. A root with missing
signatures is a draft: a change edits it, and drops its signatures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from kneo.cli.files import read_bytes, write_whole
from kneo.digest import Digest
from kneo.errors import Conflict, Invalid, NotFound, Untrusted
from kneo.trust.dsse import Envelope, TrustedKey, add_signature, parse_envelope, serialise
from kneo.trust.keys import KeyId, PrivateKey
from kneo.trust.root import (
    ROOT_BYTES,
    ROOT_ROLE,
    TRUST_ROOT_TYPE,
    RootDocument,
    TrustRoot,
    check_new_principals,
    parse_root,
    root_payload,
    verify_chain,
)
from kneo.trust.root_edit import EVERYTHING, first_root, next_root

FIRST_ROLES = (ROOT_ROLE, "release", "approver")

_ROOT_FILE = re.compile(r"([1-9][0-9]{0,6})\.json")


@dataclass(frozen=True)
class StoredRoot:
    """An unverified root: its envelope and content."""

    data: bytes
    envelope: Envelope
    document: RootDocument

    @property
    def digest(self) -> Digest:
        return self.envelope.digest

    def signers(self) -> frozenset[KeyId]:
        """Return the keys of the root role."""
        return frozenset(self.document.roles[ROOT_ROLE].keys)


@dataclass(frozen=True)
class RootChain:
    """All roots of a repository, oldest first; never empty."""

    roots: tuple[StoredRoot, ...]

    @property
    def newest(self) -> StoredRoot:
        return self.roots[-1]

    @property
    def first(self) -> Digest:
        """Digest of the oldest root, the one to pin."""
        return self.roots[0].digest

    @property
    def envelopes(self) -> list[bytes]:
        return [root.data for root in self.roots]

    def verify(self, pin: Digest, now: datetime) -> TrustRoot:
        """Verify the chain from the pinned root.

        Raises:
            Untrusted, Invalid: as ``verify_chain`` says.
        """
        return verify_chain(pin, self.envelopes, now)

    def missing(self, now: datetime) -> Untrusted | None:
        """Return why the newest root is not verified; None when it is."""
        try:
            self.verify(self.first, now)
        except Untrusted as error:
            return error
        return None


@dataclass(frozen=True)
class TrustFiles:
    """The files of a chain of trust roots.

    Attributes:
        file: The newest root.
    """

    file: Path

    def read(self) -> RootChain:
        """Read all roots.

        Raises:
            NotFound: there is none.
            Invalid: a file is not a trust root.
        """
        if not self.file.is_file():
            msg = f"There is no trust root at {self.file}."
            hint = "Run this in a config repository, pass --file, or create a trust root: kneo trust init"
            raise NotFound(msg, hint=hint, file=str(self.file))
        return RootChain((*map(_read, self._earlier()), _read(self.file)))

    def begin(
        self, key: PrivateKey, principal: str, expires: datetime, others: Mapping[str, TrustedKey] | None = None
    ) -> Digest:
        """Write a first root.

        Args:
            key: The key of the role root, which signs it.
            principal: Owner of the key.
            expires: Expiry of the root.
            others: Keys of further roles; other roles get the root key.

        Raises:
            Conflict: there is a root already.
        """
        if self.file.exists():
            msg = f"{self.file} exists already."
            raise Conflict(
                msg, hint="Change it with kneo trust add-key, remove-key, revoke or set-role.", file=str(self.file)
            )
        owner = TrustedKey(key.public, principal)
        members = dict.fromkeys(FIRST_ROLES, owner) | dict(others or {})
        document = first_root(
            {role: [key] for role, key in members.items()}, expires=expires, paths={"release": EVERYTHING}
        )
        envelope = add_signature(_unsigned(document), key)
        write_whole(self.file, serialise(envelope))
        return envelope.digest

    def edit(self, change: Callable[[RootDocument], RootDocument], keys: Sequence[PrivateKey], now: datetime) -> None:
        """Change a draft, or begin the next version with the change; sign and write it.

        Raises:
            KneoError: the change is refused, or a key is not of the root role; nothing is written.
        """
        chain = self.read()
        newest = chain.newest
        is_draft = chain.missing(now) is not None
        document = change(newest.document if is_draft else next_root(newest.document))
        before = chain.roots[-2:-1] if is_draft else (newest,)
        envelope = _sign(_unsigned(document), keys, before)
        if not is_draft:
            self._keep(newest)
        write_whole(self.file, serialise(envelope))

    def sign(self, keys: Sequence[PrivateKey]) -> None:
        """Add signatures to the newest root.

        Raises:
            Untrusted: a key is not of the root role.
        """
        chain = self.read()
        envelope = _sign(chain.newest.envelope, keys, chain.roots[-2:-1])
        write_whole(self.file, serialise(envelope))

    def files_of(self, chain: RootChain) -> list[Path]:
        """Return the files of the newest root and of the one before it, to commit together."""
        before = self.file.parent / "roots" / f"{chain.newest.document.version - 1}.json"
        return [self.file, before] if before.is_file() else [self.file]

    def _earlier(self) -> list[Path]:
        folder = self.file.parent / "roots"
        named = [(_ROOT_FILE.fullmatch(path.name), path) for path in folder.iterdir()] if folder.is_dir() else []
        return [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]

    def _keep(self, root: StoredRoot) -> None:
        path = self.file.parent / "roots" / f"{root.document.version}.json"
        if path.exists() and path.read_bytes() != root.data:
            msg = f"{path} already holds a different trust root."
            raise Invalid(msg, hint="Restore environments/ from Git and try again.", file=str(path))
        write_whole(path, root.data)


def _read(path: Path) -> StoredRoot:
    data = read_bytes(path, max_bytes=ROOT_BYTES, what="trust root")
    envelope = parse_envelope(data, file=str(path), max_bytes=ROOT_BYTES)
    if envelope.payload_type != TRUST_ROOT_TYPE:
        msg = f"{path} holds {envelope.payload_type}, not a trust root."
        raise Invalid(msg, code="Malformed", file=str(path))
    return StoredRoot(data, envelope, parse_root(envelope.payload, file=str(path)))


def _unsigned(document: RootDocument) -> Envelope:
    return Envelope(TRUST_ROOT_TYPE, root_payload(document), ())


def _sign(envelope: Envelope, keys: Sequence[PrivateKey], before: Sequence[StoredRoot]) -> Envelope:
    # A new root needs signatures of the root role before it and of its own; no other key may sign.
    document = parse_root(envelope.payload)
    allowed = frozenset(document.roles[ROOT_ROLE].keys).union(*(root.signers() for root in before))
    for root in before[-1:]:
        check_new_principals(document, root.document)
    for key in keys:
        if key.keyid not in allowed:
            msg = f"The key {key.keyid} is not of the role root, so its signature does not count."
            raise Untrusted(msg, hint="kneo trust show lists the keys of each role.")
        envelope = add_signature(envelope, key)
    return envelope
