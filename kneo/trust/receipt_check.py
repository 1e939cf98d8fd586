"""Whether receipts are what a service signed, and if not, which field was changed. Needs nothing but a public key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from kneo.digest import Digest, digest_of
from kneo.errors import Invalid, KneoError
from kneo.spec.reading.reader import read_json
from kneo.trust.answer import ReviewerKeys
from kneo.trust.dsse import Envelope
from kneo.trust.intoto import PAYLOAD_TYPE, STATEMENT_TYPE
from kneo.trust.keys import PublicKey
from kneo.trust.receipt import RECEIPT_TYPE, Receipt, mark_of, parse_receipt
from kneo.trust.receipt_rules import broken_rules
from kneo.trust.receipt_statements import ReceiptProblem, statement_problems
from kneo.trust.signers import TrustedKey, find_signers

SIGNATURE = "signature"
"""The field that is named when something is wrong and nobody can say what: another key, or a change made with care."""


@dataclass(frozen=True, kw_only=True)
class PresentedReceipt:
    """A receipt as somebody hands it over.

    Attributes:
        envelope: The signed envelope.
        view: What they say is in it, for people to read; None where they handed over the envelope alone.
        statements: What they say the reviewers signed; None where they handed over nothing of that.
    """

    envelope: Envelope
    view: Mapping[str, JsonValue] | None = None
    statements: tuple[Envelope, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class CheckedReceipt:
    """What looking at one receipt found. ``receipt`` is set only where nothing is wrong with it.

    Attributes:
        signed_by: Those whose own signature was checked with a key of theirs.
    """

    digest: Digest
    receipt: Receipt | None
    problems: tuple[ReceiptProblem, ...] = field(default=())
    signed_by: tuple[str, ...] = ()


def check_receipt(
    presented: PresentedReceipt, keys: Sequence[PublicKey], reviewers: ReviewerKeys | None = None
) -> CheckedReceipt:
    """Decide whether one of these keys signed this receipt, and whether it says what it is shown to say.

    1. The envelope carries a statement.
    2. One of the keys signed it.
    3. The signed bytes are a receipt and nothing else, and its subject is what it says was shown.
    4. Its fields do not contradict each other: the decision is what those who voted said, the last of them made it.
    5. What is shown beside the envelope is what the signed bytes say.
    6. What reviewers signed themselves is what the receipt names, says the same, and is signed with their keys; without
       keys of reviewers, their signatures are not looked at.
    """
    envelope, digest = presented.envelope, digest_of(presented.envelope.payload)
    trusted = {key.keyid: TrustedKey(key, "service") for key in keys}
    said = _predicate(envelope)
    name = str(said.get("id", "?"))[:80]
    if envelope.payload_type != PAYLOAD_TYPE:
        message = f"The envelope says it carries {envelope.payload_type}, expected {PAYLOAD_TYPE}."
        return _refused(digest, ReceiptProblem(receipt=name, field="envelope.payloadType", message=message))
    signers = find_signers(envelope, trusted)
    if not signers:
        changed = [*_changed(envelope, said, name), *_misread(presented.view, said, name)]
        message = "None of the keys given signed it."
        return _refused(
            digest, *changed, *([] if changed else [ReceiptProblem(receipt=name, field=SIGNATURE, message=message)])
        )
    hints = {signature.keyid for signature in envelope.signatures}
    if "" not in hints and hints.isdisjoint(signer.keyid for signer in signers):
        message = f"The signature was made by {signers[0].keyid}, and the envelope names another key."
        return _refused(digest, ReceiptProblem(receipt=name, field="envelope.signatures.keyid", message=message))
    try:
        receipt = parse_receipt(envelope.payload).receipt
    except KneoError as error:
        where = str(error.details.get("field", "receipt"))
        return _refused(digest, ReceiptProblem(receipt=name, field=where, message=error.message))
    wrong = [*_changed(envelope, said, name), *_misread(presented.view, said, name)]
    wrong += [ReceiptProblem(receipt=name, field=where, message=message) for where, message in broken_rules(receipt)]
    wrong += statement_problems(receipt, presented.statements, reviewers)
    if wrong:
        return _refused(digest, *wrong)
    return CheckedReceipt(digest=digest, receipt=receipt, signed_by=_signed_by(receipt) if reviewers else ())


def _signed_by(receipt: Receipt) -> tuple[str, ...]:
    """Name those whose own signature covers what was recorded.

    The words of the last voter are recorded, and those who agree with them signed the same answer. Where the last voter signed
    nothing, what the others signed cannot be compared with the words that the receipt names.
    """
    if receipt.decision != "rejected" and receipt.voters and receipt.voters[-1].statement is None:
        return ()
    return tuple(voter.actor for voter in receipt.voters if voter.statement is not None)


def _refused(digest: Digest, *problems: ReceiptProblem) -> CheckedReceipt:
    return CheckedReceipt(digest=digest, receipt=None, problems=problems)


def _statement(envelope: Envelope) -> Mapping[str, JsonValue]:
    try:
        value = read_json(envelope.payload, file="receipt").value
    except Invalid:
        value = None
    return value if isinstance(value, dict) else {}


def _predicate(envelope: Envelope) -> Mapping[str, JsonValue]:
    value = _statement(envelope).get("predicate")
    return value if isinstance(value, dict) else {}


def _changed(envelope: Envelope, said: Mapping[str, JsonValue], name: str) -> Iterator[ReceiptProblem]:
    """Compare every field with its mark, and the statement around them with what it has to be."""
    marked = said.get("marks")
    marks = marked if isinstance(marked, dict) else {}
    fields = {key: value for key, value in said.items() if key != "marks"}
    for key in [*fields, *(key for key in marks if key not in fields)]:
        if key not in fields or _mark(fields[key]) != marks.get(key):
            message = f"{key} is not what was signed: it and its mark disagree."
            yield ReceiptProblem(receipt=name, field=key[:80], message=message)
    shown = str(said.get("subjectDigest")).removeprefix("sha256:")
    fixed: Mapping[str, JsonValue] = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": said.get("task"), "digest": {"sha256": shown}}],
        "predicateType": RECEIPT_TYPE,
    }
    statement = _statement(envelope)
    for key, value in fixed.items():
        if statement.get(key) != value:
            yield ReceiptProblem(receipt=name, field=key, message=f"{key} is not that of a receipt about this task.")


def _misread(
    view: Mapping[str, JsonValue] | None, said: Mapping[str, JsonValue], name: str
) -> Iterator[ReceiptProblem]:
    """Compare what is shown with what is signed."""
    if view is None:
        return
    for key in [*said, *(key for key in view if key not in said)]:
        # By their marks, because Python takes false for 0.
        if key not in view or key not in said or _mark(view[key]) != _mark(said[key]):
            message = f"{key} is shown as something else than what the envelope says."
            yield ReceiptProblem(receipt=name, field=key[:80], message=message)


def _mark(value: JsonValue) -> str | None:
    try:
        return mark_of(value)
    except Invalid:
        return None
