import pytest

from kneo.spec.reading.load import load_spec
from kneo.spec.reading.migrate import UnsupportedVersion, migrate

LEGACY = {
    "root_agent": {"name": "a"},
    "root_workflow": [{"id": "x", "kind": "function", "ref": "f"}],
    "component_agents": {},
    "component_workflows": {"sub": ["a"]},
    "functions": {"f": {"implementation": "m.f"}},
}


def test_an_unversioned_spec_step_by_step():
    result = migrate(LEGACY)
    assert result.source_version is None
    assert result.applied == (
        "set version=v1",
        "renamed root_agent to agent",
        "renamed root_workflow to workflow",
        "moved component_workflows to components.workflows",
        "moved functions to components.functions",
        "converted workflow list to sequential workflow",
        "converted components.workflows.sub list to sequential workflow",
    )
    assert result.tree == {
        "version": "v1",
        "agent": {"name": "a"},
        "workflow": {"type": "sequential", "steps": [{"id": "x", "kind": "function", "ref": "f"}]},
        "components": {
            "workflows": {"sub": {"type": "sequential", "steps": ["a"]}},
            "functions": {"f": {"implementation": "m.f"}},
        },
    }


def test_v1_is_left_alone():
    spec = {"version": "v1", "agent": {"name": "a"}}
    result = migrate(spec)
    assert not result.changed
    assert result.tree == spec
    assert result.source_version == "v1"


def test_migrating_twice_is_migrating_once():
    once = migrate({"version": "v0", **LEGACY})
    assert once.source_version == "v0"
    assert not migrate(once.tree).changed


def test_moved_values_win_and_both_sides_are_kept():
    result = migrate({"components": {"humans": {"h": {"title": "old"}, "k": {}}}, "humans": {"h": {"title": "new"}}})
    assert result.tree["components"]["humans"] == {"h": {"title": "new"}, "k": {}}


def test_a_map_with_steps_becomes_sequential():
    result = migrate({"agent": {"name": "a"}, "workflow": {"name": "w", "steps": []}})
    assert "set workflow.type=sequential" in result.applied
    assert result.tree["workflow"] == {"type": "sequential", "name": "w", "steps": []}


@pytest.mark.parametrize("version", ["v2", "1", 1, True, ["v1"], {}])
def test_other_versions_are_refused(version):
    with pytest.raises(UnsupportedVersion, match="not known here"):
        migrate({"version": version})


def test_wrong_kinds_are_left_for_the_schema():
    tree = {"functions": [1], "components": "x", "humans": {"h": {}}, "root_workflow": 3}
    assert migrate(tree).tree == {
        "version": "v1", "functions": [1], "components": "x", "humans": {"h": {}}, "workflow": 3,
    }  # fmt: skip


def test_findings_point_to_where_the_old_shape_is_written():
    text = b"root_agent:\n  name: a\nroot_workflow:\n  - id: x\n    kind: function\n    ref: f\n    reff: g\nfunctions:\n  f: {}\n"
    loaded = load_spec(text, file="old.yaml")
    assert [(d.path_text, d.line, d.column) for d in loaded.diagnostics] == [
        ("workflow.steps[0].reff", 7, 5),
        ("components.functions.f.implementation", 9, 6),
    ]


def review_of(step):
    return migrate({"version": "v1", "agent": {"name": "a"}, "workflow": {"type": "sequential", "steps": [step]}})


@pytest.mark.parametrize(
    ("kind", "old", "review", "rest"),
    [
        (
            "agent",
            {"requires_confirmation": True, "confirmation_message": "Sure?", "on_reject": "skip", "timeout": 300},
            {"before": {"prompt": "Sure?", "on_reject": "skip", "timeout": 300}},
            {},
        ),
        (
            "function",
            {"requires_user_input": True, "user_input_message": "m", "user_input_schema": [{"name": "x", "field_type": "int"}]},
            {"before": {"prompt": "m", "fields": [{"name": "x", "field_type": "int"}]}},
            {},
        ),
        (
            "router",
            {"requires_user_input": True, "allow_multiple_selections": True},
            {"route": {"multiple": True}},
            {},
        ),
        (
            "agent",
            {"requires_output_review": True, "on_reject": "retry", "max_retries": 3, "on_error": "pause"},
            {"after": {"on_reject": "retry", "max_retries": 3}, "error": {"options": ["retry", "skip", "stop"]}},
            {"on_error": "fail"},
        ),
        ("loop", {"requires_iteration_review": True, "on_error": "skip"}, {"each": {}}, {"on_error": "continue"}),
        ("agent", {"requires_confirmation": False}, None, {}),
    ],
)  # fmt: skip
def test_flat_reviews_become_gates(kind, old, review, rest):
    result = review_of({"id": "s", "kind": kind, "human_review": old})
    [step] = result.tree["workflow"]["steps"]
    assert step == {"id": "s", "kind": kind, **({"review": review} if review else {}), **rest}
    assert result.applied == ("rewrote workflow.steps[0].human_review to review",)


def test_an_unknown_key_in_a_flat_review_is_not_dropped():
    step = {"id": "s", "kind": "agent", "ref": "a", "human_review": {"requires_confirmatoin": True}}
    assert not review_of(step).changed
