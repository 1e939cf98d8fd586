"""What people fill in: fields as a JSON Schema, and whether what they sent fits it. Pure; what does not fit is not repeated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import cache
from typing import TYPE_CHECKING

from kneo.clock import parse_time
from kneo.errors import Invalid

if TYPE_CHECKING:
    # A tenth of a second to import, for the few answers that fill in a form.
    from jsonschema import FormatChecker, ValidationError

    from kneo.spec.models.human import AnswerField

Schema = Mapping[str, object]

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
"""Problems that one refusal lists."""


@cache
def _formats() -> FormatChecker:
    from jsonschema import FormatChecker

    known = FormatChecker(formats=())
    known.checks("date", raises=ValueError)(_is_date)
    known.checks("date-time", raises=Invalid)(_is_time)
    return known


def _is_date(value: object) -> bool:
    return not isinstance(value, str) or bool(date.fromisoformat(value))


def _is_time(value: object) -> bool:
    return not isinstance(value, str) or bool(parse_time(value))


def schema_of(fields: Sequence[AnswerField]) -> Schema:
    """Spell fields as the JSON Schema of an object that has nothing else."""
    return {
        "type": "object",
        "properties": {field.name: _property(field) for field in fields},
        "required": [field.name for field in fields if field.required and field.default is None],
        "additionalProperties": False,
    }


def _property(field: AnswerField) -> Schema:
    said = {
        "description": field.description,
        "default": field.default,
        "enum": list(field.allowed_values) if field.allowed_values is not None else None,
        "minimum": field.min,
        "maximum": field.max,
        # A field's pattern is about the whole text, JSON Schema's about any part of it.
        "pattern": f"^(?:{field.pattern})$" if field.pattern is not None else None,
    }
    # An empty text is no answer to a question that has to be answered.
    least = {"minLength": 1} if field.type == "str" and field.required else {}
    return {**TYPES[field.type], **least, **{name: value for name, value in said.items() if value is not None}}


def check_schema(schema: Schema, where: str) -> None:
    """Check a schema that somebody wrote by hand.

    Raises:
        Invalid: ``spec_invalid``: it is none, or it refers to another document.
    """
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        msg = f"{where} is not a JSON Schema at {error.json_path}: {error.message[:300]}"
        raise Invalid(msg, code="spec_invalid") from error
    if any(not reference.startswith("#") for reference in _references(schema)):
        msg = f"{where} refers to another document; a schema here stands alone."
        raise Invalid(msg, code="spec_invalid", hint="Put what it refers to under $defs.")


def _references(part: object) -> Iterable[str]:
    if isinstance(part, Mapping):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for inner in part.values():
            yield from _references(inner)
    elif isinstance(part, list | tuple):
        for inner in part:
            yield from _references(inner)


def filled(schema: Schema, values: Mapping[str, object]) -> dict[str, object]:
    """Add what a schema says about values that were left out."""
    properties = schema.get("properties", {})
    assert isinstance(properties, Mapping)
    defaults = {
        name: rule["default"] for name, rule in properties.items() if isinstance(rule, Mapping) and "default" in rule
    }
    return {**defaults, **values}


def problems(schema: Schema, value: object) -> list[dict[str, object]]:
    """Say what does not fit: where, and which rule. Nothing of the value itself."""
    from jsonschema import Draft202012Validator
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    validator = Draft202012Validator(dict(schema), format_checker=_formats(), registry=Registry())
    found = []
    try:
        for error in validator.iter_errors(value):
            found.append(_problem(error))
            if len(found) == MAX_PROBLEMS:
                break
    except Unresolvable:
        found.append({"field": "", "rule": "$ref", "message": "the schema refers to something it does not have"})
    return found


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
            return {"field": where, "rule": rule, "message": "has values that nobody asked for"}
        case "enum":
            return {"field": where, "rule": rule, "message": f"must be one of {str(expected)[:500]}"}
        case "minLength" if expected == 1:
            return {"field": where, "rule": rule, "message": "must not be empty"}
        case _:
            return {"field": where, "rule": rule, "message": f"must satisfy {rule}: {str(expected)[:200]}"}
