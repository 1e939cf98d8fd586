"""Schemas and patterns of specs that nobody linted: refused before anything runs, also where they came signed."""

from __future__ import annotations

import pytest

from kneo.errors import Invalid
from kneo.function_context import StepContext, WaitForAnswer
from kneo.runtime.engine.attempt import _paused
from kneo.runtime.interpreter.node import StepFailed, StepWaiting
from kneo.runtime.program.compiler import compile_program
from kneo.spec.environment import parse_environment
from kneo.spec.lint import check
from kneo.spec.models.spec import Spec
from kneo.spec.reading.load import load_spec
from kneo.spec.reading.validate import InvalidDeclaration

HUMAN = {"workflow": {"type": "sequential", "steps": [{"id": "ask", "kind": "human", "ref": "ann"}]}}


def spec_with(**components: object) -> Spec:
    return Spec.model_validate(
        {"agent": {"name": "root"}, **HUMAN, "components": {"humans": {"ann": {}}, **components}}
    )


@pytest.mark.parametrize(
    "components",
    [
        {"humans": {"ann": {"schema": {"$ref": "#"}}}},
        {"humans": {"ann": {"schema": {"pattern": "(?=a)"}}}},
        {"humans": {"ann": {"fields": [{"name": "a", "pattern": r"(a)\1"}]}}},
        {"humans": {"ann": {"fields": [{"name": "a", "pattern": "a)|(?:b"}]}}},
        {"functions": {"f": {"implementation": "m.f", "input_schema": {"$ref": "#"}}}},
        {"functions": {"f": {"implementation": "m.f", "output_schema": {"pattern": "("}}}},
    ],
)
def test_a_program_that_could_not_check_its_values_is_none(components: dict) -> None:
    with pytest.raises(Invalid) as refusal:
        compile_program(spec_with(**components), "workflow")
    assert refusal.value.code == "spec_invalid"


def context() -> StepContext:
    return StepContext(run_id="run_1", step_id="s", attempt=1, idempotency_key="k")


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"pattern": "(?=a)"}, {"$ref": "https://a.test/"}])
def test_a_function_cannot_ask_for_what_could_not_be_checked(schema: dict) -> None:
    with pytest.raises(WaitForAnswer) as asked:
        context().wait("Which?", schema=schema)
    failed = _paused("s", asked.value)
    assert isinstance(failed, StepFailed)
    assert "cannot be used" in failed.error.message
    with pytest.raises(WaitForAnswer) as asked:
        context().wait("Which?", schema={"type": "string", "pattern": "^(a+)+$"})
    assert isinstance(_paused("s", asked.value), StepWaiting)


def test_findings_have_the_line_and_column_of_the_pattern() -> None:
    text = b"""\
agent: {name: root}
components:
  humans:
    boss:
      schema:
        type: object
        properties:
          code:
            pattern: '^(?=a)'
"""
    [found] = load_spec(text, file="spec.yaml", rules=check).diagnostics
    assert (found.code, found.file, found.line, found.column) == ("E_JSON_SCHEMA_REGEX_UNSAFE", "spec.yaml", 9, 22)


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        ("humans: {boss: {schema: {$ref: '#'}}}", "spec.humans.boss.schema"),
        ("humans: {boss: {fields: [{name: a, pattern: '(?=a)'}]}}", "spec.humans.boss.fields[0].pattern"),
        (
            "gates: [{name: g, match: {steps: ['*']}, before: {fields: [{name: a, pattern: '('}]}}]",
            "spec.gates[0].before.fields[0].pattern",
        ),
        (
            "gates: [{name: g, match: {steps: ['*']}, before: {human: {schema: {pattern: '('}}}}]",
            "spec.gates[0].before.human.schema.pattern",
        ),
    ],
)
def test_an_environments_questions_are_held_to_the_same(asked: str, place: str) -> None:
    text = f"""\
apiVersion: kneo/v1
kind: Environment
metadata: {{name: prod}}
spec:
  policy: {{}}
  signatures: {{accept: [dsse], roles: [release], threshold: 1}}
  {asked}
"""
    with pytest.raises(InvalidDeclaration) as refusal:
        parse_environment(text.encode(), file="environments/prod.yaml")
    assert place in {found.path_text for found in refusal.value.findings}
