"""Whether what reviewers signed themselves bears out the receipt that names it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kneo.errors import KneoError
from kneo.trust.answer import CLOCKS_DIFFER, AnswerStatement, ReviewerKeys, SignedAnswer, check_signer, open_answer
from kneo.trust.dsse import Envelope
from kneo.trust.receipt import Receipt, Voter
from kneo.trust.signers import is_same

SHARED = ("task", "request", "run", "environment", "gate", "subject_digest", "bundle_digest")
"""What every statement has in common with the receipt."""

DECISIVE = ("content_digest", "policy_digest")
"""What the statement of the last voter has, whose answer was recorded, under the rules of that moment."""


@dataclass(frozen=True, kw_only=True)
class ReceiptProblem:
    """One thing that is not as it was signed.

    Attributes:
        receipt: Its id, as far as it can be read.
        field: Name of the field in the receipt, or ``signature``, or ``envelope.payloadType``.
        message: One sentence about it.
    """

    receipt: str
    field: str
    message: str


def statement_problems(
    receipt: Receipt, handed: Sequence[Envelope] | None, reviewers: ReviewerKeys | None
) -> list[ReceiptProblem]:
    """Find what is wrong with the statements that a receipt names.

    Args:
        receipt: One that its service signed.
        handed: The statements; None where somebody handed over the receipt alone.
        reviewers: Whose keys count; None leaves signatures unchecked.
    """
    if handed is None and reviewers is None:
        return []
    found = [*_all_of(receipt, tuple(handed or ()), reviewers)]
    return [ReceiptProblem(receipt=receipt.id, field=where, message=message) for where, message in found]


def _all_of(
    receipt: Receipt, handed: tuple[Envelope, ...], reviewers: ReviewerKeys | None
) -> Iterator[tuple[str, str]]:
    by_digest = {envelope.digest: envelope for envelope in handed}
    named = {voter.statement for voter in receipt.voters}
    strangers = [envelope for envelope in handed if envelope.digest not in named]
    said: list[SignedAnswer] = []
    for index, voter in enumerate(receipt.voters):
        where = f"voters[{index}].statement"
        if voter.statement is None:
            continue
        envelope = by_digest.get(voter.statement)
        if envelope is None:
            yield from _missing(receipt, voter, strangers, where)
            continue
        try:
            statement = open_answer(envelope)
            if reviewers is not None:
                check_signer(envelope, voter.actor, reviewers, voter.at)
        except KneoError as error:
            yield f"{where}.{error.details.get('field', 'signature')}", error.message
            continue
        said.append(statement.said)
        changed = _differs(receipt, voter, statement)
        yield from ((f"{where}.{name}", f"{name} is not what the receipt says.") for name in changed)
    if receipt.decision != "rejected" and len({one.answer_digest for one in said}) > 1:
        yield "voters.statement.answerDigest", "Those who are said to agree signed different answers."
    missing = sum(voter.statement is not None and voter.statement not in by_digest for voter in receipt.voters)
    if len(strangers) > missing:
        yield "statements", "There is a statement here that no voter of the receipt gave."


def _missing(receipt: Receipt, voter: Voter, strangers: Sequence[Envelope], where: str) -> Iterator[tuple[str, str]]:
    """Say what was changed in a statement that is not the one the receipt names; or that there is none."""
    for envelope in strangers:
        try:
            statement = open_answer(envelope)
        except KneoError:
            continue
        if is_same(statement.said.reviewer, voter.actor):
            changed = [*_differs(receipt, voter, statement)] or ["digest"]
            yield from ((f"{where}.{name}", f"{name} is not what {voter.actor} signed.") for name in changed)
            return
    yield where, f"What {voter.actor} signed is not here, or was changed."


def _differs(receipt: Receipt, voter: Voter, statement: AnswerStatement) -> Iterator[str]:
    said, fields = statement.said, SignedAnswer.model_fields
    decisive = DECISIVE if voter == receipt.voters[-1] else ()
    for name in (*SHARED, *decisive):
        if getattr(said, name) != getattr(receipt, name):
            yield fields[name].alias or name
    if said.decision != voter.decision:
        yield "decision"
    if not is_same(said.reviewer, voter.actor):
        yield "reviewer"
    if voter.at < said.issued_at - CLOCKS_DIFFER:
        yield "issuedAt"
    if voter.at >= said.expires:
        yield "expires"
