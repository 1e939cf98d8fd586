"""Codes that need more than the rules: each fires alone where it should, and not for its good twin."""

import pytest
from code_fixtures import FIXTURES, codes_in_source, findings, fixture_files

from kneo.spec.reading.reader import read


@pytest.mark.parametrize("file", sorted(FIXTURES.glob("files/*.yaml")), ids=lambda file: file.stem)
def test_each_code_fires_alone_and_its_twin_is_clean(file):
    case = read(file.read_bytes(), file=file.name).value
    [found] = [each for each in findings(case, "bad") if each.code != "W_FIELD_NO_EFFECT"]
    assert (found.code, found.path_text, found.is_error) == (file.stem, case["path"], file.stem.startswith("E_"))
    assert [each for each in findings(case, "good") if each.code != "W_FIELD_NO_EFFECT"] == []


def test_every_code_of_the_language_has_a_fixture_and_every_fixture_a_code():
    assert {file.stem for file in fixture_files()} == codes_in_source()
