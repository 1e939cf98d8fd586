"""Reading is total: whatever the bytes, a value within bounds or one refusal with its place."""

import json

import yaml
from hypothesis import given
from hypothesis import strategies as st

from kneo.spec.documents import ReadLimits, SourceLocation, Unreadable
from kneo.spec.reading.reader import read_json, read_yaml

LIMITS = ReadLimits(max_bytes=4096, max_depth=8, max_nodes=200)
TOKENS = [
    *"[]{}:,-?&*!|>\"'%@`#~ \n\t0127.eEx<",
    "a",
    "null",
    "true",
    "---",
    "...",
    "\\u",
    "\ufeff",
    "\x85",
    "\u2028",
    "é",
    "\0",
]

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def measure(value, depth=0):
    if isinstance(value, dict):
        parts = [measure(part, depth + 1) for part in value.values()]
        return 1 + len(value) + sum(n for n, _ in parts), max([depth + 1, *(d for _, d in parts)])
    if isinstance(value, list):
        parts = [measure(part, depth + 1) for part in value]
        return 1 + sum(n for n, _ in parts), max([depth + 1, *(d for _, d in parts)])
    return 1, depth


@given(
    st.binary(max_size=300) | st.lists(st.sampled_from(TOKENS), max_size=60).map(lambda parts: "".join(parts).encode())
)
def test_reading_is_total(data):
    for reader in (read_json, read_yaml):
        try:
            document = reader(data, file="f", limits=LIMITS)
        except Unreadable:
            continue
        nodes, depth = measure(document.value)
        assert nodes <= 2 * LIMITS.max_nodes
        assert depth <= LIMITS.max_depth
        document.locations()


@given(plain)
def test_json_comes_back_as_it_was(value):
    text = json.dumps(value, ensure_ascii=False).encode()
    assert read_json(text, file="f").value == value


@given(plain)
def test_what_a_dumper_writes_is_read_back(value):
    text = json.dumps(value).encode()
    assert json.dumps(read_json(text, file="f").value) == json.dumps(value)
    assert read_json(text, file="f").value == read_json(yaml_free(value), file="f").value


def yaml_free(value):
    return json.dumps(value, indent=1).encode()


@given(plain)
def test_both_readers_agree_on_json(value):
    """JSON is YAML, but for spellings that YAML 1.1 parsers never learnt (surrogate pairs, which we do not write)."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    if not text.isascii() or "\x7f" in text:
        return
    assert read_yaml(text.encode(), file="f").value == read_json(text.encode(), file="f").value


@given(plain)
def test_every_value_has_a_place(value):
    def check(part, place):
        assert isinstance(place, SourceLocation)
        if isinstance(part, dict):
            assert set(place.keys) == set(part) == set(place.children)
            for key, child in part.items():
                check(child, place.children[key])
        elif isinstance(part, list):
            assert set(place.children) == set(range(len(part)))
            for index, child in enumerate(part):
                check(child, place.children[index])

    text = json.dumps(value)
    check(value, read_json(text.encode(), file="f").locations())
    dumped = yaml.safe_dump(value, allow_unicode=False)
    try:
        document = read_yaml(dumped.encode(), file="f")
    except Unreadable:
        return  # the stock dumper writes spellings we refuse on purpose
    check(document.value, document.locations())
