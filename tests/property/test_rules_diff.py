"""A diff leaves nothing out: it is empty exactly where nothing differs, and shows nothing that is not visible."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kneo.spec.diff import diff
from kneo.spec.diff.locations import SPEC, compare, same
from kneo.spec.models.spec import Spec

KEYS = st.sampled_from(["agent", "tools", "review", "steps", "id", "before", "components", "agents", "x", "from", "to"])
TREES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(0, 2), st.sampled_from(["a", "b", ""])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, TREES, max_size=3), st.dictionaries(KEYS, TREES, max_size=3))
def test_trees_compare_as_equal_exactly_where_they_are(one: dict, two: dict) -> None:
    assert (not list(compare(one, two, SPEC))) == same(one, two)
    assert not list(compare(one, one, SPEC))


NAMES = st.sampled_from(["a", "tools", "steps", "review", "\u202eb`*"])
PERMISSIONS = st.fixed_dictionaries(
    {},
    optional={
        "allow_network": st.booleans(),
        "allow_shell": st.booleans(),
        "allowed_domains": st.lists(NAMES, max_size=2, unique=True),
        "allowed_tools": st.lists(NAMES, max_size=2, unique=True),
        "denied_tools": st.lists(NAMES, max_size=2, unique=True),
    },
)
TOOLS = st.fixed_dictionaries(
    {}, optional={"include": st.lists(NAMES, max_size=3, unique=True), "permissions": PERMISSIONS}
)
AGENT = st.fixed_dictionaries(
    {"name": NAMES},
    optional={
        "system_prompt": st.text(max_size=8),
        "model": st.fixed_dictionaries(
            {"provider": NAMES, "name": NAMES}, optional={"extra": st.dictionaries(NAMES, NAMES, max_size=2)}
        ),
        "tools": TOOLS,
        "skills": st.lists(NAMES, max_size=2),
    }
    | {"memory": st.fixed_dictionaries({}, optional={"policy": NAMES, "top_k": st.integers(1, 3)})},
)
GATE = st.fixed_dictionaries(
    {}, optional={"human": NAMES, "on_reject": st.sampled_from(["stop", "skip"]), "prompt": st.text(max_size=4)}
)
LEAF = st.one_of(
    st.fixed_dictionaries({"id": NAMES, "kind": st.just("human"), "ref": NAMES}),
    st.fixed_dictionaries(
        {"id": NAMES, "kind": st.just("agent"), "ref": NAMES},
        optional={
            "on_error": st.sampled_from(["continue", "fail"]),
            "enabled": st.booleans(),
            "review": st.fixed_dictionaries({"before": GATE}, optional={"after": GATE}),
        },
    ),
)
STEP = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"id": NAMES, "kind": st.just("steps"), "steps": st.lists(inner, max_size=2)}),
        st.fixed_dictionaries(
            {
                "id": NAMES,
                "kind": st.just("router"),
                "choices": st.dictionaries(
                    NAMES, st.fixed_dictionaries({"steps": st.lists(inner, max_size=2)}), max_size=2
                ),
            }
        ),
    ),
    max_leaves=4,
)
SPECS = st.fixed_dictionaries(
    {"agent": AGENT},
    optional={
        "workflow": st.fixed_dictionaries({"type": st.just("sequential"), "steps": st.lists(STEP, max_size=3)}),
        "components": st.fixed_dictionaries(
            {},
            optional={
                "agents": st.dictionaries(NAMES, AGENT, max_size=2),
                "humans": st.dictionaries(
                    NAMES, GATE.map(lambda gate: {k: v for k, v in gate.items() if k != "human"})
                ),
            },
        ),
        "tools": st.dictionaries(NAMES, st.fixed_dictionaries({"description": NAMES}), max_size=2),
        "metadata": st.dictionaries(NAMES, NAMES, max_size=1),
    },
)


def without_drawing(spec: dict) -> Spec:
    return Spec.model_validate(spec)


@settings(max_examples=300, deadline=None)
@given(SPECS.map(without_drawing), SPECS.map(without_drawing))
def test_specs_differ_exactly_where_there_is_a_change(one: Spec, two: Spec) -> None:
    trees = [spec.model_dump(by_alias=True, exclude_unset=True) for spec in (one, two)]
    made = diff(one, two)
    assert (not made) == same(*trees)
    assert not diff(two, two)
    whole = diff(None, two)
    assert whole
    shown = f"{made.to_text()}{made.to_markdown()}{whole.to_text()}{whole.to_markdown()}"
    assert "\u202e" not in shown
    assert all(char == "\n" or char.isprintable() for char in shown)
