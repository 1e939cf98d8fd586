"""The page of threats names tests; each of them is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/security/threats.md"
_NAMED = re.compile(r"`(tests/[^`:]+\.py)?(?:::([a-z_]+))?`")


def test_every_row_names_tests_and_every_test_that_is_named_exists() -> None:
    rows = [
        line
        for line in PAGE.read_text().splitlines()
        if line.startswith("|") and not line.startswith(("|---", "| who"))
    ]
    assert len(rows) > 20
    for row in rows:
        named = [match for match in _NAMED.finditer(row.rsplit("|", 2)[1]) if match[0] != "``"]
        assert named, row
        file = ""
        for match in named:
            file = match[1] or file
            assert (ROOT / file).is_file(), file
            if match[2]:
                assert f"def {match[2]}(" in (ROOT / file).read_text(), f"{file}::{match[2]}"
