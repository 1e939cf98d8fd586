"""Answers written down beforehand: what people will say at each gate of a run that is simulated or replayed."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from kneo.spec.base import JsonObject, ListOf, MapOf, SpecModel, Text, refused
from kneo.spec.models.human import Decision


class ScriptedAnswer(SpecModel):
    """What somebody says at one gate; or, with ``timeout``, that nobody says anything."""

    decision: Decision | None = None
    timeout: bool = Field(default=False, description="Nobody answers in time.")
    content: object = Field(default=None, description="edited, provided: the text or value.")
    selected_option: str | None = None
    selected_options: ListOf[str] | None = None
    values: JsonObject | None = Field(default=None, description="Values of the gate's fields.")
    arguments: JsonObject | None = Field(default=None, description="Edited arguments of a tool call.")
    feedback: Text | None = None
    comment: Text | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if (self.decision is None) != self.timeout:
            message = "An answer is a decision, or timeout: true."
            raise refused("E_ANSWER", message)
        return self


class Expectation(SpecModel):
    """What has to come of it, on every way the run can still go."""

    status: Literal["succeeded", "failed", "cancelled", "expired"] | None = None
    error: str | None = Field(default=None, description="The type of the run's error, such as human_rejected.")
    output: Text | None = None
    ran: ListOf[str] = Field(default=(), description="Steps that must have run.")
    not_run: ListOf[str] = Field(default=(), description="Steps that must not have run.")


class AnswersFile(SpecModel):
    """Answers by the key of the gate they are for, such as ``release.before``; and what has to come of them."""

    model_config = ConfigDict(title="Kneo answers")

    input: Text | None = Field(default=None, description="What the run is given.")
    outputs: MapOf[Text] = Field(default_factory=dict, description="What steps say, by their path.")
    answers: MapOf[ScriptedAnswer]
    expect: Expectation | None = None
