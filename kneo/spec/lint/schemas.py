"""Rules for JSON Schemas and patterns of functions, tools and answers: each can be used for every value."""

from __future__ import annotations

from collections.abc import Iterator

from kneo.spec.diagnostics import Diagnostic, error
from kneo.spec.documents import Path
from kneo.spec.index import SpecIndex
from kneo.spec.json_schema import Schema, find_flaws
from kneo.spec.lint.agents import LINEAR_HINT, pattern_findings
from kneo.spec.models.human import Human


def json_schemas(index: SpecIndex) -> Iterator[Diagnostic]:
    """The schemas of functions and tools can be used; those of answers are checked with the question."""
    for name, function in index.spec.components.functions.items():
        path: Path = ("components", "functions", name)
        if function.input_schema is not None:
            yield from schema_findings(function.input_schema, (*path, "input_schema"))
        if function.output_schema is not None:
            yield from schema_findings(function.output_schema, (*path, "output_schema"))
    for name, tool in index.spec.tools.items():
        yield from schema_findings(tool.parameters, ("tools", name, "parameters"))


def form_findings(human: Human, path: Path) -> Iterator[Diagnostic]:
    """Report the patterns and schemas of a question that cannot be used."""
    for number, field in enumerate(human.fields):
        if field.pattern is not None:
            yield from pattern_findings(field.pattern, (*path, "fields", number, "pattern"), "E_HUMAN_FIELD_REGEX")
    if human.answer_schema is not None:
        yield from schema_findings(human.answer_schema, (*path, "schema"))


def schema_findings(schema: Schema, path: Path) -> Iterator[Diagnostic]:
    """Report the flaws of a JSON Schema."""
    for flaw in find_flaws(schema) if schema else ():
        hint = LINEAR_HINT if flaw.code == "E_JSON_SCHEMA_REGEX_UNSAFE" else None
        yield error(flaw.code, flaw.message, (*path, *flaw.path), suggestion=hint)
