"""The release of a run: looked up, hashed and verified again when a run starts and when it is driven; and the policy in force for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from kneo.clock import parse_time
from kneo.digest import Digest, canonical_json, digest_of
from kneo.errors import Forbidden, KneoError, NotFound, Transient, Untrusted
from kneo.names import check_environment_name
from kneo.records.canary import Canary
from kneo.records.release import BundleRecord, Release
from kneo.records.run import ReleaseRef
from kneo.registry.assignment import NewRun, assign, candidate_release
from kneo.registry.served import check_promoted, list_served
from kneo.spec.code import BundleCode
from kneo.spec.policy import PolicyFlags, strictest
from kneo.store import audit, canaries, project_metadata, releases, requests
from kneo.store.engine import Tx
from kneo.trust.dsse import find_signers, parse_envelope
from kneo.trust.hmac_bundle import hmac_path, spec_in_hmac, verify_hmac_bundle
from kneo.trust.root import TrustRoot, parse_root, verify_chain
from kneo.trust.statement import parse_bundle
from kneo.trust.verify import UNSEQUENCED, VerifiedBundle, bundle_path, verify_bundle

if TYPE_CHECKING:
    from kneo.spec.models.environment import Environment
    from kneo.spec.project import ProjectConfig


REMEMBERED_BUNDLES = 64
"""Verified bundles that a process remembers, each with its spec of up to a megabyte."""

_verified_bundles: dict[tuple[object, ...], VerifiedBundle] = {}
"""Verified bundles by the digests of trust root and envelope, and all else that was verified. Nothing that failed is remembered."""


def check_served(
    record: BundleRecord | None, release: Release, environment: Environment, root: TrustRoot, hmac_key: str
) -> VerifiedBundle:
    """Verify a release under the trust and rules of today, but as of its acceptance for expiry.

    Args:
        record: The stored bundle of the release's digest.
        release: The release.
        environment: The file in force.
        root: The trust root in force.
        hmac_key: The shared secret of bundles in the older format; empty where there is none.

    Raises:
        Untrusted: ``BundleTampered``, or the reason of the failed verification.
        Invalid: the stored envelope is malformed.
    """
    if record is None or digest_of(record.payload) != release.digest:
        raise _tampered(release, "payload")
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
    # Everything that the verification reads. It depends on no clock: expiry counts as of the acceptance, and a revocation is in a
    # later trust root, whose chain is walked at each start.
    key = (
        *(root.digest, digest_of(record.envelope), record.name, record.version, environment.name),
        *(tuple(signatures.accept), tuple(signatures.roles), signatures.threshold),
        *(record.first_seen_at, record.signatures_seen_at),
    )
    known = _verified_bundles.get(key)
    if known is not None:
        return known
    verified = verify_bundle(
        record.envelope,
        root=root,
        signatures=signatures,
        path=bundle_path(record.name, record.version),
        environment=environment.name,
        now=parse_time(record.first_seen_at),
        first_seen=parse_time(record.signatures_seen_at),
    )
    if len(_verified_bundles) >= REMEMBERED_BUNDLES:
        _verified_bundles.clear()
    _verified_bundles[key] = verified
    return verified


def spec_in(record: BundleRecord) -> Mapping[str, object]:
    """Parse the spec of an accepted bundle, in either format, without verification.

    Raises:
        Invalid: the record holds no bundle.
    """
    if record.seq == UNSEQUENCED:
        return spec_in_hmac(record.payload)
    return parse_bundle(record.payload).predicate.spec


def accepted_code(tx: Tx, bundle: Digest) -> BundleCode:
    """Return the code of an accepted bundle.

    Raises:
        Untrusted: ``BundleTampered``: the stored bundle is missing, has another payload, or carries no code.
    """
    record = releases.bundle(tx, bundle)
    code = parse_bundle(record.payload).code if record is not None and digest_of(record.payload) == bundle else None
    if code is None:
        msg = f"The stored bundle {bundle} is missing or changed: its code cannot be read."
        hint = "Restore the registry from a backup, or rebuild it from Git."
        raise Untrusted(msg, code="BundleTampered", hint=hint)
    return code


def code_in(record: BundleRecord | None) -> BundleCode | None:
    """Parse the code of an accepted bundle, without verification; ``None`` where it carries none, or cannot be read."""
    if record is None or record.seq == UNSEQUENCED:
        return None
    try:
        return parse_bundle(record.payload).code
    except KneoError:
        return None  # a damaged release is reported as drift


def _tampered(release: Release | ReleaseRef, what: str) -> Untrusted:
    msg = f"The stored {what} of {release.bundle} {release.version} is not that of {release.digest}."
    return Untrusted(msg, code="BundleTampered", hint="Restore the registry from a backup, or rebuild it from Git.")


@dataclass(frozen=True)
class ResolvedRelease:
    """A release with the verified bundle: the very bytes that run."""

    release: Release
    bundle: VerifiedBundle
    audit_seq: int | None
    """Sequence number of the promotion in the audit chain; None before it is sealed, and for a canary."""
    policy: PolicyFlags | None
    """The policy of its environment that was set through the service; None where none was set."""


@lru_cache(maxsize=64)
def _parsed(declaration: bytes, name: str) -> Environment:
    # Its questions need all that specs are made of, and many commands look at no environment.
    from kneo.spec.environment import parse_environment

    return parse_environment(declaration, file=f"environments/{name}.yaml", accepted=True)


def declared(tx: Tx, name: str) -> Environment:
    """Return the environment file in force.

    Raises:
        NotFound: no valid file was ever declared for this environment.
    """
    found = find_declared(tx, name)
    if found is None:
        names = ", ".join(item.name for item in releases.list_environments(tx)) or "none"
        msg = f"There is no environment {name[:80]!r}; declared: {names}."
        raise NotFound(msg, code="environment_not_found")
    return found


def find_declared(tx: Tx, name: str | None) -> Environment | None:
    """Return the environment file in force; ``None`` where none was ever declared, or no environment is named."""
    declaration = releases.declaration(tx, name) if name is not None else None
    return _parsed(declaration, name) if name is not None and declaration is not None else None


def is_followed(tx: Tx, pin: Digest | None) -> bool:
    """Return whether only releases may run here: a trust root is pinned, or a controller ever used this database.

    This holds before the first commit is accepted: an unreachable repository must not permit undeclared runs.
    """
    return pin is not None or requests.had_controller(tx)


def trust_root(tx: Tx, pin: Digest | None) -> TrustRoot:
    """Walk the accepted trust roots.

    Args:
        tx: An open transaction.
        pin: Digest of the pinned trust root; None pins the first one that the controller accepted.

    Raises:
        Untrusted: the stored chain does not start at the pin or does not hold together.
    """
    return tx.once((TrustRoot, pin), lambda: _trust_root(tx, pin))


def _trust_root(tx: Tx, pin: Digest | None) -> TrustRoot:
    tx = tx.remembering
    chain = releases.trust_chain(tx)
    if pin is None:
        releases.check_trust_chain(tx)
    if not chain:
        msg = "This database has no accepted trust root."
        raise Untrusted(msg, code="no_trust_root", hint="Start a controller: kneo up --repo DIR.")
    return _walk(pin or Digest(chain[0][1]), tuple(envelope for _, _, envelope in chain), tx.now)


REMEMBERED_CHAINS, EVER = 16, datetime.min.replace(tzinfo=UTC)

_walked: dict[tuple[Digest, tuple[bytes, ...]], tuple[TrustRoot, datetime]] = {}
"""Verified chains of exactly these bytes, each with the time of its last revocation: from then on the result is the same."""


def _walk(first: Digest, chain: tuple[bytes, ...], now: datetime) -> TrustRoot:
    """Verify a chain of trust roots, once for the same bytes."""
    known = _walked.get((first, chain))
    if known is not None and known[1] <= now:
        return known[0]
    root = verify_chain(first, chain, now)
    revoked = [item for data in chain for item in parse_root(parse_envelope(data).payload).revoked]
    settled = max((time for item in revoked for time in (item.at, item.compromised_since or item.at)), default=EVER)
    if settled <= now:
        if len(_walked) >= REMEMBERED_CHAINS:
            _walked.clear()
        _walked[first, chain] = (root, settled)
    return root


def check_not_retired(tx: Tx, environment: Environment) -> None:
    """Refuse runs in a retired environment without releases.

    Raises:
        Forbidden: ``environment_retired``.
    """
    if environment.spec.retired and not list_served(tx, environment.name):
        msg = f"{environment.name} is retired: runs cannot start there."
        raise Forbidden(msg, code="environment_retired", hint="List environments: kneo status")


def resolve(
    tx: Tx,
    reference: str,
    environment: str,
    *,
    pin: Digest | None,
    hmac_key: str = "",
    rules: Environment | None = None,
    new: NewRun | None = None,
    running: bool = False,
) -> ResolvedRelease:
    """Return the release that a reference names in an environment, verified.

    Args:
        tx: An open transaction.
        reference: ``name``, ``name@version`` or ``sha256:…``.
        environment: Its name.
        pin: See ``trust_root``.
        hmac_key: The shared secret of bundles in the older format, where the environment accepts them.
        rules: The environment file in force, where this transaction has read it.
        new: A new run, which a canary of the bundle may get; None for none.
        running: Whether the reference is the digest of a run that has begun, which may be that of a canary.

    Raises:
        NotFound: there is no such environment.
        Forbidden: ``bundle_not_approved``: the reference is not released there; ``canary_not_addressable``: it is a canary.
        Untrusted: the stored bytes are not the approved ones, or fail verification today; ``ReleaseNotPromoted``.
        Transient: ``registry_rebuilding``: the present release may be that of an earlier commit.
    """
    stored = releases.find_stored(tx, environment, reference)
    if stored.is_rebuilding if stored is not None else requests.is_rebuilding(tx):
        msg = "The registry is being rebuilt from Git; its releases may be earlier ones."
        raise Transient(msg, code="registry_rebuilding", hint="Try again; show the progress: kneo source show")
    rules = rules if rules is not None else declared(tx, environment)
    check_not_retired(tx, rules)
    canary = _find_canary(tx, stored, reference, environment, new=new, running=running)
    if canary is not None:
        policy = _policy(tx, stored, environment)
        return _resolve_candidate(tx, canary, rules, trust_root(tx, pin), hmac_key, policy)
    if stored is None:
        raise _not_approved(tx, reference, environment, list_served(tx, environment))
    verified = check_served(stored.bundle, stored.release, rules, trust_root(tx, pin), hmac_key)
    event = check_promoted(tx, stored)
    if stored.bundle is not None:
        releases.check_bundle(tx, stored.bundle)
    return ResolvedRelease(stored.release, verified, event.seq, _policy(tx, stored, environment))


def _policy(tx: Tx, stored: releases.StoredRelease | None, environment: str) -> PolicyFlags | None:
    """Return the policy that was set through the service, which was read with a release."""
    if stored is None:
        return project_metadata.find_policy(tx, environment)
    return project_metadata.policies_in(tx, stored.policies).get(environment)


def _find_canary(
    tx: Tx,
    stored: releases.StoredRelease | None,
    reference: str,
    environment: str,
    *,
    new: NewRun | None,
    running: bool,
) -> Canary | None:
    """Return the canary that a new run is assigned to, or that a run which has begun executes; None for the release."""
    if stored is not None:
        if new is None or reference != stored.release.bundle or stored.canary is None:
            return None
        live = canaries.get(tx, *stored.canary)
        return live if live is not None and live.is_live and assign(tx, live, new) else None
    for canary in canaries.list_live(tx, environment):
        if reference in {f"{canary.bundle}@{canary.version}", canary.digest}:
            if running:
                return canary
            msg = f"{canary.bundle}@{canary.version} is a canary; start it by name."
            raise Forbidden(msg, code="canary_not_addressable", environment=environment, bundle=canary.bundle)
    return None


def _resolve_candidate(
    tx: Tx, canary: Canary, rules: Environment, root: TrustRoot, hmac_key: str, policy: PolicyFlags | None
) -> ResolvedRelease:
    """Return the version of a canary, verified like a release."""
    release, record = candidate_release(canary), releases.bundle(tx, canary.digest)
    verified = check_served(record, release, rules, root, hmac_key)
    if record is not None:
        releases.check_bundle(tx, record)
    return ResolvedRelease(release, verified, None, policy)


def _not_approved(tx: Tx, reference: str, environment: str, serving: tuple[Release, ...]) -> KneoError:
    name, _, version = reference.partition("@")
    approved = [f"{item.bundle}@{item.version}" for item in serving]
    reason = f'Bundle "{reference[:200]}" is not released to {environment}.'
    changes = (item for item in releases.pending(tx, environment) if item.bundle == name)
    pending = next((item for item in changes if version in {"", item.version}), None)
    if pending is not None:
        reason = f"{reason} {pending.reason}: {pending.message}"
    return Forbidden(
        reason,
        code="bundle_not_approved",
        hint=f"Released: {', '.join(approved) or 'none'}. See: kneo status {environment}",
        environment=environment,
        approved=approved,
        reason=pending.reason if pending is not None else "NotReleased",
    )


def policy_in_force(
    tx: Tx, environment: str | None, project: ProjectConfig | None = None, *, approved: ResolvedRelease | None = None
) -> PolicyFlags:
    """Return the policy in force: the strictest of all sources.

    Args:
        tx: An open transaction.
        environment: Its name; None has no policy.
        project: The config of the project that this process works in.
        approved: The release that the policy is for. It satisfied the environment's file when it was promoted, so that only
            the other policies, which may be newer, count.
    """
    if environment is None:
        return strictest()
    flags = [
        approved.policy if approved is not None else project_metadata.find_policy(tx, environment),
        project.policy(environment) if project is not None else None,
    ]
    rules = find_declared(tx, environment) if approved is None else None
    if rules is not None:
        flags.append(rules.spec.policy)
    return strictest(*(item for item in flags if item is not None))


def change_policy(tx: Tx, environment: str, flags: PolicyFlags, *, actor: str | None) -> PolicyFlags | None:
    """Set the service's policy for an environment, which adds to Git's; return the previous one.

    Raises:
        InvalidValue: ``invalid_name``.
    """
    before = project_metadata.put_policy(tx, check_environment_name(environment), flags)
    now = flags.model_dump(mode="json")
    then = before.model_dump(mode="json") if before is not None else None
    audit.record(
        tx,
        "policy.changed",
        actor=actor,
        environment=environment,
        metadata={
            "surface": project_metadata.POLICIES,
            "environment": environment,
            "previous": then,
            "current": now,
            "changed_fields": sorted(name for name in now if then is None or then[name] != now[name]),
        },
    )
    return before


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
