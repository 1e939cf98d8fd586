"""The bundle of a run, checked whenever the run is driven: its payload is hashed, and its signatures are verified.

Both are results of exact bytes, which are remembered by their digests: a row that was changed is found at the next check. What the rules
of its environment ask of a bundle is checked where a run starts; a run that has started continues under the rules of then.
"""

from __future__ import annotations

from kneo.clock import parse_time
from kneo.digest import Digest, canonical_json, digest_of
from kneo.errors import Untrusted
from kneo.records.release import BundleRecord
from kneo.records.run import ReleaseRef
from kneo.registry.resolve import spec_in, trust_root
from kneo.store import releases
from kneo.store.engine import Tx
from kneo.trust.dsse import find_signers, parse_envelope
from kneo.trust.root import TrustRoot

REMEMBERED = 1_000
"""Verified envelopes that a process remembers."""

_verified: dict[tuple[Digest, Digest, str], None] = {}
"""Trust root, envelope and time of first sight of what was verified. Nothing that failed is remembered."""


def check_accepted(tx: Tx, release: ReleaseRef, pin: Digest | None) -> BundleRecord:
    """Return the bundle of a run: with its payload, which a key of the trust root has signed.

    Args:
        tx: An open transaction.
        release: The release that the run executes.
        pin: See ``trust_root``.

    Raises:
        Untrusted: ``BundleTampered``, ``SignatureInvalid``, ``KeyRevoked``; or there is no trust root.
        Invalid: the stored envelope is malformed.
    """
    record = releases.bundle(tx, release.digest)
    if record is None or digest_of(record.payload) != release.digest:
        raise _tampered(release, "bundle")
    releases.check_bundle(tx, record)
    if is_signed(record.payload):
        _check_signature(record, release, trust_root(tx, pin))
    return record


def released_spec(record: BundleRecord) -> bytes:
    """Return the spec of a bundle as the runs of its release freeze it, before the gates of an environment are added."""
    return canonical_json(spec_in(record))


def is_signed(payload: bytes) -> bool:
    """Return whether a payload is of a bundle with signatures. The older format has a shared secret, which workers do not have."""
    return b'"predicateType"' in payload


def _check_signature(record: BundleRecord, release: ReleaseRef, root: TrustRoot) -> None:
    known = root.digest, digest_of(record.envelope), record.signatures_seen_at
    if known in _verified:
        return
    envelope = parse_envelope(record.envelope)
    if envelope.digest != release.digest:
        raise _tampered(release, "envelope")
    signers = find_signers(envelope, root.keys)
    name = f"{release.bundle} {release.version} ({release.digest})"
    if not signers:
        msg = f"No key of the trust root has signed the stored bundle {name}."
        raise Untrusted(
            msg, code="SignatureInvalid", hint="Restore the registry from a backup, or rebuild it from Git."
        )
    seen_at = parse_time(record.signatures_seen_at)
    if all(root.void(signer.keyid, seen_at) for signer in signers):
        msg = f"Each key that has signed {name} is revoked, also for signatures of then."
        raise Untrusted(msg, code="KeyRevoked", hint="Start a new run of a version that is signed with another key.")
    if len(_verified) >= REMEMBERED:
        _verified.clear()
    _verified[known] = None


def _tampered(release: ReleaseRef, what: str) -> Untrusted:
    msg = f"The stored {what} of {release.bundle} {release.version} is not that of {release.digest}."
    return Untrusted(msg, code="BundleTampered", hint="Restore the registry from a backup, or rebuild it from Git.")
