"""What is written as YAML is read back as it was."""

from hypothesis import example, given
from hypothesis import strategies as st

from kneo.spec.reading.reader import read_yaml
from kneo.spec.reading.yaml import write_yaml

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.sampled_from(
    [
        "no",
        "1e3",
        "010",
        "0o17",
        "0x1F",
        "1.",
        ".5",
        "+1",
        "12:30",
        "2026-01-01",
        "<<",
        "=",
        "~",
        "null",
        " a\n",
        "a\n\n b",
        "- a",
        "#",
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(values)
@example({"a": "x\n"})
@example(["\n", "a\n ", "\ta", "\x85", "\u2028", "\x9b", "\ufeff", "\U0001f600"])
def test_yaml_comes_back_as_it_was(value):
    assert read_yaml(write_yaml(value).encode(), file="f").value == value


def test_shared_parts_are_written_out():
    shared = {"k": [1]}
    assert write_yaml({"a": shared, "b": shared}).count("k:") == 2
