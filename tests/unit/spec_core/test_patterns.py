from time import process_time

import pytest

from kneo.spec.patterns import MAX_WORK, PatternInvalid, TextUnmatchable, compile_pattern, find_flaw

SLOW_WHERE_ENGINES_BACKTRACK = [
    r"^(a+)+$",
    r"^(a|a)*$",
    r"^(a|aa)+$",
    r"^(.*a){12}$",
    r"^(a?){30}a{30}$",
    r"^(\w+\s?)+$",
    r"^(([a-z])+.)+[A-Z]([a-z])+$",
]


@pytest.mark.parametrize("pattern", SLOW_WHERE_ENGINES_BACKTRACK)
def test_a_pattern_takes_linear_time(pattern: str) -> None:
    compiled = compile_pattern(pattern)
    begun = process_time()
    assert not compiled.search("a" * 20_000 + "!")
    assert process_time() - begun < 2


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        (r"\d{3}-\d{2}", "no 123-45 here", True),
        (r"^(?:foo|bar)$", "foo", True),
        (r"^foo$", "foo\n", False),
        (r"(?i)password\s*[:=]", "PassWord :", True),
        (r"^a\Z", "a", True),
        (r"^\u00e9$", "é", True),
        (r"\\Z", r"\Z", True),
        (r"^\p{L}+$", "Müller", True),
        (r"^\/a\-b$", "/a-b", True),
        (r"^.$", "𝒳", True),
        (r"^(?P<one>a)(?<two>b)$", "ab", True),
        (r"a\x00b", "a\0b", True),
        ("", "", True),
    ],
)
def test_patterns_mean_what_they_say(pattern: str, text: str, matches: bool) -> None:
    assert compile_pattern(pattern).search(text) is matches


@pytest.mark.parametrize("pattern", ["(", "[", "a**", "\\", "a)|(?:b", "a\ud800", "[b-a]", "(?P<>a)"])
def test_a_mistake_is_no_regular_expression(pattern: str) -> None:
    flaw = find_flaw(pattern)
    assert flaw is not None
    assert not flaw.unsupported


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?=a)b",
        r"(?<!\d)\d",
        r"(a)\1",
        r"(?>a+)b",
        r"(a)?(?(1)b|c)",
        r"a{1,2000}",
        r"(((a{50}){50}){50}){50}",
        r"(?:\p{L}{2}){40}",
        "a" * 3_000,
    ],
)
def test_what_takes_another_engine_or_too_much_is_refused(pattern: str) -> None:
    flaw = find_flaw(pattern)
    assert flaw is not None
    assert flaw.unsupported
    with pytest.raises(PatternInvalid):
        compile_pattern(pattern)


def test_nothing_is_printed_about_a_bad_pattern(capfd: pytest.CaptureFixture[str]) -> None:
    find_flaw("(((")
    assert capfd.readouterr() == ("", "")


def test_a_text_that_cannot_be_judged_is_neither_a_match_nor_none() -> None:
    compiled = compile_pattern(r"[ab]*a[ab]{1000}c")
    with pytest.raises(TextUnmatchable, match="characters"):
        compiled.search("a" * (MAX_WORK // compiled.size + 1))
    with pytest.raises(TextUnmatchable, match="Unicode"):
        compile_pattern("a").search("\ud800")


def test_the_worst_match_that_is_allowed_is_short() -> None:
    compiled = compile_pattern(r"[ab]*a[ab]{1000}c")
    text = "ab" * (MAX_WORK // compiled.size // 2)
    begun = process_time()
    assert not compiled.search(text)
    assert process_time() - begun < 10


def test_matches_are_replaced_and_too_many_of_them_are_refused() -> None:
    assert compile_pattern("b+").replace("abbcb", "-") == "a-c-"
    assert compile_pattern("x").replace("abc", "-") == "abc"
    with pytest.raises(TextUnmatchable, match="too many matches"):
        compile_pattern("(?s)a.*z|a").replace("a" * 50_000, "-")
