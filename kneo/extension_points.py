"""Extension points: what installed packages add to Kneo. Entry points name it, and it is imported where it is used.

An extension is an entry point in the group ``kneo.extensions.POINT``. Its object is the frozen record of that point, such as
``kneo.notify.channels.ChannelKind``. Kneo's own extensions and those of other packages are the same to this module.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Generic, TypeVar

from kneo.distribution import install_extra
from kneo.errors import Invalid

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

R = TypeVar("R")

PREFIX = "kneo.extensions."

PATH = tuple(sys.path)
"""The path of modules when Kneo was imported. Folders of projects, which are added to it later, add no extensions."""

_WORD = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

MAX_NAME_CHARS = 60


class ExtensionFailed(Invalid):
    """An installed extension that cannot be used."""

    default_code = "extension_failed"


@dataclass(frozen=True, kw_only=True)
class Extension:
    """An installed extension.

    Attributes:
        point: The name of its point.
        name: The name by which it is used.
        target: The object: ``module:attribute``.
        distribution: The installed package that adds it, with its version.
    """

    point: str
    name: str
    target: str
    distribution: str

    def __str__(self) -> str:
        """Return the entry point, and the package that has it."""
        return f"{PREFIX}{self.point}: {self.name} = {self.target} of {self.distribution}"


class Point(Generic[R]):
    """A point at which extensions add something.

    Args:
        name: The name of the point.
        record: The class of the objects that its entry points name.
        own: The names that the core uses at this point.
        paths: Whether a name may be a path of several, with dots between them.
    """

    def __init__(self, name: str, record: type[R], own: Collection[str] = (), *, paths: bool = False) -> None:
        self.name = name
        self.paths = paths
        self.record = record
        self.own = frozenset(own)

    def names(self) -> Sequence[str]:
        """List the names of the extensions that can be used, as far as is known without an import of one."""
        return [name for name, found in _installed(self.name).items() if not self._problem(name, found)]

    def has(self, name: str) -> bool:
        """Return whether an extension with this name is installed."""
        return name in _installed(self.name)

    def load(self, name: str) -> R:
        """Import an installed extension.

        Raises:
            ExtensionFailed: it cannot be imported, is no record of this point, or its name is refused.
            KeyError: none is installed.
        """
        found = _installed(self.name)[name]
        if problem := self._problem(name, found):
            raise ExtensionFailed(problem, hint="Uninstall the package, or ask its authors.")
        try:
            record: object = found[0].load()
        except Exception as error:
            msg = f"An extension cannot be loaded: {_extension(found[0])}: {type(error).__name__}: {error}"
            raise ExtensionFailed(msg, hint="Install what the package needs, or uninstall it.") from error
        if not isinstance(record, self.record):
            msg = f"An extension is no {self.record.__name__}: {_extension(found[0])}: {type(record).__name__}."
            raise ExtensionFailed(msg, hint="Uninstall the package, or ask its authors.")
        return record

    def load_all(self) -> Mapping[str, R]:
        """Import all installed extensions, in the order of their names.

        Raises:
            ExtensionFailed: as ``load`` does.
        """
        return {name: self.load(name) for name in _installed(self.name)}

    def check(self) -> Mapping[Extension, str]:
        """Load every extension of this point; return each with its problem, empty where it has none."""
        problems: dict[Extension, str] = {}
        for name, found in _installed(self.name).items():
            try:
                self.load(name)
                problem = ""
            except ExtensionFailed as error:
                problem = error.message
            problems |= {_extension(each): problem for each in found}
        return problems

    def _problem(self, name: str, found: Sequence[EntryPoint]) -> str:
        listed = " and ".join(str(_extension(each)) for each in found)
        if not all(map(is_name, name.split(".") if self.paths else [name])):
            return f"The name of an extension is not valid: {listed}."
        if name in self.own:
            return f"An extension has a name of Kneo: {listed}."
        if len(found) > 1:
            return f"Two extensions have one name, and neither is used: {listed}."
        return ""


def is_name(text: str) -> bool:
    """Return whether a text is the name of an extension, or a part of a path."""
    return len(text) <= MAX_NAME_CHARS and _WORD.fullmatch(text) is not None


def list_points() -> Sequence[str]:
    """List the points for which a package is installed, whether Kneo has them or not."""
    return list(_scan())


def list_extensions(point: str) -> Sequence[Extension]:
    """List the extensions of a point without an import of one."""
    return [_extension(each) for found in _installed(point).values() for each in found]


def import_target(target: str) -> object:
    """Import what a record names as ``module:attribute``."""
    module, _, attribute = target.partition(":")
    found: object = getattr(importlib.import_module(module), attribute)
    return found


def import_with_extra(module: str, extra: str, purpose: str, code: str | None = None) -> ModuleType:
    """Import a module of Kneo that needs a library which an extra installs.

    Args:
        module: The module.
        extra: The extra.
        purpose: What needs the library, as the subject of a sentence.
        code: The code of the error; without one ``EXTRA_not_installed``.

    Raises:
        Invalid: the library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "kneo":
            raise
        msg = f"{purpose} needs a package that is not installed here."
        hint = f"Install it: {install_extra(extra)}."
        raise Invalid(msg, code=code or f"{extra}_not_installed", hint=hint) from None


@cache
def _scan() -> Mapping[str, Mapping[str, Sequence[EntryPoint]]]:
    """Read the entry points of all installed packages once: point → name → entry points, in the order of their names."""
    from importlib.metadata import distributions  # takes as long as a small command

    entries: dict[str, list[EntryPoint]] = {}
    for distribution in distributions(path=[*PATH]):
        added = [each for each in distribution.entry_points if each.group.startswith(PREFIX)]
        if added:
            # Of two copies of one package, Python imports the first of the path.
            entries.setdefault(distribution.name, added)
    found: dict[str, dict[str, list[EntryPoint]]] = {}
    for each in sorted((one for added in entries.values() for one in added), key=lambda one: (one.name, one.value)):
        found.setdefault(each.group.removeprefix(PREFIX), {}).setdefault(each.name, []).append(each)
    return found


def _installed(point: str) -> Mapping[str, Sequence[EntryPoint]]:
    return _scan().get(point, {})


def _extension(entry: EntryPoint) -> Extension:
    distribution = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "an unknown package"
    return Extension(
        point=entry.group.removeprefix(PREFIX), name=entry.name, target=entry.value, distribution=distribution
    )
