from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
VARIABLE = re.compile(r"\bKNEO_[A-Z0-9_]+[A-Z0-9]\b")


def test_every_variable_is_in_the_operations_guide_and_nothing_else_is() -> None:
    read = set(VARIABLE.findall((ROOT / "kneo" / "settings.py").read_text())) - {"KNEO_SERV"}
    table = [line for line in (ROOT / "docs" / "operations.md").read_text().splitlines() if line.startswith("| `KNEO_")]
    documented = {name for line in table for name in VARIABLE.findall(line.split("|")[1])}
    assert read - documented == set(), "missing from docs/operations.md"
    assert documented - read == set(), "in docs/operations.md, but nothing reads it"
