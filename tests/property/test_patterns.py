"""Patterns are run for real: none of them takes exponential time, and they match what the standard library matches."""

from __future__ import annotations

import contextlib
import re
from itertools import product
from time import process_time

from hypothesis import given, settings
from hypothesis import strategies as st

from kneo.spec.patterns import PatternInvalid, compile_pattern, find_flaw

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
LENGTH = 2_000
SECONDS = 5.0  # of a machine that does other things too; 2 ** 2000 steps take longer


@settings(max_examples=200, deadline=None)
@given(PATTERNS)
def test_no_text_takes_long(pattern: str) -> None:
    flaw = find_flaw(f"(?:{pattern})c")
    if flaw is not None:
        assert flaw.unsupported, flaw
        return
    compiled = compile_pattern(f"(?:{pattern})c")
    begun = process_time()
    for word in WORDS:
        compiled.search((word * LENGTH)[:LENGTH] + "d")
    assert process_time() - begun < SECONDS


@settings(max_examples=300, deadline=None)
@given(PATTERNS, st.text("abc \n", max_size=6))
def test_both_engines_agree(pattern: str, text: str) -> None:
    try:
        compiled = compile_pattern(pattern)
    except PatternInvalid:
        return
    assert compiled.search(text) is (re.search(pattern, text) is not None)


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_is_judged_and_matched(pattern: str, text: str) -> None:
    with contextlib.suppress(PatternInvalid):
        compile_pattern(pattern).search(text)
