"""The quorum of a task: which votes decide it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kneo.names import person_key
from kneo.records.task import DecisionKind, Quorum, Vote

Roles = Mapping[str, frozenset[str]]
"""The roles of each voter, by their folded name."""


def add_vote(votes: Sequence[Vote], vote: Vote) -> tuple[Vote, ...]:
    """Add a vote; it replaces an earlier vote of the same person."""
    others = [one for one in votes if person_key(one.actor) != person_key(vote.actor)]
    return (*others, vote)


def decisive_votes(quorum: Quorum, votes: Sequence[Vote], roles: Roles) -> tuple[Vote, ...] | None:
    """Find the votes that decide; the last of them says what is decided. ``None``: not enough have agreed yet.

    A person counts once among those who agree and for each role they have, so that rules which share people can always
    be met. Votes agree when they say the same: an approval is not an edit, and two different edits are not one.
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
    """Say how many of which role are still missing."""
    found = {
        role: needed - sum(role in roles.get(person_key(vote.actor), frozenset()) for vote in agreeing)
        for role, needed in quorum.each
    }
    return {role: count for role, count in found.items() if count > 0}


def next_role(quorum: Quorum, votes: Sequence[Vote], roles: Roles) -> str | None:
    """Say whose turn it is where roles answer one after the other; ``None`` where anybody may."""
    if quorum.order != "sequence":
        return None
    agreeing = [vote for vote in votes if vote.decision is not DecisionKind.REJECTED]
    return next(iter(missing_roles(quorum, agreeing, roles)), None)


def _objections_needed(quorum: Quorum) -> int:
    if quorum.reject == "any":
        return 1
    people = max(quorum.approvals, sum(number for _, number in quorum.each))
    return people // 2 + 1
