"""The statistics of canaries: whether a new version is worse than the release, by a sequential test of counted runs. Pure.

The test compares, for each bad run, how likely it is to be one of the canary's: under the allowed ratio, and under worse ones. While
the canary is at most as much more often bad as its plan allows, the evidence is a nonnegative supermartingale with an expectation of
at most 1, also while rates drift and shares change; it reaches ``LIMIT`` with a probability of at most 5 %, however often one looks.
docs/guides/releases/canary-statistics.md has the derivation and the simulation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from kneo.records.canary import CountedRun, MetricFigures
from kneo.spec.models.canary import CanaryPlan, StopRule

LIMIT = 20.0
"""The evidence that rolls a canary with one metric back: the inverse of the 5 % of harmless canaries that it may roll back."""

WORSE = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)
"""How much worse than allowed a canary may be, in the alternatives of the test."""

EARLY = (timedelta(minutes=5), timedelta(hours=1))
"""Ages of runs that are compared besides the plan's own: a canary that crashes at once is seen while other runs wait for people."""


def compare_runs(plan: CanaryPlan, runs: Sequence[CountedRun], now: datetime) -> tuple[MetricFigures, ...]:
    """Compare the counted runs of a canary, in the order of their starts."""
    limit = LIMIT * len(plan.stop_if)
    return tuple(_figures(rule, plan, runs, now, limit) for rule in plan.stop_if)


def _figures(
    rule: StopRule, plan: CanaryPlan, runs: Sequence[CountedRun], now: datetime, limit: float
) -> MetricFigures:
    ages = [min(age, plan.within) for age in (*EARLY, plan.within)]
    views = [_at_age(rule.metric, age, runs, now) for age in ages]
    ratios = [view.ratio for view in views]
    return MetricFigures(
        metric=rule.metric,
        candidate_bad=views[-1].candidate_bad,
        control_bad=views[-1].control_bad,
        ratio=None if None in ratios else max(ratio for ratio in ratios if ratio is not None),
        evidence=_evidence([view.outcomes for view in views], rule.ratio),
        limit=limit,
    )


@dataclass
class _AgeView:
    """What is known of runs at one age.

    Args:
        outcomes: For each run that counts as bad at this age: its number, whether it is the canary's, and the canary's part.
    """

    outcomes: list[tuple[int, bool, float]]
    candidate_bad: int = 0
    control_bad: int = 0
    candidates: int = 0
    controls: int = 0

    @property
    def ratio(self) -> float | None:
        if not self.candidate_bad:
            return 0.0
        if not self.control_bad:
            return None
        return (self.candidate_bad / self.candidates) / (self.control_bad / self.controls)


def _at_age(metric: str, age: timedelta, runs: Sequence[CountedRun], now: datetime) -> _AgeView:
    """Return what is known at an age. A younger run that is not bad counts as good for the canary, as bad for the release."""
    view, seconds, from_then = _AgeView([]), age.total_seconds(), now - age
    for number, run in enumerate(runs):
        bad_at = run.bad.get(metric)
        is_bad = bad_at is not None and bad_at <= seconds
        is_known = is_bad or run.settled or run.started_at <= from_then
        if run.candidate:
            view.candidates += is_known
            view.candidate_bad += is_bad
        else:
            view.controls += is_known
            view.control_bad += is_bad
        if is_bad or not (run.candidate or is_known):
            view.outcomes.append((number, run.candidate, run.part))
    return view


def _evidence(views: Sequence[Sequence[tuple[int, bool, float]]], allowed: float) -> float:
    """Return the highest mean of the likelihood ratios over ages and alternatives, after any of the runs."""
    terms = len(views) * len(WORSE)
    by_number: dict[int, list[tuple[int, bool, float]]] = {}
    for age, outcomes in enumerate(views):
        for number, candidate, part in outcomes:
            by_number.setdefault(number, []).append((age, candidate, part))
    products = [[1.0] * len(WORSE) for _ in views]
    factors: dict[tuple[bool, float], list[float]] = {}
    highest = 1.0
    for number in sorted(by_number):
        for age, candidate, part in by_number[number]:
            known = factors.get((candidate, part))
            if known is None:
                known = factors[candidate, part] = _factors(candidate, part, allowed)
            products[age] = [product * factor for product, factor in zip(products[age], known, strict=True)]
        highest = max(highest, sum(map(sum, products)) / terms)
    return min(highest, 1e300)


def _factors(candidate: bool, part: float, allowed: float) -> list[float]:
    """Return how much likelier each alternative makes it that a bad run is the canary's, or the release's."""

    def share(ratio: float) -> float:
        return part * ratio / (part * ratio + 1 - part)

    base = share(allowed)
    if candidate:
        return [share(allowed * worse) / base for worse in WORSE]
    # One part of all is the canary's, and nothing is the release's: a run of the release says nothing.
    return [(1 - share(allowed * worse)) / (1 - base) if base < 1 else 1.0 for worse in WORSE]


# ---- decisions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StepProgress:
    """The progress of the present step of a canary.

    Args:
        began_at: When the step began.
        runs: New runs of the bundle since then.
        known: Runs of the canary in this step that have ended or are older than ``within``.
    """

    began_at: datetime
    runs: int
    known: int


@dataclass(frozen=True)
class RollBack:
    """The canary is worse than its plan allows."""

    message: str


@dataclass(frozen=True)
class Advance:
    """The next step may begin."""


@dataclass(frozen=True)
class Stay:
    """The step goes on."""

    message: str


Verdict = RollBack | Advance | Stay


def decide_canary(
    plan: CanaryPlan, figures: Sequence[MetricFigures], progress: StepProgress, part: float, now: datetime
) -> Verdict:
    """Decide about a canary: back on evidence, forward on enough data, else stay.

    Args:
        plan: The plan.
        figures: The figures of its metrics.
        progress: The progress of the present step.
        part: The canary's part of the counted runs of this step.
        now: The time.
    """
    bad = next((item for item in figures if item.rolls_back), None)
    if bad is not None:
        total = bad.candidate_bad + bad.control_bad
        message = (
            f"{bad.candidate_bad} of {total} {WORDS[bad.metric]} runs were the candidate's, where "
            f"{_percent(part)} were expected."
        )
        return RollBack(message)
    missing = [text for text in _missing(plan, progress, now) if text]
    compared = zip(plan.stop_if, figures, strict=True)
    worse = [item.metric for rule, item in compared if item.ratio is None or item.ratio > rule.ratio]
    if missing:
        return Stay(f"the next step needs {' and '.join(missing)}")
    if worse:
        return Stay(f"more runs are needed, because {', '.join(worse)} is more frequent than the plan allows")
    return Advance()


WORDS: Mapping[str, str] = {
    "failed": "failed",
    "rejected_by_people": "rejected",
    "edited": "edited",
    "guardrail_blocked": "blocked",
    "cost": "costly",
}
"""The bad runs of each metric in messages."""


def _missing(plan: CanaryPlan, progress: StepProgress, now: datetime) -> Sequence[str]:
    runs = (plan.every_runs or 0) - progress.runs
    seconds = (progress.began_at + plan.every_time - now).total_seconds()
    known = plan.min_runs - progress.known
    return (
        f"{runs} more runs" if runs > 0 else "",
        f"{int(seconds) + 1} more seconds" if seconds > 0 else "",
        f"{known} more ended runs of the canary" if known > 0 else "",
    )


def _percent(part: float) -> str:
    return f"{part * 100:.4g} %"
