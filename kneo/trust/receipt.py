"""Receipts: the statement that a service signs about one decision of a person, a deadline or a replay, and files of receipts.

The format is on ``docs/reference/receipts.md``. A receipt holds digests of the subject and the answer, never their
texts. It names the previous receipt of the run, so that none can be removed or inserted, and the head of the audit log
at its time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, JsonValue

from kneo.digest import Digest, canonical_json, digest_of, digest_of_json
from kneo.errors import Invalid
from kneo.spec.documents import ReadLimits
from kneo.spec.reading.reader import read_json
from kneo.trust import dsse
from kneo.trust.keys import PrivateKey
from kneo.trust.statement import PAYLOAD_TYPE, read_statement, write_statement

RECEIPT_TYPE = "urn:kneo:attestation:decision:v1"

GRANTED_TYPE = "urn:kneo:attestation:decision:v2"
"""The type of receipts of decisions by standing grants: earlier verifiers refuse what they cannot judge."""

MARK_CHARS = 8

Text: TypeAlias = Annotated[str, Field(max_length=20_000)]
Hash: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Word: TypeAlias = Literal["approved", "rejected", "edited", "selected", "provided", "expired"]


class Voter(dsse.SignedRecord):
    """A person whose vote counted, with the roles and groups at that time."""

    actor: Text
    decision: Word
    at: dsse.Time
    roles: dsse.Several[Text] = ()
    groups: dsse.Several[Text] = ()
    via: Text | None = None
    """The link of the vote and its creator, where the person used one."""

    statement: dsse.DigestText | None = None
    """Digest of the person's signed statement, where the gate requires one."""


class GrantReference(dsse.SignedRecord):
    """The standing grant of a decision, its terms, and the number of its use."""

    id: Text
    terms_digest: dsse.DigestText
    number: Annotated[int, Field(ge=1, le=dsse.SEQUENCE_LIMIT)]


class ReceiptCode(dsse.SignedRecord):
    """The code that a gated call executes."""

    digest: dsse.DigestText | None
    source: Literal["bundle", "project", "program"]


class ReceiptSandbox(dsse.SignedRecord):
    """The sandbox in which a gated call runs: a call never runs at a lower level."""

    level: Literal["none", "process", "kernel"]
    profile: dsse.DigestText
    """Digest of what the bundle's spec declares."""


class ReceiptSubject(dsse.SignedRecord):
    """What a question stated in addition to the subject that its digest covers."""

    sandbox: ReceiptSandbox


class Receipt(dsse.SignedRecord):
    """A receipt. Names are camelCase in files, times ISO-8601 in UTC, digests ``sha256:`` and 64 hex digits."""

    id: Text
    task: Text
    request: Text
    """The question of the task that was answered."""

    run: Text
    environment: Text | None
    gate: Text
    """The gate's key, stable over resume and replay."""

    position: Text
    step: Text
    attempt: Annotated[int, Field(ge=0, le=dsse.SEQUENCE_LIMIT)]
    subject_digest: dsse.DigestText
    """Digest of the subject: see ``subject_digest`` of the task."""

    decision: Word
    """``expired`` where a deadline ended the run."""

    effect: Text | None
    """Effect of a rejection."""

    content_digest: dsse.DigestText | None
    """Digest of the answer without the decision; null without one."""

    by: Literal["person", "policy:timeout", "replay", "grant"]
    actor: Text
    decided_at: dsse.Time
    voters: dsse.Several[Voter]
    """The people whose votes made the decision, of a grant those who approved it; empty for a deadline or a replay."""

    allow_self: bool
    """Whether the environment lets people answer for their own requests and bundles."""

    bundle_digest: dsse.DigestText | None
    """The bundle that asks, or the spec where there is no bundle."""

    policy_digest: dsse.DigestText | None
    """The environment's rules at that time; null outside of environments."""

    source: dsse.DigestText | None
    """The receipt of the reused decision."""

    audit_event: Text
    audit_leaf: Hash
    """The event's leaf in the audit log, by which the event can be proved to be included once it is sealed."""

    audit_size: Annotated[int, Field(ge=0, le=dsse.SEQUENCE_LIMIT)]
    audit_head: Hash
    """The number of sealed events at that time, and the head over them."""

    sequence: Annotated[int, Field(ge=1, le=dsse.SEQUENCE_LIMIT)]
    """Number of this receipt among those of the run."""

    previous: dsse.DigestText | None
    """Digest of the previous receipt; null for a run's first."""

    code: ReceiptCode | None = None
    """The code of the bundle, of a decision about a call of a tool; absent otherwise."""

    subject: ReceiptSubject | None = None
    """The sandbox of the call, of a decision about a call that has one; absent otherwise."""

    grant: GrantReference | None = None
    """The standing grant that decided; only receipts of that type have it."""

    @property
    def predicate_type(self) -> str:
        """The type of the statement."""
        return RECEIPT_TYPE if self.grant is None else GRANTED_TYPE


@dataclass(frozen=True)
class ReceiptStatement:
    """The signed bytes and their parsed content."""

    payload: bytes
    receipt: Receipt

    @property
    def digest(self) -> Digest:
        return digest_of(self.payload)


def content_digest(answered: Mapping[str, object]) -> Digest | None:
    """Return the digest of an answer without the decision; None for an empty one.

    Raises:
        Invalid: it has no canonical form.
    """
    content = without_empty(answered)
    return digest_of_json(content) if content else None


def without_empty(answered: Mapping[str, object]) -> dict[str, object]:
    """Return the values that are neither null nor empty."""
    return {name: value for name, value in answered.items() if value not in (None, "", (), [], {})}


def build_receipt(receipt: Receipt) -> ReceiptStatement:
    """Return a receipt as a statement to sign."""
    view = view_of(receipt)
    predicate: dict[str, JsonValue] = {**view, "marks": marks_of(view)}
    payload = write_statement(receipt.predicate_type, receipt.task, receipt.subject_digest, predicate)
    return ReceiptStatement(payload, receipt)


def view_of(receipt: Receipt) -> dict[str, JsonValue]:
    """Return the fields of a receipt as JSON; ``grant``, ``code`` and ``subject`` are left out where there is none."""
    left_out = {name for name in ("grant", "code", "subject") if getattr(receipt, name) is None}
    return receipt.model_dump(mode="json", by_alias=True, exclude=left_out)


def sign_receipt(statement: ReceiptStatement, key: PrivateKey) -> dsse.Envelope:
    return dsse.sign(PAYLOAD_TYPE, statement.payload, key)


def marks_of(view: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return a mark for each field, which shows the changed field behind a broken signature."""
    return {name: mark_of(value) for name, value in view.items()}


def mark_of(value: JsonValue) -> str:
    """Return the beginning of the SHA-256 of a value's RFC 8785 form. It proves nothing; the signature does.

    Raises:
        Invalid: the value has no such form.
    """
    return hashlib.sha256(canonical_json(value)).hexdigest()[:MARK_CHARS]


def parse_receipt(payload: bytes) -> ReceiptStatement:
    """Parse a receipt's payload; signature and marks are not verified here.

    Raises:
        Invalid: ``Malformed``: not a statement with our predicate and nothing else.
    """
    kind = GRANTED_TYPE if is_granted(dsse.read_strict(payload, file="receipt")) else RECEIPT_TYPE
    statement = read_statement(payload, kind, file="receipt")
    fields = {name: value for name, value in statement.predicate.items() if name != "marks"}
    receipt = dsse.read_record(Receipt, fields, file="receipt: predicate")
    if ("grant" in fields) != (kind == GRANTED_TYPE) or receipt.predicate_type != kind:
        msg = f"receipt: a {kind} {'names' if kind == GRANTED_TYPE else 'does not name'} a grant."
        raise Invalid(msg, code="Malformed", field="grant")
    return ReceiptStatement(payload, receipt)


def is_granted(statement: object) -> bool:
    """Tell whether a statement is of the type of receipts of decisions by standing grants."""
    return isinstance(statement, dict) and statement.get("predicateType") == GRANTED_TYPE


LIMITS = ReadLimits(max_bytes=16 * 1_048_576, max_nodes=1_000_000)
"""Size of the receipts of some thousand decisions."""

RECEIPTS = 5_000
"""Most receipts in one file."""

HINT = "kneo task receipt show --json and kneo promotion receipt show --output FILE write one."

STATEMENTS = 1_000
"""Most statements of reviewers with one receipt."""


@dataclass(frozen=True, kw_only=True)
class PresentedReceipt:
    """A receipt to verify: of a human task, or of a decision about a change of an environment.

    Attributes:
        envelope: The signed envelope.
        view: The claimed content, for people to read; None for an envelope alone.
        statements: The claimed statements of reviewers; None without any.
        unsigned: The claims that no key signed.
    """

    envelope: dsse.Envelope
    view: Mapping[str, JsonValue] | None = None
    statements: tuple[dsse.Envelope, ...] | None = None
    unsigned: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True)
class ReceiptFile:
    """A file of receipts.

    Attributes:
        receipts: The receipts in the order of the file.
        is_chain: Whether they are listed: those of human tasks are then the receipts of a run, from the first on.
    """

    receipts: tuple[PresentedReceipt, ...]
    is_chain: bool


def read_receipts(data: bytes, *, file: str, most: int = RECEIPTS) -> ReceiptFile:
    """Parse a file of receipts without verification.

    Raises:
        Invalid: it is not JSON, too large, or holds no receipts.
    """
    return find_receipts(read_json(data, file=file, limits=LIMITS).value, file=file, most=most)


def find_receipts(value: object, *, file: str, most: int = RECEIPTS) -> ReceiptFile:
    """Parse the receipts in a JSON value: an envelope, ``{"envelope", "receipt"}`` or ``{"receipts": [...]}``.

    Raises:
        Invalid: it holds none, or too many.
    """
    if isinstance(value, dict) and isinstance(listed := value.get("receipts"), list):
        if not 0 < len(listed) <= most:
            msg = f"{file}: {len(listed)} receipts; from 1 to {most} are read at once."
            raise Invalid(msg, code="Malformed")
        receipts = tuple(_one(item, f"{file}: receipts[{index}]") for index, item in enumerate(listed))
        return ReceiptFile(receipts, is_chain=True)
    return ReceiptFile((_one(value, file),), is_chain=False)


def wrap_envelope(value: object) -> dict[str, object]:
    """Wrap an envelope that stands alone as ``{"envelope"}``.

    Raises:
        Invalid: it is not a JSON object.
    """
    if not isinstance(value, dict):
        msg = "A receipt is a JSON object."
        raise Invalid(msg, code="Malformed", hint=HINT)
    return {"envelope": value} if "payloadType" in value else value


def _one(value: object, where: str) -> PresentedReceipt:
    if not isinstance(value, dict):
        msg = f"{where}: a receipt is a JSON object."
        raise Invalid(msg, code="Malformed", hint=HINT)
    if "envelope" not in value:
        return PresentedReceipt(envelope=dsse.read_envelope(value, file=where))
    envelope = dsse.read_envelope(value["envelope"], file=f"{where}: envelope")
    statements = value.get("statements")
    return PresentedReceipt(
        envelope=envelope,
        view=_object(value, "receipt", where),
        statements=_statements(statements, where) if statements is not None else None,
        unsigned=_object(value, "unsigned", where) or {},
    )


def _statements(value: object, where: str) -> tuple[dsse.Envelope, ...]:
    if not isinstance(value, list) or len(value) > STATEMENTS:
        msg = f"{where}: statements must be a list of at most {STATEMENTS} envelopes."
        raise Invalid(msg, code="Malformed")
    return tuple(dsse.read_envelope(item, file=f"{where}: statements[{index}]") for index, item in enumerate(value))


def _object(value: Mapping[str, JsonValue], name: str, where: str) -> Mapping[str, JsonValue] | None:
    part = value.get(name)
    if part is not None and not isinstance(part, dict):
        msg = f"{where}: {name} must be a JSON object."
        raise Invalid(msg, code="Malformed", hint=HINT)
    return part
