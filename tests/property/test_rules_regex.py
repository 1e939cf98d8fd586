"""Patterns that are let through are run for real: none of them takes exponential time."""

from __future__ import annotations

import re
from itertools import product
from time import process_time

from hypothesis import given, settings
from hypothesis import strategies as st

from kneo.spec.rules.regex import Patterns

PATTERNS = st.recursive(
    st.sampled_from(["a", "b", ".", "[ab]", "\\w", "[^a]", "", "\\b"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "{2}", "{0,3}", "{1,30}", "{2,}"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=6,
)
WORDS = ["".join(letters) for length in (1, 2, 3) for letters in product("ab", repeat=length)]
LENGTH = 26
SECONDS = 2.0  # 2 ** 26 steps take longer than that; a fifth power of 26 does not


def slow(pattern: str) -> bool:
    flaw = Patterns().flaw(pattern)
    return flaw is not None and flaw.slow


@settings(max_examples=300, deadline=None)
@given(PATTERNS)
def test_what_is_let_through_is_quick(pattern: str) -> None:
    if slow(pattern):
        return
    compiled = re.compile(f"(?:{pattern})c")
    begun = process_time()
    for word in WORDS:
        compiled.match((word * LENGTH)[:LENGTH] + "d")
        assert process_time() - begun < SECONDS


@given(st.text(max_size=40))
def test_any_text_is_judged(pattern: str) -> None:
    flaw = Patterns().flaw(pattern)
    if flaw is None:
        re.compile(pattern)
