"""What an environment asks of people beyond what the specs in it ask: more of every question, and questions of its own."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import ConfigDict, Field

from kneo.spec.base import CamelModel, ListOf, Name
from kneo.spec.models.human import AnyGate, Gate
from kneo.spec.models.spec import Spec
from kneo.spec.models.tools import Capability

EnvironmentGatePosition: TypeAlias = Literal["before", "after"]

StepKind: TypeAlias = Literal[
    "agent", "function", "workflow", "guardrail", "steps", "parallel", "condition", "loop", "router"
]

MAX_ADDED = 100

Pattern: TypeAlias = Annotated[str, Field(min_length=1, max_length=200)]
"""Text with ``*`` and ``?``. Reading one takes time that grows with the square of its length."""


class QuestionPolicy(CamelModel):
    """What every question to a person asks for here at least, whatever the spec says."""

    approvals: int = Field(default=1, ge=1, le=100, description="People who have to agree, at least.")
    exclude: ListOf[str] = Field(
        default=(),
        description="Who may not answer, beside those whom a gate excludes: names, or requester, bundle_signer, "
        "previous_reviewers.",
        examples=[["requester", "bundle_signer"]],
    )
    deny_on_timeout: ListOf[Literal["approve", "continue", "select", "skip"]] = Field(
        default=(), description="What silence may not do; where a spec says it, the run ends instead."
    )
    receipt: Literal["signed", "signed_by_reviewer"] | None = Field(
        default=None,
        description="Whether every decision needs a signed receipt; or that, and whoever answers signs with a key of "
        "their own.",
    )


class Match(CamelModel):
    """Which steps are meant: those that fit every line that is written, each by one of its entries.

    In patterns ``*`` stands for any text and ``?`` for one sign.
    """

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    capabilities: ListOf[Capability] = Field(default=(), description="What running the step may do beyond computing.")
    kinds: ListOf[StepKind] = Field(
        default=(), description="Left out: every step that does something itself; groups only where they are named."
    )
    refs: ListOf[Pattern] = Field(
        default=(), description="Patterns of names: the agent, function or workflow that it runs."
    )
    tools: ListOf[Pattern] = Field(default=(), description="Patterns of tools that its agent can call.")
    steps: ListOf[Pattern] = Field(
        default=(), description="Patterns of paths: ids from the outside in.", examples=[["release/*"]]
    )
    workflows: ListOf[Pattern] = Field(default=(), description="Patterns of names: the workflow that it stands in.")


class EnvironmentGate(CamelModel):
    """A question that stands around steps here, beside any that their specs ask."""

    name: Name = Field(description="A part of the question's key: pay.before+NAME.")
    match: Match = Field(description="The steps it stands around.")
    before: AnyGate | None = Field(default=None, description="Asked before such a step begins.")
    after: AnyGate | None = Field(default=None, description="Asked when such a step has finished.")

    def gates(self) -> dict[EnvironmentGatePosition, Gate]:
        """Return the questions that are asked, by their place."""
        places: dict[EnvironmentGatePosition, Gate | None] = {"before": self.before, "after": self.after}
        return {place: gate for place, gate in places.items() if gate is not None}


class GatedSpec(Spec):
    """A spec as it runs in an environment: with the questions that the environment adds."""

    environment_gates: ListOf[EnvironmentGate] = ()


def with_gates(spec: Spec, gates: tuple[EnvironmentGate, ...]) -> Spec:
    """Add an environment's questions to a spec; their humans are written out, so that they need nothing else."""
    if not gates:
        return spec
    values = {name: getattr(spec, name) for name in spec.model_fields_set}
    return GatedSpec.model_construct(**values, environment_gates=gates)


def read_spec(body: bytes) -> GatedSpec:
    """Read what a run executes, as it was frozen."""
    return GatedSpec.model_validate_json(body)
