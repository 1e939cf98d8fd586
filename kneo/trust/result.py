"""Signed results of evaluations: facts about one bundle, as an in-toto statement with the predicate Test Result v0.1.

The predicate is vetted by in-toto and has no place for metrics; the framework lets a consumer add fields named by a URI. The suite
is a resource of ``configuration``. A case appears by its id and a commitment: the hash of a salt and its result, both of which only a
report has.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, JsonValue

from kneo import __version__
from kneo.clock import isoformat
from kneo.digest import Digest, canonical_json, digest_of
from kneo.errors import Invalid, Untrusted
from kneo.trust import dsse
from kneo.trust.dsse import CLOCK_TOLERANCE, Signer, find_signers, parse_envelope
from kneo.trust.root import TrustRoot
from kneo.trust.statement import PAYLOAD_TYPE, read_statement, write_statement

RESULT_TYPE = "https://in-toto.io/attestation/test-result/v0.1"
EXTENSION = "urn:kneo:attestation:result:v1"

MAX_CASES = 20_000
MAX_METRICS = 200
SALT_BYTES = 16

ResultType: TypeAlias = Literal["eval", "rehearsal", "canary"]

CaseId = Annotated[str, Field(min_length=1, max_length=500)]
Number = Annotated[str, Field(pattern=r"^-?[0-9]{1,15}(\.[0-9]{1,12})?$")]
"""A decimal number as text: every JSON parser reads it alike."""


class _Sha256(dsse.SignedRecord):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Configuration(dsse.SignedRecord):
    """A resource that the result depends on: the suite, the plan or the data set."""

    name: dsse.Name
    digest: _Sha256


class Metric(dsse.SignedRecord):
    """A metric over a number of cases."""

    value: Number
    samples: Annotated[int, Field(ge=0, le=1_000_000_000)]

    @property
    def number(self) -> Decimal:
        return Decimal(self.value)


class AskedModel(dsse.SignedRecord):
    """A model that the trials asked, and the name with which it answered."""

    provider: dsse.Line
    name: dsse.Line
    answered: dsse.Line


class ResultFacts(dsse.SignedRecord):
    """The facts of a result that the predicate has no field for."""

    type: ResultType
    environment: dsse.Name | None = None
    issued_at: dsse.Time
    scripted: bool
    models: Annotated[dsse.Several[AskedModel], Field(max_length=100)] = ()
    metrics: Annotated[dict[dsse.Name, Metric], Field(max_length=MAX_METRICS)]
    commitments: Annotated[
        dict[CaseId, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]], Field(max_length=MAX_CASES)
    ] = Field(default_factory=dict)
    cost: Number | None = None
    """USD; None where the price of a model is not known."""

    kneo: dsse.Line


class ResultPredicate(dsse.SignedRecord):
    result: Literal["PASSED", "WARNED", "FAILED"]
    configuration: Annotated[dsse.Several[Configuration], Field(min_length=1, max_length=1)]
    passed_tests: Annotated[dsse.Several[CaseId], Field(max_length=MAX_CASES)] = ()
    warned_tests: Annotated[dsse.Several[CaseId], Field(max_length=MAX_CASES)] = ()
    failed_tests: Annotated[dsse.Several[CaseId], Field(max_length=MAX_CASES)] = ()
    facts: Annotated[ResultFacts, Field(alias=EXTENSION)]


@dataclass(frozen=True)
class ResultStatement:
    """The result of an evaluation of one bundle."""

    payload: bytes = field(repr=False)
    predicate: ResultPredicate
    bundle_name: str
    bundle_digest: Digest

    @property
    def digest(self) -> Digest:
        """Digest of the payload."""
        return digest_of(self.payload)

    @property
    def facts(self) -> ResultFacts:
        return self.predicate.facts

    @property
    def suite(self) -> str:
        """The name of the suite, plan or data set."""
        return self.predicate.configuration[0].name

    @property
    def suite_digest(self) -> Digest:
        return Digest(f"sha256:{self.predicate.configuration[0].digest.sha256}")


def attestation_id(payload: str) -> str:
    """Return the id of an attestation: derived, so that the same statement is recorded once."""
    return "att_" + payload.removeprefix("sha256:")[:26]


def build_result(  # noqa: PLR0913 - one argument per field, all by name
    *,
    bundle_name: str,
    bundle_digest: str,
    type: ResultType,  # noqa: A002 - the name of the field
    suite: str,
    suite_digest: str,
    issued_at: datetime,
    scripted: bool,
    metrics: Mapping[str, Metric],
    passed: Iterable[str],
    failed: Iterable[str],
    warned: Iterable[str] = (),
    environment: str | None = None,
    models: Iterable[AskedModel] = (),
    commitments: Mapping[str, str] | None = None,
    cost: Decimal | None = None,
) -> ResultStatement:
    """Return the statement of a result to sign.

    Raises:
        Invalid: ``Malformed``: a field is out of its bounds.
    """
    successes: list[JsonValue] = [*sorted(passed)]
    failures: list[JsonValue] = [*sorted(failed)]
    warnings: list[JsonValue] = [*sorted(warned)]
    facts: dict[str, JsonValue] = {
        "type": type,
        "environment": environment,
        "issuedAt": isoformat(issued_at),
        "scripted": scripted,
        "models": [item.model_dump(by_alias=True) for item in models],
        "metrics": {name: item.model_dump(by_alias=True) for name, item in metrics.items()},
        "commitments": dict(commitments or {}),
        "cost": decimal_text(cost) if cost is not None else None,
        "kneo": __version__,
    }
    predicate: dict[str, JsonValue] = {
        "result": "FAILED" if failures else "WARNED" if warnings else "PASSED",
        "configuration": [{"name": suite, "digest": {"sha256": suite_digest.removeprefix("sha256:")}}],
        "passedTests": successes,
        **({"warnedTests": warnings} if warnings else {}),
        "failedTests": failures,
        EXTENSION: {name: value for name, value in facts.items() if value is not None},
    }
    return parse_result(write_statement(RESULT_TYPE, bundle_name, bundle_digest, predicate))


def parse_result(payload: bytes, *, file: str = "result") -> ResultStatement:
    """Parse the payload of a result; signatures are not verified here.

    Raises:
        Invalid: ``Malformed``: not a statement with exactly this predicate, or a case has two results.
    """
    statement = read_statement(payload, RESULT_TYPE, file=file)
    predicate = dsse.read_record(ResultPredicate, statement.predicate, file=f"{file}: predicate")
    cases = [*predicate.passed_tests, *predicate.warned_tests, *predicate.failed_tests]
    if len(set(cases)) < len(cases):
        msg = f"{file}: a case has two results."
        raise Invalid(msg, code="Malformed")
    return ResultStatement(payload, predicate, statement.subject_name, statement.subject_digest)


@dataclass(frozen=True)
class VerifiedResult:
    """A result and the people who signed it with a key of some role."""

    statement: ResultStatement
    signers: tuple[Signer, ...]
    """Never empty."""


def verify_result(
    envelope: bytes,
    *,
    root: TrustRoot,
    roles: Collection[str],
    first_seen: datetime,
    file: str = "evidence",
) -> VerifiedResult:
    """Verify a signed result.

    1. The file is an envelope of an in-toto statement, within its bounds.
    2. A person of these roles signed it with a key that was not revoked when the statement was first seen.
    3. The signed bytes are a result and nothing else.
    4. It is not dated after its first sight: it would count instead of later results.

    Args:
        envelope: The file.
        root: The verified trust root.
        roles: Roles of the trust root; empty refuses.
        first_seen: Time of first sight of this statement.
        file: Its name in messages.

    Raises:
        Invalid: ``Malformed``, ``LimitExceeded``.
        Untrusted: ``SignatureInvalid``, ``KeyRevoked``, ``NotYetValid``.
    """
    # (1)
    opened = parse_envelope(envelope, file=file)
    if opened.payload_type != PAYLOAD_TYPE:
        msg = f"{file}: payloadType is {opened.payload_type}, expected {PAYLOAD_TYPE}."
        raise Invalid(msg, code="Malformed")
    # (2)
    keys = {keyid: key for name in roles for keyid, key in root.role_keys(name).items()}
    found = find_signers(opened, keys)
    if not found:
        msg = f"{file}: not signed by a person of the role {', '.join(sorted(roles)) or '(none)'}."
        raise Untrusted(msg, code="SignatureInvalid", hint="Sign it with kneo eval --key and a key of that role.")
    signers = tuple(signer for signer in found if not root.void(signer.keyid, first_seen))
    if not signers:
        msg = f"{file}: the key of {', '.join(signer.principal for signer in found)} was revoked."
        raise Untrusted(msg, code="KeyRevoked", hint="Evaluate again, with a key that is not revoked.")
    # (3)
    statement = parse_result(opened.payload, file=file)
    # (4)
    check_issued(statement, first_seen, file=file)
    return VerifiedResult(statement, signers)


def check_issued(statement: ResultStatement, seen: datetime, *, file: str = "evidence") -> None:
    """Refuse a result that is dated after its first sight.

    Raises:
        Untrusted: ``NotYetValid``.
    """
    if statement.facts.issued_at > seen + CLOCK_TOLERANCE:
        msg = f"{file}: issued at {isoformat(statement.facts.issued_at)}, which is in the future."
        raise Untrusted(msg, code="NotYetValid", hint="Set the clock of the machine that evaluates.")


def commitment_of(salt: str, result: Mapping[str, object]) -> str:
    """Return the commitment to a case: the hash of its salt, in hexadecimal digits, and its result in RFC 8785 form."""
    return digest_of(bytes.fromhex(salt) + canonical_json(result)).removeprefix("sha256:")


def check_commitments(
    statement: ResultStatement, cases: Iterable[tuple[str, str, Mapping[str, object]]], file: str
) -> None:
    """Check that a report has exactly the cases that a result commits to.

    Args:
        statement: The result.
        cases: The cases of the report: id, salt and result.
        file: The report's name in messages.

    Raises:
        Untrusted: ``SubjectMismatch``.
    """
    known, seen = statement.facts.commitments, set[str]()
    for case, salt, result in cases:
        seen.add(case)
        is_salt = re.fullmatch(f"[0-9a-f]{{{2 * SALT_BYTES}}}", salt) is not None
        if not is_salt or not hmac.compare_digest(known.get(case, ""), commitment_of(salt, result)):
            msg = f"{file}: the case {case} is not the one that was signed."
            raise Untrusted(msg, code="SubjectMismatch", hint="Compare with the report that the evaluation wrote.")
    if missing := sorted(known.keys() - seen):
        msg = f"{file}: the case {missing[0]}, which was signed, is missing."
        raise Untrusted(msg, code="SubjectMismatch")


def decimal_text(number: Decimal) -> str:
    """Return a number as text with at most six places after the point, without zeros at its end."""
    text = f"{number:.6f}"
    return text.rstrip("0").rstrip(".") or "0"
