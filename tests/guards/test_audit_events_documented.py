"""The reference of audit events names every type that the code records, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/audit-events.md"
TYPE = re.compile(r"[a-z]+\.[a-z_]+")
RECORDERS = {"record", "record_event", "_changed"}
"""Functions that record an event; those of tasks are given the part after ``human.``."""


def recorded() -> set[str]:
    """Return the event types that stand in the code: arguments of recorders, values chosen for them, and tables of types."""
    found: set[str] = set()
    for path in (ROOT / "kneo").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        if not any(f"{name}(" in source for name in RECORDERS):
            continue
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name not in RECORDERS:
                continue
            for argument in node.args[1:3]:
                words = {
                    each.value
                    for each in ast.walk(argument)
                    if isinstance(each, ast.Constant) and isinstance(each.value, str)
                }
                human = {f"human.{word}" for word in words if "." not in word and re.fullmatch("[a-z_]+", word)}
                found |= {word for word in words if TYPE.fullmatch(word)} | (
                    human if name != "record" and path.parent.name == "tasks" else set()
                )
    return found


def test_the_page_lists_what_the_code_records() -> None:
    listed = {
        name
        for line in PAGE.read_text().splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([a-z_.]+)`", line.split("|")[1])
    }
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "kneo").rglob("*.py"))
    events = recorded()
    assert len(events) > 30
    assert events - listed == set(), "missing in docs/reference/audit-events.md"
    parts = {name: (name, name.partition(".")[2]) for name in listed}
    assert [
        name for name, (whole, word) in parts.items() if f'"{whole}"' not in source and f'"{word}"' not in source
    ] == []
