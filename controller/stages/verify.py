"""Who vouches for the bundles an environment names. Pure; the only doors are those of ``kneo.trust``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from controller.stages.load import DeclaredState, SourceProblem, find_bundle
from kneo.clock import parse_time
from kneo.digest import Digest, digest_of, digest_of_json
from kneo.errors import Invalid, KneoError, Untrusted
from kneo.records.release import BundleRecord
from kneo.spec.coverage.policy import check_policy
from kneo.spec.lint import check
from kneo.spec.models.environment import Environment, EnvironmentGate, ReleasePin, with_gates
from kneo.spec.policy_flags import PolicyFlags, strictest
from kneo.spec.reading.load import load_tree
from kneo.trust.dsse import parse_envelope
from kneo.trust.hmac_bundle import verify_hmac_bundle
from kneo.trust.root import TrustRoot, check_new_principals, trust_epoch, verify_chain
from kneo.trust.statement import Dependency
from kneo.trust.verified import NewestAccepted, VerifiedBundle, check_sequence
from kneo.trust.verify import bundle_path, verify_bundle


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A bundle that was verified and judged, and may be served where every gate agrees.

    Args:
        record: What the registry would keep of it.
        author: Who the bundle says approved its spec; None where its format has no word for that.
        depends_on: What has to be served beside it.
    """

    record: BundleRecord
    author: str | None
    depends_on: tuple[Dependency, ...]
    issued_at: datetime | None = None
    """When its signers say that it was signed; None where its format has no word for that."""

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def version(self) -> str:
        return self.record.version

    @property
    def digest(self) -> Digest:
        return Digest(self.record.digest)


@dataclass(frozen=True)
class UnchangedBundle:
    """A bundle that Git names, that is served, and that was judged before under the very trust and rules of today."""

    name: str
    version: str
    digest: Digest
    needs: tuple[Digest, ...]
    """The bundles it depends on."""


def candidate_of(bundle: VerifiedBundle, revision: str) -> Candidate:
    """Keep of a verified bundle what is needed from here on.

    Args:
        bundle: It.
        revision: The commit that names it.
    """
    predicate = bundle.statement.predicate if bundle.statement else None
    record = BundleRecord(
        digest=bundle.digest,
        name=bundle.name,
        version=bundle.version,
        seq=bundle.seq,
        prev=bundle.prev,
        payload=bundle.payload,
        envelope=bundle.envelope,
        # A statement's own digest of its spec was checked when it was verified.
        spec_digest=predicate.spec_digest if predicate else digest_of_json(bundle.spec),
        signers=tuple(sorted({signer.principal for signer in bundle.signers})),
        first_seen_at="",
        revision=revision,
    )
    return Candidate(
        record=record,
        author=predicate.approved_by if predicate else None,
        depends_on=tuple(predicate.depends_on) if predicate else (),
        issued_at=predicate.issued_at if predicate else None,
    )


def unchanged_bundle(bundle: Candidate) -> UnchangedBundle:
    """Keep of a bundle what planning needs of one that does not change."""
    return UnchangedBundle(bundle.name, bundle.version, bundle.digest, tuple(need.digest for need in bundle.depends_on))


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

    desired: Mapping[str, Candidate | UnchangedBundle]
    rejected: tuple[Rejection, ...]

    @property
    def candidates(self) -> frozenset[str]:
        """Digests of the bundles that may come to be served."""
        return frozenset(bundle.digest for bundle in self.desired.values() if isinstance(bundle, Candidate))


@dataclass(frozen=True)
class BundleHistory:
    """What was accepted before: bundles by digest, and the highest sequence number by name."""

    known: Mapping[str, BundleRecord]
    high_water: Mapping[str, NewestAccepted]


@dataclass(frozen=True, kw_only=True)
class TrustContext:
    """What a pass believes.

    Args:
        root: The trust root that the commit brings.
        before: The one in force before this commit, where it is another one: what is new has to satisfy both.
        hmac_key: The shared secret of bundles in the older format; empty where there is none.
        now: The one time of this pass.
    """

    root: TrustRoot
    before: TrustRoot | None
    hmac_key: str = ""
    now: datetime

    def epoch(self, environment: Environment) -> Digest:
        """Name everything that judging a bundle for an environment rests on."""
        return trust_epoch(self.root, environment.policy_digest)


def bundle_history(records: Iterable[BundleRecord]) -> BundleHistory:
    """Sum up every bundle ever accepted."""
    known: dict[str, BundleRecord] = {}
    high_water: dict[str, NewestAccepted] = {}
    for record in records:
        known[record.digest] = record
        mark = high_water.get(record.name)
        if mark is None or record.seq > mark.seq:
            high_water[record.name] = NewestAccepted(record.seq, Digest(record.digest))
    return BundleHistory(known, high_water)


def verify_trust(
    pin: Digest, declared: DeclaredState, accepted: tuple[bytes, ...], now: datetime, *, rebuilding: bool = False
) -> TrustRoot | SourceProblem:
    """Walk the trust roots from the pinned one, never back behind one that was accepted.

    Args:
        pin: The root that was believed first.
        declared: What the commit declares.
        accepted: The roots that were accepted by earlier commits, oldest first.
        now: The one time of this pass.
        rebuilding: Whether this commit was accepted earlier on another database; names of people are then not judged again.
    """
    try:
        root = verify_chain(pin, declared.roots, now)
        if accepted:
            newest = verify_chain(pin, accepted, now)
            if root.version < newest.version:
                msg = f"The trust root is version {root.version}, but version {newest.version} was accepted before."
                raise Untrusted(msg, code="RollbackDetected", hint="Restore environments/trust.json.")
            verify_chain(newest.digest, declared.roots, now)
            if not rebuilding:
                check_new_principals(root.document, newest.document)
    except KneoError as error:
        return SourceProblem(error.code, f"environments/trust.json: {error}")
    return root


def root_before(pin: Digest, accepted: Sequence[bytes], root: TrustRoot, now: datetime) -> TrustRoot | None:
    """Find the trust root in force before a commit; None when that is the same one, or there was none.

    Args:
        pin: The root that was believed first.
        accepted: What was accepted by earlier commits, oldest first.
        root: The root that the commit brings.
        now: The one time of this pass.
    """
    before = root_in_force(pin, accepted, now)
    return before if before is not None and before.digest != root.digest else None


def root_in_force(pin: Digest, accepted: Sequence[bytes], now: datetime) -> TrustRoot | None:
    """Find the newest trust root that was accepted; None when there was none that is still believed."""
    try:
        return verify_chain(pin, accepted, now) if accepted else None
    except KneoError:
        return None


def verify(
    environments: Sequence[Environment],
    declared: DeclaredState,
    envelopes: Mapping[str, bytes],
    trust: TrustContext,
    history: BundleHistory,
    standing: Mapping[str, UnchangedBundle],
    waited: frozenset[str] = frozenset(),
) -> Verified:
    """Verify every release an environment names; one bad bundle says nothing about another.

    Args:
        environments: The file that names them, then the one in force before it, where it differs.
        declared: The commit.
        envelopes: The bundle files that had to be read, by path.
        trust: What is believed.
        history: What was accepted before.
        standing: What need not be judged again, by bundle name.
        waited: Digests of bundles that were verified for this environment before and wait for a gate since then. They are no
            older for what another environment has taken meanwhile.
    """
    desired: dict[str, Candidate | UnchangedBundle] = {}
    rejected: list[Rejection] = []
    for entry in environments[0].spec.releases:
        known = standing.get(entry.bundle)
        if known is not None and known.version == entry.version and entry.digest in {None, known.digest}:
            desired[entry.bundle] = known
            continue
        try:
            bundle = _verify_entry(entry, environments, declared, envelopes, trust, history, waited)
            desired[entry.bundle] = candidate_of(bundle, declared.revision)
        except KneoError as error:
            rejected.append(Rejection(entry.bundle, entry.version, error.code, str(error)))
    return Verified(desired, tuple(rejected))


def _verify_entry(
    entry: ReleasePin,
    environments: Sequence[Environment],
    declared: DeclaredState,
    envelopes: Mapping[str, bytes],
    trust: TrustContext,
    history: BundleHistory,
    waited: frozenset[str],
) -> VerifiedBundle:
    path = find_bundle(entry, declared.blobs)
    if path is None:
        missing = bundle_path(entry.bundle, entry.version)
        msg = f"{missing} is not in {declared.revision}."
        raise Untrusted(msg, code="BundleNotFound", hint="Sign it with kneo spec bundle sign and commit it.")
    envelope = envelopes[path]
    record = history.known.get(_digest_in(path, envelope)) if history.known else None
    bundle = _verify_under(path, envelope, environments[0], trust.root, trust, record)
    record = record or history.known.get(bundle.digest)
    if entry.digest is not None and entry.digest != bundle.digest:
        msg = f"{path} is {bundle.digest}, but the environment asks for {entry.digest}."
        raise Untrusted(msg, code="DigestMismatch")
    if record is None:
        if trust.root.expired_at(trust.now):
            msg = f"The trust root expired on {trust.root.expires.isoformat()}; nothing new is accepted until then."
            raise Untrusted(msg, code="Expired", hint="kneo trust sign --expires renews it.")
        _check_earlier_trust(path, envelope, environments, trust)
    # What was accepted here before is judged again when the rules have changed since, as trust is.
    check_spec(bundle, environments, path)
    if bundle.digest not in waited:
        check_sequence(bundle, history.high_water.get(bundle.name), history.known)
    return bundle


def _check_earlier_trust(path: str, envelope: bytes, environments: Sequence[Environment], trust: TrustContext) -> None:
    """Refuse a new bundle that only the trust or the rules that came with it would admit."""
    roots = [trust.root] if trust.before is None else [trust.root, trust.before]
    for environment in environments:
        for root in roots:
            if environment is environments[0] and root is trust.root:
                continue
            try:
                _verify_under(path, envelope, environment, root, trust, None)
            except KneoError as error:
                msg = f"Under the trust and rules in force before this commit: {error.message}"
                hint = "What a commit trusts anew takes effect with the next one: push another commit."
                raise Untrusted(msg, code=error.code, hint=hint) from error


def _verify_under(
    path: str,
    envelope: bytes,
    environment: Environment,
    root: TrustRoot,
    trust: TrustContext,
    record: BundleRecord | None,
) -> VerifiedBundle:
    signatures = environment.spec.signatures
    if not path.endswith(".dsse.json"):
        return verify_hmac_bundle(
            envelope, key=trust.hmac_key, signatures=signatures, path=path, environment=environment.name
        )
    # What was accepted before is judged as of then, so that expiry stops only what is new. Its signatures, where there
    # are others now, are as new as they look: else a stolen key could vouch for something old.
    accepted = trust.now if record is None else parse_time(record.first_seen_at)
    same = record is not None and record.envelope_digest in {None, digest_of(envelope)}
    seen = parse_time(record.signatures_seen_at) if record is not None and same else trust.now
    return verify_bundle(
        envelope,
        root=root,
        signatures=signatures,
        path=path,
        environment=environment.name,
        now=accepted,
        first_seen=seen,
    )


def _digest_in(path: str, envelope: bytes) -> str:
    """Name what an envelope carries, believing nothing of it; something that matches nothing when it cannot be read."""
    if not path.endswith(".dsse.json"):
        return ""
    try:
        return parse_envelope(envelope, file=path).digest
    except KneoError:
        return ""


def check_spec(bundle: VerifiedBundle, environments: Sequence[Environment], path: str) -> None:
    """Judge what a bundle carries: a signature says who vouches for a spec, not that it makes sense.

    Args:
        bundle: What was verified.
        environments: Whose policies it has to satisfy, all of them.
        path: What to call it.

    Raises:
        Invalid: ``SpecInvalid``.
        Untrusted: ``PolicyDenied``.
    """
    flags = strictest(*(environment.spec.policy for environment in environments))
    rules = [environment.gates for environment in environments]
    for index, gates in enumerate(rules):
        if gates not in rules[:index]:
            _check_under(bundle, gates, flags, f"The policy is in {environments[0].file}.", path)


def _check_under(
    bundle: VerifiedBundle, gates: tuple[EnvironmentGate, ...], flags: PolicyFlags, hint: str, path: str
) -> None:
    """Judge a spec as it would run: with the questions that an environment adds."""
    loaded = load_tree(dict(bundle.spec), rules=lambda spec, context: check(with_gates(spec, gates), context))
    if loaded.spec is None or not loaded.valid:
        first = next(found for found in loaded.diagnostics if found.is_error)
        msg = f"{path}: {first.code}: {first.message} (at {first.path_text})"
        raise Invalid(msg, code="SpecInvalid", hint="Correct the spec, lint it and sign a new version.")
    violations = check_policy(with_gates(loaded.spec, gates), loaded.diagnostics, flags)
    if violations:
        more = f" ({len(violations) - 1} more)" if len(violations) > 1 else ""
        msg = f"{path}: {violations[0].code}: {violations[0].message}{more}"
        raise Untrusted(msg, code="PolicyDenied", hint=hint)
