"""Who vouches for the bundles an environment names. Pure; the only door is ``kneo.trust.verify``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from controller.load import Declared, Problem, bundle_path
from kneo.clock import parse_time
from kneo.digest import Digest
from kneo.errors import Invalid, KneoError, Untrusted
from kneo.spec.environment import Environment, ReleasePin
from kneo.spec.load import load_tree
from kneo.spec.rules import check
from kneo.state.release import BundleRecord
from kneo.trust.dsse import parse_envelope
from kneo.trust.root import TrustRoot, verify_chain
from kneo.trust.sequence import HighWater, check_sequence
from kneo.trust.verified import VerifiedBundle
from kneo.trust.verify import verify_bundle


@dataclass(frozen=True)
class Rejection:
    """A release that Git names and that may not be served, in the words of a condition."""

    bundle: str
    version: str
    reason: str
    message: str


@dataclass(frozen=True)
class Verified:
    """The bundles an environment names, sorted into those that may be considered and those that may not."""

    desired: Mapping[str, VerifiedBundle]
    rejected: tuple[Rejection, ...]


@dataclass(frozen=True)
class History:
    """What was accepted before: bundles by digest, and the highest sequence number by name."""

    known: Mapping[str, BundleRecord]
    digests: frozenset[Digest]
    high_water: Mapping[str, HighWater]


def history_of(records: Iterable[BundleRecord]) -> History:
    """Sum up every bundle ever accepted."""
    known: dict[str, BundleRecord] = {}
    high_water: dict[str, HighWater] = {}
    for record in records:
        known[record.digest] = record
        mark = high_water.get(record.name)
        if mark is None or record.seq > mark.seq:
            high_water[record.name] = HighWater(record.seq, Digest(record.digest))
    return History(known, frozenset(map(Digest, known)), high_water)


def verify_trust(pin: Digest, declared: Declared, accepted: tuple[bytes, ...], now: datetime) -> TrustRoot | Problem:
    """Walk the trust roots from the pinned one, never back behind one that was accepted."""
    try:
        root = verify_chain(pin, declared.roots, now)
        if accepted:
            newest = verify_chain(pin, accepted, now)
            if root.version < newest.version:
                msg = f"The trust root is version {root.version}, but version {newest.version} was accepted before."
                raise Untrusted(msg, code="RollbackDetected", hint="Restore environments/trust.json.")
            verify_chain(newest.digest, declared.roots, now)
    except KneoError as error:
        return Problem(error.code, f"environments/trust.json: {error}")
    return root


def verify(environment: Environment, declared: Declared, root: TrustRoot, history: History, now: datetime) -> Verified:
    """Verify every release an environment names; one bad bundle says nothing about another."""
    desired: dict[str, VerifiedBundle] = {}
    rejected: list[Rejection] = []
    for entry in environment.spec.releases:
        try:
            desired[entry.bundle] = _verify_one(entry, environment, declared, root, history, now)
        except KneoError as error:
            rejected.append(Rejection(entry.bundle, entry.version, error.code, str(error)))
    return Verified(desired, tuple(rejected))


def _verify_one(
    entry: ReleasePin,
    environment: Environment,
    declared: Declared,
    root: TrustRoot,
    history: History,
    now: datetime,
) -> VerifiedBundle:
    path = bundle_path(entry.bundle, entry.version)
    envelope = declared.bundles.get(path)
    if envelope is None:
        msg = f"{path} is not in {declared.revision}."
        raise Untrusted(msg, code="BundleNotFound", hint="Sign it with kneo spec bundle sign and commit it.")
    # What was accepted before is judged as of then, so that expiry stops only what is new.
    record = history.known.get(parse_envelope(envelope, file=path).digest)
    bundle = verify_bundle(
        envelope,
        root=root,
        signatures=environment.spec.signatures,
        path=path,
        environment=environment.name,
        now=now if record is None else parse_time(record.first_seen_at),
        first_seen=None if record is None else parse_time(record.first_seen_at),
    )
    if entry.digest is not None and entry.digest != bundle.digest:
        msg = f"{path} is {bundle.digest}, but the environment asks for {entry.digest}."
        raise Untrusted(msg, code="DigestMismatch")
    if record is None and root.expired_at(now):
        msg = f"The trust root expired on {root.expires.isoformat()}; nothing new is accepted until it is renewed."
        raise Untrusted(msg, code="Expired", hint="kneo trust sign renews it.")
    _check_spec(bundle, path)
    check_sequence(bundle, history.high_water.get(bundle.name), history.digests)
    return bundle


def _check_spec(bundle: VerifiedBundle, path: str) -> None:
    """A signature says who vouches for a spec, not that it makes sense."""
    loaded = load_tree(dict(bundle.spec), rules=check)
    if loaded.valid:
        return
    first = next(found for found in loaded.diagnostics if found.is_error)
    msg = f"{path}: {first.code}: {first.message} (at {first.path_text})"
    raise Invalid(msg, code="SpecInvalid", hint="Correct the spec, lint it and sign a new version.")
