"""Evidence rules of an environment: the facts about a bundle that signed statements have to state before its release."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Literal, Self, TypeAlias, get_args

from pydantic import ConfigDict, Field, model_validator

from kneo.spec.base import CamelModel, DigestText, Duration, ListOf, Name, refused, suggest
from kneo.spec.models.canary import CanaryMetric

CODE = "E_ENVIRONMENT"

EvidenceType: TypeAlias = Literal["eval", "rehearsal", "canary"]

MAX_RULES = 20

LESS_IS_BETTER = frozenset({"cost_per_run", "unsafe", "unknown", "gates_lost"})
"""Metrics of which a lower value is better, where a requirement has no bound that says so."""

METRICS: Mapping[EvidenceType, tuple[str, ...]] = {
    "rehearsal": ("matched", "unsafe", "unknown", "gates_lost"),
    "canary": (*get_args(CanaryMetric), *(f"control.{name}" for name in get_args(CanaryMetric))),
}
"""The metrics of statements; those of evaluations may be imported under any name."""

MetricValue: TypeAlias = Annotated[float, Field(allow_inf_nan=False, ge=-1e12, le=1e12)]


class SuitePin(CamelModel):
    """A suite of cases, pinned by its content: by name alone, a person who merges could empty it."""

    name: Name
    digest: DigestText = Field(description="SHA-256 of the file; kneo evidence digest prints it.")


class EvidenceSigners(CamelModel):
    """The people whose statements count."""

    role: Name = Field(description="A role of the trust root.")
    exclude: ListOf[Literal["bundle_signer", "author"]] = Field(
        default=("bundle_signer",), description="People whose statement does not count, by their part in the bundle."
    )


class MetricRequirement(CamelModel):
    """A bound of one metric."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [{"required": ["atLeast"]}, {"required": ["atMost"]}, {"required": ["notWorseThan"]}]
        }
    )

    metric: Name = Field(examples=["pass_rate", "cost_per_run", "judge.strict"])
    at_least: MetricValue | None = None
    at_most: MetricValue | None = None
    min_samples: int = Field(default=1, ge=1, le=1_000_000, description="The least number of cases.")
    not_worse_than: Literal["current"] | None = Field(
        default=None, description="Compare with the newest statement about the current release."
    )
    margin: float = Field(
        default=0.0,
        ge=0,
        le=1e12,
        allow_inf_nan=False,
        description="By how much it may be worse than the current release.",
    )

    @property
    def less_is_better(self) -> bool:
        """Whether a lower value is better."""
        if self.at_least is None and self.at_most is None:
            return self.metric in LESS_IS_BETTER
        return self.at_least is None

    @model_validator(mode="after")
    def _has_a_bound(self) -> Self:
        if self.at_least is None and self.at_most is None and self.not_worse_than is None:
            raise refused(CODE, f"The requirement of {self.metric} has no bound: atLeast, atMost or notWorseThan.")
        if self.margin and self.not_worse_than is None:
            raise refused(CODE, "margin belongs to notWorseThan, which is missing.", "margin")
        return self


class EvidenceRule(CamelModel):
    """The evidence about a bundle that its release needs: a signed statement that holds every requirement."""

    name: Name
    type: EvidenceType = "eval"
    suite: SuitePin | None = Field(default=None, description="eval: the suite.")
    environment: Name | None = Field(default=None, description="rehearsal, canary: where it was observed.")
    signers: EvidenceSigners
    allow_scripted: bool = Field(default=False, description="Whether results of scripted models count.")
    require: ListOf[MetricRequirement] = Field(min_length=1, max_length=20)
    max_age: Duration = Field(default=timedelta(days=30), description="How long a statement counts.")

    @model_validator(mode="after")
    def _names_its_origin(self) -> Self:
        needed, other = ("suite", "environment") if self.type == "eval" else ("environment", "suite")
        if getattr(self, needed) is None:
            raise refused(CODE, f"Evidence of type {self.type} needs {needed}.", needed)
        if getattr(self, other) is not None:
            raise refused(CODE, f"Evidence of type {self.type} has no {other}.", other)
        known = METRICS.get(self.type)
        for index, each in enumerate(self.require):
            if known is not None and each.metric not in known:
                message = f"Evidence of type {self.type} has no metric {each.metric}."
                raise refused(CODE, message, "require", index, "metric", suggestion=suggest(each.metric, known))
        return self

    @property
    def origin(self) -> str:
        """What a statement is about besides the bundle, in words."""
        if self.suite is not None:
            return f"suite {self.suite.digest}"
        return f"environment {self.environment}"
