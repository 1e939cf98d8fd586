"""Each field of a spec is read when it runs, and lint reports it where other fields leave it nothing to do.

A new field has to stand in a table here.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from kneo.spec.lint import check
from kneo.spec.lint.no_effect import NO_EFFECT_WITH_DUMMY
from kneo.spec.models import agent, human, spec, workflow
from kneo.spec.models.human import Gate, Human
from kneo.spec.reading.load import load_tree

ROOT = Path(__file__).parents[3]

PROGRAM = "kneo/runtime/program/compiler.py"
OPENING = "kneo/tasks/questions.py"
STEP = "id enabled on_error fallback_ref max_retries save_as review"

READ: dict[str, dict[str, str]] = {
    "Agent": {
        PROGRAM: "name as_agent",
        "kneo/agents/providers.py": "model runtime_preferences",
        "kneo/agents/loop.py": "system_prompt strategy output_schema",
        "kneo/agents/step_tools.py": "tools middleware",
        "kneo/agents/memory.py": "memory defaults",
        "kneo/spec/lint/agents.py": "history",
        "kneo/agents/tool_calls/questions.py": "ask_question",
        "kneo/agents/skills.py": "skills",
        "kneo/agents/guardrails.py": "guardrails",
    },
    "Guardrail": {
        "kneo/agents/guardrails.py": "id type action ref target config",
        "kneo/spec/lint/agents.py": "mode",
    },
    "Guardrails": {"kneo/spec/models/agent.py": "input output tool workflow"},
    "AnswerField": {
        "kneo/tasks/forms.py": "name type description required default allowed_values min max pattern",
    },
    "Candidates": {OPENING: "users groups roles exclude"},
    "Choice": {PROGRAM: "steps description"},
    "CodeFiles": {"kneo/cli/specs/bundle_code.py": "include exclude"},
    "Components": {PROGRAM: "agents workflows functions humans"},
    "ConcurrentWorkflow": {PROGRAM: "type name participants max_iterations"},
    "Condition": {"kneo/spec/conditions.py": "type value key case_sensitive conditions condition"},
    "ConditionStep": {PROGRAM: f"{STEP} kind when steps otherwise timeout_seconds"},
    "Edge": {PROGRAM: "source target condition"},
    "Escalation": {OPENING: "after to notify"},
    "FunctionComponent": {
        "kneo/runtime/steps/executor.py": "implementation input_schema output_schema sandbox",
        "kneo/spec/coverage/environment_gates.py": "capabilities",
    },
    "Gate": {"kneo/runtime/program/gates.py": "human when sample key"},
    "GraphWorkflow": {PROGRAM: "type name start nodes edges max_steps"},
    "GroupChatWorkflow": {PROGRAM: "type name participants rounds max_iterations"},
    "HandoffSelector": {PROGRAM: "type sequence"},
    "HandoffWorkflow": {PROGRAM: "type name participants selector max_iterations"},
    "Human": {
        OPENING: "description title prompt request_type assignee candidates quorum timeout_seconds on_timeout escalate "
        "remind due priority notify links receipt fields answer_schema options default_option multiple context "
        "response_role",
        "kneo/sdk/durable/flows.py": "poll_seconds",
        "kneo/runtime/program/gates.py": "decisions on_reject max_retries",
    },
    "LeafStep": {
        PROGRAM: f"{STEP} kind ref timeout_seconds",
        "kneo/spec/coverage/gates.py": "timeout_seconds",
    },
    "LoopStep": {PROGRAM: f"{STEP} kind steps max_iterations until timeout_seconds"},
    "ExtensionTool": {
        "kneo/spec/models/spec.py": "kind url",
        "kneo/agents/tools/kinds.py": "secrets",
        "examples/extension/kneo_sqlite_tools.py": "config",
    },
    "HttpTool": {"kneo/agents/tools/http/__init__.py": "method url headers query body secret_headers"},
    "McpOAuth": {"kneo/agents/tools/mcp/targets.py": "issuer client_id client_secret_ref"},
    "McpToolRef": {"kneo/agents/tools/mcp/servers.py": "server name pin"},
    "Model": {
        "kneo/agents/providers.py": "provider name extra fallbacks",
        "kneo/agents/requests.py": "temperature max_tokens timeout_seconds",
        "kneo/agents/loop.py": "token_budget",
    },
    "ModelChoice": {
        "kneo/agents/providers.py": "provider name extra",
        "kneo/agents/requests.py": "temperature max_tokens timeout_seconds",
    },
    "Memory": {
        "kneo/agents/memory.py": "policy max_messages summarizer retriever top_k",
        "kneo/spec/lint/agents.py": "preserve_system_messages",
    },
    "MemoryRef": {"kneo/agents/memory.py": "ref"},
    "ParallelStep": {PROGRAM: f"{STEP} kind steps timeout_seconds"},
    "RemoteAgent": {"kneo/extensions/protocols/a2a/client/calls.py": "url secret_headers keys"},
    "Quorum": {"kneo/tasks/decisions.py": "approvals each order reject"},
    "Review": {
        "kneo/runtime/interpreter/step.py": "before after error",
        "kneo/runtime/interpreter/serial.py": "each",
        "kneo/runtime/interpreter/branch.py": "route",
    },
    "RoleQuorum": {OPENING: "role approvals"},
    "RouteCondition": {PROGRAM: "when choice"},
    "RouterSelector": {PROGRAM: "function agent conditions default"},
    "RouterStep": {PROGRAM: f"{STEP} kind choices selector timeout_seconds", "kneo/spec/models/workflow.py": "order"},
    "RuntimePreferences": {
        "kneo/agents/providers.py": "preferred_mode fallback_mode allowed_modes native_provider "
        "bridge_provider adapter_ref",
    },
    "SequentialWorkflow": {PROGRAM: "type name steps"},
    "SkillScript": {
        "kneo/agents/tools/script/__init__.py": "file args",
        "kneo/runtime/steps/code.py": "skill",
    },
    "Skill": {
        "kneo/agents/skills.py": "content description tools resources",
        "kneo/spec/models/spec.py": "source",
    },
    "Spec": {
        PROGRAM: "agent workflow components",
        "kneo/cli/specs/bundle_code.py": "code",
        "kneo/runtime/engine/start.py": "targets",
        "kneo/agents/loop.py": "tools",
        "kneo/agents/skills.py": "skills",
        "kneo/spec/reading/inline.py": "variables",
        "kneo/agents/tools/mcp/servers.py": "mcp_servers",
        "kneo/spec/models/spec.py": "policies",
    },
    "Strategy": {
        "kneo/agents/loop.py": "type max_iterations parallel_tool_calls",
        "kneo/agents/tool_calls/calls.py": "stop_on_tool_error",
    },
    "StepsStep": {PROGRAM: f"{STEP} kind steps timeout_seconds"},
    "Sandbox": {
        "kneo/agents/sandboxes.py": "net read write env memory cpu_seconds processes",
        "kneo/spec/coverage/sandboxes.py": "level",
    },
    "Tool": {
        "kneo/agents/tool_calls/questions.py": "title",
        "kneo/agents/tools/kinds.py": "parameters",
        "kneo/api/decisions.py": "shows",
        "kneo/agents/tool_calls/execution.py": "returns timeout_seconds max_result_chars keep retries on_interrupted output",
        "kneo/agents/loop.py": "description transfer",
        "kneo/agents/tools/python/__init__.py": "implementation",
        "kneo/agents/tools/agent/__init__.py": "agent",
        "kneo/agents/tools/http/__init__.py": "http",
        "kneo/agents/tools/script/__init__.py": "script",
        "kneo/spec/models/spec.py": "capabilities effects extension sandbox",
        "kneo/agents/tools/mcp/servers.py": "mcp",
        "kneo/extensions/protocols/a2a/client/__init__.py": "a2a",
        "kneo/runtime/program/gates.py": "review",
    },
    "ToolPermissions": {
        "kneo/agents/tool_calls/denials.py": "allowed_tools denied_tools",
        "kneo/spec/coverage/exposure.py": "allow_network allow_filesystem_read allow_filesystem_write allow_shell",
        "kneo/agents/addresses.py": "allowed_domains denied_domains",
    },
    "ToolSelection": {"kneo/agents/step_tools.py": "include exclude", "kneo/spec/coverage/exposure.py": "permissions"},
    "Verify": {"kneo/agents/tool_calls/execution.py": "verify"},
}
"""Where a field is read."""

ABOUT: dict[str, str] = {
    "Agent": "description",
    "Edge": "label",
    "FunctionComponent": "description",
    "Spec": "metadata",
    "Tool": "always_ask",
    **dict.fromkeys(
        ("ConditionStep", "LeafStep", "LoopStep", "ParallelStep", "RouterStep", "StepsStep"), "description"
    ),
    **dict.fromkeys(
        ("ConcurrentWorkflow", "GraphWorkflow", "GroupChatWorkflow", "HandoffWorkflow", "SequentialWorkflow"),
        "description",
    ),
}
"""What only tells people something, and nobody takes for more."""

READ_BEFORE: dict[str, str] = {"Spec": "version"}
"""What says how a spec is read."""

REFUSED: dict[str, str] = {"AnswerField": "secret", "Human": "calendar grants"}
"""What lint refuses."""

NORMALIZED: dict[str, str] = {"Agent": "policies", "Review": "external"}
"""What is read as another field, or together with all others: tools.permissions; the gates of a review."""

BELOW = {
    *(
        "AgentPolicies",
        "AgentToolPolicy",
        "McpPin",
        "McpServer",
    ),
}
"""Models whose fields one module reads as a whole."""


def declared() -> dict[str, type[BaseModel]]:
    found = (each for module in (agent, human, spec, workflow) for each in vars(module).values())
    models = (each for each in found if isinstance(each, type) and issubclass(each, BaseModel))
    return {
        each.__name__: each
        for each in models
        if each.__module__.startswith("kneo.spec.models.") and each.__name__[0] != "_"
    }


def own_fields(model: type[BaseModel]) -> set[str]:
    inherited = set(Human.model_fields) if model is Gate else set()
    return set(model.model_fields) - inherited


@pytest.mark.parametrize("name", sorted(set(declared()) - BELOW))
def test_each_field_is_read(name: str) -> None:
    read = [field for fields in READ.get(name, {}).values() for field in fields.split()]
    tables = [ABOUT, READ_BEFORE, REFUSED, NORMALIZED]
    known = {*read, *(field for table in tables for field in table.get(name, "").split())}
    fields = own_fields(declared()[name])
    assert fields - known == set(), f"{name}: where are these read? If nowhere, lint has to refuse them"
    assert known - fields == set(), f"{name} has no such fields any more"


@pytest.mark.parametrize("name", sorted(READ))
def test_a_field_that_is_read_is_read_where_the_table_says(name: str) -> None:
    for file, fields in READ[name].items():
        text = (ROOT / file).read_text()
        assert [field for field in fields.split() if not re.search(rf"\.{field}\b", text)] == [], file


def test_models_stand_in_one_table() -> None:
    assert set(READ) | BELOW == set(declared())
    assert not set(READ) & BELOW


ASK = {"id": "ask", "kind": "human", "ref": "boss"}
TOOL = {"search": {"description": "Search.", "implementation": "acme.search"}}

SAMPLES: dict[str, tuple[dict, str]] = {}
WITH_DUMMY = {
    "memory": {"policy": "full"},
    "strategy": "react",
    "tools": ["search"],
    "skills": ["s"],
    "middleware": ["m"],
    "ask_question": "boss",
    "output_schema": {"type": "object"},
}
OF_MODELS = {"temperature": 0.0, "max_tokens": 5, "timeout_seconds": 5, "extra": {"base_url": "x"}, "token_budget": 5}
OF_MODELS |= {"fallbacks": [{"provider": "dummy", "name": "other"}]}
ECHO = {"provider": "dummy", "name": "echo"}
SAMPLES |= {
    f"Agent.{field}": ({"agent": {"name": "root", "model": ECHO, field: value}, "tools": TOOL}, f"agent.{field}")
    for field, value in WITH_DUMMY.items()
}
SAMPLES |= {
    f"Model.{field}": (
        {"agent": {"name": "root", "model": {"provider": "dummy", "name": "echo", field: value}}},
        f"agent.model.{field}",
    )
    for field, value in OF_MODELS.items()
}


def found_in(part: dict) -> set[str | None]:
    components = {"humans": {"boss": {}}, **part.get("components", {})}
    tree = {"agent": {"name": "root"}, **part, "components": components}
    loaded = load_tree(tree, rules=check)
    assert loaded.spec is not None, loaded.diagnostics
    return {found.path_text for found in loaded.diagnostics if found.code == "W_FIELD_NO_EFFECT"}


TABLE = list(NO_EFFECT_WITH_DUMMY.items())


def test_every_field_without_effect_has_a_sample() -> None:
    assert set(SAMPLES) == {f"{model.__name__}.{field}" for model, fields in TABLE for field in fields}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_field_without_effect_is_found(name: str) -> None:
    part, path = SAMPLES[name]
    assert found_in(part) == {path}


@pytest.mark.parametrize(
    "part",
    [
        {"agent": {"name": "root", "description": "d", "system_prompt": "Be kind.", "strategy": "simple"}},
        {"agent": {"name": "root", "runtime_preferences": {"preferred_mode": "native", "native_provider": "openai"}}},
        {
            "agent": {"name": "root", "strategy": "react", "tools": ["search", "ask_question"], "ask_question": "boss"},
            "tools": TOOL,
        },
        {
            "agent": {
                "name": "root",
                "model": {**ECHO, "provider": "openai", "temperature": 0.5},
                "output_schema": {"type": "object"},
            }
        },
        {"agent": {"name": "root", "runtime_preferences": {"allowed_modes": ["bridge", "native"]}}},
        {"agent": {"name": "root", "tools": {"permissions": {"allow_network": False}}, "guardrails": {}}},
        {"agent": {"name": "root", "defaults": {"append_mode": "auto"}, "model": {"provider": "dummy", "name": "e"}}},
        {"policies": {"tracing": {"include_messages": False}}},
        {"agent": {"name": "root", "runtime_preferences": {"adapter_ref": "a"}}},
        {"workflow": [{"id": "s", "kind": "function", "ref": "f", "timeout_seconds": 5}]},
        {"workflow": {"type": "group-chat", "participants": [ASK], "max_iterations": 3}},
    ],
)
def test_what_says_what_happens_anyway_is_not_reported(part: dict) -> None:
    assert found_in(part) == set()


KEYWORD = {"id": "g", "type": "keyword", "config": {"keywords": ["no"]}}


@pytest.mark.parametrize(
    ("stage", "change", "place"),
    [
        ("input", {"target": "search"}, "input[0].target"),
        ("output", {"ref": "boss"}, "output[0].ref"),
        ("input", {"action": "retry"}, "input[0].action"),
        ("output", {"action": "revise"}, "output[0].action"),
        ("output", {"config": {"keywords": ["no"], "human": "boss"}}, "output[0].config.human"),
        ("output", {"config": {"keywords": ["no"], "patterns": ["x"]}}, "output[0].config.patterns"),
        ("tool", {}, "tool"),
        ("output", {"action": "human_review", "config": {"keywords": ["no"], "human": "boss"}}, None),
        ("input", {"action": "redact"}, None),
        ("workflow", {"action": "warn"}, None),
    ],
)
def test_a_field_of_a_guardrail_without_effect_is_found(stage: str, change: dict, place: str | None) -> None:
    found = found_in({"agent": {"name": "root", "guardrails": {stage: [{**KEYWORD, **change}]}}})
    assert found == (set() if place is None else {f"agent.guardrails.{place}"})


@pytest.mark.parametrize("strategy", [{}, {"strategy": "simple"}])
def test_tools_of_an_agent_that_is_not_offered_them_are_found(strategy: dict) -> None:
    assert found_in({"agent": {"name": "root", "tools": ["search"], **strategy}, "tools": TOOL}) == {"agent.tools"}


@pytest.mark.parametrize(
    ("strategy", "more", "fields"),
    [
        ({"max_iterations": 4}, {}, ["max_iterations"]),
        ({"max_iterations": 4}, {"output_schema": {"type": "object"}}, []),
        ({"max_iterations": 1, "stop_on_tool_error": False, "parallel_tool_calls": True}, {}, []),
        ({"stop_on_tool_error": True}, {}, ["stop_on_tool_error"]),
        (
            {"stop_on_tool_error": True, "parallel_tool_calls": False},
            {"output_schema": {"type": "object"}},
            ["stop_on_tool_error", "parallel_tool_calls"],
        ),
        ({"type": "react", "max_iterations": 4, "stop_on_tool_error": True, "parallel_tool_calls": False}, {}, []),
    ],
)
def test_fields_that_one_request_without_tools_does_not_read_are_found(
    strategy: dict, more: dict, fields: list[str]
) -> None:
    agent = {"name": "root", "strategy": {"type": "simple", **strategy}, **more}
    found = {f"strategy.{field}" for field in fields}
    assert found_in({"agent": agent}) == {f"agent.{each}" for each in found}
    spec = {"components": {"agents": {"writer": agent}}, "workflow": [{"id": "s", "kind": "agent", "ref": "writer"}]}
    assert found_in(spec) == {f"components.agents.writer.{each}" for each in found}


@pytest.mark.parametrize(("memory", "found"), [({"policy": "full"}, set()), (None, {"agent.defaults.append_mode"})])
def test_append_mode_has_an_effect_with_a_memory(memory: dict | None, found: set[str]) -> None:
    agent = {"name": "root", "defaults": {"append_mode": "never"}, **({"memory": memory} if memory else {})}
    assert found_in({"agent": agent}) == found


REF = {"ref": "search"}


@pytest.mark.parametrize(
    ("memory", "found"),
    [
        ({"policy": "full", "max_messages": 5, "preserve_system_messages": True}, {"max_messages"}),
        ({"policy": "summary", "max_messages": 5, "summarizer": {"ref": "writer"}, "top_k": 3}, {"top_k"}),
        ({"policy": "retrieval", "max_messages": 5, "retriever": REF, "top_k": 3}, set()),
        ({"policy": "full", "retriever": REF, "summarizer": {"ref": "writer"}}, {"retriever", "summarizer"}),
    ],
)
def test_fields_of_another_memory_policy_are_found(memory: dict, found: set[str]) -> None:
    part = {
        "agent": {"name": "root", "memory": memory},
        "tools": TOOL,
        "components": {"agents": {"writer": {"name": "writer"}}},
    }
    assert found_in(part) == {f"agent.memory.{name}" for name in found}


def test_a_memory_of_an_agent_that_is_only_a_tool_is_found() -> None:
    helper = {"name": "helper", "memory": {"policy": "full"}}
    part = {
        "agent": {"name": "root", "strategy": "react", "tools": ["help"]},
        "tools": {"help": {"description": "Help.", "agent": "helper"}},
        "components": {"agents": {"helper": helper}},
    }
    assert found_in(part) == {"components.agents.helper.memory"}
    assert found_in({**part, "workflow": [{"id": "s", "kind": "agent", "ref": "helper"}]}) == set()


CONDITION = {"id": "big", "kind": "condition", "when": {"type": "output_contains", "value": "x"}, "steps": [ASK]}
GROUP = {"id": "group", "kind": "steps", "steps": [ASK]}


def rejecting(effect: str, *steps: dict, name: str = "judge") -> set[str | None]:
    return found_in({"components": {"humans": {"boss": {}, name: {"on_reject": effect}}}, "workflow": list(steps)})


@pytest.mark.parametrize("name", ["judge", "default"])
def test_a_rejection_that_goes_nowhere_is_found(name: str) -> None:
    gate = {"human": "judge"} if name == "judge" else {}
    assert rejecting("else", {"id": "ask", "kind": "human", "ref": name}, name=name) == {"workflow.steps[0]"}
    for effect, place in [("else", "before"), ("else", "after"), ("retry", "before")]:
        step = {**GROUP, "review": {place: gate}}
        assert rejecting(effect, step, name=name) == {f"workflow.steps[0].review.{place}"}
    assert rejecting("retry", {**CONDITION, "review": {"before": gate}}, name=name) == {
        "workflow.steps[0].review.before"
    }


def test_a_rejection_that_has_an_effect_is_none() -> None:
    gate = {"human": "judge"}
    assert rejecting("else", {**CONDITION, "review": {"before": gate}}) == set()
    assert rejecting("else", {**GROUP, "review": {"before": {**gate, "on_reject": "stop"}}}) == set()
    for effect in ("stop", "cancel", "skip", "fail", "continue", "retry"):
        assert rejecting(effect, {"id": "ask", "kind": "human", "ref": "judge"}) == set()
        assert rejecting(effect, {**GROUP, "review": {"after": gate}}) == set()


def test_the_tools_of_an_agent_without_a_model_have_an_effect_where_other_programs_call_them() -> None:
    agent = {
        "name": "root",
        "tools": {"include": ["find"], "permissions": {}},
        "guardrails": {"tool": [{"id": "words", "type": "keyword", "action": "block", "config": {"keywords": ["x"]}}]},
    }
    tree = {"agent": agent, "tools": {"find": {"description": "Find.", "implementation": "app.find"}}}

    def codes(**more: object) -> list[str | None]:
        found = check(spec.Spec.model_validate({**tree, **more}))
        return [each.path_text for each in found if each.code == "W_FIELD_NO_EFFECT"]

    assert {"agent.tools", "agent.guardrails.tool"} <= set(codes())
    assert not {"agent.tools", "agent.guardrails.tool"} & set(codes(targets=["call"]))
