"""Report what outgrew the sizes to feel comfortable in: ``make sizes``. Guidance for the next change, not a gate."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULE_LINES = 400
FUNCTION_LINES = 60
PUBLIC_METHODS = 15

Function = ast.FunctionDef | ast.AsyncFunctionDef


def outgrown(path: Path) -> Iterator[str]:
    source = path.read_text()
    where = path.relative_to(ROOT)
    lines = source.count("\n")
    if lines > MODULE_LINES:
        yield f"{where}: {lines} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function) and (node.end_lineno or 0) - node.lineno > FUNCTION_LINES:
            yield f"{where}:{node.lineno}: {node.name} has {(node.end_lineno or 0) - node.lineno} lines"
        if isinstance(node, ast.ClassDef):
            public = [item for item in node.body if isinstance(item, Function) and not item.name.startswith("_")]
            if len(public) > PUBLIC_METHODS:
                yield f"{where}:{node.lineno}: {node.name} has {len(public)} public methods"


def main() -> None:
    for package in ("kneo", "controller", "cli"):
        paths = [path for path in sorted((ROOT / package).rglob("*.py")) if path.stat().st_size]
        sizes = sorted(path.read_text().count("\n") for path in paths)
        print(
            f"{package}: {len(sizes)} modules, {sum(sizes)} lines, median {sizes[len(sizes) // 2]}, longest {sizes[-1]}"
        )
        for path in paths:
            for line in outgrown(path):
                print(f"  {line}")


if __name__ == "__main__":
    main()
