from __future__ import annotations

import json
import struct
from collections.abc import Callable

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from kneo.digest import DigestLabel, canonical_json, digest_of, digest_of_json, parse_digest
from kneo.errors import Invalid
from kneo.records.run import RunStatus
from kneo.records.task import DecisionKind

SAFE = 2**53 - 1
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-SAFE, SAFE)
    # A whole number beyond 2^53 reads back as an integer, which is refused for what it may have lost.
    | st.floats(allow_nan=False, allow_infinity=False).filter(lambda number: abs(number) <= SAFE or abs(number) >= 1e21)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=20,
)


def test_a_digest_names_bytes() -> None:
    assert digest_of(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_the_order_of_keys_is_by_utf_16_unit() -> None:
    """RFC 8785, section 3.2.3: the example whose order differs from that of code points."""
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    ordered = list(json.loads(canonical_json(dict.fromkeys(keys, 0))))
    assert ordered == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555557", "333333333.33333343"),
    ],
)
def test_numbers_are_spelled_as_the_standard_says(bits: str, text: str) -> None:
    """RFC 8785, appendix B."""
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical_json(number).decode() == text


@given(values)
def test_canonical_json_is_json_and_a_fixed_point(value: object) -> None:
    once = canonical_json(value)
    again = json.loads(once)
    assert canonical_json(again) == once


plain = st.text(st.characters(codec="ascii")) | st.floats(-10, 10) | st.sampled_from(list(RunStatus))


@given(values | st.dictionaries(plain.filter(lambda key: isinstance(key, str)), plain | st.lists(plain)))
def test_canonical_json_is_that_of_the_library_made_for_it(value: object) -> None:
    assert canonical_json(value) == rfc8785.dumps(value)


@given(st.integers(-(2**63), 2**64 - 1), st.integers(-(2**63), 2**64 - 1))
def test_integers_of_64_bits_keep_all_digits(one: int, other: int) -> None:
    for wrap in (lambda number: [number], lambda number: {"é": [number, 1.0]}):  # the second one is not plain
        assert json.loads(canonical_json(wrap(one))) == wrap(one)
        assert (digest_of_json(wrap(one)) == digest_of_json(wrap(other))) == (one == other)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers(-SAFE, SAFE)))
def test_a_json_digest_ignores_the_order_of_keys(value: dict[str, int]) -> None:
    backwards = dict(reversed(value.items()))
    assert digest_of_json(value) == digest_of_json(backwards)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        2**64,
        -(2**63) - 1,
        {"é": [2**64]},
        "\ud800",
        {"\ud800": 1},
        {1: "a number is no key"},
        object(),
        b"bytes",
        {"a set"},
    ],
)
def test_what_json_does_not_have_is_refused(value: object) -> None:
    with pytest.raises(Invalid):
        canonical_json(value)


def test_endless_nesting_is_refused_not_a_crash() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(Invalid):
        canonical_json(deep)


def test_a_label_is_written_and_never_compared() -> None:
    label, same = DigestLabel(digest_of(b"x")), DigestLabel(digest_of(b"x"))
    assert f"{label}" == "2d711642"
    comparisons: list[Callable[[], object]] = [
        lambda: label == same,
        lambda: label != "2d711642",
        lambda: {label: 1},
        lambda: label in (digest_of(b"x"), same),
    ]
    for compare in comparisons:
        with pytest.raises(TypeError):
            compare()


def test_a_digest_is_read_back() -> None:
    assert parse_digest(digest_of(b"x")) == digest_of(b"x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        "sha256:" + "0" * 63,
        "sha256:" + "0" * 65,
        "sha256:" + "A" * 64,
        "SHA256:" + "0" * 64,
        "sha512:" + "0" * 64,
        "0" * 64,
        " sha256:" + "0" * 64,
        "sha256:" + "0" * 64 + "\n",
        "sha256:" + "٠" * 64,
    ],
)
def test_what_is_not_a_digest_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="not a digest"):
        parse_digest(text)


def test_a_word_of_an_enumeration_is_spelled_as_its_text() -> None:
    value = {"decision": DecisionKind.APPROVED, "all": [DecisionKind.REJECTED]}
    assert canonical_json(value) == b'{"all":["rejected"],"decision":"approved"}'
