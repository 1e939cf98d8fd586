"""Verification of receipts: whether a service signed them, and otherwise which field was changed.

Needs public keys only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise

from pydantic import JsonValue

from kneo.digest import Digest, canonical_json, digest_of
from kneo.errors import Invalid, KneoError
from kneo.names import is_same_person, person_key
from kneo.spec.reading.reader import read_json
from kneo.trust.answer import AnswerStatement, ReviewerKeys, SignedAnswer, check_signer, open_answer
from kneo.trust.dsse import CLOCK_TOLERANCE, Envelope, Signer, TrustedKey, find_signers
from kneo.trust.grant import TermsStatement, open_terms
from kneo.trust.keys import KeyId, PublicKey
from kneo.trust.receipt import (
    GRANTED_TYPE,
    RECEIPT_TYPE,
    PresentedReceipt,
    Receipt,
    ReceiptFile,
    Voter,
    mark_of,
    parse_receipt,
    view_of,
)
from kneo.trust.statement import PAYLOAD_TYPE, STATEMENT_TYPE

POLICY = "policy:timeout"

GRANT = "grant"

Deviation = tuple[str, str]
"""The name of a field in the file, and one sentence about it."""


def broken_rules(receipt: Receipt) -> Iterator[Deviation]:
    """Find fields that contradict each other."""
    if receipt.by == "person":
        yield from _of_people(receipt)
    elif receipt.by == GRANT:
        yield from _of_grant(receipt)
    else:
        if receipt.voters:
            yield "voters", f"{receipt.by} decided, but {receipt.voters[0].actor} is listed as a voter."
        if receipt.by == POLICY and receipt.actor != POLICY:
            yield "actor", f"A deadline decided, but the actor is {receipt.actor}."
        if receipt.by == "replay" and (receipt.actor == POLICY or receipt.decision == "expired"):
            yield "by", "Only what a person decided is used again."
    if receipt.by != GRANT and receipt.grant is not None:
        yield "grant", f"{receipt.by} decided, but a grant is named."
    if receipt.by != "replay" and receipt.source is not None:
        yield "source", "Only a replay uses the decision of another receipt."
    if (receipt.effect is not None) != (receipt.decision in {"rejected", "expired"}):
        yield "effect", f"A rejection or expiry has an effect and nothing else has; this was {receipt.decision}."
    if (receipt.sequence == 1) != (receipt.previous is None):
        yield "previous", f"Only a run's first receipt follows none, and this is number {receipt.sequence}."


def _of_grant(receipt: Receipt) -> Iterator[Deviation]:
    if receipt.grant is None:
        yield "grant", "A grant decided, but none is named."
    if receipt.decision != "approved" or receipt.content_digest is not None:
        yield "decision", "A grant approves a call as it is."
    yield from _votes(receipt)
    late = next((voter for voter in receipt.voters if voter.at > receipt.decided_at), None)
    if late is not None:
        yield "decidedAt", f"{late.actor} approved the grant later, at {late.at.isoformat()}."


def _of_people(receipt: Receipt) -> Iterator[Deviation]:
    yield from _votes(receipt)
    if receipt.voters and (last := receipt.voters[-1]).at != receipt.decided_at:
        yield "decidedAt", f"The last vote, which decided, was given at {last.at.isoformat()}."


def _votes(receipt: Receipt) -> Iterator[Deviation]:
    if not receipt.voters:
        yield "voters", "A person decided, but no voter is listed."
        return
    names = [person_key(voter.actor) for voter in receipt.voters]
    if len(set(names)) < len(names):
        yield "voters", "A person is listed twice among the voters."
    last = receipt.voters[-1]
    if not is_same_person(last.actor, receipt.actor):
        yield "actor", f"The last vote makes the decision; it is {last.actor}'s, not {receipt.actor}'s."
    for index, voter in enumerate(receipt.voters):
        if voter.decision != receipt.decision:
            message = (
                f"It does not follow from the votes: {voter.actor} voted {voter.decision}, not {receipt.decision}."
            )
            yield "decision", message
            yield f"voters[{index}].decision", message


SHARED = ("task", "request", "run", "environment", "gate", "subject_digest", "bundle_digest")
"""Fields that every statement has in common with the receipt."""

DECISIVE = ("content_digest", "policy_digest")
"""Fields of the statement of the last voter, whose answer was recorded under the rules of that moment."""


@dataclass(frozen=True, kw_only=True)
class ReceiptProblem:
    """A deviation from the signed content.

    Attributes:
        receipt: Its id, where it can be read.
        field: Name of the field in the receipt, or ``signature``, or ``envelope.payloadType``.
        message: One sentence about it.
    """

    receipt: str
    field: str
    message: str


def problems_of(receipt: str, deviations: Iterable[Deviation]) -> tuple[ReceiptProblem, ...]:
    """Return deviations as the problems of a receipt with this id."""
    return tuple(ReceiptProblem(receipt=receipt, field=where, message=message) for where, message in deviations)


def _other_statements(
    receipt: Receipt, presented: Sequence[Envelope] | None, reviewers: ReviewerKeys | None
) -> Iterator[Deviation]:
    """Find deviations of the statements that a receipt names.

    Args:
        receipt: A receipt that its service signed.
        presented: The statements; None for a receipt alone.
        reviewers: The keys of reviewers; None leaves signatures unverified.
    """
    if presented is None and reviewers is None:
        return
    statements = tuple(presented or ())
    known = {envelope.digest for envelope in statements}
    named = {voter.statement for voter in receipt.voters}
    strangers = [envelope for envelope in statements if envelope.digest not in named]
    answers: list[SignedAnswer] = []
    for index, voter in enumerate(receipt.voters):
        where = f"voters[{index}].statement"
        if voter.statement is None:
            continue
        if voter.statement not in known:
            yield from _missing(receipt, voter, strangers, where)
            continue
        envelope = _of_voter([each for each in statements if each.digest == voter.statement], voter, reviewers)
        try:
            if reviewers is not None:
                check_signer(envelope, voter.actor, reviewers, voter.at)
            if receipt.by == GRANT:
                yield from _terms_differ(receipt, open_terms(envelope), where)
                continue
            statement = open_answer(envelope)
        except KneoError as error:
            yield f"{where}.{error.details.get('field', 'signature')}", error.message
            continue
        answers.append(statement.answer)
        changed = _differs(receipt, voter, statement)
        yield from ((f"{where}.{name}", f"{name} is not what the receipt says.") for name in changed)
    if receipt.decision != "rejected" and len({one.answer_digest for one in answers}) > 1:
        yield "voters.statement.answerDigest", "The voters signed different answers."
    missing = sum(voter.statement is not None and voter.statement not in known for voter in receipt.voters)
    if len(strangers) > missing:
        yield "statements", "There is a statement here that no voter of the receipt gave."


def _of_voter(statements: Sequence[Envelope], voter: Voter, reviewers: ReviewerKeys | None) -> Envelope:
    """Return the statement that a voter signed, of equal ones: the voters of a grant sign the same terms."""
    if reviewers is None:
        return statements[0]
    own = (
        each
        for each in statements
        if any(is_same_person(one.principal, voter.actor) for one in find_signers(each, reviewers.keys))
    )
    return next(own, statements[0])


def _terms_differ(receipt: Receipt, statement: TermsStatement, where: str) -> Iterator[Deviation]:
    """Find what the terms of a grant do not allow of the use that a receipt is about."""
    terms, grant = statement.terms, receipt.grant
    if grant is None:
        return
    same = {
        "grant": (terms.grant, grant.id),
        "termsDigest": (statement.digest, grant.terms_digest),
        "environment": (terms.environment, receipt.environment),
        "bundleDigest": (terms.bundle_digest, receipt.bundle_digest),
    }
    for name, (stated, used) in same.items():
        if stated != used:
            yield f"{where}.{name}", f"{name} of the terms is {stated}, and the receipt has {used}."
    if grant.number > terms.uses:
        yield f"{where}.uses", f"The terms allow {terms.uses} uses, and this is number {grant.number}."
    if receipt.decided_at >= terms.expires:
        yield f"{where}.expires", f"The terms ended at {terms.expires.isoformat()}."


def _missing(receipt: Receipt, voter: Voter, strangers: Sequence[Envelope], where: str) -> Iterator[Deviation]:
    """Yield the changed fields of a statement that differs from the receipt's, or that it is missing."""
    for envelope in strangers:
        try:
            statement = open_answer(envelope)
        except KneoError:
            continue
        if is_same_person(statement.answer.reviewer, voter.actor):
            changed = [*_differs(receipt, voter, statement)] or ["digest"]
            yield from ((f"{where}.{name}", f"{name} is not what {voter.actor} signed.") for name in changed)
            return
    yield where, f"What {voter.actor} signed is not here, or was changed."


def _differs(receipt: Receipt, voter: Voter, statement: AnswerStatement) -> Iterator[str]:
    answer, fields = statement.answer, SignedAnswer.model_fields
    decisive = DECISIVE if voter == receipt.voters[-1] else ()
    for name in (*SHARED, *decisive):
        if getattr(answer, name) != getattr(receipt, name):
            yield fields[name].alias or name
    if answer.decision != voter.decision:
        yield "decision"
    if not is_same_person(answer.reviewer, voter.actor):
        yield "reviewer"
    if voter.at < answer.issued_at - CLOCK_TOLERANCE:
        yield "issuedAt"
    if voter.at >= answer.expires:
        yield "expires"


SIGNATURE = "signature"
"""The field of a problem without a changed field: another key, or a change with matching marks."""


@dataclass(frozen=True, kw_only=True)
class CheckedReceipt:
    """The result of checking one receipt. ``receipt`` is set only without problems.

    Attributes:
        signed_by: The people whose own signature was verified.
    """

    digest: Digest
    receipt: Receipt | None
    problems: tuple[ReceiptProblem, ...] = field(default=())
    signed_by: tuple[str, ...] = ()


def check_receipt(
    presented: PresentedReceipt,
    keys: Sequence[PublicKey],
    reviewers: ReviewerKeys | None = None,
    terms: Mapping[str, TermsStatement] | None = None,
) -> CheckedReceipt:
    """Verify that one of these keys signed this receipt, and that the claimed content is its content.

    1. The envelope carries a statement.
    2. One of the keys signed it.
    3. The signed bytes are a receipt and nothing else, and its subject is what it says was shown.
    4. Its fields do not contradict each other: the decision follows from the votes, and the last vote made it.
    5. The claimed content is that of the signed bytes.
    6. What reviewers signed themselves is what the receipt names, says the same, and is signed with their keys; without
       keys of reviewers, their signatures are not looked at.
    7. The use of a standing grant is within its terms, where they are among ``terms``, by the ids of grants.
    """
    envelope, digest = presented.envelope, digest_of(presented.envelope.payload)
    fields = _predicate(envelope)
    name = str(fields.get("id", "?"))[:80]

    def refuse(*deviations: Deviation) -> CheckedReceipt:
        return CheckedReceipt(digest=digest, receipt=None, problems=problems_of(name, deviations))

    if envelope.payload_type != PAYLOAD_TYPE:
        message = f"The envelope says it carries {envelope.payload_type}, expected {PAYLOAD_TYPE}."
        return refuse(("envelope.payloadType", message))
    changed = [*_changed(envelope, fields), *misread(presented.view, fields)]
    signers = find_signers(envelope, service_keys(keys))
    if not signers:
        return refuse(*(changed or [(SIGNATURE, "None of the keys given signed it.")]))
    if other := [*other_key(envelope, signers)]:
        return refuse(*other)
    try:
        receipt = parse_receipt(envelope.payload).receipt
    except KneoError as error:
        return refuse((str(error.details.get("field", "receipt")), error.message))
    wrong = [*changed, *broken_rules(receipt), *_other_statements(receipt, presented.statements, reviewers)]
    if receipt.grant is not None and terms is not None:
        known = terms.get(receipt.grant.id)
        wrong += (
            _terms_differ(receipt, known, "grant")
            if known is not None
            else [("grant.id", f"The terms of {receipt.grant.id} are not among those given.")]
        )
    if wrong:
        return refuse(*wrong)
    return CheckedReceipt(digest=digest, receipt=receipt, signed_by=_signed_by(receipt) if reviewers else ())


def service_keys(keys: Sequence[PublicKey]) -> dict[KeyId, TrustedKey]:
    """Return the public keys of services by their id."""
    return {key.keyid: TrustedKey(key, "service") for key in keys}


def other_key(envelope: Envelope, signers: Sequence[Signer]) -> Iterator[Deviation]:
    """Refuse an envelope that names other keys than those that signed it."""
    hints = {signature.keyid for signature in envelope.signatures}
    if "" not in hints and hints.isdisjoint(signer.keyid for signer in signers):
        message = f"The signature was made by {signers[0].keyid}, and the envelope names another key."
        yield "envelope.signatures.keyid", message


def _signed_by(receipt: Receipt) -> tuple[str, ...]:
    """Return the people whose own signature covers the recorded answer.

    The answer of the last voter is recorded, and those who agree with it signed the same answer. Where the last voter
    signed nothing, the statements of the others cannot be compared with the answer that the receipt names.
    """
    if receipt.decision != "rejected" and receipt.voters and receipt.voters[-1].statement is None:
        return ()
    return tuple(voter.actor for voter in receipt.voters if voter.statement is not None)


def _statement(envelope: Envelope) -> Mapping[str, JsonValue]:
    try:
        value = read_json(envelope.payload, file="receipt").value
    except Invalid:
        value = None
    return value if isinstance(value, dict) else {}


def _predicate(envelope: Envelope) -> Mapping[str, JsonValue]:
    value = _statement(envelope).get("predicate")
    return value if isinstance(value, dict) else {}


def _changed(envelope: Envelope, receipt: Mapping[str, JsonValue]) -> Iterator[Deviation]:
    """Compare every field with its mark, and the statement with its required form."""
    marked = receipt.get("marks")
    marks = marked if isinstance(marked, dict) else {}
    fields = {key: value for key, value in receipt.items() if key != "marks"}
    for key in [*fields, *(key for key in marks if key not in fields)]:
        if key not in fields or _mark(fields[key]) != marks.get(key):
            yield key[:80], f"{key} is not what was signed: it and its mark disagree."
    subject = str(receipt.get("subjectDigest")).removeprefix("sha256:")
    fixed: Mapping[str, JsonValue] = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": receipt.get("task"), "digest": {"sha256": subject}}],
        "predicateType": GRANTED_TYPE if "grant" in receipt else RECEIPT_TYPE,
    }
    statement = _statement(envelope)
    for key, value in fixed.items():
        if statement.get(key) != value:
            yield key, f"{key} is not that of a receipt about this task."


def misread(view: Mapping[str, object] | None, signed: Mapping[str, object]) -> Iterator[Deviation]:
    """Compare the claimed content with the signed one."""
    if view is None:
        return
    for key in dict.fromkeys([*signed, *view]):
        # In canonical form, because Python considers false and 0 equal.
        if key not in view or key not in signed or _canonical(view[key]) != _canonical(signed[key]):
            yield key[:80], f"{key[:80]} is shown as something else than what the envelope says."


def _canonical(value: object) -> object:
    """Return the canonical form of a value; one without such a form equals nothing."""
    try:
        return canonical_json(value)
    except Invalid:
        return object()


def _mark(value: JsonValue) -> str | None:
    try:
        return mark_of(value)
    except Invalid:
        return None


@dataclass(frozen=True)
class ReceiptVerdict:
    """The result of checking a file of receipts."""

    checked: tuple[CheckedReceipt, ...]
    problems: tuple[ReceiptProblem, ...]

    @property
    def valid(self) -> bool:
        return not self.problems


def check_receipts(
    file: ReceiptFile,
    keys: Sequence[PublicKey],
    reviewers: ReviewerKeys | None = None,
    terms: Mapping[str, TermsStatement] | None = None,
) -> ReceiptVerdict:
    """Check every receipt, and the receipts of a run as a chain.

    Args:
        file: The receipts.
        keys: The services' public keys.
        reviewers: The keys of reviewers; without them their signatures are not verified.
        terms: The terms of standing grants, by their ids; without them those of the receipts alone are verified.
    """
    checked = tuple(check_receipt(presented, keys, reviewers, terms) for presented in file.receipts)
    problems = [problem for item in checked for problem in item.problems]
    if file.is_chain and not problems:
        problems += check_chain(checked)
    return ReceiptVerdict(checked, tuple(problems))


def check_chain(checked: Sequence[CheckedReceipt]) -> tuple[ReceiptProblem, ...]:
    """Check that receipts, in their order, are those of one run from its first one on, with none missing.

    A missing last receipt cannot be detected here; the audit log has the number of receipts.
    """
    read = [(item.digest, item.receipt) for item in checked if item.receipt is not None]
    problems = []
    for _, first in read[:1]:
        if first.sequence != 1 or first.previous is not None:
            message = f"The first receipt here is number {first.sequence} of its run; those before it are missing."
            problems.append(ReceiptProblem(receipt=first.id, field="sequence", message=message))
    for (digest, before), (_, after) in pairwise(read):
        if after.run != before.run:
            message = f"It is about the run {after.run}, and the one before it about {before.run}."
            problems.append(ReceiptProblem(receipt=after.id, field="run", message=message))
        elif after.sequence != before.sequence + 1:
            message = f"Number {after.sequence} follows number {before.sequence}."
            problems.append(ReceiptProblem(receipt=after.id, field="sequence", message=message))
        elif after.previous != digest:
            message = f"It follows {after.previous}, and the one before it is {digest}."
            problems.append(ReceiptProblem(receipt=after.id, field="previous", message=message))
    return tuple(problems)


def verdict_json(verdict: ReceiptVerdict) -> dict[str, object]:
    """Return a verdict as JSON."""
    return verdict_of(verdict.problems, [_checked_json(item) for item in verdict.checked])


def verdict_of(problems: Sequence[ReceiptProblem], receipts: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Return the result of checking a file of receipts as JSON."""
    return {"valid": not problems, "problems": [asdict(problem) for problem in problems], "receipts": [*receipts]}


def _checked_json(item: CheckedReceipt) -> dict[str, object]:
    receipt = item.receipt
    return {
        "id": receipt.id if receipt else None,
        "digest": item.digest,
        "valid": receipt is not None,
        "signed_by": list(item.signed_by),
        "said": view_of(receipt) if receipt else None,
    }
