"""Modules that specs name, executed from exactly the bytes that were hashed.

Python's own import may execute other bytes than the file that was hashed: a stale ``.pyc``, a package of the same name, a
module of the same name in another folder. Here a module is found once and read once; its digest is that of those bytes, and
an importer before all others compiles those bytes. The modules that it imports from the same folders are read with it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import decode_source, spec_from_file_location
from pathlib import Path
from threading import RLock
from types import CodeType, ModuleType
from typing import TypeAlias

from kneo.digest import Digest, digest_of
from kneo.errors import Invalid
from kneo.spec.modules import OWN_PACKAGES, UNKNOWN, Module, imports_of, read_module

MAX_CLOSURE = 1_000
"""Modules that one module may import from its folders, directly or through others."""

_NEVER_FROM_FOLDERS = OWN_PACKAGES | sys.stdlib_module_names


@dataclass(frozen=True, slots=True)
class ModuleSource:
    """A module and the bytes that it is executed from.

    Attributes:
        name: Its dotted name.
        path: The file, or the folder of a package without a file of its own.
        data: The bytes; ``None`` where there is no file, or where the module was imported before it was looked at.
        digest: Their SHA-256.
        is_package: Whether it holds other modules.
    """

    name: str
    path: Path
    data: bytes | None
    digest: Digest | None
    is_package: bool

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder that only holds modules: no code is executed for it."""
        return self.is_package and self.data is None and self.path.name != "__init__.py"


class _SourceLoader(SourceFileLoader):
    """Executes a module from bytes that were read before."""

    def __init__(self, source: ModuleSource) -> None:
        super().__init__(source.name, str(source.path))
        self.source = source

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002 - the signature of all loaders
        assert self.source.data is not None
        code: CodeType = self.source_to_code(self.source.data, self.path)
        return code


class _SourceFinder(MetaPathFinder):
    """Finds modules whose sources were accepted, before any other finder does."""

    def __init__(self) -> None:
        self.accepted: dict[str, ModuleSource] = {}

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 - the signature of all finders
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        source = self.accepted.get(fullname)
        if source is None:
            return None
        if source.data is None:
            spec = ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = [str(source.path)]
            return spec
        places = [str(source.path.parent)] if source.is_package else None
        return spec_from_file_location(
            fullname, source.path, loader=_SourceLoader(source), submodule_search_locations=places
        )


_finder = _SourceFinder()

lock = RLock()
"""Held while modules are found, checked and accepted: the checked bytes are the accepted ones."""


def accept(sources: Sequence[ModuleSource]) -> None:
    """Have modules executed from these bytes when they are imported."""
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    for source in sources:
        if source.name not in sys.modules and (source.data is not None or source.is_folder):
            _finder.accepted[source.name] = source


def make_importable(roots: Sequence[Path]) -> None:
    """Let code import modules by computed names from these folders, where nothing installed has the name."""
    for root in roots:
        if str(root) not in sys.path:
            sys.path.append(str(root))


def source_of(name: str, roots: Sequence[Path]) -> ModuleSource | None:
    """Return the source that an import of a module executes, or has executed; ``None`` for a module of another folder."""
    if name.partition(".")[0] in _NEVER_FROM_FOLDERS:
        return None
    module = sys.modules.get(name)
    if module is not None:
        return _imported(name, module, roots)
    accepted = _finder.accepted.get(name)
    for root in roots:
        # What was accepted counts where it stands: an earlier folder comes before it.
        if accepted is not None and accepted.path in (_place(root, name), _folder(root, name)):
            return accepted
        if found := _find(root, name):
            return found
    return None


def source_in(name: str, roots: Sequence[Path]) -> ModuleSource | None:
    """Return the source of a module in these folders, independent of what this process has imported; ``None`` for one of another folder."""
    if name.partition(".")[0] in _NEVER_FROM_FOLDERS:
        return None
    return next((found for root in roots if (found := _find(root, name))), None)


def may_be_own(name: str) -> bool:
    """Return whether a module of this name may come from the folders of a project or a bundle."""
    return name.partition(".")[0] not in _NEVER_FROM_FOLDERS


def has_module(root: Path, name: str) -> bool:
    """Return whether a folder has a module of a name."""
    return _place(root, name) is not None


def is_installed(name: str, home: Path | None) -> bool:
    """Return whether a module of an installed package exists that has no source, such as one in C. Nothing is executed.

    Args:
        name: The module.
        home: The folder of its package; ``None`` where there is none.
    """
    if home is None:
        return False
    folder = home.joinpath(*name.split(".")[:-1])
    return PathFinder.find_spec(name, [str(folder)]) is not None


def names_of(source: ModuleSource) -> Module:
    """Return the names that a module has, as far as its source shows them.

    Raises:
        Invalid: ``implementation_invalid``: it is no Python.
    """
    if source.data is None:
        return UNKNOWN
    try:
        ast.parse(source.data)
        text = decode_source(source.data)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        msg = f"The module {source.name} is no Python that can be imported: {type(error).__name__}."
        raise Invalid(msg, code="implementation_invalid") from error
    return read_module(text, source.name, is_package=source.is_package)


FindSource: TypeAlias = Callable[[str, Sequence[Path]], ModuleSource | None]


def closure(
    name: str, roots: Sequence[Path], home: Path | None = None, find: FindSource = source_of
) -> tuple[ModuleSource, ...]:
    """Return a module of these folders with everything that it imports from them, itself first.

    Args:
        name: The module.
        roots: The folders.
        home: One more folder, for modules of the same top-level package only.
        find: Returns the source of a module in folders.

    Raises:
        Invalid: ``implementation_invalid``: there is no end to it.
    """
    found: dict[str, ModuleSource] = {}
    waiting = [name]
    while waiting:
        for each in _with_packages(waiting.pop()):
            if each in found:
                continue
            is_home = home is not None and each.partition(".")[0] == name.partition(".")[0]
            source = find(each, (*roots, home) if is_home and home else roots)
            if source is None:
                continue
            if len(found) == MAX_CLOSURE:
                msg = f"The module {name} imports more than {MAX_CLOSURE} modules of its project."
                raise Invalid(msg, code="implementation_invalid")
            found[each] = source
            if source.data is not None:
                waiting += sorted(imports_of(source.data, each, is_package=source.is_package))
    own = found.pop(name, None)
    if own is None or own.is_folder:
        return ()
    # A folder counts for the modules in it; one that merely has the name of something else that is imported does not.
    files = [each for each, source in (*found.items(), (name, own)) if not source.is_folder]
    used = {package for each in files for package in _with_packages(each)}
    return (own, *(source for each, source in found.items() if each in used))


def _with_packages(name: str) -> Iterator[str]:
    """Yield a module and the packages around it, which are executed first."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        yield ".".join(parts[:length])


def _imported(name: str, module: ModuleType, roots: Sequence[Path]) -> ModuleSource | None:
    loader = getattr(getattr(module, "__spec__", None), "loader", None)
    if isinstance(loader, _SourceLoader):
        return loader.source
    file = getattr(module, "__file__", None)
    if file is None:
        accepted = _finder.accepted.get(name)
        places = list(getattr(module, "__path__", ()))
        return accepted if accepted is not None and places == [str(accepted.path)] else None
    path = Path(file).resolve()
    at = next((found for root in roots if (found := _place(root, name)) and found.resolve() == path), None)
    return ModuleSource(name, at, None, None, at.name == "__init__.py") if at is not None else None


def _find(root: Path, name: str) -> ModuleSource | None:
    place = _place(root, name)
    if place is None:
        folder = _folder(root, name)
        return ModuleSource(name, folder, None, None, is_package=True) if folder.is_dir() else None
    data = place.read_bytes()
    return ModuleSource(name, place, data, digest_of(data), place.name == "__init__.py")


def _folder(root: Path, name: str) -> Path:
    return root.joinpath(*name.split("."))


def _place(root: Path, name: str) -> Path | None:
    """Return the file of a module, a package before a module as Python has it."""
    path = _folder(root, name)
    return next((file for file in (path / "__init__.py", path.with_name(f"{path.name}.py")) if file.is_file()), None)
