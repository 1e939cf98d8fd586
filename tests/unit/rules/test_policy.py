from typing import Any

import pytest
from environment_policies import environment_with

from kneo.spec.coverage.policy import check_policy, policy_report
from kneo.spec.diff.weakening import weakenings
from kneo.spec.documents import error, warning
from kneo.spec.lint import check
from kneo.spec.models.spec import Spec
from kneo.spec.policy import NO_POLICY, PolicyFlags, strictest

TOOL = {"t": {"description": "d", "implementation": "app.t"}}
BARE = {"agent": {"name": "root"}}
TOOLED = {"agent": {"name": "root", "tools": {"include": ["t"]}}, "tools": TOOL}
HUMAN = {"components": {"humans": {"boss": {"description": "May I?"}}}}
ASK = {"id": "ask", "kind": "human", "ref": "boss"}
AGENT = {"id": "a", "kind": "agent", "ref": "root"}


def violations(spec: dict, **flags: object) -> list[tuple[str, str | None]]:
    made = Spec.model_validate(spec)
    return [(d.code, d.path_text) for d in check_policy(made, check(made), PolicyFlags.model_validate(flags))]


WORD = {"id": "g", "type": "keyword", "config": {"keywords": ["x"]}}
OTHER = {"components": {"agents": {"w": {"name": "w", "guardrails": {"input": [WORD]}}}}}


@pytest.mark.parametrize(
    ("spec", "runs"),
    [
        ({"agent": {"name": "root", "guardrails": {"input": [WORD]}}}, True),
        ({"agent": {"name": "root", "guardrails": {"input": [{**WORD, "config": {}}]}}}, False),
        ({"agent": {"name": "root", "guardrails": {"tool": [WORD]}}}, False),
        ({"agent": {**TOOLED["agent"], "strategy": "react", "guardrails": {"tool": [WORD]}}, "tools": TOOL}, True),
        ({**BARE, **OTHER}, False),
        ({**BARE, **OTHER, "workflow": [AGENT]}, False),
        ({**BARE, **OTHER, "workflow": [{**AGENT, "ref": "w"}]}, True),
        ({**BARE, **OTHER, "workflow": [AGENT, {**AGENT, "id": "b", "ref": "w", "enabled": False}]}, False),
        ({**BARE, "workflow": [{"id": "g", "kind": "guardrail", "ref": "root"}]}, True),
        ({**BARE, "workflow": [AGENT, {"id": "g", "kind": "guardrail", "ref": "root", "enabled": False}]}, False),
    ],
)
def test_only_guardrails_that_run_count(spec: dict, runs: bool) -> None:
    assert (violations(spec, require_guardrails=True) == []) is runs


def test_each_flag_by_itself() -> None:
    assert violations(TOOLED) == []
    assert violations(BARE, require_human_review=True) == [("E_ENV_POLICY_HUMAN_REVIEW", "workflow")]
    assert violations(BARE, require_guardrails=True) == [("E_ENV_POLICY_GUARDRAILS", "agent.guardrails")]
    assert violations(TOOLED, require_tool_permissions=True) == [
        ("E_ENV_POLICY_TOOL_PERMISSIONS", "agent.tools.permissions")
    ]
    assert violations(TOOLED, deny_unrestricted_tools=True) == [("E_ENV_POLICY_UNRESTRICTED_TOOLS", "agent.tools")]
    assert violations(TOOLED, blocked_diagnostic_codes=["W_TOOL_POLICY_UNRESTRICTED"]) == [
        ("E_ENV_POLICY_DIAGNOSTIC", "agent.tools.permissions")
    ]
    assert violations(TOOLED, fail_on_warnings=True) == [
        ("E_ENV_POLICY_WARNING", "agent.tools.permissions"),
        ("E_ENV_POLICY_WARNING", "workflow"),
        ("E_ENV_POLICY_WARNING", "agent.tools"),
    ]


def test_everything_at_once_in_the_published_order() -> None:
    every = {name: True for name in PolicyFlags.model_fields if name not in {"enabled", "blocked_diagnostic_codes"}}
    found = violations(TOOLED, blocked_diagnostic_codes=["W_TOOL_POLICY_UNRESTRICTED"], **every)
    assert [code.removeprefix("E_ENV_POLICY_") for code, _ in found] == [
        *("DIAGNOSTIC", "WARNING", "WARNING", "WARNING"),
        *("HUMAN_REVIEW", "TOOL_PERMISSIONS", "UNRESTRICTED_TOOLS", "GUARDRAILS"),
    ]
    assert violations(TOOLED, enabled=False, **every) == []


@pytest.mark.parametrize("kind", ["concurrent", "handoff", "group-chat"])
def test_people_in_every_family_count(kind: str) -> None:
    spec = {**BARE, **HUMAN, "workflow": {"type": kind, "participants": [ASK]}}
    assert violations(spec, require_human_review=True) == []
    spec["workflow"]["participants"][0] = {**ASK, "enabled": False}
    assert violations(spec, require_human_review=True)


def test_gates_and_nested_people_count() -> None:
    gate = {"id": "a", "kind": "agent", "ref": "root", "review": {"before": True}}
    assert violations({**BARE, "workflow": [gate]}, require_human_review=True) == []
    nested = {"id": "s", "kind": "loop", "steps": [ASK]}
    assert violations({**BARE, **HUMAN, "workflow": [nested]}, require_human_review=True) == []


def test_a_violation_keeps_the_place_and_the_suggestion() -> None:
    found = warning("W_X", "Strange.", ("agent",), suggestion="Make it plain.")
    [violation] = check_policy(Spec.model_validate(BARE), [found], PolicyFlags(fail_on_warnings=True))
    assert violation.is_error
    assert (violation.path_text, violation.suggestion) == ("agent", "Make it plain.")


def test_blocked_codes_also_by_the_name_others_use() -> None:
    found = error("E_TOOL_REF", "Gone.", aliases=("E_UNKNOWN_TOOL",))
    flags = PolicyFlags(blocked_diagnostic_codes=("E_UNKNOWN_TOOL",))
    assert [d.code for d in check_policy(Spec.model_validate(BARE), [found], flags)] == ["E_ENV_POLICY_DIAGNOSTIC"]


def test_weakenings_in_words() -> None:
    strong = PolicyFlags(require_guardrails=True, blocked_diagnostic_codes=("E_A", "E_B"))
    weak = PolicyFlags(fail_on_warnings=True, blocked_diagnostic_codes=("E_B",))
    before, after, off = (environment_with(each) for each in (strong, weak, NO_POLICY))
    assert weakenings(before, before) == ()
    assert weakenings(before, after) == (
        "require_guardrails is switched off",
        "E_A is no longer blocked",
    )
    assert weakenings(before, off) == ("the policy is switched off",)
    assert weakenings(off, before) == ()
    assert strictest() == NO_POLICY


def test_the_report_has_the_published_shape() -> None:
    spec = Spec.model_validate({**BARE, **HUMAN, "workflow": [ASK]})
    report = policy_report(spec, check(spec)).flat()
    assert report == {
        "valid": True,
        "version": "v1",
        "summary": {
            "agent_count": 1,
            "workflow_count": 1,
            "tool_count": 0,
            "mcp_tool_count": 0,
            "human_reviewer_count": 1,
            "human_review_step_count": 1,
            "diagnostic_count": 0,
        },
        "memory": {"agents": [{"agent": "agent", "configured": False, "policy": None, "config": {}}]},
        "tools": {
            "declared": [],
            "mcp_imports": [],
            "agent_policies": [
                {"agent": "agent", "include": [], "exclude": [], "permissions": None, "unrestricted": False}
            ],
        },
        "guardrails": {"agents": [{"agent": "agent", "configured": False, "stages": {}}]},
        "human_review": {
            "reviewers": ["boss"],
            "workflow_steps": [{"workflow": "workflow", "step_id": "ask", "ref": "boss"}],
            "gates": [],
            "required": True,
            "requirements": [
                {
                    "code": "I_HUMAN_REVIEW_CONFIGURED",
                    "path": "components.humans",
                    "reason": "People are declared who can be asked.",
                }
            ],
            "missing": False,
        },
        "calls": [],
        "diagnostics": [],
    }
    assert policy_report(spec, check(spec)).nested() == {"valid": True, "report": report}


def test_the_report_on_what_is_dangerous() -> None:
    tools = {
        "t": {"description": "d", "mcp": {"server": "s"}},
        "u": {"description": "d", "implementation": "app.u", "review": {"before": True}},
    }
    agent = {
        "name": "root",
        "tools": {"include": ["t"], "permissions": {"allow_shell": True}},
        "memory": {"policy": "sliding_window", "max_messages": 3},
        "guardrails": {"input": [{"id": "g", "type": "keyword", "config": {"keywords": ["x"]}}]},
    }
    spec = Spec.model_validate(
        {"agent": agent, "tools": tools, "mcp_servers": {"s": {"transport": "stdio", "command": "c"}}}
    )
    report = policy_report(spec, check(spec)).flat()
    assert report["tools"]["mcp_imports"] == [{"name": "t", "config": {"server": "s"}}]
    assert report["tools"]["agent_policies"][0]["unrestricted"] is True
    assert report["tools"]["agent_policies"][0]["permissions"]["allow_shell"] is True
    assert report["memory"]["agents"][0]["config"] == {"policy": "sliding_window", "max_messages": 3}
    assert report["guardrails"]["agents"] == [{"agent": "agent", "configured": True, "stages": {"input": 1}}]
    assert [need["code"] for need in report["human_review"]["requirements"]] == ["W_TOOL_SHELL_ALLOWED"]
    assert report["human_review"]["gates"] == [{"path": "tools.u.review.before", "human": None}]


def test_the_report_on_a_wrong_shape() -> None:
    found = error("E_SCHEMA", "Wrong.")
    assert policy_report(None, [found]).flat() == {"valid": False, "diagnostics": [found.as_json()]}


def test_a_person_has_to_be_asked_in_what_is_run() -> None:
    asks = {**BARE, **HUMAN, "workflow": [ASK, AGENT]}
    assert violations(asks, require_human_review=True) == []
    assert violations({**asks, "targets": ["workflow", "agent"]}, require_human_review=True) == [
        ("E_ENV_POLICY_HUMAN_REVIEW", "agent")
    ]
    made, flags = Spec.model_validate(asks), PolicyFlags(require_human_review=True)
    assert [found.path_text for found in check_policy(made, (), flags, target="agent")] == ["agent"]
    assert check_policy(made, (), flags, target="workflow") == ()
    tool = {"t": {**TOOL["t"], "review": {"before": True}}}
    guarded = Spec.model_validate({**asks, "agent": TOOLED["agent"], "tools": tool})
    assert check_policy(guarded, (), flags, target="agent") == ()
    unused = {**BARE, **HUMAN, "components": {**HUMAN["components"], "workflows": {"other": [ASK]}}}
    assert violations(unused, require_human_review=True) == [("E_ENV_POLICY_HUMAN_REVIEW", "workflow")]
    runs_it = {**unused, "workflow": [{"id": "w", "kind": "workflow", "ref": "other"}]}
    assert violations(runs_it, require_human_review=True) == []
    as_agent = {**unused, "agent": {"name": "root", "as_agent": "other"}}
    assert violations(as_agent, require_human_review=True) == []


NEVER_ASKED: dict[str, dict[str, Any]] = {
    "in a workflow that nothing runs": {"components": {"workflows": {"unused": [ASK]}}},
    "in a group that is disabled": {"workflow": [{"id": "g", "kind": "steps", "enabled": False, "steps": [ASK]}]},
    "at a node that no edge leads to": {
        "workflow": {"type": "graph", "start": "a", "nodes": {"a": AGENT, "q": ASK}, "edges": []}
    },
    "at a tool that no agent of the workflow has": {"tools": {"t": {**TOOL["t"], "review": {"before": True}}}},
    "on a condition that never holds": {
        "workflow": [{"id": "a", "kind": "agent", "ref": "root", "review": {"before": {"when": {"type": "never"}}}}]
    },
    "by a chance of nothing": {
        "workflow": [{"id": "a", "kind": "agent", "ref": "root", "review": {"before": {"sample": 0}}}]
    },
}


@pytest.mark.parametrize("part", NEVER_ASKED.values(), ids=NEVER_ASKED)
def test_a_question_that_no_run_can_ask_counts_for_nothing(part: dict[str, Any]) -> None:
    spec = {**BARE, "workflow": [AGENT], **part}
    spec["components"] = {**HUMAN["components"], **part.get("components", {})}
    assert violations(spec, require_human_review=True) == [("E_ENV_POLICY_HUMAN_REVIEW", "workflow")]


def test_a_call_meets_no_guardrail_but_those_of_the_tool_stage() -> None:
    item = {"id": "words", "type": "keyword", "action": "block", "config": {"keywords": ["x"]}}

    def violations(stage: str) -> list[str]:
        agent = {"name": "root", "tools": {"include": ["find"], "permissions": {}}, "guardrails": {stage: [item]}}
        tools = {"find": {"description": "Find.", "implementation": "app.find"}}
        spec = Spec.model_validate({"targets": ["call"], "agent": agent, "tools": tools})
        return [each.code for each in check_policy(spec, (), PolicyFlags(enabled=True, require_guardrails=True))]

    assert violations("input") == ["E_ENV_POLICY_GUARDRAILS"]
    assert violations("tool") == []
