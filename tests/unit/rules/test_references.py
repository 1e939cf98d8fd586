from kneo.spec.lint import check
from kneo.spec.models.spec import Spec
from kneo.spec.modules import RuleContext


def found(spec: dict, **context: object) -> list[tuple[str, str | None]]:
    whole = {"agent": {"name": "root"}, **spec}
    return [(d.code, d.path_text) for d in check(Spec.model_validate(whole), RuleContext(**context))]


def test_a_step_may_run_the_root_agent_by_its_own_name() -> None:
    assert found({"workflow": ["root"]}) == []


def test_references_are_checked_at_any_depth() -> None:
    inner = {"id": "in", "kind": "function", "ref": "gone"}
    loop = {"id": "again", "kind": "loop", "steps": [inner]}
    choice = {"id": "way", "kind": "condition", "when": {"type": "always"}, "steps": [], "else": [loop]}
    assert found({"workflow": [choice]}) == [
        ("E_STEP_FUNCTION_REF", "workflow.steps[0].else[0].steps[0].ref"),
    ]


def test_functions_and_tools_of_the_platform_count() -> None:
    spec = {
        "agent": {"name": "root", "tools": ["lookup"]},
        "workflow": [{"id": "a", "kind": "function", "ref": "f"}],
    }
    assert ("E_TOOL_REF", "agent.tools") in found(spec)
    known = found(spec, tools=frozenset({"lookup"}), functions=frozenset({"f"}))
    assert not [code for code, _ in known if code.startswith("E_")]


def test_equal_ids_in_different_branches_do_not_clash() -> None:
    same = {"id": "same", "kind": "agent", "ref": "root"}
    branches = {"id": "c", "kind": "condition", "when": {"type": "always"}, "steps": [same], "else": [same]}
    assert found({"workflow": [branches]}) == []
    assert found({"workflow": [same, same]}) == [("E_STEP_DUPLICATE_ID", "workflow.steps[1].id")]


def test_suggestions_are_given_for_the_first_findings_only() -> None:
    steps = [{"id": f"s{n}", "kind": "agent", "ref": f"rood{n}"} for n in range(200)]
    findings = check(Spec.model_validate({"agent": {"name": "root"}, "workflow": steps}))
    assert len(findings) == 200
    assert findings[0].suggestion == "Did you mean root?"
    assert "Did you mean" not in (findings[-1].suggestion or "")
