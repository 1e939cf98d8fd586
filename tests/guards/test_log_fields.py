"""The reference of log lines names every field, event and logger of the code, and no other."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "logs.md").read_text()
ALWAYS = {"at", "level", "logger", "message", "exception", "trace_id"}
"""Fields that the formatter adds."""

LOGS = {"debug", "info", "warning", "error", "exception"}


@functools.cache
def sources() -> Sequence[str]:
    return [path.read_text() for path in (ROOT / "kneo").rglob("*.py")]


def functions() -> Iterator[ast.AST]:
    for source in sources():
        if "extra=" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node


@functools.cache
def literals() -> Sequence[ast.Dict]:
    return list(find_literals())


def find_literals() -> Iterator[ast.Dict]:
    """Yield the dictionaries that are passed as ``extra``, directly or through a name of the same function."""
    for function in functions():
        named = {
            target.id: node.value
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(function):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOGS):
                continue
            for keyword in node.keywords:
                if keyword.arg == "extra":
                    value = keyword.value
                    found = named.get(value.id) if isinstance(value, ast.Name) else value
                    assert isinstance(found, ast.Dict), ast.unparse(node)
                    yield found


def fields() -> set[str]:
    keys = {key.value for found in literals() for key in found.keys if isinstance(key, ast.Constant)}
    around = re.findall(r"log_fields\(([^)]*)\)", "\n".join(sources()))
    return keys | {name for call in around for name in re.findall(r"(\w+)=", call)} | ALWAYS


def events() -> set[str]:
    return {
        value.value
        for found in literals()
        for key, value in zip(found.keys, found.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == "event" and isinstance(value, ast.Constant)
    }


def cells(section: str) -> set[str]:
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_every_field_is_described() -> None:
    assert cells("Fields") == fields()


def test_every_event_is_described() -> None:
    assert cells("Events") == events()


def test_every_logger_is_described() -> None:
    assert cells("Loggers") == set(re.findall(r'getLogger\("(kneo[a-z_.]*)"\)', "\n".join(sources())))
