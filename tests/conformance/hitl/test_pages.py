"""The examples of the Python guide run, and every listed difference of the Python surfaces has a test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DOCS = HERE.parents[2] / "docs"
PAGES = [DOCS / "guides" / "python" / name for name in ("workflows.md", "other-agents.md")]
DIFFERENCES = DOCS / "conformance" / "sdk.md"
BLOCK = re.compile(r"(?<!-->\n)^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| (?P<where>[^|]+) \| (?P<here>[^|]+) \| (?P<why>[^|]+) \| `(?P<test>test_\w+)` \|$", re.MULTILINE)


def sections() -> list[tuple[str, str]]:
    """Return each section's title and Python, all its blocks as one program; blocks that say why not are left out."""
    found = []
    for page in PAGES:
        for part in re.split(r"^##? ", page.read_text(), flags=re.MULTILINE)[1:]:
            blocks = BLOCK.findall(part)
            if blocks:
                found.append((part.partition("\n")[0], "\n".join(blocks)))
    return found


@pytest.mark.parametrize(("title", "program"), sections(), ids=[title for title, _ in sections()])
def test_the_examples_run(title: str, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "assert" in program, f"{title} shows nothing that could be wrong"
    exec(compile(program, title, "exec"), {"__name__": "example"})


def test_every_difference_has_a_test() -> None:
    tests = {
        node.name
        for file in HERE.glob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    page = DIFFERENCES.read_text()
    rows = [row.groupdict() for row in ROW.finditer(page)]
    assert rows
    assert len(rows) == page.count("\n| ") - 1
    assert [row["test"] for row in rows if row["test"] not in tests] == []
