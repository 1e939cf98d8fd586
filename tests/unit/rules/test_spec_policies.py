"""Policies of a spec have an effect, or state what every run does; other values are refused with what does it instead."""

from __future__ import annotations

import pytest

from kneo.spec.lint import check
from kneo.spec.models.spec import Spec, TracingPolicy, tracing_policy
from kneo.spec.project import PolicyDefaults
from kneo.spec.reading.load import load_tree


def errors(policies: object) -> dict[str | None, str | None]:
    loaded = load_tree({"agent": {"name": "root"}, "policies": policies}, rules=check)
    assert loaded.spec is not None
    found = [each for each in loaded.diagnostics if each.is_error]
    assert {each.code for each in found} <= {"E_FIELD_UNSUPPORTED"}
    return {each.path_text: each.suggestion for each in found}


def test_what_every_run_does_can_be_stated() -> None:
    assert errors(PolicyDefaults().model_dump(mode="json")) == {}
    assert errors({"project_defaults": PolicyDefaults().model_dump(mode="json")}) == {}
    assert errors({"checkpointing": {"mode": "node"}, "tracing": {"include_messages": True}}) == {}


@pytest.mark.parametrize("below", ["", "project_defaults"])
@pytest.mark.parametrize(
    ("policies", "path", "hint"),
    [
        ({"checkpointing": {"enabled": False}}, "checkpointing.enabled", "retention.runs_days"),
        ({"checkpointing": {"mode": "none"}}, "checkpointing.mode", "retention.runs_days"),
        ({"logging": {"level": "debug"}}, "logging.level", "KNEO_SERV_LOG_LEVEL"),
        ({"tracing": {"enabled": False}}, "tracing.enabled", "include_messages"),
        ({"tracing": {"include_messages": 1}}, "tracing.include_messages", "true or false"),
        ({"tracing": {"sample": 1}}, "tracing.sample", "include_messages"),
        ({"tracing": True}, "tracing", "enabled"),
        ({"guardrails": {"enable_default_input_filter": True}}, "guardrails.enable_default_input_filter", "input"),
        ({"guardrails": {"enable_default_output_review": True}}, "guardrails.enable_default_output_review", "output"),
        ({"require_human_review": True}, "require_human_review", "Environment files"),
    ],
)
def test_another_value_is_refused_with_what_does_it(below: str, policies: dict, path: str, hint: str) -> None:
    found = errors({below: policies} if below else policies)
    assert list(found) == [".".join(part for part in ("policies", below, path) if part)]
    assert hint in str(*found.values())


def test_the_policies_of_a_project_are_a_map() -> None:
    assert list(errors({"project_defaults": 3})) == ["policies.project_defaults"]


@pytest.mark.parametrize(
    ("policies", "messages", "results"),
    [
        ({}, True, True),
        ({"tracing": {"enabled": True}}, True, True),
        ({"tracing": {"include_messages": False}}, False, True),
        ({"tracing": {"include_tool_results": False}}, True, False),
        ({"project_defaults": {"tracing": {"include_messages": False}}}, False, True),
        (
            {"project_defaults": {"tracing": {"include_messages": False}}, "tracing": {"include_messages": True}},
            True,
            True,
        ),
        ({"tracing": {"include_messages": "yes", "include_tool_results": None}}, False, False),
        ({"tracing": 3, "project_defaults": []}, True, True),
    ],
)
def test_a_spec_withholds_content_from_spans(policies: dict, messages: bool, results: bool) -> None:
    spec = Spec.model_validate({"agent": {"name": "root"}, "policies": policies})
    assert tracing_policy(spec) == TracingPolicy(messages=messages, tool_results=results)
