"""Environments that need no evaluation: nothing that their last one depended on has changed, and no time that could change it has come.

A result is remembered where it depends on nothing but the values of ``Basis`` and the time: that of an environment without changes, and
that of changes which wait for people, windows or the end of a hold. Everything else is evaluated at each reconciliation: what failed
or drifted, rules that wait for approval, canaries, removals, soak times, evidence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain

from kneo.clock import parse_time
from kneo.controller.stages.evidence import is_chained
from kneo.controller.stages.gates import Blocked, Evidence, Rules
from kneo.controller.stages.plan import Action, Retire
from kneo.controller.stages.report import Outcome, Ready, Reconciling
from kneo.digest import Digest
from kneo.records.release import EnvironmentRecord, Release
from kneo.spec.models.environment import Approvals, Environment
from kneo.trust.root import TrustRoot


@dataclass(frozen=True, kw_only=True)
class Basis:
    """What the evaluation of an environment depends on besides the time, and the rows that it leaves.

    Args:
        file: The environment's file.
        epoch: The digest of the trust root and the rules.
        blobs: Ids of its files of bundles and attestations, by path.
        approvals: The approvals in the commit.
        decided: What people have decided about it, as the reconciliation began; see ``registry.list_decided``.
        served: Its releases.
        record: Its record, without what each commit changes.
        waiting: The names of its pending changes.
    """

    file: bytes
    epoch: Digest
    blobs: Mapping[str, str]
    approvals: tuple[bytes, ...]
    decided: frozenset[tuple[object, ...]]
    served: Mapping[str, Release]
    record: EnvironmentRecord
    waiting: frozenset[str]


def lasting(record: EnvironmentRecord) -> EnvironmentRecord:
    """Return a record without what each commit changes."""
    return replace(record, revision="", updated_at="", pending=())


@dataclass(frozen=True)
class SettledResult:
    """The result of an evaluation.

    Args:
        outcome: The outcome.
        since: The time of the evaluation.
        until: The first time after it at which time alone could change the result; None for never.
    """

    outcome: Outcome
    since: datetime
    until: datetime | None

    def stands(self, now: datetime) -> bool:
        """Return whether time has not changed the result. A clock can go back too."""
        return self.since <= now and (self.until is None or now < self.until)


def find_result(
    outcome: Outcome,
    blocked: Sequence[tuple[Action, Blocked]],
    rules: Sequence[Rules],
    evidence: Evidence,
    root: TrustRoot,
    *,
    changed: bool,
) -> SettledResult | None:
    """Return the result of an evaluation; None for one that may depend on more than its basis and the time.

    Args:
        outcome: The outcome.
        blocked: The changes that wait.
        rules: The rules that applied.
        evidence: The evidence on which the gates decided.
        root: The trust root.
        changed: Whether releases changed.
    """
    if len(rules) != 1 or rules[0].environment.spec.retired:
        return None
    environment = rules[0].environment
    if isinstance(outcome, Ready):
        return SettledResult(Ready(0), evidence.now, None)
    if changed or not isinstance(outcome, Reconciling) or is_chained(environment) or evidence.canaries:
        return None
    if any(isinstance(action, Retire) for action, _ in blocked):
        return None
    later = [time for time in _turning_times(environment, evidence, root) if time > evidence.now]
    return SettledResult(outcome, evidence.now, min(later, default=None))


def turning_times_of(root: TrustRoot) -> Iterator[datetime]:
    """Yield every time at which a trust root, or a key in it, may cease to count."""
    yield root.expires
    for revocation in root.document.revoked:
        yield from (time for time in (revocation.at, revocation.compromised_since) if time is not None)


def _turning_times(environment: Environment, evidence: Evidence, root: TrustRoot) -> Iterator[datetime]:
    """Yield every time at which a gate may open or close. More than that cost evaluations, and change nothing."""
    yield from turning_times_of(root)
    for window in environment.windows:
        yield from window.edges(evidence.now)
    ends = [hold.until for hold in evidence.holds.values()]
    if evidence.suspension is not None:
        ends.append(evidence.suspension.until)
    yield from (parse_time(until) for until in ends if until is not None)
    rule = environment.spec.approvals or Approvals()
    for vote in chain.from_iterable(evidence.votes.values()):
        yield vote.first_seen + rule.expires
        if vote.expires is not None:
            yield vote.expires


class SettledEnvironments:
    """The results of one controller that still stand, by environment."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Basis, SettledResult]] = {}
        self._fence: int | None = None

    def clear(self) -> None:
        """Evaluate every environment next time."""
        self._known.clear()

    def begin(self, fence: int) -> None:
        """Begin a reconciliation; under another lease another controller may have changed everything."""
        if fence != self._fence:
            self.clear()
        self._fence = fence

    def find(self, name: str, basis: Basis, now: datetime) -> Outcome | None:
        """Return the outcome of an environment whose result still stands; None for one that has to be evaluated."""
        before, result = self._known.get(name, (None, None))
        return result.outcome if result is not None and before == basis and result.stands(now) else None

    def forget(self, name: str) -> None:
        """Evaluate an environment next time."""
        self._known.pop(name, None)

    def keep(self, name: str, basis: Basis, result: SettledResult) -> None:
        """Remember a result."""
        self._known[name] = (basis, result)
