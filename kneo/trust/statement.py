"""in-toto Statements (v1): a predicate of one type about one subject; those with a bundle or an approval as predicate.

A statement keeps the exact bytes that it was parsed from. The bytes are signed, stored and identify the statement; the parsed
view is never serialised in their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from kneo.digest import Digest, canonical_json, digest_of, digest_of_json
from kneo.errors import Invalid
from kneo.spec.code import BundleCode, read_code
from kneo.trust import dsse

STATEMENT_TYPE: Literal["https://in-toto.io/Statement/v1"] = "https://in-toto.io/Statement/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"


class _DigestSet(dsse.SignedRecord):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Subject(dsse.SignedRecord):
    name: dsse.Line
    digest: _DigestSet


class Statement(dsse.SignedRecord):
    """A statement with an unparsed predicate."""

    type: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    subjects: Annotated[dsse.Several[_Subject], Field(min_length=1, max_length=1, alias="subject")]
    predicate_type: dsse.Line
    predicate: dict[str, JsonValue]

    @property
    def subject_name(self) -> str:
        return self.subjects[0].name

    @property
    def subject_digest(self) -> Digest:
        return Digest(f"sha256:{self.subjects[0].digest.sha256}")


def read_statement(payload: bytes, predicate_type: str, *, file: str) -> Statement:
    """Parse a statement of one kind about one subject.

    Raises:
        Invalid: ``Malformed``: not a statement, with unknown fields, or of another kind.
    """
    statement = dsse.read_record(Statement, dsse.read_strict(payload, file=file), file=file)
    if statement.predicate_type != predicate_type:
        msg = f"{file}: predicateType is {statement.predicate_type}, expected {predicate_type}."
        raise Invalid(msg, code="Malformed")
    return statement


def write_statement(predicate_type: str, name: str, digest: str, predicate: dict[str, JsonValue]) -> bytes:
    """Return a statement about one subject in RFC 8785 form."""
    return canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}],
            "predicateType": predicate_type,
            "predicate": predicate,
        }
    )


Commit = Annotated[str, Field(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$")]


class PruneSubject(dsse.SignedRecord):
    """The removal of more releases at once than allowed, by exactly one commit."""

    environment: dsse.Name
    revision: dsse.Line
    """The commit that removes them."""

    count: Annotated[int, Field(ge=0)]
    releases: dsse.DigestText
    """Digest of the removed releases; see ``digest_of_releases``."""


class RewriteSubject(dsse.SignedRecord):
    """The replacement of the repository's history, from exactly one commit to exactly another."""

    old: Commit
    new: Commit


class CanarySubject(dsse.SignedRecord):
    """The steps of one bundle's canary in an environment, up to its promotion."""

    environment: dsse.Name
    bundle: dsse.Name
    digest: dsse.DigestText
    """The bundle."""

    plan: dsse.DigestText
    """Digest of the plan with its defaults."""


class DecisionSubject(dsse.SignedRecord):
    """The subject of a decision that is no bundle; exactly one field is set."""

    prune: PruneSubject | None = None
    rewrite: RewriteSubject | None = None
    canary: CanarySubject | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.prune, self.rewrite, self.canary)) != 1:
            msg = "a decision is about one thing"
            raise ValueError(msg)
        return self

    @property
    def digest(self) -> Digest:
        """The name and digest of the statement's subject."""
        return digest_of_json(self.as_json())

    @property
    def name(self) -> str:
        """The name in place of a bundle's."""
        return next(name for name in ("prune", "rewrite", "canary") if getattr(self, name) is not None)

    def as_json(self) -> dict[str, object]:
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def digest_of_releases(releases: Iterable[tuple[str, str]]) -> Digest:
    """Return the digest of a set of releases, by bundle name and digest."""
    return digest_of_json([list(item) for item in sorted(releases)])


def prune_subject(environment: str, revision: str, releases: Iterable[tuple[str, str]]) -> DecisionSubject:
    """Return the subject of a removal of exactly these releases by exactly this commit."""
    gone = sorted(releases)
    prune = PruneSubject(environment=environment, revision=revision, count=len(gone), releases=digest_of_releases(gone))
    return DecisionSubject(prune=prune)


def rewrite_subject(old: str, new: str) -> DecisionSubject:
    """Return the subject of a replacement of exactly one commit by exactly another."""
    return DecisionSubject(rewrite=RewriteSubject(old=old, new=new))


def canary_subject(environment: str, bundle: str, digest: str, plan: str) -> DecisionSubject:
    """Return the subject of a canary of exactly this bundle by exactly this plan."""
    return DecisionSubject(
        canary=CanarySubject(environment=environment, bundle=bundle, digest=Digest(digest), plan=Digest(plan))
    )


BUNDLE_TYPE = "urn:kneo:attestation:bundle:v1"
APPROVAL_TYPE = "urn:kneo:attestation:approval:v1"

APPROVAL_LIFE = timedelta(days=366)
"""Longest validity of a decision after its signing."""

BUNDLE_BYTES = 2_097_152
"""Largest payload of a bundle."""

ENVIRONMENTS = 64
DEPENDENCIES = 64


class Dependency(dsse.SignedRecord):
    """A bundle that must run in the same environment, by content."""

    name: dsse.Name
    digest: dsse.DigestText


class BundleSource(dsse.SignedRecord):
    """The signer's claim about the origin of the spec, for people; no decision depends on it."""

    repo: dsse.Line | None = None
    commit: Annotated[str, Field(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$")] | None = None
    path: dsse.Line | None = None
    ci_run: dsse.Line | None = None


class BundlePredicate(dsse.SignedRecord):
    name: dsse.Name
    version: dsse.Version
    seq: Annotated[int, Field(ge=1, le=dsse.SEQUENCE_LIMIT)]
    """Position in the history of this name; grows by one with each signed version."""

    prev: dsse.DigestText | None
    """Digest of the previous version, so that two histories cannot be merged into one; null for the first."""

    environments: Annotated[dsse.Several[dsse.Name], Field(min_length=1, max_length=ENVIRONMENTS)]
    """Environments where the bundle may run; at least one, and there is no wildcard."""

    issued_at: dsse.Time
    expires_at: dsse.Time | None = None
    approved_by: dsse.Line
    depends_on: Annotated[dsse.Several[Dependency], Field(max_length=DEPENDENCIES)]
    source: BundleSource | None
    spec: dict[str, JsonValue]
    """The resolved spec: overlays applied, every referenced file inlined."""

    spec_digest: dsse.DigestText
    """Digest of ``spec`` in its RFC 8785 form."""

    code: dict[str, JsonValue] | None = None
    """The files of the functions that the spec names; see ``kneo.spec.code``. Absent where it names none, or was signed without."""


class ApprovalDecision(StrEnum):
    APPROVE = "approve"
    REJECT = "reject"


class ApprovalPredicate(dsse.SignedRecord):
    bundle_digest: dsse.DigestText
    environment: dsse.Name
    policy_digest: dsse.DigestText
    """Digest of the rules in force at the decision; it does not count under other rules."""

    decision: Annotated[ApprovalDecision, Field(strict=False)]
    issued_at: dsse.Time | None = None
    """Time of signing: of one person's statements the latest counts, in any order of arrival.

    Absent only in statements recorded before this field existed.
    """

    expires: dsse.Time
    """Expiry of an approval. A rejection counts until its signer withdraws it."""

    reason: dsse.Line | None = None
    """The decider's reason."""

    about: DecisionSubject | None = None
    """The subject of a decision that is no bundle; ``bundle_digest`` is then its digest."""

    approver: dsse.Line | None = None
    """The person whom a service authenticated and signed for. Absent where the person's own key signed."""


@dataclass(frozen=True)
class BundleStatement:
    """A signed or still unsigned bundle: the bytes and their content."""

    payload: bytes
    predicate: BundlePredicate
    subject_name: str
    subject_digest: Digest
    code: BundleCode | None = None

    @property
    def digest(self) -> Digest:
        """The bundle's identity: SHA-256 of the payload bytes."""
        return digest_of(self.payload)


@dataclass(frozen=True)
class ApprovalStatement:
    """A person's decision about one bundle in one environment under one policy."""

    payload: bytes
    predicate: ApprovalPredicate
    subject_name: str
    subject_digest: Digest

    @property
    def digest(self) -> Digest:
        return digest_of(self.payload)


def parse_bundle(payload: bytes, *, file: str = "bundle") -> BundleStatement:
    """Parse a bundle's payload; consistency and signatures are not verified here.

    Raises:
        Invalid: ``LimitExceeded``: it is too large; ``Malformed``: not a Statement v1 with exactly a bundle predicate; or as
            ``BundleCode``: its code is beyond the limits.
    """
    if len(payload) > BUNDLE_BYTES:
        msg = f"{file}: {len(payload):,} bytes are too many for a bundle; the limit is {BUNDLE_BYTES:,} bytes."
        raise Invalid(msg, code="LimitExceeded")
    statement = read_statement(payload, BUNDLE_TYPE, file=file)
    predicate = dsse.read_record(BundlePredicate, statement.predicate, file=f"{file}: predicate")
    code = read_code(predicate.code, file=f"{file}: code") if predicate.code is not None else None
    return BundleStatement(payload, predicate, statement.subject_name, statement.subject_digest, code)


def parse_approval(payload: bytes, *, file: str = "approval") -> ApprovalStatement:
    """Parse an approval's payload.

    Raises:
        Invalid: ``Malformed``: not a Statement v1 with exactly an approval predicate.
    """
    statement = read_statement(payload, APPROVAL_TYPE, file=file)
    predicate = dsse.read_record(ApprovalPredicate, statement.predicate, file=f"{file}: predicate")
    if predicate.about is not None and predicate.about.digest != predicate.bundle_digest:
        msg = f"{file}: the field subject differs from the subject of the statement."
        raise Invalid(msg, code="Malformed")
    issued, expires = predicate.issued_at, predicate.expires
    if issued is not None and not issued < expires <= issued + APPROVAL_LIFE:
        msg = f"{file}: expires has to be after issuedAt, and at most {APPROVAL_LIFE.days} days after it."
        raise Invalid(msg, code="Malformed", hint="Sign the decision again with a shorter --expires.")
    return ApprovalStatement(payload, predicate, statement.subject_name, statement.subject_digest)


def approval_content(statement: ApprovalStatement) -> dict[str, object]:
    """Return the fields of a decision as they are signed, and the name of its subject."""
    signed = read_statement(statement.payload, APPROVAL_TYPE, file="approval")
    return {"name": signed.subject_name, **signed.predicate}


def build_bundle(  # noqa: PLR0913 - one argument per field of the predicate, all by name
    *,
    name: str,
    version: str,
    seq: int,
    prev: Digest | None,
    environments: Sequence[str],
    issued_at: datetime,
    approved_by: str,
    spec: Mapping[str, object],
    expires_at: datetime | None = None,
    depends_on: Sequence[Dependency] = (),
    source: BundleSource | None = None,
    code: BundleCode | None = None,
) -> BundleStatement:
    """Freeze a resolved spec, and the code that it names, into the payload to sign.

    Raises:
        Invalid: a field is out of its bounds, or the spec has no JSON form.
    """
    spec_digest = digest_of_json(spec)
    predicate = dsse.read_record(
        BundlePredicate,
        {
            "name": name,
            "version": version,
            "seq": seq,
            "prev": prev,
            "environments": list(environments),
            "issuedAt": issued_at,
            "expiresAt": expires_at,
            "approvedBy": approved_by,
            "dependsOn": list(depends_on),
            "source": source,
            "spec": dict(spec),
            "specDigest": spec_digest,
            "code": code.as_json() if code is not None else None,
        },
        file="bundle",
    )
    return parse_bundle(_payload(BUNDLE_TYPE, name, spec_digest, predicate))  # as it is read when it is verified


def build_approval(  # noqa: PLR0913 - as above
    *,
    bundle_name: str,
    bundle_digest: Digest,
    environment: str,
    policy_digest: Digest,
    decision: ApprovalDecision,
    issued_at: datetime,
    expires: datetime,
    approver: str | None = None,
    reason: str | None = None,
    about: DecisionSubject | None = None,
) -> ApprovalStatement:
    """Create the statement of a decision to sign.

    Raises:
        Invalid: a field is out of its bounds.
    """
    predicate = dsse.read_record(
        ApprovalPredicate,
        {
            "bundleDigest": bundle_digest,
            "environment": environment,
            "policyDigest": policy_digest,
            "decision": decision,
            "issuedAt": issued_at,
            "expires": expires,
            "approver": approver,
            "reason": reason,
            "about": about,
        },
        file="approval",
    )
    return parse_approval(_payload(APPROVAL_TYPE, bundle_name, bundle_digest, predicate))


def _payload(predicate_type: str, name: str, digest: Digest, predicate: dsse.SignedRecord) -> bytes:
    view = predicate.model_dump(mode="json", by_alias=True)
    for optional in ("expiresAt", "approver", "about", "reason", "code"):
        if view.get(optional, 0) is None:
            del view[optional]
    if isinstance(about := view.get("about"), dict):
        view["about"] = {name: value for name, value in about.items() if value is not None}
    return write_statement(predicate_type, name, digest, view)
