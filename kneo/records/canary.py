"""Canaries: a new version that gets a share of the new runs of its bundle before its promotion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

GATE = "canary"
"""The gate of canaries."""


class CanaryState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    PASSED = "passed"
    ROLLED_BACK = "rolled_back"
    ENDED = "ended"


@dataclass(frozen=True, kw_only=True)
class MetricFigures:
    """The figures of a metric of a canary.

    Args:
        metric: The metric.
        candidate_bad: Bad runs of the canary.
        control_bad: Bad runs of the release among those that are compared.
        ratio: How many times as often a known run of the canary is bad, at the age where that is worst; None without a bad run of
            the release to compare with.
        evidence: The highest evidence so far that the canary is worse than the plan allows.
        limit: The evidence that rolls it back.
    """

    metric: str
    candidate_bad: int
    control_bad: int
    ratio: float | None
    evidence: float
    limit: float

    @property
    def rolls_back(self) -> bool:
        return self.evidence >= self.limit


@dataclass(frozen=True, kw_only=True)
class CanaryFigures:
    """The figures of a canary as its runs were last counted.

    Args:
        runs: Its counted runs.
        control: The runs of the release that are compared with them.
        metrics: The figures of each metric.
        next: What the next step needs, in words.
    """

    runs: int = 0
    control: int = 0
    metrics: tuple[MetricFigures, ...] = ()
    next: str | None = None


@dataclass(frozen=True, kw_only=True)
class Canary:
    """One row of ``canaries``. Times are ISO-8601 texts."""

    id: str
    environment: str
    bundle: str
    version: str
    digest: str
    base_digest: str
    """The release that it is compared with."""
    revision: str
    plan: Mapping[str, object]
    plan_digest: str
    policy_digest: str
    """The rules under which it was approved."""
    approvals: tuple[str, ...]
    """The ids of the approvals with which it began; they count until it ends."""
    salt: str
    """The secret of the assignment of runs, in hexadecimal digits."""
    step: int
    """The present step, from 1 on."""
    share: float
    """The share of new runs; 0 while nothing is assigned to it."""
    counts: bool
    """Whether further runs of this step are counted: their number is bounded."""
    state: CanaryState
    reason: str
    actor: str
    blocks: bool
    """Whether its version stays blocked after its end, until a person restarts the canary or people approve it again."""
    promotes: bool
    """Whether a person asked for its promotion before its last step."""
    began_at: str
    step_at: str
    ended_at: str | None = None
    figures: CanaryFigures = CanaryFigures()

    @property
    def is_live(self) -> bool:
        return self.ended_at is None


@dataclass(frozen=True, kw_only=True)
class CountedRun:
    """A run that is compared: one of the canary, or one of the release.

    Args:
        candidate: Whether it is the canary's.
        part: The canary's part of the counted runs at its start.
        bad: The age in seconds at which it became bad, by metric.
        settled: Whether it can become bad no more.
        started_at: Its start.
    """

    candidate: bool
    part: float
    bad: Mapping[str, float]
    settled: bool
    started_at: datetime


def control_share(share: float) -> float:
    """Return the share of new runs of the release that a canary is compared with: up to four times its own."""
    return min(4 * share, 1 - share)


def candidate_part(share: float) -> float:
    """Return the part of the counted runs that a canary with a share of the new runs gets."""
    return share / (share + control_share(share))
