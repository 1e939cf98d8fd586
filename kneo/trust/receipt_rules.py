"""What holds between the fields of every receipt, whoever signed it: a service cannot sign a decision that nobody gave."""

from __future__ import annotations

from collections.abc import Iterator

from kneo.trust.receipt import Receipt
from kneo.trust.signers import folded, is_same

POLICY = "policy:timeout"


def broken_rules(receipt: Receipt) -> Iterator[tuple[str, str]]:
    """Find fields that contradict each other; yields the field's name in the file, and a sentence about it."""
    if receipt.by == "person":
        yield from _of_people(receipt)
    else:
        if receipt.voters:
            yield "voters", f"Nobody votes where {receipt.by} decides, and {receipt.voters[0].actor} is said to have."
        if receipt.by == POLICY and receipt.actor != POLICY:
            yield "actor", f"A deadline decided, and {receipt.actor} is said to have."
        if receipt.by == "replay" and (receipt.actor == POLICY or receipt.decision == "expired"):
            yield "by", "Only what a person decided is used again."
    if receipt.by != "replay" and receipt.source is not None:
        yield "source", "Only a replay uses the decision of another receipt."
    if (receipt.effect is not None) != (receipt.decision in {"rejected", "expired"}):
        yield "effect", f"A rejection or expiry has an effect and nothing else has; this was {receipt.decision}."
    if (receipt.sequence == 1) != (receipt.previous is None):
        yield "previous", f"Only a run's first receipt follows none, and this is number {receipt.sequence}."


def _of_people(receipt: Receipt) -> Iterator[tuple[str, str]]:
    if not receipt.voters:
        yield "voters", "A person decided, and nobody is named who voted."
        return
    names = [folded(voter.actor) for voter in receipt.voters]
    if len(set(names)) < len(names):
        yield "voters", "Somebody is named twice among those who voted."
    last = receipt.voters[-1]
    if not is_same(last.actor, receipt.actor):
        yield "actor", f"The last vote makes the decision; it is {last.actor}'s, not {receipt.actor}'s."
    for index, voter in enumerate(receipt.voters):
        if voter.decision != receipt.decision:
            message = f"It does not follow from the votes: {voter.actor} said {voter.decision}, not {receipt.decision}."
            yield "decision", message
            yield f"voters[{index}].decision", message
    if last.at != receipt.decided_at:
        yield "decidedAt", f"The last vote, which decided, was given at {last.at.isoformat()}."
