"""Canary plans: the shares of new runs that a version gets before its promotion, and the metrics that roll it back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, field_serializer, model_validator

from kneo.digest import Digest, digest_of_json
from kneo.spec.base import MAX_DURATION, CamelModel, Duration, ListOf, refused

CODE = "E_ENVIRONMENT"

CanaryMetric: TypeAlias = Literal["failed", "rejected_by_people", "edited", "guardrail_blocked", "cost"]
"""What a run is or is not: failed or timed out, rejected or edited by people, blocked by a guardrail, costlier than a bound."""

MAX_STEPS, MAX_RULES = 10, 5

_PERCENT = r"^[0-9]{1,4}(\.[0-9]{1,2})?%$"
_EVERY = r"^([1-9][0-9]{0,6} runs|[1-9][0-9]{0,8}[smhd])$"

Percent: TypeAlias = Annotated[str, Field(pattern=_PERCENT, examples=["5%"])]


def _fraction(text: str) -> float:
    return round(float(text.removesuffix("%")) * 100) / 10_000


def _interval(text: str) -> str:
    if not text.endswith(" runs") and _length(text) > MAX_DURATION:
        raise refused(CODE, "A duration is at most ten years.")
    return text


def _length(text: str) -> timedelta:
    unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[text[-1]]
    return timedelta(**{unit: int(text[:-1])})


Interval: TypeAlias = Annotated[str, Field(pattern=_EVERY, examples=["200 runs", "2h"]), AfterValidator(_interval)]
"""A number of runs, or a duration."""


class StopRule(CamelModel):
    """A metric by which a canary may be worse than the release, and not more."""

    metric: CanaryMetric
    over: float | None = Field(
        default=None, gt=0, le=1e6, allow_inf_nan=False, description="cost: the cost in USD above which a run counts."
    )
    worse_by: Percent = Field(description="By how much more often a run of the canary may be bad.")

    @property
    def ratio(self) -> float:
        """How many times as often a run of the canary may be bad."""
        return 1 + _fraction(self.worse_by)

    @model_validator(mode="after")
    def _has_its_bound(self) -> Self:
        if (self.metric == "cost") is (self.over is None):
            missing = "needs" if self.metric == "cost" else "has no"
            raise refused(CODE, f"The metric {self.metric} {missing} over.", "over")
        return self


class CanaryPlan(CamelModel):
    """The steps of a canary: each gives a larger share of new runs to the new version; the last one is its promotion."""

    steps: ListOf[Percent] = Field(min_length=1, max_length=MAX_STEPS, description="Rising; the last one is 100%.")
    every: Interval = Field(default="200 runs", description="How long a step lasts: new runs of the bundle, or time.")
    min_runs: int = Field(default=50, ge=1, le=10_000, description="The least runs of the canary in a step.")
    within: Duration = Field(
        default=timedelta(days=1), description="The time after which a run that is not bad yet counts as good."
    )
    stop_if: ListOf[StopRule] = Field(
        min_length=1, max_length=MAX_RULES, description="What rolls the canary back, without a person."
    )

    @field_serializer("within")
    def _write_within(self, within: timedelta) -> str:
        return f"{int(within.total_seconds())}s"

    @model_validator(mode="after")
    def _rises_to_all(self) -> Self:
        shares = self.shares
        if shares[-1] != 1 or shares[0] <= 0 or any(before >= after for before, after in pairwise(shares)):
            raise refused(CODE, "The steps of a canary rise from more than 0% to 100%.", "steps")
        if self.within < timedelta(minutes=1):
            raise refused(CODE, "within is at least one minute.", "within")
        metrics = [rule.metric for rule in self.stop_if]
        twice = next((metric for metric in metrics if metrics.count(metric) > 1), None)
        if twice is not None:
            raise refused(CODE, f"stopIf names the metric {twice} twice.", "stopIf")
        return self

    @property
    def shares(self) -> Sequence[float]:
        """The share of each step."""
        return tuple(map(_fraction, self.steps))

    @property
    def every_runs(self) -> int | None:
        """The new runs that a step lasts; None where it lasts a time."""
        return int(self.every.removesuffix(" runs")) if self.every.endswith(" runs") else None

    @property
    def every_time(self) -> timedelta:
        """The time that a step lasts; nothing where it lasts a number of runs."""
        return timedelta(0) if self.every.endswith(" runs") else _length(self.every)

    @cached_property
    def content(self) -> dict[str, object]:
        """The plan with its defaults, as JSON."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @cached_property
    def digest(self) -> Digest:
        """The digest of the content: what an approval of a canary is about."""
        return digest_of_json(self.content)
