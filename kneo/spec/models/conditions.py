"""Questions a workflow asks of what has happened so far."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from kneo.spec.base import ListOf, Shorthand, SpecModel
from kneo.spec.models import shorthand

ConditionType: TypeAlias = Literal[
    "always",
    "never",
    "output_contains",
    "output_equals",
    "metadata_equals",
    "variable_equals",
    "status_is",
    "all_of",
    "any_of",
    "not",
]

_SHORT = {
    "type": "object",
    "minProperties": 1,
    "maxProperties": 1,
    "properties": {"any_of": {"type": "array"}, "all_of": {"type": "array"}, "not": {"type": "object"}},
    "additionalProperties": False,
}


class Condition(SpecModel):
    """One question, or several joined by ``all_of``, ``any_of`` or ``not``."""

    type: ConditionType
    value: object = Field(default=None, description="What to compare with.")
    key: str | None = Field(default=None, description="Which metadata entry or variable to look at.")
    case_sensitive: bool = Field(default=False, description="Whether upper and lower case differ in a comparison.")
    conditions: ListOf[AnyCondition] = Field(default=(), description="The parts of all_of and any_of.")
    condition: AnyCondition | None = Field(default=None, description="What not turns around.")


AnyCondition: TypeAlias = Annotated[Condition, BeforeValidator(shorthand.condition), Shorthand(_SHORT)]
"""A condition, or the short form ``{any_of: […]}``."""

Condition.model_rebuild()
