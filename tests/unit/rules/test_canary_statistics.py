"""The statistics of canaries: what rolls back, what does not, and how often a harmless canary does."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kneo.controller.stages.canary import (
    LIMIT,
    Advance,
    RollBack,
    Stay,
    StepProgress,
    compare_runs,
    decide_canary,
)
from kneo.records.canary import CountedRun, candidate_part, control_share
from kneo.spec.models.canary import CanaryPlan

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def plan(*rules: dict[str, Any], **changes: object) -> CanaryPlan:
    stop = rules or ({"metric": "failed", "worseBy": "50%"},)
    return CanaryPlan.model_validate({"steps": ["5%", "25%", "100%"], "stopIf": list(stop), **changes})


def run(
    *, candidate: bool = True, bad: float | None = None, settled: bool = True, age: float = 7200.0, part: float = 0.2
) -> CountedRun:
    marks = {"failed": bad} if bad is not None else {}
    started = NOW - timedelta(seconds=age)
    return CountedRun(candidate=candidate, part=part, bad=marks, settled=settled, started_at=started)


def evidence(runs: Sequence[CountedRun], of: CanaryPlan | None = None) -> float:
    return compare_runs(of or plan(), runs, NOW)[0].evidence


def test_runs_that_are_not_bad_are_no_evidence() -> None:
    assert evidence([run(), run(candidate=False)] * 100) == 1.0


def test_bad_runs_of_the_canary_are_evidence_and_those_of_the_release_are_not() -> None:
    assert evidence([run(bad=1.0)] * 5) > evidence([run(bad=1.0)]) > 1
    assert evidence([run(bad=1.0, candidate=False)] * 50) == 1.0


def test_a_crash_of_the_canary_alone_rolls_back_after_few_runs() -> None:
    figures = compare_runs(plan(), [run(bad=1.0)] * 12, NOW)
    assert figures[0].rolls_back
    verdict = decide_canary(plan(), figures, _progress(), 0.2, NOW)
    assert verdict == RollBack("12 of 12 failed runs were the candidate's, where 20 % were expected.")


def _progress(**changes: Any) -> StepProgress:
    return StepProgress(**{"began_at": NOW - timedelta(hours=1), "runs": 500, "known": 100, **changes})


def test_the_evidence_of_bad_runs_at_every_age_is_that_of_the_formula() -> None:
    """One age, two runs: the mean over the alternatives of the product of their likelihood ratios, by hand."""
    allowed, part = 1.5, 0.2

    def share(ratio: float) -> float:
        return part * ratio / (part * ratio + 1 - part)

    worse = [allowed * factor for factor in (1.25, 1.5, 2, 3, 5, 10, 30, 100)]
    first = sum(share(ratio) / share(allowed) for ratio in worse) / 8
    second = sum(share(r) / share(allowed) * (1 - share(r)) / (1 - share(allowed)) for r in worse) / 8
    runs = [run(bad=1.0), run(bad=1.0, candidate=False)]
    assert evidence(runs) == pytest.approx(max(1.0, first, second))
    assert evidence(runs[:1]) == pytest.approx(first)


def test_young_runs_count_against_a_rollback() -> None:
    bad = [run(bad=1.0)] * 8
    assert evidence([run(candidate=False, settled=False, age=60)] * 40 + bad) < evidence(bad)
    assert evidence([*bad, *[run(settled=False, age=60)] * 40]) == evidence(bad)


def test_more_knowledge_never_lowers_the_evidence() -> None:
    """The factors are monotone: a run of the release that turns out good only raises it."""
    waiting = [run(candidate=False, settled=False, age=60), run(bad=5.0), run(bad=6.0)]
    known = [run(candidate=False), *waiting[1:]]
    assert evidence(known) >= evidence(waiting)


def test_a_crash_at_once_is_seen_while_runs_of_the_release_wait_for_people() -> None:
    waiting = [run(candidate=False, settled=False, age=1200)] * 80
    assert compare_runs(plan(), [*waiting, *[run(bad=1.0, age=1200)] * 20], NOW)[0].rolls_back


def test_each_metric_shares_the_risk() -> None:
    both = plan({"metric": "failed", "worseBy": "0%"}, {"metric": "edited", "worseBy": "0%"})
    assert [item.limit for item in compare_runs(both, [], NOW)] == [2 * LIMIT, 2 * LIMIT]


def test_a_step_needs_runs_ended_runs_and_no_worse_ratio() -> None:
    good = compare_runs(plan(), [run(), run(candidate=False)] * 60, NOW)
    assert decide_canary(plan(), good, _progress(), 0.2, NOW) == Advance()
    few = decide_canary(plan(), good, _progress(runs=70, known=10), 0.2, NOW)
    assert few == Stay("the next step needs 130 more runs and 40 more ended runs of the canary")
    worse = compare_runs(plan(), [*[run()] * 50, run(bad=1.0), *[run(candidate=False)] * 200], NOW)
    assert isinstance(decide_canary(plan(), worse, _progress(), 0.2, NOW), Stay)


def test_a_step_of_a_time_needs_the_time() -> None:
    timed = plan(every="2h")
    good = compare_runs(timed, [], NOW)
    assert decide_canary(timed, good, _progress(), 0.2, NOW) == Stay("the next step needs 3601 more seconds")


def test_the_parts_of_arms() -> None:
    assert (control_share(0.05), control_share(0.5)) == (0.2, 0.5)
    assert (candidate_part(0.05), candidate_part(0.5)) == (0.2, 0.5)


def _simulate(random_: random.Random, *, counted: int, candidate: float, control: float, part: float) -> bool:
    """Return whether a canary with these rates of bad runs is rolled back; runs that are not bad change nothing."""
    runs = []
    for _ in range(counted):
        is_candidate = random_.random() < part
        if random_.random() < (candidate if is_candidate else control):
            runs.append(run(candidate=is_candidate, bad=1.0, part=part))
    equal = plan({"metric": "failed", "worseBy": "0%"})
    return compare_runs(equal, runs, NOW)[0].rolls_back


@pytest.mark.timeout(600)
def test_of_ten_thousand_canaries_at_equal_rates_at_most_five_and_a_half_percent_roll_back() -> None:
    drawn = random.Random(20261124)
    rolled_back = sum(_simulate(drawn, counted=1_250, candidate=0.04, control=0.04, part=0.2) for _ in range(10_000))
    assert rolled_back <= 550, rolled_back


def test_canaries_that_are_much_worse_roll_back() -> None:
    drawn = random.Random(7)
    found = [_simulate(drawn, counted=1_250, candidate=0.12, control=0.04, part=0.2) for _ in range(100)]
    assert sum(found) >= 90
