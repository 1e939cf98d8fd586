"""Names of people: what is the same person, and what is refused."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kneo.errors import Invalid
from kneo.names import name_problem, person_key, person_name, person_problem, plain, reveal, visible
from kneo.spec.reading.yaml import write_yaml

LOOK_EMPTY = (
    "\u00ad\u034f\u061c\u115f\u1160\u180b\u200b\u2060\u2065\u206a\u206f\u2800\u3164\ufe00\ufeff\uffa0\ufff0\ufff8\ufff9\ufffc"
    "\U0001d173\U0001d17a\U000e0001\U000e0041\U000e0080\U000e00ff\U000e0100\U000e01f0\U000e0fff"
)


@pytest.mark.parametrize(
    "spelled",
    ["ann lee", "ANN LEE", " Ann  Lee ", "\uff21nn Lee"],
)
def test_spellings_of_one_person(spelled: str) -> None:
    assert person_key(spelled) == "ann lee"
    assert person_key(person_name(spelled)) == "ann lee"
    assert person_name(spelled).casefold() == "ann lee"


@pytest.mark.parametrize(
    "name",
    [
        "Zoë",
        "Zoe\u0308",
        "Ελένη",
        "Ольга",
        "田中さくら",
        "田中 Taro",
        "김 Kim",
        "O'Neil",
        "иван@example.com",
        "bot-7",
        "علی\u200cرضا",
        "ක්\u200dෂමා",
    ],
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
        ("a\u00adnn", "U+00AD"),
        ("ann\u2800", "U+2800"),
        ("ann\u206a", "U+206A"),
        ("ann\ufff0", "U+FFF0"),
        ("ann\U0001d173", "U+1D173"),
        ("ann\U000e0080", "U+E0080"),
        ("ann\U000e01f0", "U+E01F0"),
        ("a\u200dnn", "U+200D"),
        ("ann\ufe0f", "U+FE0F"),
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


@pytest.mark.parametrize("letter", LOOK_EMPTY)
def test_a_name_with_an_invisible_character_is_no_other_person(letter: str) -> None:
    assert person_key(f"ann{letter}") == "ann"


@pytest.mark.parametrize("letter", LOOK_EMPTY)
def test_an_invisible_character_is_marked_in_every_text(letter: str) -> None:
    text = f"pay 5{letter} EUR"
    assert reveal(text) == f"pay 5⟨U+{ord(letter):04X}⟩ EUR"
    assert letter not in visible(text)
    assert letter not in plain(text)
    assert json.loads(plain(json.dumps(text, ensure_ascii=False))) == text
    written = write_yaml({"prompt": text})
    assert letter not in written
    assert yaml.safe_load(written) == {"prompt": text}


DRAWN = ["⚠\ufe0f", "1\ufe0f\u20e3", "👩\u200d💻", "❤\ufe0f\u200d🔥", "می\u200cخواهم", "ක්\u200dෂ"]
"""Texts whose invisible character changes how its neighbours are drawn."""


@pytest.mark.parametrize("text", DRAWN)
def test_a_character_that_changes_its_neighbour_stays_in_texts_that_people_read(text: str) -> None:
    assert reveal(text) == plain(text) == text
    assert visible(text) != text, "two lines of a diff that differ look different"


@pytest.mark.parametrize(
    "text",
    ["⚠\ufe0f\ufe0f", "⚠\ufe0e", "5\ufe0f", "a\u200cb", "می\u200c\u200cخ", "👩\u200d", "é\U000e0141", "漢\U000e0100"],
)
def test_data_hidden_behind_a_letter_is_marked(text: str) -> None:
    assert "⟨U+" in reveal(text)
    assert "\\u" in plain(text)


@given(st.text(alphabet=st.one_of(st.characters(max_codepoint=0x7F), st.characters()), max_size=12))
def test_escapes_keep_the_value_of_json(text: str) -> None:
    assert json.loads(plain(json.dumps(text, ensure_ascii=False))) == text


@pytest.mark.parametrize(
    "command",
    [
        "::add-mask::x",
        "  ::error file=a,line=1::x",
        "\u00a0::stop-commands::x",
        "a ##[add-mask]x",
        "##vso[task.setvariable]x",
    ],
)
def test_a_text_is_no_command_to_a_runner(command: str) -> None:
    for shown in (visible(command), plain(f"first\n{command}")):
        assert not re.search(r"^\s*::|##(vso)?\[", shown, re.MULTILINE), shown
    assert json.loads(plain(json.dumps(command, ensure_ascii=False))) == command


@pytest.mark.parametrize("text", ["std::vector::x", ":::tip", "## [1] Changes", "a ::b:: c"])
def test_a_text_with_colons_stays(text: str) -> None:
    assert visible(text) == plain(text) == text
