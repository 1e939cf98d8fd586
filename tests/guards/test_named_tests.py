"""The pages of threats and of conformance name a test in each row; each of these tests exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
THREATS = ROOT / "docs/security/threats.md"
WEAKNESSES = ROOT / "docs/conformance/weaknesses.md"
GATES = ROOT / "docs/conformance/gates.md"
AGENTS = ROOT / "docs/conformance/agents.md"
PYTHON = ROOT / "docs/conformance/python.md"
_NAMED = re.compile(r"`(tests/[^`:]+\.py)?(?:::([a-z_]+))?`")


def rows_of(page: Path) -> list[str]:
    lines = page.read_text().splitlines()
    return [
        line
        for line in lines
        if line.startswith("|") and not line.startswith(("|---", "| attack", "| who", "| id", "| input", "| document"))
    ]


@pytest.mark.parametrize("page", [THREATS, WEAKNESSES, GATES, AGENTS, PYTHON], ids=lambda page: page.name)
def test_every_row_names_tests_and_every_test_that_is_named_exists(page: Path) -> None:
    rows = rows_of(page)
    assert len(rows) > 20
    for row in rows:
        said = row.rsplit("|", 2)[1]
        named = [match for match in _NAMED.finditer(said) if match[0] != "``"]
        assert named, row
        file = ""
        for match in named:
            file = match[1] or file
            assert (ROOT / file).is_file(), file
            if match[2]:
                assert f"def {match[2]}(" in (ROOT / file).read_text(), f"{file}::{match[2]}"


def test_what_the_readme_claims_names_tests_that_exist() -> None:
    """A comment stands for the claims above it: every part of a page ends with one, up to its list of links."""
    page = re.sub(r"^```.*?^```$", "", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    owed = ""
    for paragraph in re.split(r"\n{2,}", page.partition("\n## Documentation\n")[0] + "\n\n# end"):
        if paragraph.startswith("#"):
            assert not owed, "name a test below this paragraph"
        elif "<!-- tests/" in paragraph:
            owed = ""
        elif not paragraph.startswith("!["):
            owed = paragraph
    named = re.findall(r"(tests/[a-z0-9_/]+\.py)::([a-z_0-9]+)", page)
    assert len(named) == page.count("<!-- tests/") > 30
    for file, case in named:
        assert f"def {case}(" in (ROOT / file).read_text(), f"{file}::{case}"


def test_every_weakness_is_on_the_page_once() -> None:
    assert [row.split("|")[1].strip() for row in rows_of(WEAKNESSES)] == [f"W-{number:02}" for number in range(1, 57)]


def test_every_check_contradiction_and_fault_is_on_the_page_once() -> None:
    expected = [*"abcdefghijklmno", *(f"C-{n}" for n in range(1, 9)), *(f"F-{n:02}" for n in range(1, 43))]
    assert [row.split("|")[1].strip() for row in rows_of(GATES)] == expected
