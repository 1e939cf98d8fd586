from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
VARIABLE = re.compile(r"\bKNEO_[A-Z0-9_]+[A-Z0-9]\b")
PREFIX = re.compile(r"\"(KNEO_[A-Z0-9_]+_)\"")


def test_every_variable_is_in_the_operations_guide_and_nothing_else_is() -> None:
    source = (ROOT / "kneo" / "settings.py").read_text()
    read, families = set(VARIABLE.findall(source)) - {"KNEO_SERV"}, tuple(PREFIX.findall(source))
    table = [line for line in (ROOT / "docs" / "operations.md").read_text().splitlines() if line.startswith("| `KNEO_")]
    documented = {name for line in table for name in VARIABLE.findall(line.split("|")[1])}
    assert read - documented == set(), "missing from docs/operations.md"
    unread = {name for name in documented - read if not name.startswith(families)}
    assert unread == set(), "in docs/operations.md, but nothing reads it"
