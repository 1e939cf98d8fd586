"""Editors that follow the schema accept what the models accept."""

import pytest
from jsonschema import Draft202012Validator

from kneo.spec.models.environment import EnvironmentFile
from kneo.spec.models.spec import Spec
from kneo.spec.project import ProjectConfig, render_project
from kneo.spec.reading.reader import read_yaml
from kneo.spec.schemas import json_schema, write_schema

SPEC = json_schema(Spec, "spec")


def problems(text, schema=SPEC):
    Draft202012Validator.check_schema(schema)
    return list(Draft202012Validator(schema).iter_errors(read_yaml(text.encode(), file="f").value))


@pytest.mark.parametrize(
    "text",
    [
        "workflow: [a, {id: x, kind: human, ref: h}]",
        "workflow: {steps: [a]}",
        "workflow: {type: group_chat, participants: [a]}",
        "components: {humans: {h: {timeout: 2d, fields: [{name: x, field_type: int}]}}}",
        "workflow: [{id: x, kind: agent, ref: a, review: {before: true, after: ann, error: {human: {prompt: {file: p.md}}}}}]",
        "workflow: [{id: r, kind: router, choices: [{id: q, kind: function, ref: q}], selector: pick}]",
        "workflow: [{id: c, kind: condition, when: {not: {type: always}}, steps: [a], else: [{id: l, kind: loop, steps: [a]}]}]",
        "skills: {s: {source: x}}",
    ],
)
def test_what_may_be_written(text):
    assert (
        problems(f"agent: {{name: a, model: m, tools: [t], strategy: react, system_prompt: {{file: p.md}}}}\n{text}")
        == []
    )


@pytest.mark.parametrize(
    "text", ["agnt: {}", "agent: {name: 3}", "agent: {name: a}\nworkflow: {type: other}", "agent: {}"]
)
def test_what_may_not(text):
    assert problems(text)


def test_the_other_schemas():
    assert problems(render_project("n"), json_schema(ProjectConfig, "project")) == []
    environment = json_schema(EnvironmentFile, "environment")
    text = "apiVersion: kneo/v1\nkind: Environment\nmetadata: {name: dev}\nspec: {policy: {}, signatures: {roles: [r], threshold: 1}"
    assert problems(text + ', soak: 1d, promoteFrom: x, windows: [{allow: "* 01:00 - 02:00"}]}', environment) == []
    assert problems(text + ", soak: 1}", environment)
    assert problems(text + ", windows: [{timezone: UTC}]}", environment)


def test_keys_are_explained():
    keys = SPEC["$defs"]["Agent"]["properties"]
    assert keys["system_prompt"]["description"]
    assert SPEC["$defs"]["Agent"]["description"] == "One agent."
    assert write_schema(SPEC) == write_schema(json_schema(Spec, "spec"))
