from __future__ import annotations

import re
from pathlib import Path

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
