from kneo.spec.reading.normalize import SpecDefaults, apply_defaults, deep_merge, fill_missing, merge_all

BASE = {"a": {"x": 1, "y": [1, 2]}, "b": "text", "c": {"d": {"e": 1}}}


def test_maps_merge_and_everything_else_replaces():
    assert deep_merge(BASE, {"a": {"y": [3], "z": 0}, "b": {"k": 1}}) == {
        "a": {"x": 1, "y": [3], "z": 0},
        "b": {"k": 1},
        "c": {"d": {"e": 1}},
    }


def test_null_and_the_delete_mark_remove():
    assert deep_merge(BASE, {"a": None, "b": {"__delete__": True, "ignored": 1}, "c": {"d": {"e": None}}}) == {
        "c": {"d": {}}
    }
    assert deep_merge({}, {"new": {"kept": 1, "gone": None}}) == {"new": {"kept": 1}}
    assert deep_merge(BASE, {"b": {"__delete__": False}})["b"] == {"__delete__": False}


def test_nothing_is_changed_in_place():
    base, overlay = {"a": {"x": 1}}, {"a": {"y": {"z": 1}}}
    merged = deep_merge(base, overlay)
    merged["a"]["y"]["z"] = 2
    assert base == {"a": {"x": 1}}
    assert overlay == {"a": {"y": {"z": 1}}}


def test_order_counts_and_empty_files_do_nothing():
    assert merge_all({"a": 1}, [{"a": 2}, None, {"a": 3, "b": None}]) == {"a": 3}


def test_filling():
    assert fill_missing({"a": None, "b": 0}, {"a": 1, "b": 2, "c": None}) == {"a": 1, "b": 0}


DEFAULTS = SpecDefaults(
    base={"agent": {"description": "from the environment", "as_agent": None}},
    model={"provider": "openai", "name": "m", "temperature": 0.2, "extra": {"base_url": "u", "k": 1}},
    runtime={"preferred_mode": "bridge", "allowed_modes": ["bridge"]},
    metadata={"project": "p", "environment": "prod"},
    policies={"logging": {"level": "info"}},
)


def test_defaults_fill_and_never_overwrite():
    spec = {
        "agent": {
            "name": "a",
            "model": {"name": "own", "extra": {"k": 2}},
            "runtime_preferences": {"allowed_modes": []},
        },
        "metadata": {"project": "own"},
    }
    filled = apply_defaults(spec, DEFAULTS)
    assert filled["agent"]["model"] == {
        "name": "own", "extra": {"base_url": "u", "k": 2}, "provider": "openai", "temperature": 0.2,
    }  # fmt: skip
    assert filled["agent"]["runtime_preferences"] == {"allowed_modes": [], "preferred_mode": "bridge"}
    assert filled["agent"]["description"] == "from the environment"
    assert filled["metadata"] == {"project": "own", "environment": "prod"}
    assert filled["policies"] == {"project_defaults": {"logging": {"level": "info"}}}


def test_a_null_in_the_spec_removes_an_environment_default():
    assert "description" not in apply_defaults({"agent": {"name": "a", "description": None}}, DEFAULTS)["agent"]


def test_a_short_model_gets_the_projects_provider():
    assert apply_defaults({"agent": {"name": "a", "model": "x"}}, DEFAULTS)["agent"]["model"]["provider"] == "openai"


def test_an_agent_that_is_a_workflow_gets_no_model():
    filled = apply_defaults({"agent": {"name": "a", "as_agent": "w"}}, DEFAULTS)
    assert "model" not in filled["agent"]


def test_wrong_kinds_are_left_for_the_schema():
    assert apply_defaults({"agent": "x", "metadata": [1], "policies": 3}, DEFAULTS) == {
        "agent": "x", "metadata": [1], "policies": 3,
    }  # fmt: skip
    assert apply_defaults({"agent": {"model": [1]}}, DEFAULTS)["agent"]["model"] == [1]


def test_a_default_mode_never_contradicts_the_specs_own_list():
    preferences = {"allowed_modes": ["native"]}
    filled = apply_defaults({"agent": {"name": "a", "runtime_preferences": preferences}}, DEFAULTS)
    assert filled["agent"]["runtime_preferences"] == preferences
