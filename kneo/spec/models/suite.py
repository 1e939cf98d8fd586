"""Suites: cases with an input, what stands for models, tools and people in a trial, and the expected result."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import ConfigDict, Field, model_validator

from kneo.spec.base import ApiVersion, CamelModel, JsonObject, ListOf, MapOf, Name, SpecModel, Text, refused
from kneo.spec.models.agent import Model
from kneo.spec.models.answers import ScriptedAnswer

CODE = "E_SUITE"

MAX_CASES = 500

ModelMode: TypeAlias = Literal["scripted", "live"]

Dollars: TypeAlias = Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)]

CaseId: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class ScriptedCall(SpecModel):
    """A tool call of a scripted reply."""

    tool: str
    arguments: JsonObject = Field(default_factory=dict)


class ScriptedReply(SpecModel):
    """A reply of a scripted model: a text, or a tool call."""

    text: Text | None = None
    call: ScriptedCall | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.text is None) == (self.call is None):
            raise refused(CODE, "A reply is a text or a call.")
        return self


class StubbedCall(SpecModel):
    """The result of calls of a tool; without ``arguments`` of each call."""

    tool: str
    arguments: JsonObject | None = None
    returns: object = None


class Expected(CamelModel):
    """One expectation of a case; ``arguments`` and ``times`` belong to ``called``, ``question`` and ``atLeast`` to ``judge``."""

    status: Literal["succeeded", "failed", "cancelled", "expired"] | None = None
    output_contains: Text | None = None
    output_matches: Text | None = Field(default=None, description="A regular expression of RE2.")
    output_equals: Text | None = None
    called: str | None = None
    arguments: JsonObject | None = None
    times: int | None = Field(default=None, ge=0, le=10_000)
    not_called: str | None = None
    asked: str | None = None
    not_asked: str | None = None
    max_cost: Dollars | None = None
    judge: Name | None = None
    question: Text | None = None
    at_least: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        stated = self.model_fields_set
        kinds = sorted(stated & KINDS)
        if len(kinds) != 1:
            raise refused(CODE, f"An expectation is one of {', '.join(sorted(_alias(kind) for kind in KINDS))}.")
        others = stated - KINDS - PARTS.get(kinds[0], frozenset())
        if others:
            raise refused(CODE, f"{_alias(min(others))} does not belong to {_alias(kinds[0])}.", _alias(min(others)))
        if self.judge is not None and (self.question is None or self.at_least is None):
            raise refused(CODE, "judge needs question and atLeast.")
        return self

    @property
    def kind(self) -> str:
        """The field that states the expectation."""
        return next(iter(self.model_fields_set & KINDS))


PARTS = {"called": frozenset({"arguments", "times"}), "judge": frozenset({"question", "at_least"})}
KINDS = frozenset(Expected.model_fields) - frozenset().union(*PARTS.values())


def _alias(name: str) -> str:
    return Expected.model_fields[name].alias or name


class Case(SpecModel):
    """One case: an input, what stands for the outside, and the expected result."""

    id: CaseId
    input: Text
    replies: ListOf[ScriptedReply] = Field(
        default=(), max_length=1_000, description="scripted: the replies of the models, in order."
    )
    tools: ListOf[StubbedCall] = Field(
        default=(), max_length=1_000, description="Results of tool calls; the first that fits."
    )
    outputs: MapOf[Text] = Field(
        default_factory=dict,
        description="Outputs of function steps, by their path; of the functions of guardrails and memory, by their name.",
    )
    answers: MapOf[ScriptedAnswer] = Field(
        default_factory=dict, description="Answers of people, by the key of the question."
    )
    expect: ListOf[Expected] = Field(min_length=1, max_length=100, description="All hold, in each repetition.")


class Judge(SpecModel):
    """A model that scores outputs from 0 to 1."""

    model: Model
    system_prompt: Text


class SuiteSpec(CamelModel):
    """The cases of a suite."""

    repeats: int = Field(default=1, ge=1, le=20)
    max_cost: Dollars = Field(default=1.0, description="The most that all trials may cost, in USD.")
    models: ModelMode = "scripted"
    judges: MapOf[Judge] = Field(default_factory=dict)
    cases: ListOf[Case] = Field(min_length=1, max_length=MAX_CASES)


class _Metadata(CamelModel):
    name: Name


class Suite(SpecModel):
    """A suite of cases, as its file says it."""

    model_config = ConfigDict(title="Kneo suite")

    api_version: ApiVersion = Field(alias="apiVersion")
    kind: Literal["Suite"]
    metadata: _Metadata
    spec: SuiteSpec
