"""JSON in columns: what is read is what was stored, and what Python's own reads and spells alike."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kneo.store.engine import decode_json, encode_json

# Half characters too: what people send is checked, what a program hands over is not.
TEXTS = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4))


@given(VALUES)
def test_what_is_stored_is_read(value: object) -> None:
    spelled = encode_json(value)
    assert decode_json(spelled) == json.loads(spelled) == value


@given(VALUES)
def test_what_an_earlier_version_spelled_is_read(value: object) -> None:
    assert decode_json(json.dumps(value)) == value


def test_what_is_nested_deep_is_stored_too() -> None:
    deep: list[object] = []
    for _ in range(500):
        deep = [deep]
    assert decode_json(encode_json(deep)) == deep


def test_what_has_no_form_in_json_is_refused() -> None:
    with pytest.raises(TypeError):
        encode_json({"a": object()})
