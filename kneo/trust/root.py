"""The trust root: keys, their owners, roles with thresholds, and revocations.

It follows The Update Framework's root role, with three changes: keys belong to people, roles are scoped by path, and a
revocation has a time, so that signatures first seen before it stay valid.

A root is trusted for one of two reasons: its digest is pinned, or the root before it and the root itself both sign it, each
by its own threshold. An expired root (``expired_at``) admits no new bundles, and keeps those that it admitted.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Annotated, Self

from pydantic import Field, model_validator

from kneo.digest import Digest, canonical_json, digest_of, digest_of_json
from kneo.errors import Invalid, Untrusted
from kneo.names import person_key, person_name, shown
from kneo.trust import dsse
from kneo.trust.keys import PEM_BYTES, Algorithm, KeyId, PublicKey

TRUST_ROOT_TYPE = "application/vnd.kneo.trust-root+json"

ROOT_BYTES = 524_288
"""Largest root envelope."""

CHAIN = 256
"""Most roots walked from the pinned one."""

KEYS = 256
ROLES = 64
REVOCATIONS = 1_024

ROOT_ROLE = "root"

_SEAL = object()


class RootKey(dsse.SignedRecord):
    algorithm: Annotated[Algorithm, Field(strict=False)]
    public: Annotated[str, Field(max_length=PEM_BYTES)]
    """PEM SubjectPublicKeyInfo."""

    principal: dsse.Line
    """The key's owner: the person's API key name and entry in environment files."""


class Role(dsse.SignedRecord):
    keys: Annotated[dsse.Several[dsse.KeyIdText], Field(min_length=1, max_length=KEYS)]
    threshold: Annotated[int, Field(ge=1, le=KEYS)]
    """The number of different people that must sign."""

    paths: (
        Annotated[dsse.Several[Annotated[str, Field(pattern=r"^[A-Za-z0-9._+:/*?-]{1,200}$")]], Field(max_length=64)]
        | None
    ) = None
    """Globs of the repository paths that this role may sign; ``*`` and ``?`` match ``/`` too. Absent: no bundle."""

    def covers(self, path: str) -> bool:
        """Return whether this role may sign the file at a repository path."""
        return any(fnmatch.fnmatchcase(path, scope) for scope in self.paths or ())


class Revocation(dsse.SignedRecord):
    keyid: dsse.KeyIdText
    at: dsse.Time
    """Signatures first seen from this time on are void."""

    reason: dsse.Line
    compromised_since: dsse.Time | None = None
    """Signatures first seen from this time on are void, also those seen before ``at``."""

    def covers(self, seen: datetime) -> bool:
        """Return whether a signature first seen at this time is void."""
        return seen >= self.at or (self.compromised_since is not None and seen >= self.compromised_since)


class RootDocument(dsse.SignedRecord):
    """The content of a trust root. Parsing one verifies nothing; ``verify_chain`` does."""

    version: Annotated[int, Field(ge=1, le=1_000_000_000)]
    expires: dsse.Time
    keys: Annotated[dict[dsse.KeyIdText, RootKey], Field(max_length=KEYS)]
    roles: Annotated[dict[dsse.Name, Role], Field(max_length=ROLES)]
    revoked: Annotated[dsse.Several[Revocation], Field(max_length=REVOCATIONS)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for keyid, key in self.keys.items():
            _check_key(keyid, key)
        _check_principals(key.principal for key in self.keys.values())
        for name, role in self.roles.items():
            self._check_role(name, role)
        if ROOT_ROLE not in self.roles:
            msg = "there is no role named root, so this root could never be changed"
            raise ValueError(msg)
        if len({revocation.keyid for revocation in self.revoked}) != len(self.revoked):
            msg = "revoked: a key is listed twice"
            raise ValueError(msg)
        self._check_root_can_change()
        return self

    def _check_role(self, name: str, role: Role) -> None:
        if unknown := set(role.keys) - set(self.keys):
            msg = f"roles.{name} names the key {min(unknown)}, which keys does not have"
            raise ValueError(msg)
        if len(set(role.keys)) != len(role.keys):
            msg = f"roles.{name} names a key twice"
            raise ValueError(msg)
        count = len({self.keys[keyid].principal for keyid in role.keys})
        if role.threshold > count:
            msg = f"roles.{name} asks for {role.threshold} people and has {count}"
            raise ValueError(msg)

    def _check_root_can_change(self) -> None:
        role, revoked = self.roles[ROOT_ROLE], {revocation.keyid for revocation in self.revoked}
        count = len({self.keys[keyid].principal for keyid in role.keys if keyid not in revoked})
        if role.threshold > count:
            msg = f"roles.root asks for {role.threshold} people and has {count} whose keys are not revoked"
            raise ValueError(msg)


@dataclass(frozen=True)
class TrustRoot:
    """A root that was verified. Only ``verify_chain`` makes one."""

    document: RootDocument
    payload: bytes = field(repr=False)
    keys: Mapping[KeyId, dsse.TrustedKey] = field(repr=False)
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            msg = "a TrustRoot is made by verify_chain only"
            raise TypeError(msg)

    @property
    def digest(self) -> Digest:
        """Digest of the payload: what is pinned, and what names this root."""
        return digest_of(self.payload)

    @property
    def version(self) -> int:
        return self.document.version

    @property
    def expires(self) -> datetime:
        return self.document.expires

    def expired_at(self, now: datetime) -> bool:
        """Return whether this root has expired and admits no new bundles."""
        return now >= self.document.expires

    def role(self, name: str) -> Role | None:
        return self.document.roles.get(name)

    def role_keys(self, name: str) -> Mapping[KeyId, dsse.TrustedKey]:
        """The keys of a role, revoked ones included; none when there is no such role."""
        role = self.role(name)
        return {keyid: self.keys[keyid] for keyid in role.keys} if role else {}

    def revocation(self, keyid: str) -> Revocation | None:
        return next((r for r in self.document.revoked if r.keyid == keyid), None)

    def void(self, keyid: str, seen: datetime) -> bool:
        """Return whether a signature of this key that was first seen at this time is void."""
        revocation = self.revocation(keyid)
        return revocation is not None and revocation.covers(seen)


def parse_root(payload: bytes, *, file: str = "trust root") -> RootDocument:
    """Parse a root without verification.

    Raises:
        Invalid: ``Malformed``: not a root, or one that contradicts itself.
    """
    return dsse.read_record(RootDocument, dsse.read_strict(payload, file=file), file=file)


def root_payload(document: RootDocument) -> bytes:
    """Return a root as the bytes to sign."""
    view = document.model_dump(mode="json", by_alias=True)
    for entry in [*view["roles"].values(), *view["revoked"]]:
        for optional in ("paths", "compromisedSince"):
            if entry.get(optional, 0) is None:
                del entry[optional]
    return canonical_json(view)


def verify_chain(pinned: Digest, envelopes: Sequence[bytes], now: datetime) -> TrustRoot:
    """Verify a chain of trust roots from the pinned one to the newest.

    1. Each envelope is one of a trust root, within its bounds.
    2. The first root has exactly the pinned digest over its payload; earlier ones are skipped.
    3. It is signed by its own threshold, which proves that its keys exist.
    4. Each further one has the next version number.
    5. Each further one is signed by the threshold of the one before.
    6. Each further one is signed by its own threshold.

    Keys that a root lists as revoked do not count for that root's threshold. To refuse an older chain than the accepted one,
    pin the accepted root.

    Args:
        pinned: Digest of the payload of the pinned root; never taken from the repository itself.
        envelopes: Root envelopes, oldest first. A repeated root is skipped.
        now: The time of verification; a revocation in the future does not count yet.

    Raises:
        Untrusted: the pinned root is missing (``RootNotPinned``), or a signature or a version number is (the code says
            which: ``SignatureInvalid``, ``ThresholdNotMet``, ``KeyRevoked``, ``RollbackDetected``).
        Invalid: an envelope is not a root (``Malformed``) or there is too much of it (``LimitExceeded``).
    """
    if len(envelopes) > CHAIN:
        msg = f"{len(envelopes)} trust roots are too many to walk; the limit is {CHAIN}."
        raise Invalid(msg, code="LimitExceeded", hint="Pin a newer root.")
    # (1)
    opened = [_open(data) for data in envelopes]
    # (2)
    start = next((i for i, envelope in enumerate(opened) if envelope.digest == pinned), None)
    if start is None:
        msg = f"None of the {len(opened)} trust roots here is the pinned one, {pinned}."
        missing = _missing_versions(opened)
        hint = "Check the digest with the owner of the repository."
        if missing:
            msg = f"{msg} There is no {' and no '.join(missing)}, so the walk from the pinned root cannot begin."
            hint = "Commit the files that kneo trust wrote to environments/roots; do not pin another root instead."
        raise Untrusted(msg, code="RootNotPinned", hint=hint)
    root = _load(opened[start])
    # (3)
    _require_threshold(opened[start], root, root, now)
    for envelope in opened[start + 1 :]:
        if envelope.digest == root.digest:
            continue
        following = _load(envelope)
        # (4)
        if following.version != root.version + 1:
            msg = f"After trust root version {root.version} comes {following.version}; expected {root.version + 1}."
            hint = "Earlier roots stay in environments/roots/<N>.json."
            if following.version > root.version + 1:
                hint = f"Commit environments/roots/{root.version + 1}.json, which kneo trust wrote. {hint}"
            raise Untrusted(msg, code="RollbackDetected", hint=hint)
        # (5)
        _require_threshold(envelope, root, following, now)
        # (6)
        _require_threshold(envelope, following, following, now)
        root = following
    return root


def check_new_principals(document: RootDocument, before: RootDocument) -> None:
    """Check the names of people whom a root adds, as they are checked where a key is added by command.

    A name that the root before has is accepted as it is.

    Raises:
        Invalid: ``invalid_name``: a name of mixed scripts, with characters that cannot be seen, or not in its normal
            spelling.
    """
    known = {key.principal for key in before.keys.values()}
    for principal in sorted({key.principal for key in document.keys.values()} - known):
        normal = person_name(principal, "The principal")
        if normal != principal:
            msg = f"The principal {shown(principal)} is not in its normal spelling, {normal!r}."
            raise Invalid(msg, code="invalid_name", hint="Change it in the draft, and sign it again.")


def trust_epoch(root: TrustRoot, *rules: Digest) -> Digest:
    """Return the digest of everything that a verification depends on. When it changes, releases are verified again.

    Args:
        root: The root in force.
        rules: Digests of further rules, such as an environment's policy, in any order.
    """
    return digest_of_json({"root": root.digest, "rules": sorted(set(rules))})


def _open(data: bytes) -> dsse.Envelope:
    envelope = dsse.parse_envelope(data, file="trust root", max_bytes=ROOT_BYTES)
    if envelope.payload_type != TRUST_ROOT_TYPE:
        msg = f"A trust root has payload type {TRUST_ROOT_TYPE}, not {envelope.payload_type}."
        raise Invalid(msg, code="Malformed")
    return envelope


def _missing_versions(opened: Sequence[dsse.Envelope]) -> list[str]:
    """Return the paths of missing earlier roots, at most three."""
    try:
        versions = {parse_root(envelope.payload).version for envelope in opened}
    except Invalid:
        return []
    missing = (version for version in range(1, max(versions, default=1)) if version not in versions)
    return [f"environments/roots/{version}.json" for version in itertools.islice(missing, 3)]


def _load(envelope: dsse.Envelope) -> TrustRoot:
    document = parse_root(envelope.payload)
    keys = {keyid: dsse.TrustedKey(PublicKey.load(key.public), key.principal) for keyid, key in document.keys.items()}
    return TrustRoot(document=document, payload=envelope.payload, keys=MappingProxyType(keys), seal=_SEAL)


def _require_threshold(envelope: dsse.Envelope, judge: TrustRoot, subject: TrustRoot, now: datetime) -> None:
    role = judge.document.roles[ROOT_ROLE]
    signers = dsse.find_signers(envelope, judge.role_keys(ROOT_ROLE))
    valid = [signer for signer in signers if not judge.void(signer.keyid, now)]
    who = dsse.people(valid)
    if len(who) >= role.threshold:
        return
    what = f"Trust root version {subject.version} has {len(who)} of {role.threshold} signatures"
    msg = f"{what} that the root role of version {judge.version} asks for."
    code = "KeyRevoked" if len(valid) < len(signers) else "ThresholdNotMet" if signers else "SignatureInvalid"
    raise Untrusted(msg, code=code, hint="The missing people sign it with kneo trust sign.")


def _check_key(keyid: str, key: RootKey) -> None:
    try:
        public = PublicKey.load(key.public)
    except Invalid as error:
        msg = f"keys.{keyid}: {error.message}"
        raise ValueError(msg) from error
    if public.keyid != keyid:
        msg = f"keys.{keyid}: the id of this key is {public.keyid}"
        raise ValueError(msg)
    if public.algorithm is not key.algorithm:
        msg = f"keys.{keyid}: this is a key for {public.algorithm}, not {key.algorithm}"
        raise ValueError(msg)


def _check_principals(principals: Iterable[str]) -> None:
    """Refuse two spellings of one person, which would count as two people."""
    spellings: dict[str, str] = {}
    for principal in principals:
        if principal != principal.strip() or spellings.setdefault(person_key(principal), principal) != principal:
            msg = f"the principal {principal!r} has two spellings, or has spaces around it"
            raise ValueError(msg)
