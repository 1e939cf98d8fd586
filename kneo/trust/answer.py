"""Signed answers: the statement that a reviewer signs with a personal key about one answer, and its verification.

The statement holds digests of everything that the service records of the answer. It is valid for one question, one
decision and a short time. The receipt of the decision names the statement, so both together prove the decider.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from kneo.digest import Digest, digest_of, digest_of_json
from kneo.errors import Invalid, Untrusted
from kneo.names import is_same_person
from kneo.trust.dsse import (
    CLOCK_TOLERANCE,
    DigestText,
    Envelope,
    SignedRecord,
    Time,
    TrustedKey,
    find_signers,
    read_record,
)
from kneo.trust.keys import KeyId
from kneo.trust.statement import PAYLOAD_TYPE, read_statement, write_statement

ANSWER_TYPE = "urn:kneo:attestation:answer:v1"

PAYLOAD_BYTES = 65_536
"""Largest statement; it holds digests of the answer, not the answer."""

LASTS_AT_MOST = timedelta(days=1)

Text: TypeAlias = Annotated[str, Field(max_length=20_000)]


class AnswerBinding(SignedRecord):
    """The fields that bind an answer. Names are camelCase in files, digests ``sha256:`` and 64 hex digits."""

    task: Text
    request: Text
    run: Text
    environment: Text | None
    gate: Text
    subject_digest: DigestText
    """Digest of the subject that the reviewer saw."""

    decision: Literal["approved", "rejected", "edited", "selected", "provided"]
    answer_digest: DigestText
    """Digest of decision, content, options and values, equal for votes that agree."""

    content_digest: DigestText | None
    """Digest of the answer without the decision, as in the receipt."""

    reviewer: Text
    bundle_digest: DigestText | None
    policy_digest: DigestText | None


class SignedAnswer(AnswerBinding):
    """The statement's predicate: the bound fields and the period of validity."""

    issued_at: Time
    expires: Time


@dataclass(frozen=True)
class AnswerStatement:
    """The signed bytes and their parsed content."""

    payload: bytes
    answer: SignedAnswer

    @property
    def digest(self) -> Digest:
        return digest_of(self.payload)


def _nothing_revoked(keyid: str, seen: datetime) -> bool:
    del keyid, seen
    return False


@dataclass(frozen=True, kw_only=True)
class ReviewerKeys:
    """The keys of reviewers.

    Attributes:
        keys: Every known key with its owner.
        void: Returns whether a key's signature that was first seen at a time is void.
    """

    keys: Mapping[KeyId, TrustedKey]
    void: Callable[[str, datetime], bool] = field(default=_nothing_revoked)


def answer_digest(
    decision: str, content: str | None, selected_options: Sequence[str], values: Mapping[str, object] | None
) -> Digest:
    """Return the digest of an answer without person and reason, equal for votes that agree."""
    return digest_of_json(
        {
            "kind": decision,
            "content": content,
            "selected_options": list(selected_options),
            "values": dict(values) if values else None,
        }
    )


def build_answer(binding: AnswerBinding, *, issued_at: datetime, expires: datetime) -> AnswerStatement:
    """Return an answer as a statement to sign."""
    full = SignedAnswer(**dict(binding), issued_at=issued_at, expires=expires)
    predicate = full.model_dump(mode="json", by_alias=True)
    return AnswerStatement(write_statement(ANSWER_TYPE, full.task, full.subject_digest, predicate), full)


def parse_answer(payload: bytes, *, file: str = "statement") -> AnswerStatement:
    """Parse a statement's payload; its signature is not verified here.

    Raises:
        Invalid: ``LimitExceeded``, or ``Malformed``: not a statement about an answer and nothing else.
    """
    if len(payload) > PAYLOAD_BYTES:
        msg = f"{file}: {len(payload)} bytes are too many; the limit is {PAYLOAD_BYTES} bytes."
        raise Invalid(msg, code="LimitExceeded")
    statement = read_statement(payload, ANSWER_TYPE, file=file)
    answer = read_record(SignedAnswer, statement.predicate, file=f"{file}: predicate")
    if (statement.subject_name, statement.subject_digest) != (answer.task, answer.subject_digest):
        msg = f"{file}: its subject is not the task that it is about."
        raise Invalid(msg, code="Malformed", field="subject")
    return AnswerStatement(payload, answer)


def open_answer(envelope: Envelope) -> AnswerStatement:
    """Parse a signed statement without verification.

    Raises:
        Invalid: as ``parse_answer`` says, or it has another kind or more than one signature.
    """
    if envelope.payload_type != PAYLOAD_TYPE:
        msg = f"statement: payloadType is {envelope.payload_type}, expected {PAYLOAD_TYPE}."
        raise Invalid(msg, code="Malformed", field="payloadType")
    if len(envelope.signatures) != 1:
        msg = f"statement: {len(envelope.signatures)} signatures; a signed answer has exactly one."
        raise Invalid(msg, code="Malformed", field="signatures")
    return parse_answer(envelope.payload)


def check_signer(envelope: Envelope, reviewer: str, reviewers: ReviewerKeys, seen: datetime) -> None:
    """Check that a statement was signed with a key of this person, which was not revoked when it was seen.

    Raises:
        Untrusted: ``SignatureInvalid``, ``WrongSigner``, ``KeyRevoked``.
    """
    signers = find_signers(envelope, reviewers.keys)
    if not signers:
        msg = f"No known key of {reviewer} signed this answer, or it was changed."
        hint = "Sign with a key that the trust root lists for you; see kneo trust show."
        raise Untrusted(msg, code="SignatureInvalid", hint=hint)
    if not is_same_person(signers[0].principal, reviewer):
        msg = f"This answer is {reviewer}'s and was signed with the key of {signers[0].principal}."
        raise Untrusted(msg, code="WrongSigner", hint="Sign the answer with your own key.")
    if reviewers.void(signers[0].keyid, seen):
        msg = f"The key {signers[0].keyid} of {reviewer} was revoked."
        raise Untrusted(msg, code="KeyRevoked", hint="Sign with a key that is not revoked.")


def verify_answer(
    envelope: Envelope, binding: AnswerBinding, *, reviewers: ReviewerKeys, now: datetime, after: datetime | None = None
) -> AnswerStatement:
    """Verify that a person signed exactly this answer.

    1. The envelope carries a statement about an answer, within its bounds, with one signature.
    2. A key of the person signed it, and it is not revoked.
    3. Its fields are those that will be recorded.
    4. It has not expired, and its validity is within the limit.
    5. It was issued after the last statement of this person here.

    Args:
        envelope: The signed statement.
        binding: The fields that will be recorded.
        reviewers: The keys of reviewers.
        now: The time of verification.
        after: Time of issue of the statement behind this person's present vote; None without one.

    Raises:
        Invalid: ``Malformed``, ``LimitExceeded``.
        Untrusted: ``SignatureInvalid``, ``WrongSigner``, ``KeyRevoked``, ``SubjectMismatch``, ``Expired``,
            ``Replayed``.
    """
    # (1)
    statement = open_answer(envelope)
    # (2)
    check_signer(envelope, binding.reviewer, reviewers, now)
    # (3)
    for name in differences(statement.answer, binding):
        msg = f"The signed statement differs from the answer: {name}."
        raise Untrusted(msg, code="SubjectMismatch", field=name, hint="Read the task again, and sign a new answer.")
    # (4)
    issued, expires = statement.answer.issued_at, statement.answer.expires
    if now >= expires:
        msg = f"The signed answer expired at {expires.isoformat()}."
        raise Untrusted(msg, code="Expired", hint="Sign it again.")
    if issued > now + CLOCK_TOLERANCE:
        msg = f"The signed answer says it was made at {issued.isoformat()}, which is to come."
        raise Untrusted(msg, code="Expired", field="issuedAt", hint="Sign it again, with a clock that is right.")
    if not issued < expires <= issued + LASTS_AT_MOST or expires > now + LASTS_AT_MOST:
        msg = f"A signed answer lasts for up to {LASTS_AT_MOST.total_seconds() / 3600:.0f} hours from when it was made."
        raise Untrusted(msg, code="Expired", field="expires", hint="Sign it again.")
    # (5)
    if after is not None and issued <= after:
        msg = f"{binding.reviewer} has signed a later answer."
        raise Untrusted(msg, code="Replayed", hint="To change your mind, sign the new answer.")
    return statement


def differences(one: AnswerBinding, other: AnswerBinding) -> Iterator[str]:
    """Yield the file names of the fields that differ between two answers; spellings of one person's name are equal."""
    for name, about in AnswerBinding.model_fields.items():
        left, right = getattr(one, name), getattr(other, name)
        if left != right and not (name == "reviewer" and is_same_person(left, right)):
            yield about.alias or name
