"""Report the sizes of the code base: ``make sizes``. Guidance for the next change, not a gate."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("kneo",)
MODULE_LINES = 400
FUNCTION_LINES = 60
PUBLIC_METHODS = 15

PRONOUNS = re.compile(
    r"\b(told|somebody|nobody|whoever|whatever|anew|beside|heed|spelled|let go|lets go|what (waits|happened|came))\b",
    re.IGNORECASE,
)
"""Words that stand in for a noun. Comments, docstrings, messages and names use the noun."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One source file and its measured sizes, in lines."""

    path: Path
    tree: ast.Module
    source: str
    code: int
    imports: int

    @property
    def name(self) -> str:
        """The path from the root of the repository."""
        return self.path.relative_to(ROOT).as_posix()


def read(path: Path) -> Module:
    """Parse a module and count its lines of code: no comments, docstrings or blank lines."""
    source = path.read_text()
    tree = ast.parse(source)
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type
        not in {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
        for line in range(token.start[0], token.end[0] + 1)
    }
    imports: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return Module(path, tree, source, len(lines), len(imports & lines))


def modules() -> list[Module]:
    """Every module of the product that is not empty."""
    paths = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    return [read(path) for path in paths if path.stat().st_size]


def room_of(module: Module) -> str:
    """The package below ``kneo`` that a module belongs to: ``kneo/spec/lint/gates.py`` is in ``kneo/spec``."""
    parts = module.name.split("/")
    return "/".join(parts[:2]) if len(parts) > 2 else parts[0]


def rooms(found: list[Module]) -> list[tuple[str, int, int]]:
    """Each room with its files and its lines of code, largest first."""
    files, lines = Counter(map(room_of, found)), Counter[str]()
    for module in found:
        lines[room_of(module)] += module.code
    return [(room, files[room], count) for room, count in lines.most_common()]


EXTENSIONS = ("kneo/extensions", "kneo/sdk")
"""Rooms that no other room imports, and that a reader of the core leaves out."""

LIMITS: Mapping[str, tuple[int, int | None]] = {"core": (50_000, 350), "extensions": (7_500, None)}
"""The lines of code and the files that each part has at most."""


def parts(found: list[Module]) -> list[tuple[str, int, int]]:
    """The core and the extensions, each with its files and its lines of code."""
    listed: dict[str, list[Module]] = {name: [] for name in LIMITS}
    for module in found:
        listed["extensions" if room_of(module) in EXTENSIONS else "core"].append(module)
    return [(name, len(part), sum(module.code for module in part)) for name, part in listed.items()]


def functions(found: list[Module]) -> int:
    """The number of functions and methods."""
    return sum(isinstance(node, Function) for module in found for node in ast.walk(module.tree))


def repeated_classes(found: list[Module]) -> dict[str, list[str]]:
    """Public class names that more than one module defines, with these modules."""
    places: dict[str, list[str]] = defaultdict(list)
    for module in found:
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(module.name)
    return {name: where for name, where in sorted(places.items()) if len(where) > 1}


def outgrown(module: Module) -> Iterator[str]:
    """Yield what is larger than the comfortable sizes."""
    lines = module.source.count("\n")
    if lines > MODULE_LINES:
        yield f"{module.name}: {lines} lines"
    for node in ast.walk(module.tree):
        if isinstance(node, Function) and (node.end_lineno or 0) - node.lineno > FUNCTION_LINES:
            yield f"{module.name}:{node.lineno}: {node.name} has {(node.end_lineno or 0) - node.lineno} lines"
        if isinstance(node, ast.ClassDef):
            public = [item for item in node.body if isinstance(item, Function) and not item.name.startswith("_")]
            if len(public) > PUBLIC_METHODS:
                yield f"{module.name}:{node.lineno}: {node.name} has {len(public)} public methods"


def main() -> None:
    """Print the totals, then the outliers."""
    found = modules()
    code, imports = sum(module.code for module in found), sum(module.imports for module in found)
    pronouns = Counter(word[0].lower() for module in found for word in PRONOUNS.findall(module.source))
    repeated = repeated_classes(found)
    print(f"code       {code:>7} lines in {len(found)} files (no comments, docstrings, blank lines)")
    for name, files, lines in parts(found):
        most, most_files = LIMITS[name]
        limit = f"at most {most}" + (f" in {most_files}" if most_files is not None else "")
        print(f"{name:<10} {lines:>7} lines in {files} files ({limit})")
    print(f"functions  {1000 * functions(found) / code:>7.0f} for each 1,000 lines")
    print(f"imports    {imports:>7} lines, {100 * imports / code:.1f} % of the code")
    print(
        f"pronouns   {pronouns.total():>7} ({', '.join(f'{word} {count}' for word, count in pronouns.most_common(8))})"
    )
    print(f"same name  {len(repeated):>7} public class names in two modules or more")
    for name, where in repeated.items():
        print(f"  {name}: {', '.join(where)}")
    print("rooms        lines  files")
    for room, files, lines in rooms(found):
        print(f"           {lines:>7} {files:>6}  {room}")
    print("outgrown")
    for module in found:
        for line in outgrown(module):
            print(f"  {line}")


if __name__ == "__main__":
    main()
