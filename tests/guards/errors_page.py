"""Write ``docs/reference/errors.md``: every stable error code, from the classes and calls that raise it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = ROOT / "kneo"
EXTENSIONS = CODE / "extensions"
BASE = "KneoError"

HEAD = """\
{generated}

# Errors

Every refusal of the HTTP API has a stable code in `error` and a sentence for people in `message`; the sentences may change. Commands print the
sentence, and the code with `--json`. The exit status of a command follows from the kind of the error: 0 done, 1 refused or invalid, 2 wrong
usage, 3 not trusted, 4 not found, 5 conflict, 75 try again later.

[Troubleshoot](../operations/troubleshoot.md) says what to do about the codes that operators meet. Codes of specs are in
[diagnostics](diagnostics.md), reasons of environments in [conditions](../guides/releases/README.md#reasons-of-conditions).

| code | HTTP | exit status | for example |
|---|---|---|---|
"""


@dataclass(frozen=True)
class Kind:
    """A class of errors: its bases and what it sets itself."""

    bases: tuple[str, ...]
    own: Mapping[str, object]
    doc: str


def kinds(trees: Mapping[Path, ast.Module]) -> dict[str, Kind]:
    """Return the classes of the package by name."""
    found = {}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                own = {}
                for line in node.body:
                    target = (
                        line.target
                        if isinstance(line, ast.AnnAssign)
                        else line.targets[0]
                        if isinstance(line, ast.Assign)
                        else None
                    )
                    if isinstance(target, ast.Name) and isinstance(line.value, ast.Constant):
                        own[target.id] = line.value.value
                bases = tuple(base.id for base in node.bases if isinstance(base, ast.Name))
                found.setdefault(node.name, Kind(bases, own, (ast.get_docstring(node) or "").split("\n")[0]))
    return found


def inherited(name: str, key: str, known: Mapping[str, Kind]) -> object | None:
    """Return the value that a class has or inherits; None where it is no error."""
    kind = known.get(name)
    if kind is None:
        return None
    if key in kind.own:
        return kind.own[key]
    return next((value for base in kind.bases if (value := inherited(base, key, known)) is not None), None)


def is_error(name: str, known: Mapping[str, Kind]) -> bool:
    return name == BASE or (name in known and any(is_error(base, known) for base in known[name].bases))


def text_of(node: ast.expr | None) -> str:
    """Return a message as written, with ``…`` for each value in it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    return ""


def raised(trees: Mapping[Path, ast.Module], known: Mapping[str, Kind]) -> Iterator[tuple[str, str, str]]:
    """Yield the code, the class and the message of each place that raises an error."""
    constants = dict(_constants(trees))
    for tree in trees.values():
        for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]:
            assigned = sorted(
                (node.lineno, text_of(node.value))
                for node in ast.walk(function)
                if isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and node.targets[0].id in {"msg", "message"}
            )
            for call in [node for node in ast.walk(function) if isinstance(node, ast.Call)]:
                name = call.func.id if isinstance(call.func, ast.Name) else ""
                if not is_error(name, known):
                    continue
                given = next((word.value for word in call.keywords if word.arg == "code"), None)
                code = _code(given, constants) if given is not None else inherited(name, "default_code", known)
                message = text_of(call.args[0]) if call.args else ""
                if not message and call.args and isinstance(call.args[0], ast.Name):
                    message = next((text for line, text in reversed(assigned) if line <= call.lineno), "")
                if isinstance(code, str):
                    yield code, name, message


def _constants(trees: Mapping[Path, ast.Module]) -> Iterator[tuple[str, str]]:
    """Yield the names and values of the texts that modules assign once."""
    for tree in trees.values():
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and text_of(node.value):
                yield node.targets[0].id, text_of(node.value)


def _code(given: ast.expr, constants: Mapping[str, str]) -> str | None:
    """Return a code that is written out or a constant, or with EXTRA for the name of an extra; None for any other."""
    if isinstance(given, ast.Name):
        return constants.get(given.id)
    if isinstance(given, ast.BoolOp):
        given = given.values[-1]
    if isinstance(given, ast.JoinedStr):
        return (
            text_of(given).replace("…", "EXTRA") if ast.unparse(given).startswith(("f'{extra}", 'f"{extra}')) else None
        )
    return given.value if isinstance(given, ast.Constant) and isinstance(given.value, str) else None


def errors_page(generated: str) -> str:
    # The example of a code is the core's, where an extension raises it too.
    files = sorted(CODE.rglob("*.py"), key=lambda path: (EXTENSIONS in path.parents, path))
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files}
    known = kinds(trees)
    rows: dict[str, tuple[set[str], set[str], str]] = {}
    for code, name, message in raised(trees, known):
        status, ends, example = rows.setdefault(code, (set(), set(), ""))
        status.add(str(inherited(name, "http_status", known)))
        ends.add(str(inherited(name, "exit_code", known)))
        rows[code] = (status, ends, example or message)
    lines = [
        f'| <a id="{code}"></a>`{code}` | {", ".join(sorted(status))} | {", ".join(sorted(ends))} | {_cell(example)} |'
        for code, (status, ends, example) in sorted(rows.items())
    ]
    return HEAD.format(generated=generated) + "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
