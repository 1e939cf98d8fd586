"""Forms: fields as a JSON Schema, and the check of submitted values.

Pure; messages never repeat a refused value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kneo.errors import Invalid
from kneo.spec.json_schema import Schema, SchemaInvalid, Uncheckable, compile_schema, find_flaws
from kneo.spec.patterns import find_flaw

if TYPE_CHECKING:
    from jsonschema import ValidationError

    from kneo.spec.models.human import AnswerField

TYPES: Mapping[str, Schema] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "list": {"type": "array"},
    "dict": {"type": "object"},
    "date": {"type": "string", "format": "date"},
    "datetime": {"type": "string", "format": "date-time"},
}

MAX_PROBLEMS = 50
"""Problems that one message lists."""


def schema_of(fields: Sequence[AnswerField]) -> Schema:
    """Return fields as the JSON Schema of an object without other properties."""
    return {
        "type": "object",
        "properties": {field.name: _property(field) for field in fields},
        "required": [field.name for field in fields if field.required and field.default is None],
        "additionalProperties": False,
    }


def _property(field: AnswerField) -> Schema:
    limits = {
        "description": field.description,
        "default": field.default,
        "enum": list(field.allowed_values) if field.allowed_values is not None else None,
        "minimum": field.min,
        "maximum": field.max,
        # The pattern of a field applies to the whole text, a pattern of JSON Schema to any part of it.
        "pattern": f"^(?:{field.pattern})$" if field.pattern is not None else None,
    }
    # An empty text is no value of a required field.
    least = {"minLength": 1} if field.type == "str" and field.required else {}
    return {**TYPES[field.type], **least, **{name: value for name, value in limits.items() if value is not None}}


def check_schema(schema: Schema, where: str) -> None:
    """Check that a JSON Schema can be used.

    Raises:
        Invalid: ``spec_invalid``: it is malformed, refers to another document or to itself without end, or is too large
            or costly.
    """
    flaws = find_flaws(schema)
    if flaws:
        msg = f"{where} cannot be used. {flaws[0]}"
        raise Invalid(msg, code="spec_invalid", hint="kneo spec lint shows every finding.")


def check_fields(fields: Sequence[AnswerField], where: str) -> None:
    """Check that the patterns of fields can be used.

    Raises:
        Invalid: ``spec_invalid``.
    """
    for field in fields:
        flaw = find_flaw(field.pattern) if field.pattern is not None else None
        if flaw is not None:
            msg = f"{where} cannot use the pattern of {field.name}. {flaw.reason}"
            raise Invalid(msg, code="spec_invalid", hint="kneo spec lint shows every finding.")


def filled(schema: Schema, values: Mapping[str, object]) -> dict[str, object]:
    """Add the defaults of a schema for omitted values."""
    properties = schema.get("properties", {})
    assert isinstance(properties, Mapping)
    defaults = {
        name: rule["default"] for name, rule in properties.items() if isinstance(rule, Mapping) and "default" in rule
    }
    return {**defaults, **values}


def problems(schema: Schema, value: object) -> list[dict[str, object]]:
    """Return the problems of a value: location and rule, never the value."""
    try:
        return [_problem(error) for error in compile_schema(schema).errors(value, MAX_PROBLEMS)]
    except Uncheckable as error:
        return [{"field": "", "rule": "", "message": f"cannot be checked: {error}"}]
    except SchemaInvalid as error:
        return [{"field": "", "rule": "", "message": f"cannot be checked, its schema cannot be used: {error}"[:500]}]


def _problem(error: ValidationError) -> dict[str, object]:
    rule, expected = str(error.validator), error.validator_value
    where = ".".join(str(part) for part in error.absolute_path)
    match rule:
        case "required":
            assert isinstance(error.instance, Mapping)
            assert isinstance(expected, list)
            absent = next(name for name in expected if name not in error.instance and repr(name) in error.message)
            return {"field": f"{where}.{absent}".lstrip("."), "rule": rule, "message": "is required"}
        case "additionalProperties":
            return {"field": where, "rule": rule, "message": "has unknown fields"}
        case "enum":
            return {"field": where, "rule": rule, "message": f"must be one of {str(expected)[:500]}"}
        case "minLength" if expected == 1:
            return {"field": where, "rule": rule, "message": "must not be empty"}
        case _:
            return {"field": where, "rule": rule, "message": f"must satisfy {rule}: {str(expected)[:200]}"}
