"""README and the page of the project's status name the same maturity of each area."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def rows(page: str) -> list[str]:
    lines = (ROOT / page).read_text().splitlines()
    begin = lines.index("| area | maturity |")
    return list(takewhile(lambda line: line.startswith("|"), lines[begin:]))


def test_readme_and_status_agree() -> None:
    assert rows("README.md") == rows("docs/project/status.md")
