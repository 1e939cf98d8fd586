"""Rules for implementations: the code that ``implementation`` may name, found in an index of modules, never imported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from kneo.spec.base import quote
from kneo.spec.documents import Diagnostic, Path, error
from kneo.spec.index import SpecIndex
from kneo.spec.modules import OWN_PACKAGES, Module, RuleContext

DENIED_PREFIXES = (
    "builtins.",
    "code.",
    "codeop.",
    "ctypes.",
    "fcntl.",
    "importlib.",
    "io.",
    "marshal.",
    "mmap.",
    "multiprocessing.",
    "nt.",
    "os.",
    "pathlib.",
    "pdb.",
    "pickle.",
    "platform.",
    "posix.",
    "pty.",
    "runpy.",
    "shutil.",
    "signal.",
    "socket.",
    "subprocess.",
    "sys.",
    "tty.",
)
"""Modules whose functions act on the operating system: the published list and its aliases."""

DENIED_NAMES = frozenset({"eval", "exec", "open", "compile", "__import__", "breakpoint"})

MAX_HOPS = 8
"""Re-exports that are followed from an implementation to where it is defined."""

_Reach: TypeAlias = tuple[str, Path, str]


def unsafe_imports(index: SpecIndex) -> Iterator[Diagnostic]:
    """Implementations are not primitives of the operating system, by any name.

    The deny list reports obvious mistakes; the allow list of the context is what refuses.
    """
    for what, path, dotted in _all(index):
        if is_unsafe(dotted, index.context):
            message = f"{quote(dotted)} gives the {what} access to the operating system."
            hint = "Write a function of your own that does exactly what is needed, and name that."
            code = "E_UNSAFE_TOOL_IMPORT" if what == "tool" else "E_UNSAFE_FUNCTION_IMPORT"
            yield error(code, message, path, suggestion=hint)


def implementations(index: SpecIndex) -> Iterator[Diagnostic]:
    """Implementations exist and are allowed, where the context has modules and prefixes."""
    for _, path, dotted in _all(index):
        if not is_unsafe(dotted, index.context):
            yield from _reachable(path, dotted, index.context)


def _all(index: SpecIndex) -> Iterator[_Reach]:
    for name, tool in index.spec.tools.items():
        if tool.implementation is not None:
            yield "tool", ("tools", name, "implementation"), tool.implementation
    for name, function in index.spec.components.functions.items():
        yield "function", ("components", "functions", name, "implementation"), function.implementation


def is_unsafe(dotted: str, context: RuleContext) -> bool:
    """Tell whether a dotted name, or its origin in the index of modules, is on the deny list."""
    if _denied(dotted):
        return True
    target = resolve(dotted, context)
    return target is not None and any(_denied(hop) for hop in target.hops)


def _denied(dotted: str) -> bool:
    return dotted in DENIED_NAMES or f"{dotted}.".startswith(DENIED_PREFIXES)


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a dotted name.

    Attributes:
        module: The module that defines it, or the last one known.
        missing: The attribute that module does not have.
        hops: The dotted names of the re-exports on the way.
    """

    module: str
    missing: str | None = None
    hops: tuple[str, ...] = ()


def resolve(dotted: str, context: RuleContext) -> Target | None:
    """Follow a dotted name through the index of modules; None where no part of it is a known module."""
    hops: list[str] = []
    found: Target | None = None
    for _ in range(MAX_HOPS):
        parts = _split(dotted, context)
        if parts is None:
            return found
        module, known, attribute, rest = parts
        found = Target(module, None, tuple(hops))
        if not attribute:
            return found
        origin = known.imported.get(attribute)
        if origin is None:
            lacks = known.complete and attribute not in known.names
            return Target(module, attribute if lacks else None, tuple(hops))
        dotted = f"{origin}.{rest}" if rest else origin
        hops.append(dotted)
        found = Target(module, None, tuple(hops))
    return found


def parameters_of(dotted: str, context: RuleContext) -> frozenset[str] | None:
    """Return the parameters of the function that a dotted name reaches; None where they are not known."""
    target = resolve(dotted, context)
    if target is None or target.missing is not None:
        return None
    parts = _split(target.hops[-1] if target.hops else dotted, context)
    if parts is None:
        return None
    _, known, attribute, rest = parts
    return known.parameters.get(attribute) if not rest else None


def _split(dotted: str, context: RuleContext) -> tuple[str, Module, str, str] | None:
    """Split a dotted name into the longest known module, its attribute, and the rest."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        module = context.modules.get(name) if context.modules is not None else None
        if module is not None:
            attribute, *rest = parts[length:] or [""]
            return name, module, attribute, ".".join(rest)
    return None


def _reachable(path: Path, dotted: str, context: RuleContext) -> Iterator[Diagnostic]:
    parts = dotted.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        message = f"{quote(dotted)} is no dotted path of a Python callable."
        yield error("E_IMPORT_PATH", message, path, suggestion="Write package.module.name.")
        return
    is_own = context.modules is not None and context.import_allow is None and parts[0] in OWN_PACKAGES
    if is_own or not _allowed(dotted, context.import_allow):
        yield _refused(path, dotted, dotted, context)
        return
    if context.modules is None:
        return
    target = resolve(dotted, context)
    if target is None or target.module == dotted:
        module = dotted if target else dotted.rpartition(".")[0]
        what = "is a module, not something in it" if target else "is in no module that can be found"
        hint = (
            f"Check the spelling of {module}; modules are looked for under the project root and the allowed prefixes."
        )
        yield error("E_IMPORT_MODULE", f"{dotted} {what}.", path, suggestion=hint)
    elif target.missing is not None:
        message = f"The module {target.module} has no {target.missing}."
        yield error("E_IMPORT_ATTRIBUTE", message, path, suggestion=f"Define {target.missing} in {target.module}.")
    else:
        yield from _foreign(path, dotted, target, context)


def _foreign(path: Path, dotted: str, target: Target, context: RuleContext) -> Iterator[Diagnostic]:
    """Refuse code that is not allowed behind the name of an allowed module."""
    for hop in target.hops:
        known = _split(hop, context) is not None
        if not (_allowed(hop, context.import_allow) if context.import_allow is not None else known):
            yield _refused(path, dotted, hop, context)
            return


def _allowed(dotted: str, allow: tuple[str, ...] | None) -> bool:
    return allow is None or any(dotted.startswith(f"{prefix}.") for prefix in allow)


def _refused(path: Path, dotted: str, origin: str, context: RuleContext) -> Diagnostic:
    through = "" if dotted == origin else f", which is {origin}"
    allowed = ", ".join(context.import_allow or ()) or "what is found under the project root"
    message = f"{dotted}{through} may not be imported here; allowed: {allowed}."
    hint = "Move the function into an allowed module, or have the operator allow its module."
    return error("E_IMPORT_NOT_ALLOWED", message, path, suggestion=hint)
