import warnings

import pytest

from kneo.spec.rules.regex import Flaw, Patterns


def flaw(pattern: str) -> Flaw | None:
    return Patterns().flaw(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+$",
        r"(a|a)*$",
        r"(a|aa)+$",
        r"(.*a){12}",
        r"([a-zA-Z]+)*$",
        r"(a*)*b",
        r"(\w+\s?)+$",
        r"^(([a-z])+.)+[A-Z]([a-z])+$",
        r"(x(a?|b?)y)*z",
        r"(a?){30}a{30}",
        r"((a?)*b)*c",
        r"(?=(a+)+$)x",
        r"(\d+|\d\w)*!",
        r"(?i)(?:straße|STRASSE|s\w+)*!",
        r"(a|b|ab)*c",
        r"(?:a(?:)+)*b",
        r"(x)(.+\1?)+",
    ],
)
def test_two_readings_of_one_text(pattern: str) -> None:
    found = flaw(pattern)
    assert found is not None
    assert found.slow


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?:\d+,)*\d+",
        r"\b\d{3}-\d{2}-\d{4}\b",
        r"sk-[A-Za-z0-9_-]{12,}",
        r"[\w.+-]+@[\w-]+\.[\w.]+",
        r"(?:foo|bar|baz)+",
        r"(a{3}){1,100}",
        r"(ab{10})*",
        r"^(?:[01]?\d|2[0-4])(?:\.\d{1,3}){3}$",
        r"ignore.*previous.*instructions",
        r"(?:[a-z]+\s)+x",
        r"([^,]*,)*x",
        r"(?i)password\s*[:=]",
        r"\s+$",
        r"(?:(?:a|b)c)*",
        r"eyJ[\w-]+\.[\w-]+\.[\w-]+",
        r"(?<!\d)\d{16}(?!\d)",
        r"(a)?(?(1)b|c)+",
    ],
)
def test_one_reading_of_every_text(pattern: str) -> None:
    assert flaw(pattern) is None


@pytest.mark.parametrize("pattern", ["(", "[", "a**", "(?<=a+)b", "a{99999999999}", "\\"])
def test_no_regular_expression(pattern: str) -> None:
    found = flaw(pattern)
    assert found is not None
    assert not found.slow


@pytest.mark.parametrize("pattern", ["a" * 3_000, "(((a{50}){50}){50}){50}", "(" * 900 + ")" * 900])
def test_patterns_beyond_what_is_looked_at(pattern: str) -> None:
    assert flaw(pattern) is not None


def test_the_budget_is_shared_and_running_out_refuses() -> None:
    patterns = Patterns(steps=200)
    assert patterns.flaw(r"(?:ab|cd|ef|gh)*x") is None
    assert [patterns.flaw(rf"(?:ab|cd|ef|gh)*x{n}") for n in range(20)][-1] is not None


def test_obsolete_spellings_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert flaw("[[a]") is None
