"""Answers files: the answers of people at each gate of a run that is simulated or replayed."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from kneo.spec.base import JsonObject, ListOf, MapOf, SpecModel, Text, refused
from kneo.spec.gates import Decision


class ScriptedAnswer(SpecModel):
    """The answer at one gate, or with ``timeout`` the absence of an answer."""

    decision: Decision | None = None
    timeout: bool = Field(default=False, description="The question times out.")
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
    """The expected result of every branch that the answers leave open."""

    status: Literal["succeeded", "failed", "cancelled", "expired"] | None = None
    error: str | None = Field(default=None, description="The type of the run's error, such as human_rejected.")
    output: Text | None = None
    ran: ListOf[str] = Field(default=(), description="Steps that must have run.")
    not_run: ListOf[str] = Field(default=(), description="Steps that must not have run.")


class AnswersFile(SpecModel):
    """Answers by the key of their gate, such as ``release.before``, and the expected result."""

    model_config = ConfigDict(title="Kneo answers")

    input: Text | None = Field(default=None, description="The input of the run.")
    outputs: MapOf[Text] = Field(default_factory=dict, description="The outputs of steps, by their path.")
    answers: MapOf[ScriptedAnswer]
    expect: Expectation | None = None
