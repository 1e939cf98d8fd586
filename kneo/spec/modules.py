"""Python modules that implementations name, read from their source and never imported; and the context of the rules."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from kneo.errors import Invalid
from kneo.spec.models.agent import Agent
from kneo.spec.models.environment import EnvironmentSpec
from kneo.spec.tool_kinds import Library

ModelCheck: TypeAlias = Callable[[str, Agent, EnvironmentSpec | None], Invalid | None]
"""From an agent's name, the agent and the rules of an environment to the reason why its models cannot be asked."""


@dataclass(frozen=True, slots=True)
class Module:
    """A Python module that an ``implementation`` may name, known from its source without importing it.

    Attributes:
        names: What it defines or imports at its top level.
        complete: False where more names may exist than the source shows (``from x import *``, ``__getattr__``,
            an extension module): a missing name is then no finding.
        parameters: The parameters of the functions that it defines without decorators, by name.
        imported: The part of ``names`` that it takes from somewhere else, with the dotted name of the origin. An
            ``implementation`` that points through such a name reaches code the module does not own.
    """

    names: frozenset[str] = frozenset()
    complete: bool = True
    imported: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RuleContext:
    """Facts from outside a spec that rules may use.

    Attributes:
        modules: Importable modules by dotted name. It may be a lazy mapping; rules only use ``get`` and ``in``. None
            means that no index exists, and rules about missing modules report nothing.
        import_allow: Module prefixes that ``implementation`` may name. None means every module in ``modules``.
        tools: Names of the embedding program's tool registry, in addition to the spec's ``tools``. None means that they are not
            known, and rules about missing tools report nothing.
        middleware: Names of the middleware that the embedding program registers. None means that it is not known.
        functions: Names that the embedding program registers, in addition to ``components.functions``.
        environment: The environment of the check, where one is chosen.
        rules: The declaration of that environment, where there is one.
        models: Tells whether this machine can ask the models of an agent. None means that it is not known.
        mcp_commands: The programs that MCP servers may be where no environment is declared. None means not known.
        missing_libraries: The libraries of tools that this machine is known to lack.
    """

    modules: Mapping[str, Module] | None = None
    import_allow: tuple[str, ...] | None = None
    tools: frozenset[str] | None = frozenset()
    functions: frozenset[str] = frozenset()
    environment: str | None = None
    rules: EnvironmentSpec | None = None
    models: ModelCheck | None = None
    mcp_commands: tuple[str, ...] | None = None
    missing_libraries: frozenset[Library] = frozenset()
    middleware: frozenset[str] | None = None


NOTHING_KNOWN = RuleContext()
"""Checks the spec by itself alone."""


MAX_SOURCE = 1_048_576  # characters of one module

OWN_PACKAGES = frozenset({"kneo"})
"""Packages of this program: where they lie in a project's folder, specs cannot name them for that."""

UNKNOWN = Module(complete=False)
"""A module that exists and whose names its source does not show."""


def read_module(source: str, name: str = "", *, is_package: bool = False) -> Module:
    """Return the names a module defines or imports at its top level.

    Args:
        source: The module's source.
        name: Its dotted name; relative imports are resolved with it.
        is_package: Whether it is the ``__init__`` of a package.
    """
    if len(source) > MAX_SOURCE:
        return UNKNOWN
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return UNKNOWN
    package = name if is_package else name.rpartition(".")[0]
    scan = _Scan(package)
    scan.block(body)
    return Module(
        frozenset(scan.names), scan.complete and "__getattr__" not in scan.names, scan.imported, scan.parameters
    )


def imports_of(source: bytes, name: str, *, is_package: bool) -> frozenset[str]:
    """Return every module that a module may import, wherever in its source the import stands.

    ``from a import b`` counts as ``a`` and ``a.b``, which may be a module too. Imports by computed names are not seen; see ``dynamic_imports``.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()  # it cannot be executed either
    package = name if is_package else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = _absolute(node, package)
            found.add(origin)
            found.update(f"{origin}.{alias.name}" for alias in node.names if alias.name != "*")
        elif (stated := _import_call(node)) is not None:
            found.add(stated)
    return frozenset(found - {""})


def dynamic_imports(source: bytes) -> tuple[int, ...]:
    """Return the lines of imports by names that the source does not state."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    return tuple(
        sorted({node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and _import_call(node) == ""})
    )


def _import_call(node: ast.AST) -> str | None:
    """Return the absolute name that a call imports; empty where the source does not state it, ``None`` for other nodes."""
    if not isinstance(node, ast.Call):
        return None
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if called not in {"import_module", "__import__"}:
        return None
    name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
    return name if isinstance(name, str) and not name.startswith(".") else ""


def _absolute(statement: ast.ImportFrom, package: str) -> str:
    if not statement.level:
        return statement.module or ""
    parts = package.split(".")
    base = parts[: len(parts) - statement.level + 1]
    return ".".join([*base, *([statement.module] if statement.module else [])])


class _Scan:
    """Collects what a module's top level binds, through ``if``, ``try`` and ``with``."""

    def __init__(self, package: str) -> None:
        self._package = package
        self.names: set[str] = set()
        self.imported: dict[str, str] = {}
        self.parameters: dict[str, frozenset[str]] = {}
        self.complete = True

    def block(self, body: Sequence[ast.stmt]) -> None:
        for statement in body:
            self._statement(statement)

    def _statement(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self.names.add(statement.name)
            if not isinstance(statement, ast.ClassDef) and not statement.decorator_list:
                self.parameters[statement.name] = _parameters(statement.args)
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                bound = alias.asname or alias.name.partition(".")[0]
                self._import(bound, alias.name if alias.asname else bound)
        elif isinstance(statement, ast.ImportFrom):
            self._from(statement)
        elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
            self._assign(statement)
        else:
            for body in _bodies(statement):
                self.block(body)

    def _assign(self, statement: ast.Assign | ast.AnnAssign | ast.AugAssign) -> None:
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for target in targets:
            self.names |= {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}
        [*_, last] = targets
        value = statement.value
        while isinstance(value, ast.Call) and value.args and _is_wrapper(value.func):
            value = value.args[0]
        if isinstance(value, ast.Name | ast.Attribute) and isinstance(last, ast.Name):
            origin = self._origin(value)
            if origin is not None:
                self.imported[last.id] = origin

    def _origin(self, value: ast.expr) -> str | None:
        """Follow ``name.attribute`` to what an import bound."""
        parts: list[str] = []
        while isinstance(value, ast.Attribute):
            parts.append(value.attr)
            value = value.value
        if not isinstance(value, ast.Name):
            return None
        root = self.imported.get(value.id)
        return ".".join([root, *reversed(parts)]) if root is not None else None

    def _from(self, statement: ast.ImportFrom) -> None:
        origin = _absolute(statement, self._package)
        for alias in statement.names:
            if alias.name == "*":
                self.complete = False
            else:
                self._import(alias.asname or alias.name, f"{origin}.{alias.name}")

    def _import(self, bound: str, origin: str) -> None:
        self.names.add(bound)
        self.imported[bound] = origin


def _parameters(stated: ast.arguments) -> frozenset[str]:
    """Return the names of the parameters that a function declares."""
    return frozenset(each.arg for each in (*stated.posonlyargs, *stated.args, *stated.kwonlyargs))


def _is_wrapper(called: ast.expr) -> bool:
    """Tell whether a call returns a callable with the behaviour of its first argument."""
    name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
    return name in {"partial", "cache", "lru_cache"}


def _bodies(statement: ast.stmt) -> Iterator[Sequence[ast.stmt]]:
    if isinstance(statement, ast.If | ast.For | ast.While | ast.Try | ast.With):
        for name in ("body", "orelse", "finalbody"):
            yield getattr(statement, name, [])
    if isinstance(statement, ast.Try):
        for handler in statement.handlers:
            yield handler.body
