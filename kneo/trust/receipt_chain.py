"""Whether several receipts are what they are said to be, one by one and as the chain of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from kneo.trust.answer import ReviewerKeys
from kneo.trust.keys import PublicKey
from kneo.trust.receipt_check import CheckedReceipt, check_receipt
from kneo.trust.receipt_file import ReceiptFile
from kneo.trust.receipt_statements import ReceiptProblem


@dataclass(frozen=True)
class ReceiptVerdict:
    """What checking a file of receipts found."""

    checked: tuple[CheckedReceipt, ...]
    problems: tuple[ReceiptProblem, ...]

    @property
    def valid(self) -> bool:
        return not self.problems


def check_receipts(
    handed: ReceiptFile, keys: Sequence[PublicKey], reviewers: ReviewerKeys | None = None
) -> ReceiptVerdict:
    """Check every receipt, and those that are said to be a run's as a chain.

    Args:
        handed: The receipts.
        keys: The services' public keys.
        reviewers: The keys of those who answered; without them what they signed is only compared with the receipts.
    """
    checked = tuple(check_receipt(presented, keys, reviewers) for presented in handed.receipts)
    problems = [problem for item in checked for problem in item.problems]
    if handed.is_chain and not problems:
        problems += check_chain(checked)
    return ReceiptVerdict(checked, tuple(problems))


def check_chain(checked: Sequence[CheckedReceipt]) -> tuple[ReceiptProblem, ...]:
    """Decide whether receipts, in their order, are those of one run from its first one on, none left out.

    Whether they are all of them nobody can say who has only these; the audit log knows.
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
    """Spell a verdict as JSON."""
    return {
        "valid": verdict.valid,
        "problems": [asdict(problem) for problem in verdict.problems],
        "receipts": [_told_one(item) for item in verdict.checked],
    }


def _told_one(item: CheckedReceipt) -> dict[str, object]:
    receipt = item.receipt
    return {
        "id": receipt.id if receipt else None,
        "digest": item.digest,
        "valid": receipt is not None,
        "signed_by": list(item.signed_by),
        "said": receipt.model_dump(mode="json", by_alias=True) if receipt else None,
    }
