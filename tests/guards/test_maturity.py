"""README and the page of the project's status name the same maturity of each area."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]


def rows(page: str) -> list[str]:
    lines = (ROOT / page).read_text().splitlines()
    begin = lines.index("| area | maturity |")
    return [line for line in lines[begin : begin + 20] if line.startswith("|")]


def test_readme_and_status_agree() -> None:
    assert rows("README.md")[:7] == rows("docs/project/status.md")[:7]
