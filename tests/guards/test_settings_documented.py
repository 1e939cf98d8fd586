from __future__ import annotations

import re
from pathlib import Path

import pytest

from kneo.agents.tools.python import MAX_RESULT_CHARS
from kneo.runtime.steps.functions import MAX_OUTPUT_CHARS

ROOT = Path(__file__).parents[2]
VARIABLE = re.compile(r'"(KNEO_[A-Z0-9_]+[A-Z0-9])"')
FIRST_CELL = re.compile(r"^\| (`KNEO_[^|]*) \|", re.MULTILINE)
NAME = re.compile(r"KNEO_[A-Z0-9_]+")


def test_every_variable_is_in_the_reference_once() -> None:
    source = set(VARIABLE.findall((ROOT / "kneo" / "settings.py").read_text()))
    cells = FIRST_CELL.findall((ROOT / "docs" / "reference" / "settings.md").read_text())
    documented = [name for cell in cells for name in NAME.findall(cell)]
    assert source - set(documented) == set(), "missing from docs/reference/settings.md"
    assert len(documented) == len(set(documented))


@pytest.mark.parametrize(
    ("page", "text", "limit"),
    [
        ("guides/specs/README.md", "The output of a function has at most {:,} characters", MAX_OUTPUT_CHARS),
        ("guides/python/workflows.md", "The output of a participant has at most {:,} characters", MAX_OUTPUT_CHARS),
        ("guides/specs/tools.md", "than {:,} characters is cut", MAX_RESULT_CHARS),
    ],
)
def test_a_limit_without_a_setting_is_on_the_page_of_its_subject(page: str, text: str, limit: int) -> None:
    assert text.format(limit) in (ROOT / "docs" / page).read_text()
