"""What a reviewer signs with a key of their own about one answer, and whether they did.

The statement says everything the service will record of the answer, as digests. It is good for one question, one decision and a
short time; the receipt of the decision names it, so that whoever has both needs nobody's word for who decided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from kneo.digest import Digest, digest_of, digest_of_json
from kneo.errors import Invalid, Untrusted
from kneo.trust.dsse import Envelope, TrustedKey, find_signers, is_same
from kneo.trust.intoto import PAYLOAD_TYPE, read_statement, write_statement
from kneo.trust.keys import KeyId
from kneo.trust.reading import DigestText, SignedRecord, Time, read_record

ANSWER_TYPE = "urn:kneo:attestation:answer:v1"

PAYLOAD_BYTES = 65_536
"""Longest statement read; what is answered is in it as digests only."""

LASTS_AT_MOST = timedelta(days=1)

CLOCKS_DIFFER = timedelta(minutes=5)
"""How far the clocks of processes may differ: one writes down what is signed, and another one takes the answer."""

Text: TypeAlias = Annotated[str, Field(max_length=20_000)]


class AnswerBinding(SignedRecord):
    """What an answer is bound to. Names are camelCase in files, digests ``sha256:`` and 64 hex digits."""

    task: Text
    request: Text
    run: Text
    environment: Text | None
    gate: Text
    subject_digest: DigestText
    """What was shown."""

    decision: Literal["approved", "rejected", "edited", "selected", "provided"]
    answer_digest: DigestText
    """What votes that agree have in common: the decision, content, options and values."""

    content_digest: DigestText | None
    """Everything that was answered beside the decision's word, as in the receipt."""

    reviewer: Text
    bundle_digest: DigestText | None
    policy_digest: DigestText | None


class SignedAnswer(AnswerBinding):
    """The statement's predicate: what is said, and for how long that may be handed over."""

    issued_at: Time
    expires: Time


@dataclass(frozen=True)
class AnswerStatement:
    """The bytes that are signed, and what they say."""

    payload: bytes
    said: SignedAnswer

    @property
    def digest(self) -> Digest:
        return digest_of(self.payload)


def _nothing_revoked(keyid: str, seen: datetime) -> bool:
    del keyid, seen
    return False


@dataclass(frozen=True, kw_only=True)
class ReviewerKeys:
    """Whose keys count.

    Attributes:
        keys: Every key that is known, and whose it is.
        void: Whether what a key signed counts for nothing when it was first seen at a time.
    """

    keys: Mapping[KeyId, TrustedKey]
    void: Callable[[str, datetime], bool] = field(default=_nothing_revoked)


def answer_digest(
    decision: str, content: str | None, selected_options: Sequence[str], values: Mapping[str, object] | None
) -> Digest:
    """Name what an answer says, whoever says it and why: equal for votes that agree."""
    return digest_of_json(
        {
            "kind": decision,
            "content": content,
            "selected_options": list(selected_options),
            "values": dict(values) if values else None,
        }
    )


def build_answer(said: AnswerBinding, *, issued_at: datetime, expires: datetime) -> AnswerStatement:
    """Spell an answer as the bytes to sign."""
    full = SignedAnswer(**dict(said), issued_at=issued_at, expires=expires)
    predicate = full.model_dump(mode="json", by_alias=True)
    return AnswerStatement(write_statement(ANSWER_TYPE, full.task, full.subject_digest, predicate), full)


def parse_answer(payload: bytes, *, file: str = "statement") -> AnswerStatement:
    """Read a statement's payload. Who signed it is for the verifier.

    Raises:
        Invalid: ``LimitExceeded``, or ``Malformed``: not a statement about an answer and nothing else.
    """
    if len(payload) > PAYLOAD_BYTES:
        msg = f"{file}: {len(payload)} bytes are too many; the limit is {PAYLOAD_BYTES} bytes."
        raise Invalid(msg, code="LimitExceeded")
    statement = read_statement(payload, ANSWER_TYPE, file=file)
    said = read_record(SignedAnswer, statement.predicate, file=f"{file}: predicate")
    if (statement.subject_name, statement.subject_digest) != (said.task, said.subject_digest):
        msg = f"{file}: its subject is not the task that it is about."
        raise Invalid(msg, code="Malformed", field="subject")
    return AnswerStatement(payload, said)


def open_answer(envelope: Envelope, *, file: str = "statement") -> AnswerStatement:
    """Read a signed statement, believing none of it.

    Raises:
        Invalid: as ``parse_answer`` says, or it has another kind or more than one signature.
    """
    if envelope.payload_type != PAYLOAD_TYPE:
        msg = f"{file}: payloadType is {envelope.payload_type}, expected {PAYLOAD_TYPE}."
        raise Invalid(msg, code="Malformed", field="payloadType")
    if len(envelope.signatures) != 1:
        msg = f"{file}: {len(envelope.signatures)} signatures; whoever answers signs for themselves."
        raise Invalid(msg, code="Malformed", field="signatures")
    return parse_answer(envelope.payload, file=file)


def check_signer(envelope: Envelope, reviewer: str, reviewers: ReviewerKeys, seen: datetime) -> None:
    """Check that a statement was signed with a key of this person, which was not revoked when it was seen.

    Raises:
        Untrusted: ``SignatureInvalid``, ``WrongSigner``, ``KeyRevoked``.
    """
    found = find_signers(envelope, reviewers.keys)
    if not found:
        msg = f"No key that is known of {reviewer} signed this answer, or it was changed."
        hint = "Sign with a key that the trust root names for you; kneo trust show lists them."
        raise Untrusted(msg, code="SignatureInvalid", hint=hint)
    if not is_same(found[0].principal, reviewer):
        msg = f"This answer is {reviewer}'s and was signed with the key of {found[0].principal}."
        raise Untrusted(msg, code="WrongSigner", hint="Whoever answers signs with a key of their own.")
    if reviewers.void(found[0].keyid, seen):
        msg = f"The key {found[0].keyid} of {reviewer} was revoked."
        raise Untrusted(msg, code="KeyRevoked", hint="Sign with a key that is not revoked.")


def verify_answer(
    envelope: Envelope, said: AnswerBinding, *, reviewers: ReviewerKeys, now: datetime, after: datetime | None = None
) -> AnswerStatement:
    """Decide whether these bytes are this person's word for exactly this answer.

    1. The envelope carries a statement about an answer, within its bounds, with one signature.
    2. A key of the person signed it, and it is not revoked.
    3. It says what will be recorded, field by field.
    4. It is not too old, and was not made to last.
    5. It was made after the last one that this person signed here.

    Args:
        envelope: What was handed over.
        said: What will be recorded.
        reviewers: Whose keys count.
        now: One time for all of it.
        after: When the statement was issued that this person's present vote rests on, if they have one.

    Raises:
        Invalid: ``Malformed``, ``LimitExceeded``.
        Untrusted: ``SignatureInvalid``, ``WrongSigner``, ``KeyRevoked``, ``SubjectMismatch``, ``Expired``, ``Replayed``.
    """
    # (1)
    statement = open_answer(envelope)
    # (2)
    check_signer(envelope, said.reviewer, reviewers, now)
    # (3)
    for name in differences(statement.said, said):
        msg = f"What was signed is not what is answered: {name} differs."
        raise Untrusted(msg, code="SubjectMismatch", field=name, hint="Read the task again, and sign the answer anew.")
    # (4)
    issued, expires = statement.said.issued_at, statement.said.expires
    if now >= expires:
        msg = f"The signed answer expired at {expires.isoformat()}."
        raise Untrusted(msg, code="Expired", hint="Sign it again.")
    if issued > now + CLOCKS_DIFFER:
        msg = f"The signed answer says it was made at {issued.isoformat()}, which is to come."
        raise Untrusted(msg, code="Expired", field="issuedAt", hint="Sign it again, with a clock that is right.")
    if not issued < expires <= issued + LASTS_AT_MOST or expires > now + LASTS_AT_MOST:
        msg = f"A signed answer lasts for up to {LASTS_AT_MOST.total_seconds() / 3600:.0f} hours from when it was made."
        raise Untrusted(msg, code="Expired", field="expires", hint="Sign it again.")
    # (5)
    if after is not None and issued <= after:
        msg = f"{said.reviewer} has signed an answer since this one was made."
        raise Untrusted(msg, code="Replayed", hint="To change your mind, sign the new answer.")
    return statement


def differences(one: AnswerBinding, other: AnswerBinding) -> Iterator[str]:
    """Name the fields, as files spell them, in which two answers differ; a person's name may be spelled two ways."""
    for name, about in AnswerBinding.model_fields.items():
        left, right = getattr(one, name), getattr(other, name)
        if left != right and not (name == "reviewer" and is_same(left, right)):
            yield about.alias or name
