"""Verify the trust root and the bundles that an environment declares. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from kneo.clock import parse_time
from kneo.controller.stages.load import DeclaredState, SourceProblem, failure, find_bundle
from kneo.digest import Digest, digest_of, digest_of_json
from kneo.errors import Invalid, KneoError, Untrusted
from kneo.records.release import BundleRecord
from kneo.spec.coverage.policy import check_code, check_policy
from kneo.spec.coverage.sandboxes import code_parts, sandbox_refusals
from kneo.spec.lint import check
from kneo.spec.models.environment import Environment, ReleasePin, with_gates
from kneo.spec.models.spec import Spec
from kneo.spec.modules import RuleContext
from kneo.spec.policy import PolicyFlags, strictest
from kneo.spec.reading.load import load_tree
from kneo.trust.dsse import parse_envelope
from kneo.trust.hmac_bundle import verify_hmac_bundle
from kneo.trust.keys import PublicKey
from kneo.trust.root import TrustRoot, check_new_principals, trust_epoch, verify_chain
from kneo.trust.statement import Dependency
from kneo.trust.verify import NewestAccepted, VerifiedBundle, bundle_path, check_sequence, verify_bundle


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A verified bundle, released where every gate allows it. Its spec is dropped: a first commit brings thousands.

    Args:
        record: The bundle's record in the registry.
        author: The person in ``approvedBy``; None where the format has no such field.
        depends_on: Bundles that have to be released in the same environment.
    """

    record: BundleRecord
    author: str | None
    depends_on: tuple[Dependency, ...]
    issued_at: datetime | None = None
    """Time of signing by the signer's clock; None where the format has no such field."""

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
    """A declared and released bundle that was verified before under the same trust and rules."""

    name: str
    version: str
    digest: Digest
    needs: tuple[Digest, ...]
    """Digests of the bundles that it depends on."""


def candidate_of(bundle: VerifiedBundle, revision: str) -> Candidate:
    """Return a verified bundle as a candidate, without its spec.

    Args:
        bundle: The verified bundle.
        revision: The commit that declares it.
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
    """Return a candidate as an unchanged bundle."""
    return UnchangedBundle(bundle.name, bundle.version, bundle.digest, tuple(need.digest for need in bundle.depends_on))


@dataclass(frozen=True)
class Rejection:
    """A declared release that failed verification, with reason and message of a condition."""

    bundle: str
    version: str
    reason: str
    message: str


@dataclass(frozen=True)
class Verified:
    """The declared bundles of an environment: verified ones and rejected ones."""

    desired: Mapping[str, Candidate | UnchangedBundle]
    rejected: tuple[Rejection, ...]

    @property
    def refusal(self) -> str | None:
        """Message of the first rejection."""
        return self.rejected[0].message if self.rejected else None

    @property
    def candidates(self) -> frozenset[str]:
        """Digests of the bundles that may be released."""
        return frozenset(bundle.digest for bundle in self.desired.values() if isinstance(bundle, Candidate))


@dataclass(frozen=True)
class BundleHistory:
    """Accepted bundles by digest, and the highest sequence number by name."""

    known: Mapping[str, BundleRecord]
    high_water: Mapping[str, NewestAccepted]


@dataclass(frozen=True)
class TrustConfig:
    """The operator's trust settings.

    Args:
        pin: Digest of the pinned trust root.
        service_key: The key of the own service; None counts no decision that the service recorded.
        hmac_key: The shared secret of bundles in the older format, where an environment accepts them.
    """

    pin: Digest
    service_key: PublicKey | None = None
    hmac_key: str = ""


@dataclass(frozen=True, kw_only=True)
class TrustContext:
    """The trust of one reconciliation.

    Args:
        root: The trust root in the commit.
        before: The root in force before this commit, where it differs: a new bundle has to satisfy both.
        service_key: As in ``TrustConfig``.
        hmac_key: As in ``TrustConfig``.
        now: The time of this reconciliation.
    """

    root: TrustRoot
    before: TrustRoot | None
    service_key: PublicKey | None = None
    hmac_key: str = ""
    now: datetime

    def epoch(self, environment: Environment) -> Digest:
        """Return the digest of everything that the verification of an environment's bundles depends on."""
        return trust_epoch(self.root, environment.policy_digest)


def bundle_history(records: Iterable[BundleRecord]) -> BundleHistory:
    """Index every bundle ever accepted."""
    known: dict[str, BundleRecord] = {}
    high_water: dict[str, NewestAccepted] = {}
    for record in records:
        known[record.digest] = record
        mark = high_water.get(record.name)
        if mark is None or record.seq > mark.seq:
            high_water[record.name] = NewestAccepted(record.seq, Digest(record.digest))
    return BundleHistory(known, high_water)


def known_digests(history: BundleHistory, names: Collection[str]) -> list[str]:
    """Return the digests of the accepted bundles with these names."""
    return [digest for digest, record in history.known.items() if record.name in names]


def establish_trust(
    config: TrustConfig,
    declared: DeclaredState,
    roots: Sequence[tuple[str | None, bytes]],
    now: datetime,
    *,
    rebuilding: bool = False,
) -> TrustContext | SourceProblem:
    """Walk the trust roots of a commit from the pinned one, never back behind an accepted one.

    Args:
        config: The operator's trust settings.
        declared: The commit.
        roots: The accepted roots, oldest first, each with the commit that brought it.
        now: The time of this reconciliation.
        rebuilding: Whether this commit was accepted earlier on another database; people's names are then not checked again.
    """
    try:
        root = verify_chain(config.pin, declared.roots, now)
        if roots:
            newest = verify_chain(config.pin, [envelope for _, envelope in roots], now)
            if root.version < newest.version:
                msg = f"The trust root is version {root.version}, but version {newest.version} was accepted before."
                raise Untrusted(msg, code="RollbackDetected", hint="Restore environments/trust.json.")
            verify_chain(newest.digest, declared.roots, now)
            if not rebuilding:
                check_new_principals(root.document, newest.document)
    except KneoError as error:
        return SourceProblem(error.code, f"environments/trust.json: {error}")
    before = root_in_force(config.pin, earlier_roots(roots, declared.revision), now)
    if before is not None and before.digest == root.digest:
        before = None
    return TrustContext(root=root, before=before, service_key=config.service_key, hmac_key=config.hmac_key, now=now)


def earlier_roots(roots: Sequence[tuple[str | None, bytes]], revision: str) -> list[bytes]:
    """Return the accepted trust roots that another commit than this one brought."""
    return [envelope for brought_by, envelope in roots if brought_by != revision]


def root_in_force(pin: Digest, accepted: Sequence[bytes], now: datetime) -> TrustRoot | None:
    """Return the newest accepted trust root; None without one that follows from the pinned root."""
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
    unchanged: Mapping[str, UnchangedBundle],
    pending: Collection[str] = (),
    released: Collection[str] = (),
) -> Verified:
    """Verify every declared release of an environment, each on its own.

    Args:
        environments: The environment's file, then the one in force before it, where it differs.
        declared: The commit.
        envelopes: The bundle files to verify, by path.
        trust: The trust of this reconciliation.
        history: Bundles accepted before.
        unchanged: Bundles that need no new verification, by name.
        pending: Digests of bundles that were verified for this environment before and are pending. A release of a newer
            version in another environment meanwhile does not reject them.
        released: Digests that this environment released before. Every other bundle needs the earlier trust and rules too,
            also one that another environment has accepted under rules of its own.
    """
    desired: dict[str, Candidate | UnchangedBundle] = {}
    rejected: list[Rejection] = []
    for entry in environments[0].spec.releases:
        known = unchanged.get(entry.bundle)
        if known is not None and known.version == entry.version and entry.digest in {None, known.digest}:
            desired[entry.bundle] = known
            continue
        try:
            bundle = _verify_entry(entry, environments, declared, envelopes, trust, history, pending, released)
            desired[entry.bundle] = candidate_of(bundle, declared.revision)
        except KneoError as error:
            rejected.append(Rejection(entry.bundle, entry.version, error.code, str(error)))
        except Exception as error:  # noqa: BLE001 - logged, and a refusal of this bundle alone
            message = failure(f"The check of {entry.bundle} {entry.version}", error).message
            rejected.append(Rejection(entry.bundle, entry.version, "SpecInvalid", message))
    return Verified(desired, tuple(rejected))


def _verify_entry(
    entry: ReleasePin,
    environments: Sequence[Environment],
    declared: DeclaredState,
    envelopes: Mapping[str, bytes],
    trust: TrustContext,
    history: BundleHistory,
    pending: Collection[str],
    released: Collection[str],
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
    if record is None and trust.root.expired_at(trust.now):
        msg = f"The trust root expired on {trust.root.expires.isoformat()}; nothing new is accepted until then."
        raise Untrusted(msg, code="Expired", hint="kneo trust sign --expires renews it.")
    if bundle.digest not in released:
        _check_earlier_trust(path, envelope, environments, trust, record)
    # An accepted bundle is checked again when the rules have changed, as its signatures are.
    check_spec(bundle, environments, path)
    if bundle.digest not in pending:
        check_sequence(bundle, history.high_water.get(bundle.name), history.known)
    return bundle


def _check_earlier_trust(
    path: str,
    envelope: bytes,
    environments: Sequence[Environment],
    trust: TrustContext,
    record: BundleRecord | None,
) -> None:
    """Refuse a bundle that only the trust or the rules in the same commit admit."""
    roots = [trust.root] if trust.before is None else [trust.root, trust.before]
    for environment in environments:
        for root in roots:
            if environment is environments[0] and root is trust.root:
                continue
            try:
                _verify_under(path, envelope, environment, root, trust, record)
            except KneoError as error:
                msg = f"Under the trust and rules in force before this commit: {error.message}"
                hint = "New trust or rules take effect with the next commit: push another commit."
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
    # An accepted bundle is verified as of its acceptance, so that expiry stops only new bundles. Changed signatures count as
    # seen now: otherwise a stolen key could sign an old bundle.
    accepted = trust.now if record is None else parse_time(record.first_seen_at)
    same = record is not None and record.envelope_digest in {None, digest_of(envelope)}
    seen_at = parse_time(record.signatures_seen_at) if record is not None and same else trust.now
    return verify_bundle(
        envelope,
        root=root,
        signatures=signatures,
        path=path,
        environment=environment.name,
        now=accepted,
        first_seen=seen_at,
    )


def _digest_in(path: str, envelope: bytes) -> str:
    """Return the digest of an unverified envelope's payload; an empty text for an unreadable one."""
    if not path.endswith(".dsse.json"):
        return ""
    try:
        return parse_envelope(envelope, file=path).digest
    except KneoError:
        return ""


def check_spec(bundle: VerifiedBundle, environments: Sequence[Environment], path: str) -> None:
    """Check the spec of a verified bundle against lint rules and policies; signatures do not cover that.

    Args:
        bundle: The verified bundle.
        environments: The environment files whose policies all have to hold.
        path: The bundle's name in messages.

    Raises:
        Invalid: ``SpecInvalid``.
        Untrusted: ``PolicyDenied``, ``CodeMissing``.
    """
    flags = strictest(*(environment.spec.policy for environment in environments))
    rules = [(each.gates, each.spec.models, each.spec.tools) for each in environments]
    for index, environment in enumerate(environments):
        if rules[index] not in rules[:index]:
            spec = _check_under(bundle, environment, flags, f"The policy is in {environments[0].file}.", path)
            has_code = bundle.statement is not None and bundle.statement.code is not None
            for each in environments:
                check_code(spec, has_code, each, path)
            if any(environment.spec.tools.mcp.pinned for environment in environments):
                _check_pins(spec, path)


def _check_pins(spec: Spec, path: str) -> None:
    unpinned = spec.unpinned_tools()
    if unpinned:
        more = f" and {len(unpinned) - 1} more have" if len(unpinned) > 1 else " has"
        msg = f"{path}: tools of MCP servers must be pinned, and {unpinned[0]}{more} no pin."
        hint = "Sign a new version with kneo spec bundle sign --pin-tools."
        raise Untrusted(msg, code="PolicyDenied", hint=hint)


def _check_under(bundle: VerifiedBundle, environment: Environment, flags: PolicyFlags, hint: str, path: str) -> Spec:
    """Check a spec as it would run: with the gates that an environment adds, and under its rules for models and tools."""
    gates = environment.gates
    loaded = load_tree(
        dict(bundle.spec),
        # The tools of the platform are known to the processes that sign and that execute steps, and not here.
        context=RuleContext(tools=None, rules=environment.spec),
        rules=lambda spec, context: check(with_gates(spec, gates), context),
    )
    if loaded.spec is None or not loaded.valid:
        first = next(finding for finding in loaded.diagnostics if finding.is_error)
        msg = f"{path}: {first.code}: {first.message} (at {first.path_text})"
        raise Invalid(msg, code="SpecInvalid", hint="Correct the spec, lint it and sign a new version.")
    for part in code_parts(loaded.spec):
        for refusal in sandbox_refusals(part, environment.spec.tools.sandbox, environment.name):
            raise Untrusted(f"{path}: {refusal.code}: {refusal.message}", code="PolicyDenied", hint=refusal.hint)
    violations = check_policy(with_gates(loaded.spec, gates), loaded.diagnostics, flags)
    if violations:
        more = f" ({len(violations) - 1} more)" if len(violations) > 1 else ""
        msg = f"{path}: {violations[0].code}: {violations[0].message}{more}"
        raise Untrusted(msg, code="PolicyDenied", hint=hint)
    return loaded.spec
