"""The options of a decision: exactly one decision, and the text of an edit from an option or a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from kneo.cli.people.statements import DecisionOptions
from kneo.errors import Invalid, NotFound, Usage


def test_an_edit_has_the_text_of_a_file_to_the_last_character(tmp_path: Path) -> None:
    file = tmp_path / "subject.txt"
    text = "\nfirst\r\n\u200blast line\n"
    file.write_bytes(text.encode())
    decision = DecisionOptions(edit_file=file).decision()
    assert (decision.decision, decision.content) == ("edited", text)


def test_a_file_and_another_decision_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "subject.txt"
    file.write_text("text")
    with pytest.raises(Usage, match="--edit or --edit-file"):
        DecisionOptions(edit="text", edit_file=file).decision()
    with pytest.raises(Usage, match="exactly one"):
        DecisionOptions(approve=True, edit_file=file).decision()


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "subject.txt"
    with pytest.raises(NotFound, match=r"subject\.txt"):
        DecisionOptions(edit_file=file).decision()
    file.write_bytes(b"caf\xe9")
    with pytest.raises(Invalid, match="not UTF-8 text: byte 3 is 0xe9"):
        DecisionOptions(edit_file=file).decision()
