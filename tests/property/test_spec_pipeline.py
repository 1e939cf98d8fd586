"""Laws of the pipeline: what is done twice, in another order, or to a spec of another age comes out the same."""

from copy import deepcopy

from hypothesis import given
from hypothesis import strategies as st

from kneo.spec.reading.load import load_spec, load_tree
from kneo.spec.reading.migrate import UnsupportedVersion, migrate
from kneo.spec.reading.normalize import deep_merge, merge_all, normalize

names = st.sampled_from(["a", "b", "c"])
scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["x", "react", ""])
plain = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | st.just("__delete__"), inner, max_size=3),
    max_leaves=10,
)
maps = st.dictionaries(names, plain, max_size=3)

# Near-specs: right keys, mostly right shapes, and anything at all in between.
conditions = st.recursive(
    st.fixed_dictionaries({"type": st.sampled_from(["always", "never"])}) | plain,
    lambda inner: (
        st.fixed_dictionaries({"any_of": st.lists(inner, max_size=2)})
        | st.fixed_dictionaries({"not": inner})
        | st.fixed_dictionaries({"type": st.just("all_of"), "conditions": st.lists(inner, max_size=2)})
    ),
    max_leaves=4,
)
gates = (
    st.just(value=True)
    | names
    | st.dictionaries(st.sampled_from(["human", "timeout", "when", "fields"]), plain)
    | plain
)
leaves = st.fixed_dictionaries(
    {"id": names, "kind": st.sampled_from(["agent", "function", "human"]), "ref": names},
    optional={"review": st.dictionaries(st.sampled_from(["before", "after"]), gates, max_size=2)},
)
steps = st.recursive(
    names | leaves | plain,
    lambda inner: st.fixed_dictionaries(
        {"id": names, "kind": st.sampled_from(["steps", "condition", "loop", "parallel", "router"])},
        optional={
            "steps": st.lists(inner, max_size=2),
            "else": st.lists(inner, max_size=2),
            "when": conditions,
            "until": conditions,
            "choices": st.lists(inner, max_size=2)
            | st.dictionaries(names, st.fixed_dictionaries({"steps": st.lists(inner)})),
            "selector": names | st.lists(st.fixed_dictionaries({"when": conditions, "choice": names}), max_size=2),
        },
    ),
    max_leaves=6,
)
workflows = (
    st.lists(steps, max_size=3)
    | st.fixed_dictionaries({"steps": st.lists(steps, max_size=3)}, optional={"type": names | st.just("sequential")})
    | st.fixed_dictionaries({"type": st.just("group_chat"), "participants": st.lists(steps, max_size=3)})
    | st.fixed_dictionaries(
        {"type": st.just("graph"), "start": names, "nodes": st.dictionaries(names, steps), "edges": st.just([])}
    )
    | plain
)
agents = (
    st.fixed_dictionaries(
        {"name": names},
        optional={
            "model": plain,
            "strategy": plain,
            "tools": plain | st.lists(names),
            "policies": st.fixed_dictionaries(
                {"tool": st.dictionaries(st.sampled_from(["allow", "deny", "shell"]), plain)}
            ),
        },
    )
    | plain
)
near_specs = st.fixed_dictionaries(
    {},
    optional={
        "version": st.sampled_from(["v0", "v1"]),
        "agent": agents,
        "root_agent": agents,
        "workflow": workflows,
        "root_workflow": workflows,
        "component_agents": st.dictionaries(names, agents, max_size=2) | plain,
        "component_workflows": st.dictionaries(names, workflows, max_size=2) | plain,
        "functions": st.dictionaries(names, plain, max_size=2),
        "humans": st.dictionaries(names, plain, max_size=2),
        "components": st.fixed_dictionaries(
            {}, optional={"agents": st.dictionaries(names, agents), "workflows": st.dictionaries(names, workflows)}
        )
        | plain,
        "tools": plain,
    },
)


@given(near_specs)
def test_normalising_twice_is_normalising_once(tree):
    before = deepcopy(tree)
    once = normalize(tree)
    assert tree == before, "the argument is left alone"
    assert normalize(once) == once


@given(near_specs)
def test_migrating_twice_is_migrating_once(tree):
    before = deepcopy(tree)
    once = migrate(tree)
    assert tree == before
    assert migrate(once.tree).tree == once.tree
    assert not migrate(once.tree).changed


@given(near_specs)
def test_loading_never_fails_and_normal_form_loads_the_same(tree):
    loaded = load_tree(tree)
    assert (loaded.spec is None) == any(found.is_error for found in loaded.diagnostics)
    if loaded.spec is not None:
        assert load_tree(loaded.tree).spec == loaded.spec


@given(plain)
def test_loading_anything_at_all(value):
    load_tree(value)
    load_tree({"agent": value, "workflow": value, "components": value, "version": value})


good_agents = st.fixed_dictionaries({"name": names}, optional={"model": names, "strategy": st.just("react")})
good_steps = st.lists(names | leaves.map(lambda step: {**step, "review": {"before": True}} if step["kind"] != "human" else
                                         {key: value for key, value in step.items() if key != "review"}), max_size=3)  # fmt: skip
legacy = st.fixed_dictionaries(
    {},
    optional={
        "version": st.just("v0"),
        "root_workflow": good_steps | st.fixed_dictionaries({"steps": good_steps}),
        "component_agents": st.dictionaries(names, good_agents, max_size=2),
        "component_workflows": st.dictionaries(names, good_steps, max_size=2),
        "functions": st.dictionaries(names, st.just({"implementation": "m.f"}), max_size=2),
        "humans": st.dictionaries(names, st.just({"assignee": "x"}), max_size=2),
    },
)


@given(legacy, st.sampled_from(["agent", "root_agent"]), good_agents)
def test_a_migrated_v0_spec_validates(tree, key, agent):
    result = migrate({**tree, key: agent})
    loaded = load_tree(result.tree)
    assert loaded.spec is not None, loaded.diagnostics
    assert loaded.spec == load_tree({**tree, key: agent}).spec


@given(maps, st.lists(maps, max_size=4))
def test_overlays_act_one_after_the_other(base, overlays):
    half = len(overlays) // 2
    assert merge_all(merge_all(base, overlays[:half]), overlays[half:]) == merge_all(base, overlays)


@given(maps, maps)
def test_laying_an_overlay_twice_is_laying_it_once(base, overlay):
    once = deep_merge(base, overlay)
    assert deep_merge(once, overlay) == once


# Overlays that delete nothing and agree on where maps are: keys a and b hold maps, c holds anything else.
leaf_values = st.booleans() | st.integers(0, 3) | st.lists(st.integers(0, 3), max_size=2)
agreeing = st.recursive(
    st.fixed_dictionaries({}, optional={"c": leaf_values}),
    lambda inner: st.fixed_dictionaries({}, optional={"a": inner, "b": inner, "c": leaf_values}),
    max_leaves=6,
)


@given(agreeing, agreeing, agreeing)
def test_overlays_that_only_add_and_replace_may_be_merged_first(one, two, three):
    assert deep_merge(deep_merge(one, two), three) == deep_merge(one, deep_merge(two, three))


def test_why_a_deleting_overlay_may_not_be_merged_first():
    base, earlier, later = {"k": {"x": 1}}, {}, {"k": None}
    assert deep_merge(deep_merge(base, earlier), later) == {}
    assert deep_merge(base, deep_merge(earlier, later)) == {"k": {"x": 1}}


@given(st.binary(max_size=200))
def test_loading_is_total_over_bytes(data):
    for file in ("s.yaml", "s.json"):
        loaded = load_spec(data, file=file)
        assert loaded.spec is not None or loaded.diagnostics


@given(near_specs | plain)
def test_migration_refuses_only_versions(tree):
    if isinstance(tree, dict):
        try:
            migrate(tree)
        except UnsupportedVersion:
            assert tree.get("version") not in (None, "v0", "v1")
