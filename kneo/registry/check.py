"""Whether what is stored may still run: the bytes are those that were accepted, and somebody vouches for them today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kneo.clock import parse_time
from kneo.digest import digest_of
from kneo.errors import Untrusted
from kneo.records.release import BundleRecord, Release
from kneo.trust.hmac_bundle import hmac_path, spec_in_hmac, verify_hmac_bundle
from kneo.trust.root import TrustRoot
from kneo.trust.statement import parse_bundle
from kneo.trust.verified import UNSEQUENCED, VerifiedBundle
from kneo.trust.verify import bundle_path, verify_bundle

if TYPE_CHECKING:
    from kneo.spec.environment import Environment


def check_served(
    record: BundleRecord | None, release: Release, environment: Environment, root: TrustRoot, hmac_key: str
) -> VerifiedBundle:
    """Judge a served release under the trust and rules of today, except that expiry stops only what is new.

    Args:
        record: What is stored under the release's digest.
        release: What is served.
        environment: The file in force.
        root: The trust root in force.
        hmac_key: The shared secret of bundles in the older format; empty where there is none.

    Raises:
        Untrusted: ``BundleTampered``, or why it would not be accepted today.
        Invalid: its envelope is not one.
    """
    if record is None or digest_of(record.payload) != release.digest:
        raise _tampered(release, "bytes")
    verified = _verify(record, environment, root, hmac_key)
    if verified.digest != release.digest:
        raise _tampered(release, "envelope")
    return verified


def _verify(record: BundleRecord, environment: Environment, root: TrustRoot, hmac_key: str) -> VerifiedBundle:
    signatures = environment.spec.signatures
    if record.seq == UNSEQUENCED:
        path = hmac_path(record.name, record.version)
        return verify_hmac_bundle(
            record.envelope, key=hmac_key, signatures=signatures, path=path, environment=environment.name
        )
    return verify_bundle(
        record.envelope,
        root=root,
        signatures=signatures,
        path=bundle_path(record.name, record.version),
        environment=environment.name,
        now=parse_time(record.first_seen_at),
        first_seen=parse_time(record.signatures_seen_at),
    )


def spec_in(record: BundleRecord) -> Mapping[str, object]:
    """Read the spec that an accepted bundle carries, in either format. It vouches for nothing.

    Raises:
        Invalid: what is stored is no bundle.
    """
    if record.seq == UNSEQUENCED:
        return spec_in_hmac(record.payload)
    return parse_bundle(record.payload).predicate.spec


def _tampered(release: Release, what: str) -> Untrusted:
    msg = f"The stored {what} of {release.bundle} {release.version} are not those of {release.digest}."
    return Untrusted(msg, code="BundleTampered", hint="Restore the registry from a backup, or rebuild it from Git.")
