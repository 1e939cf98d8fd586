"""Rejections: the rules by which one counts, and the change of rules that ends one. Pure.

A rejection counts without a time limit, until its author approves the same subject later. It counts where its author may
decide under the present rules, and where the author could decide under the rules that the rejection names. So a commit that
needs no approval ends no rejection: rules under which its author may no longer decide need the approvals of the rules in
force before, and those approvals end it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from kneo.controller.stages.approvals import ApprovalVote, ApprovalVotes, may_decide
from kneo.names import person_key
from kneo.spec.models.environment import Approvals, Environment

AcceptedFiles = Mapping[str, Environment | None]
"""Files that were in force in an environment before the present one, by policy digest; None for one that this version cannot
read."""

Involved = Callable[[Environment], Collection[str]]
"""Returns the keys of the people whose decision does not count under a file, because of their part in the change."""


def nobody_involved(_environment: Environment) -> Collection[str]:
    """Return no people: a change of rules or a removal has no signer and no author."""
    return ()


def latest_rejections(votes: Iterable[ApprovalVote]) -> list[ApprovalVote]:
    """Return the rejections that no later approval of the same person replaces."""
    latest: dict[str, ApprovalVote] = {}
    for vote in votes:
        known = latest.get(person_key(vote.principal))
        if known is None or known.order <= vote.order:
            latest[person_key(vote.principal)] = vote
    return [vote for vote in latest.values() if not vote.approves]


def could_decide(vote: ApprovalVote, subject: str, files: AcceptedFiles, involved: Involved) -> bool:
    """Return whether the author of a vote could decide under the rules that the vote names.

    Args:
        vote: The vote.
        subject: The digest of its subject.
        files: The files that were in force; the author could decide under one that cannot be read.
        involved: The people whose decision does not count.
    """
    if vote.overruled or vote.policy_digest not in files or vote.policy_digest == subject:
        return False  # a decision about rules names rules that were not in force
    named = files[vote.policy_digest]
    if named is None:
        return True
    return may_decide(vote, _rule(named), named) and person_key(vote.principal) not in involved(named)


def ended_rejections(
    before: Environment, after: Environment, votes: Sequence[ApprovalVotes], files: AcceptedFiles
) -> tuple[ApprovalVote, ...]:
    """Return the rejections that count under the rules in force, and whose authors may not decide under new rules.

    Args:
        before: The file in force.
        after: The new file.
        votes: The decisions about this environment, and those about others that its people decide too.
        files: The files that were in force before.
    """
    if before.spec.approvals is None or before.spec.approvals.required == 0:
        return ()
    found = (
        vote for each in votes for subject, about in each.items() for vote in _counting(about, subject, before, files)
    )
    return tuple(vote for vote in found if not may_decide(vote, _rule(after), after))


def _counting(
    votes: Iterable[ApprovalVote], subject: str, environment: Environment, files: AcceptedFiles
) -> Iterator[ApprovalVote]:
    # A decision about a removal is void once another commit arrives.
    deciding = (
        vote
        for vote in votes
        if vote.about is None
        and (may_decide(vote, _rule(environment), environment) or could_decide(vote, subject, files, nobody_involved))
    )
    yield from latest_rejections(deciding)


def _rule(environment: Environment) -> Approvals:
    return environment.spec.approvals or Approvals()
