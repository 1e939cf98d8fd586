from __future__ import annotations

from time import process_time

import pytest

from kneo.spec.json_schema import (
    MAX_DEPTH,
    MAX_SUBSCHEMAS,
    MAX_VALUES,
    SchemaInvalid,
    Uncheckable,
    compile_schema,
    find_flaws,
)

POISON = r"^(a+)+$"
BAIT = "a" * 5_000 + "!"
STRING = {"type": "string"}


def fits(schema: dict, value: object) -> bool:
    return not compile_schema(schema).errors(value, 1)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"pattern": POISON}, BAIT),
        ({"patternProperties": {POISON: False}, "additionalProperties": False}, {BAIT: 1}),
        ({"propertyNames": {"pattern": POISON}}, {BAIT: 1}),
        ({"patternProperties": {POISON: {}}, "additionalProperties": STRING}, {BAIT: 1}),
        ({"anyOf": [{"not": {"not": {"pattern": POISON}}}]}, BAIT),
        ({"$ref": "#/hidden/0", "hidden": [{"pattern": POISON}]}, BAIT),
        ({"unevaluatedProperties": {"pattern": POISON}}, {"a": BAIT}),
        ({"format": "regex", "pattern": POISON}, BAIT),
    ],
)
def test_no_pattern_of_a_schema_backtracks(schema: dict, value: object) -> None:
    begun = process_time()
    assert not fits(schema, value)
    assert process_time() - begun < 2


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"pattern": "^a"}, "abc", "bc"),
        ({"patternProperties": {"^x_": STRING}, "additionalProperties": False}, {"x_a": "b"}, {"y": "b"}),
        ({"patternProperties": {"^x_": STRING}}, {"x_a": "b", "y": 1}, {"x_a": 1}),
        ({"properties": {"a": {}}, "additionalProperties": STRING}, {"a": 1, "b": "c"}, {"b": 1}),
        ({"propertyNames": {"maxLength": 2}}, {"ab": 1}, {"abc": 1}),
        ({"uniqueItems": True}, [1, True, "1", [1], {"a": 1}], [{"a": 1}, 2, {"a": 1.0}]),
        ({"uniqueItems": False}, [1, 1], None),
        ({"format": "regex"}, "^a+$", "("),
        ({"format": "date"}, "2026-01-31", "2026-02-31"),
        ({"format": "date"}, "2026-01-31", "2026-W01-1"),
        ({"format": "date"}, "2026-01-31", "20260131"),
        ({"prefixItems": [STRING], "unevaluatedItems": False}, ["a"], ["a", "b"]),
        ({"unevaluatedProperties": STRING, "properties": {"a": {}}}, {"a": 1, "b": "c"}, {"b": 1}),
        ({"oneOf": [STRING, {"maxLength": 2}]}, "abc", "a"),
        ({"contains": STRING, "maxContains": 1}, [1, "a"], ["a", "b"]),
        ({"items": {"$ref": "#/$defs/n"}, "$defs": {"n": {"type": "integer"}}}, [1, 2], ["a"]),
        ({"items": {"$ref": "#n"}, "$defs": {"x": {"$anchor": "n", "type": "integer"}}}, [1, 2], ["a"]),
        ({"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": STRING}}, "a", 1),
        ({"allOf": [{"properties": {"a": {}}}], "unevaluatedProperties": False}, {"a": 1}, {"b": 1}),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "$id": "https://a.test/s", "type": "string"}, "a", 1),
    ],
)
def test_schemas_work_as_before(schema: dict, good: object, bad: object) -> None:
    assert fits(schema, good)
    if bad is not None:
        assert not fits(schema, bad)


def test_a_schema_may_describe_a_tree() -> None:
    tree = {"type": "object", "properties": {"inner": {"type": "array", "items": {"$ref": "#"}}}, "required": ["id"]}
    assert fits(tree, {"id": 1, "inner": [{"id": 2, "inner": []}]})
    assert not fits(tree, {"id": 1, "inner": [{"inner": []}]})


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$dynamicRef": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"$ref": "#me", "$anchor": "me"},
        {"$dynamicRef": "#me", "$dynamicAnchor": "me"},
        {"allOf": [{"$ref": "#"}]},
        {"not": {"if": {"dependentSchemas": {"a": {"oneOf": [{"$ref": "#/not"}]}}}}},
        {"items": {"$ref": "#/items"}},
        {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}},
    ],
)
def test_a_schema_that_never_ends_is_refused(schema: dict) -> None:
    [flaw] = find_flaws(schema)
    assert "without end" in flaw.message
    with pytest.raises(SchemaInvalid):
        compile_schema(schema)


def doubling(levels: int) -> dict:
    defs = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(levels)}
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{levels}": {}}}


def test_references_that_multiply_are_refused() -> None:
    assert find_flaws(doubling(8)) == ()
    [flaw] = find_flaws(doubling(40))
    assert "apply to one value" in flaw.message


def nested(levels: int) -> dict:
    schema: dict = {}
    for _ in range(levels):
        schema = {"not": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "no such type"},
        {"properties": []},
        {"minLength": -1},
        {"$ref": "https://evil.test/schema"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "other.json#/a"},
        {"$ref": "#/nowhere"},
        {"$ref": "#nowhere"},
        {"properties": {"a": {"$schema": "http://json-schema.org/draft-07/schema#", "pattern": "a"}}},
        {"properties": {"a": {"$id": "https://a.test/"}}},
        {"patternProperties": {"a": {}}, "unevaluatedProperties": False},
        {"enum": list(range(MAX_VALUES + 1))},
        {"properties": {str(n): {} for n in range(MAX_SUBSCHEMAS + 1)}},
        nested(MAX_DEPTH + 1),
        nested(5_000),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(schema: dict) -> None:
    flaws = find_flaws(schema)
    assert [flaw.code for flaw in flaws] == ["E_JSON_SCHEMA"]


def test_the_deepest_and_largest_schemas_can_be_used() -> None:
    assert find_flaws(nested(MAX_DEPTH - 1)) == ()
    compile_schema(nested(MAX_DEPTH - 1)).errors("a", 1)
    assert find_flaws({"properties": {str(n): {} for n in range(MAX_SUBSCHEMAS - 1)}}) == ()


def test_patterns_are_found_wherever_they_can_be_applied() -> None:
    schema = {
        "pattern": "(",
        "properties": {"a": {"items": {"pattern": "(?=a)"}}},
        "patternProperties": {"(?!a)": {}},
        "$ref": "#/x/y",
        "x": {"y": {"pattern": "["}},
        "z": {"pattern": "never applied: ("},
    }
    assert {(flaw.path, flaw.code) for flaw in find_flaws(schema)} == {
        (("pattern",), "E_JSON_SCHEMA_REGEX"),
        (("x", "y", "pattern"), "E_JSON_SCHEMA_REGEX"),
        (("properties", "a", "items", "pattern"), "E_JSON_SCHEMA_REGEX_UNSAFE"),
        (("patternProperties", "(?!a)"), "E_JSON_SCHEMA_REGEX_UNSAFE"),
    }


COSTLY_TREE = {"properties": {"a": {"allOf": [{"$ref": "#"}, {"$ref": "#"}, {"$ref": "#"}]}}}


def deep(levels: int) -> dict:
    value: dict = {}
    for _ in range(levels):
        value = {"a": value}
    return value


DOUBLING = {
    "$defs": {
        **{f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(11)},
        "d11": {"properties": {"a": True}},
    },
}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (COSTLY_TREE, deep(60)),
        ({"items": {"anyOf": [*[{"type": "null"}] * 500, {}]}}, [{"a": n} for n in range(20_000)]),
        ({"anyOf": [{"type": "null"}] * 900}, "a" * 1_000_000),
        ({"pattern": "[ab]*a[ab]{1000}c"}, "a" * 1_000_000),
        ({"not": {"pattern": "^a$"}}, "\ud800"),
        ({"properties": {"a": {"$ref": "#"}}}, deep(5_000)),
        ({"multipleOf": 0.1}, 10**400),
        ({"items": {"not": {"anyOf": [False] * 900}}}, [1] * 100_000),
        ({"not": {"anyOf": [{"items": False}] * 400}}, [1] * 100_000),
        ({"allOf": [{"contains": {}, "minContains": 100_000}] * 400}, [1] * 100_000),
        ({"items": {"not": {"enum": [f"x{n}" for n in range(19_000)]}}}, ["y"] * 100_000),
        ({"items": {"not": {"const": [0] * 19_000}}}, [1] * 100_000),
        ({"items": {"not": {"required": [f"x{n}" for n in range(19_000)]}}}, [{}] * 100_000),
        ({"items": {"dependentRequired": {f"x{n}": [] for n in range(19_000)}}}, [{}] * 100_000),
        ({"items": {"properties": {f"x{n}": True for n in range(900)}}}, [{}] * 100_000),
        (
            {"items": {"not": {"not": {"unevaluatedProperties": False, "$ref": "#/$defs/d0"}}}, **DOUBLING},
            [{"a": 1}] * 100_000,
        ),
    ],
)
def test_a_value_that_takes_too_long_is_refused_soon(schema: dict, value: object) -> None:
    compiled = compile_schema(schema)
    begun = process_time()
    with pytest.raises(Uncheckable):
        compiled.errors(value, 50)
    assert process_time() - begun < 10


def test_many_different_items_are_compared_in_linear_time() -> None:
    begun = process_time()
    assert fits({"uniqueItems": True}, [{"a": n} for n in range(20_000)])
    assert process_time() - begun < 2


def test_numbers_that_share_a_hash_are_compared_in_linear_time() -> None:
    begun = process_time()
    assert fits({"uniqueItems": True}, [n * (2**61 - 1) for n in range(20_000)])
    assert process_time() - begun < 2


def test_numbers_are_the_same_however_they_are_written() -> None:
    for same in ([1, 1.0], [0, -0.0], [10**20, 1e20], [0.1, 0.1]):
        assert not fits({"uniqueItems": True}, same)
    assert fits({"uniqueItems": True}, [0.1, 0.2, 1, "1", "0x1", True, None, 10**400, 1e308])


def test_many_unevaluated_parts_are_found_in_linear_time() -> None:
    begun = process_time()
    several = [{"properties": {f"k{n}": True for n in range(90)}}] * 10
    assert not fits({"unevaluatedProperties": False, "allOf": several}, {f"k{n}": 1 for n in range(20_000)})
    assert not fits({"unevaluatedItems": False, "allOf": [{"prefixItems": [True] * 90}] * 10}, [1] * 20_000)
    assert process_time() - begun < 4


@pytest.mark.parametrize("around", [{}, {"allOf": [0]}, {"if": 0}, {"$ref": "#/$defs/p", "$defs": {"p": 0}}])
def test_properties_by_pattern_and_unevaluated_ones_do_not_meet(around: dict) -> None:
    patterned = {"patternProperties": {POISON: {}}}
    inner = {
        key: [patterned] if value == [0] else {"p": patterned} if key == "$defs" else value
        for key, value in around.items()
    }
    inner = {key: patterned if value == 0 else value for key, value in inner.items()} or patterned
    with pytest.raises(SchemaInvalid, match="do not go together"):
        compile_schema({"unevaluatedProperties": False, **inner})
    with pytest.raises(SchemaInvalid, match="do not go together"):
        compile_schema({**inner, "properties": {"a": {"unevaluatedProperties": False}}})


def test_large_honest_answers_are_checked() -> None:
    item = {"type": "object", "properties": {"id": {"type": "integer"}, "name": STRING}, "required": ["id"]}
    assert fits({"type": "array", "items": item}, [{"id": n, "name": "n" * 20} for n in range(5_000)])
    assert fits({"properties": {"text": {**STRING, "pattern": "^[a-z ]+$"}}}, {"text": "a b " * 100_000})
