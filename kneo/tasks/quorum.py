"""The quorum of a task: the votes that decide it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kneo.names import person_key
from kneo.records.task import DecisionKind, Quorum, Vote

Roles = Mapping[str, frozenset[str]]
"""The roles of each voter, by person key."""


def add_vote(votes: Sequence[Vote], vote: Vote) -> tuple[Vote, ...]:
    """Add a vote; it replaces an earlier vote of the same person."""
    others = [one for one in votes if person_key(one.actor) != person_key(vote.actor)]
    return (*others, vote)


def decisive_votes(quorum: Quorum, votes: Sequence[Vote], roles: Roles) -> tuple[Vote, ...] | None:
    """Return the deciding votes, the last of which is the decision; ``None`` without a quorum.

    A person counts once among those who agree and for each role of theirs, so that rules which share people can always
    be met. Votes agree when their content is equal: an approval differs from an edit, and two different edits differ.
    """
    objections = tuple(vote for vote in votes if vote.decision is DecisionKind.REJECTED)
    if len(objections) >= _objections_needed(quorum):
        return objections
    for answer in dict.fromkeys(vote.answer for vote in votes):
        agreeing = tuple(vote for vote in votes if vote.answer == answer and vote.decision is not DecisionKind.REJECTED)
        if len(agreeing) >= quorum.approvals and not missing_roles(quorum, agreeing, roles):
            return agreeing
    return None


def missing_roles(quorum: Quorum, agreeing: Sequence[Vote], roles: Roles) -> dict[str, int]:
    """Return the missing votes of each role."""
    missing = {
        role: needed - sum(role in roles.get(person_key(vote.actor), frozenset()) for vote in agreeing)
        for role, needed in quorum.each
    }
    return {role: count for role, count in missing.items() if count > 0}


def next_role(quorum: Quorum, votes: Sequence[Vote], roles: Roles) -> str | None:
    """Return the next role where roles answer in order; ``None`` where any may answer."""
    if quorum.order != "sequence":
        return None
    agreeing = [vote for vote in votes if vote.decision is not DecisionKind.REJECTED]
    return next(iter(missing_roles(quorum, agreeing, roles)), None)


def _objections_needed(quorum: Quorum) -> int:
    if quorum.reject == "any":
        return 1
    people = max(quorum.approvals, sum(number for _, number in quorum.each))
    return people // 2 + 1
