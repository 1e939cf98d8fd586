"""Names of people: what is the same person, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kneo import names
from kneo.errors import Invalid
from kneo.names import name_problem, person_key, person_name, person_problem, reveal


@pytest.mark.parametrize(
    "spelled",
    ["ann lee", "ANN LEE", " Ann  Lee ", "\uff21nn Lee", "a\u00adnn lee", "ann\u200b lee", "\u2060ann lee\ufeff"],
)
def test_spellings_of_one_person(spelled: str) -> None:
    assert person_key(spelled) == "ann lee"
    assert person_key(person_name(spelled)) == "ann lee"
    assert person_name(spelled).casefold() == "ann lee"


@pytest.mark.parametrize(
    "name",
    ["Zoë", "Zoe\u0308", "Ελένη", "Ольга", "田中さくら", "田中 Taro", "김 Kim", "O'Neil", "иван@example.com", "bot-7"],
)
def test_names_of_many_scripts(name: str) -> None:
    assert person_problem(name) is None


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        (" \u00ad\u200b", "empty"),
        ("a\nb", "U+000A"),
        ("a\rb", "U+000D"),
        ("a\x00b", "U+0000"),
        ("a\x1b[31mb", "U+001B"),
        ("a\u202eb", "U+202E"),
        ("a\u2028b", "U+2028"),
        ("a\ud800b", "U+D800"),
        ("\u0430nn", "Cyrillic and Latin"),
        ("\u0391nn", "Greek and Latin"),
        ("ann@ex\u0430mple.com", "Latin and Cyrillic"),
        ("a" * 201, "201 characters"),
    ],
)
def test_names_that_are_refused(name: str, why: str) -> None:
    with pytest.raises(Invalid, match=why.replace("+", r"\+")) as caught:
        person_name(name)
    assert caught.value.code == "invalid_name"
    assert caught.value.message.isprintable()


@given(st.text(max_size=250))
def test_the_normal_spelling_is_stable_and_the_same_person(name: str) -> None:
    if person_problem(name) is not None:
        return
    normal = person_name(name)
    assert (person_key(normal), person_name(normal)) == (person_key(name), normal)
    assert name_problem(normal) is None


@given(st.text(max_size=50))
def test_keys_are_their_own_keys(name: str) -> None:
    assert person_key(person_key(name)) == person_key(name)


@given(st.text(alphabet=st.one_of(st.characters(max_codepoint=0x7F), st.characters()), max_size=12))
def test_a_text_of_visible_characters_is_shown_as_it_is(text: str) -> None:
    assert (reveal(text) == text) is (names._UNSEEN.search(text) is None)
