"""The verification of a signed bundle for an environment, and verified objects.

A value of a verified type is a proof: only a verifier creates one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from datetime import datetime
from typing import Protocol

from pydantic import JsonValue

from kneo.clock import isoformat
from kneo.digest import Digest, digest_of_json
from kneo.errors import Invalid, KneoError, Untrusted
from kneo.trust.dsse import CLOCK_TOLERANCE, NAME, VERSION, Envelope, Signer, find_signers, parse_envelope, people
from kneo.trust.root import TrustRoot
from kneo.trust.statement import PAYLOAD_TYPE, ApprovalStatement, BundleStatement, parse_bundle

DSSE = "dsse"
HMAC = "hmac-v1"


class SignatureTerms(Protocol):
    """The protocol of the ``signatures`` block of an environment file. Empty terms admit nothing."""

    @property
    def accept(self) -> Sequence[str]:
        """Formats of bundles: ``dsse``, ``hmac-v1``."""
        ...

    @property
    def roles(self) -> Sequence[str]:
        """Roles of the trust root that may sign."""
        ...

    @property
    def threshold(self) -> int:
        """The number of different people that must have signed."""
        ...


@dataclass(frozen=True, kw_only=True)
class SignatureRule:
    """Signature terms as a plain value."""

    roles: tuple[str, ...]
    threshold: int = 1
    accept: tuple[str, ...] = (DSSE,)


SEAL = object()
"""The seal that the verifiers of this package pass to the types below; no other code uses it."""

UNSEQUENCED = 0
"""The ``seq`` of a bundle in a format that has none."""


def _check_seal(seal: object) -> None:
    if seal is not SEAL:
        msg = "only a verifier makes this"
        raise TypeError(msg)


@dataclass(frozen=True, kw_only=True)
class VerifiedBundle:
    """A verified bundle for one environment at one time under one trust root."""

    name: str
    version: str
    digest: Digest
    """The bundle's identity: SHA-256 of ``payload``."""

    seq: int
    prev: Digest | None
    spec: Mapping[str, JsonValue] = field(repr=False)
    """Parsed from the verified bytes themselves."""

    payload: bytes = field(repr=False)
    envelope: bytes = field(repr=False)
    """The file as read, kept for later verifications."""

    signers: tuple[Signer, ...]
    """The people whose signatures counted; never empty."""

    statement: BundleStatement | None = field(repr=False)
    """The in-toto statement; None for a bundle in the HMAC format."""

    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        _check_seal(seal)


@dataclass(frozen=True, kw_only=True)
class VerifiedApproval:
    """A signed decision about exactly the requested bundle, environment and policy."""

    statement: ApprovalStatement
    envelope: bytes = field(repr=False)
    signers: tuple[Signer, ...]
    """The deciders; never empty. The gate checks how many are required."""

    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        _check_seal(seal)


SEQUENCE_JUMP = 1_000
"""Largest gap of sequence numbers: an absurd number would make every later bundle a rollback."""


@dataclass(frozen=True)
class NewestAccepted:
    """The newest accepted bundle of a name."""

    seq: int
    digest: Digest


def check_sequence(bundle: VerifiedBundle, high_water: NewestAccepted | None, known_digests: Container[str]) -> None:
    """Refuse a rollback, a second history and an absurd gap.

    A digest that was accepted before passes: a release of it is a rollback promotion, which has its own gates.

    Args:
        bundle: The verified bundle.
        high_water: The newest accepted bundle of the name; None without one.
        known_digests: All accepted digests of this name.

    Raises:
        Untrusted: ``RollbackDetected``, ``Equivocation`` or ``LimitExceeded``.
    """
    if bundle.digest in known_digests or (high_water is not None and bundle.digest == high_water.digest):
        return
    what = f"{bundle.name} {bundle.version} (seq {bundle.seq})"
    mark = high_water.seq if high_water is not None else UNSEQUENCED
    if high_water is not None and bundle.seq == mark:
        if bundle.seq == UNSEQUENCED:
            return
        msg = f"{what} and the accepted {high_water.digest} have the same sequence number and different content."
        raise Untrusted(msg, code="Equivocation", hint="Find out who signed both, then sign a new version.")
    if bundle.seq < mark:
        msg = f"{what} was never accepted, and {mark} was accepted already."
        raise Untrusted(msg, code="RollbackDetected", hint="Sign it again as a new version.")
    if bundle.seq > mark + SEQUENCE_JUMP:
        msg = f"{what} is more than {SEQUENCE_JUMP} after {mark}."
        raise Untrusted(msg, code="LimitExceeded", hint="Sign it again; kneo spec bundle sign assigns the next number.")
    if high_water is not None and bundle.seq == mark + 1 and mark != UNSEQUENCED and bundle.prev != high_water.digest:
        msg = f"{what} follows {bundle.prev}, but {high_water.digest} was accepted as number {mark}."
        raise Untrusted(msg, code="Equivocation", hint="Sign it again in the folder of the accepted version.")


_PATH = re.compile(rf"bundles/({NAME})/({VERSION})\.dsse\.json")


@dataclass(frozen=True)
class VerificationStep:
    """The result of one step of a verification."""

    number: int
    title: str
    passed: bool | None
    """Whether the step passed; None when an earlier step failed, so that this one was not reached."""

    detail: str
    code: str | None = None
    """The code of the failure."""


def verify_bundle(
    envelope: bytes,
    *,
    root: TrustRoot,
    signatures: SignatureTerms,
    path: str,
    environment: str,
    now: datetime,
    first_seen: datetime | None = None,
) -> VerifiedBundle:
    """Decide whether these bytes are a bundle that may run in an environment.

    1. The file is an envelope, within its bounds.
    2. Its kind is an in-toto statement, in a format that the environment accepts.
    3. The environment's rule names roles of the trust root that may sign this path.
    4. Enough different people of those roles signed; revoked keys do not count.
    5. The signed bytes, the same buffer, are a bundle statement and nothing else.
    6. Its subject and its ``specDigest`` are those of the spec it carries.
    7. Its name and version are those of the path.
    8. It was signed for this environment.
    9. It is neither from the future nor expired.

    A role counts when as many of its people signed as the trust root asks of it; the people of all roles that count
    must then be as many as the rule asks. The caller performs two checks that need more than these bytes:
    ``check_sequence`` (against what was accepted before) and ``root.expired_at`` (before anything new is admitted).

    To verify again what already runs, hand the time of its release as ``now``, so that expiry stops only what is new.

    Args:
        envelope: The file.
        root: The verified trust root.
        signatures: The signature terms of the environment.
        path: The path of the file in the repository.
        environment: The name of the environment.
        now: The time of the verification.
        first_seen: Recorded time of first sight of this very envelope; None without one. A revocation does not affect
            earlier sights. The time of the payload would not do: a thief could add a signature to an old payload.

    Raises:
        Invalid: ``Malformed``, ``LimitExceeded``.
        Untrusted: ``PolicyDenied``, ``SignatureInvalid``, ``ThresholdNotMet``, ``KeyRevoked``, ``SubjectMismatch``,
            ``Expired``, ``NotYetValid``.
    """
    case = _Case(envelope, root, signatures, path, environment, now, first_seen)
    for _, check in _STEPS:
        check(case)
    return case.verified()


def verification_steps(
    envelope: bytes,
    *,
    root: TrustRoot,
    signatures: SignatureTerms,
    path: str,
    environment: str,
    now: datetime,
    first_seen: datetime | None = None,
) -> tuple[VerificationStep, ...]:
    """Return the steps of ``verify_bundle``, with the same arguments, for display."""
    case = _Case(envelope, root, signatures, path, environment, now, first_seen)
    steps: list[VerificationStep] = []
    failed = False
    for number, (title, check) in enumerate(_STEPS, start=1):
        if failed:
            steps.append(VerificationStep(number, title, None, "not reached"))
            continue
        try:
            steps.append(VerificationStep(number, title, passed=True, detail=check(case)))
        except KneoError as error:
            failed = True
            steps.append(VerificationStep(number, title, passed=False, detail=str(error), code=error.code))
    return tuple(steps)


def bundle_path(name: str, version: str) -> str:
    """Return the repository path of a bundle."""
    return f"bundles/{name}/{version}.dsse.json"


def parse_bundle_path(path: str) -> tuple[str, str] | None:
    """Parse name and version from a repository path; None when it is not a bundle's."""
    match = _PATH.fullmatch(path)
    return (match[1], match[2]) if match else None


@dataclass
class _Case:
    """The state of a verification. Each step reads the results of earlier ones."""

    data: bytes
    root: TrustRoot
    rule: SignatureTerms
    path: str
    environment: str
    now: datetime
    first_seen: datetime | None
    opened: Envelope | None = None
    roles: tuple[str, ...] = ()
    signers: tuple[Signer, ...] = ()
    read: BundleStatement | None = None

    @property
    def envelope(self) -> Envelope:
        assert self.opened is not None, "step 1 comes first"
        return self.opened

    @property
    def statement(self) -> BundleStatement:
        assert self.read is not None, "step 5 comes first"
        return self.read

    def verified(self) -> VerifiedBundle:
        predicate = self.statement.predicate
        return VerifiedBundle(
            name=predicate.name,
            version=predicate.version,
            digest=self.statement.digest,
            seq=predicate.seq,
            prev=predicate.prev,
            spec=predicate.spec,
            payload=self.statement.payload,
            envelope=self.data,
            signers=self.signers,
            statement=self.statement,
            seal=SEAL,
        )


def _open(case: _Case) -> str:
    case.opened = parse_envelope(case.data, file=case.path)
    return f"{len(case.data)} bytes, {len(case.envelope.signatures)} signature(s), {case.envelope.digest}"


def _check_kind(case: _Case) -> str:
    if DSSE not in case.rule.accept:
        msg = f"{case.path}: the environment {case.environment} does not accept bundles in the format dsse."
        raise Untrusted(msg, code="PolicyDenied", hint="Add dsse to signatures.accept in its file.")
    if case.envelope.payload_type != PAYLOAD_TYPE:
        msg = f"{case.path}: payloadType is {case.envelope.payload_type}, expected {PAYLOAD_TYPE}."
        raise Invalid(msg, code="Malformed")
    return PAYLOAD_TYPE


def _find_roles(case: _Case) -> str:
    if not case.rule.roles or case.rule.threshold < 1:
        msg = f"The environment {case.environment} names no role that may sign, so no signature counts."
        raise Untrusted(msg, code="PolicyDenied", hint="Set signatures.roles and a threshold of 1 or more in its file.")
    required = ", ".join(case.rule.roles)
    case.roles = roles_for(case.root, case.rule.roles, case.path)
    if not case.roles:
        msg = f"{case.path}: no role of {required} in trust root version {case.root.version} may sign this path."
        raise Untrusted(msg, code="PolicyDenied", hint="kneo trust show lists each role's paths.")
    return f"{', '.join(case.roles)} may sign {case.path}"


def roles_for(root: TrustRoot, names: Collection[str], path: str) -> tuple[str, ...]:
    """Return the roles among these that exist and may sign this path."""
    roles = ((name, root.role(name)) for name in sorted(set(names)))
    return tuple(name for name, role in roles if role is not None and role.covers(path))


def _count_signatures(case: _Case) -> str:
    keys = {keyid: key for name in case.roles for keyid, key in case.root.role_keys(name).items()}
    signers = find_signers(case.envelope, keys)
    seen_at = case.first_seen or case.now
    valid = tuple(signer for signer in signers if not case.root.void(signer.keyid, seen_at))
    counting = [members for members in (_members(case.root, name, valid) for name in case.roles) if members]
    case.signers = tuple(sorted({signer for members in counting for signer in members}))
    who = people(case.signers)
    if len(who) >= case.rule.threshold:
        return f"signed by {', '.join(sorted(who))}; {case.rule.threshold} needed"
    raise _too_few(case, signers, valid)


def _members(root: TrustRoot, name: str, signers: tuple[Signer, ...]) -> frozenset[Signer]:
    """Return the signers of a role; empty when they are fewer people than the role's threshold."""
    role, keys = root.role(name), root.role_keys(name)
    members = frozenset(signer for signer in signers if signer.keyid in keys)
    return members if role is not None and len(people(members)) >= role.threshold else frozenset()


def _too_few(case: _Case, signers: tuple[Signer, ...], valid: tuple[Signer, ...]) -> Untrusted:
    roles = ", ".join(case.roles)
    if not signers:
        msg = f"{case.path}: none of the signatures is by a key of the role {roles}, or the content was changed."
        return Untrusted(msg, code="SignatureInvalid", hint="Sign it with kneo spec bundle sign --key.")
    if len(valid) < len(signers):
        revoked = ", ".join(sorted(people(set(signers) - set(valid))))
        msg = f"{case.path}: the key of {revoked} was revoked and without it there are not enough signatures."
        return Untrusted(msg, code="KeyRevoked", hint="Sign it again with a key that is not revoked.")
    thresholds = [role.threshold for name in case.roles if (role := case.root.role(name)) is not None]
    needed = max(case.rule.threshold, min(thresholds))
    msg = f"{case.path}: signed by {', '.join(sorted(people(valid)))}; {needed} different people of {roles} are needed."
    return Untrusted(msg, code="ThresholdNotMet", hint="Another person signs the same file with kneo spec bundle sign.")


def _read_statement(case: _Case) -> str:
    case.read = parse_bundle(case.envelope.payload, file=case.path)
    predicate = case.statement.predicate
    return f"{predicate.name} {predicate.version}, seq {predicate.seq}, approved by {predicate.approved_by}"


def _check_spec(case: _Case) -> str:
    statement = case.statement
    digest = digest_of_json(statement.predicate.spec)
    if statement.predicate.spec_digest != digest or statement.subject_digest != digest:
        msg = f"{case.path}: the spec's digest is {digest}, which differs from specDigest or subject."
        raise Invalid(msg, code="Malformed", hint="The file is inconsistent; sign the spec again.")
    return f"spec is {digest}"


def _check_place(case: _Case) -> str:
    statement, place = case.statement, parse_bundle_path(case.path)
    claimed = (statement.predicate.name, statement.predicate.version)
    if place != claimed or statement.subject_name != statement.predicate.name:
        msg = f"{case.path}: this is {claimed[0]} {claimed[1]}, which belongs at {bundle_path(*claimed)}."
        raise Untrusted(msg, code="SubjectMismatch", hint="Move the file back, or sign it under its new name.")
    return f"stands at {case.path}"


def _check_environment(case: _Case) -> str:
    allowed = case.statement.predicate.environments
    if case.environment not in allowed:
        msg = f"{case.path}: signed for {', '.join(allowed)}, not for {case.environment}."
        hint = f"Sign it with --env {case.environment} too."
        raise Untrusted(msg, code="SubjectMismatch", hint=hint)
    return f"signed for {', '.join(allowed)}"


def _check_time(case: _Case) -> str:
    issued, expires = case.statement.predicate.issued_at, case.statement.predicate.expires_at
    if issued > case.now + CLOCK_TOLERANCE:
        msg = f"{case.path}: issued at {isoformat(issued)}, which is after now, {isoformat(case.now)}."
        raise Untrusted(msg, code="NotYetValid", hint="Correct the clock of the signer, or of this machine.")
    if expires is not None and case.now >= expires:
        msg = f"{case.path}: expired at {isoformat(expires)}; now is {isoformat(case.now)}."
        raise Untrusted(msg, code="Expired", hint="Sign a new version.")
    return f"issued {isoformat(issued)}, " + (f"expires {isoformat(expires)}" if expires else "does not expire")


_STEPS: tuple[tuple[str, Callable[[_Case], str]], ...] = (
    ("The file is an envelope", _open),
    ("The environment accepts its format", _check_kind),
    ("A role may sign this path", _find_roles),
    ("Enough people signed", _count_signatures),
    ("The signed bytes are a bundle", _read_statement),
    ("The spec matches its digest and subject", _check_spec),
    ("Name and version match the path", _check_place),
    ("It was signed for this environment", _check_environment),
    ("It is neither from the future nor expired", _check_time),
)
