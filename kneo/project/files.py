"""Files and Python modules of a project that a spec can refer to: confined to the project, read and never imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kneo.spec.base import MAX_TEXT
from kneo.spec.modules import MAX_SOURCE, UNKNOWN, Module, read_module
from kneo.spec.reading.inline import MAX_SKILL_DEPTH, MAX_SKILL_FILES

_EXTENSIONS = (".so", ".pyd")


def is_hidden(path: Path, root: Path) -> bool:
    """Return whether a path below a root has a part that begins with a dot."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


class SpecFiles:
    """Files that a spec names by a path relative to its own folder, or to the project's root.

    Files outside the project are never read: ``..`` and links are resolved first, and their target is checked. Hidden
    files, whose name or folder begins with a dot, are not read either: they hold keys, databases, ``.env`` and the
    configuration of Git.

    Args:
        folder: The folder of the spec.
        root: The project's root. A spec outside the project has its own folder as root.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self._folder = folder.resolve()
        resolved = root.resolve()
        self._root = resolved if self._folder.is_relative_to(resolved) else self._folder

    def text(self, path: str) -> str | None:
        """Return a file's text; None where the file does not exist, may not be read, or is not text."""
        found = self._inside(path)
        if found is None or not found.is_file():
            return None
        try:
            with found.open("rb") as file:
                data = file.read(4 * MAX_TEXT + 1)
            text = data.decode("utf-8")
        except (OSError, UnicodeDecodeError):
            return None
        return text if len(text) <= MAX_TEXT and "\0" not in text else None

    def names(self, path: str) -> tuple[str, ...] | None:
        """Return the paths of the files below a folder; None where the folder does not exist."""
        folder = self._inside(path)
        if folder is None or not folder.is_dir():
            return None
        names: list[str] = []
        for found, folders, files in os.walk(folder):
            base = Path(found).relative_to(folder)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if len(base.parts) >= MAX_SKILL_DEPTH:
                folders.clear()
            names += [(base / name).as_posix() for name in files if not name.startswith(".")]
            if len(names) > MAX_SKILL_FILES:
                break
        return tuple(sorted(names))

    def _inside(self, path: str) -> Path | None:
        for base in dict.fromkeys((self._folder, self._root)):
            try:
                target = (base / path).resolve()
                if target.is_relative_to(self._root) and not is_hidden(target, self._root) and target.exists():
                    return target
            except (OSError, ValueError, RuntimeError):  # A NUL in the name, a name that is too long, a cycle of links.
                continue
        return None


class ModuleFiles(Mapping[str, Module]):
    """Modules below some folders, by dotted name.

    Args:
        roots: Folders of modules, in the order of the search.
        allow: Prefixes of modules that may also be anywhere on Python's path.
    """

    def __init__(self, roots: Sequence[Path], allow: Sequence[str] = ()) -> None:
        self._roots = tuple(roots)
        self._allow = tuple(allow)
        self._known: dict[str, Module | None] = {}

    def __getitem__(self, name: str) -> Module:
        if name not in self._known:
            self._known[name] = self._find(name)
        module = self._known[name]
        if module is None:
            raise KeyError(name)
        return module

    def __iter__(self) -> Iterator[str]:
        """Yield the requested modules that exist; there is no list of all of them."""
        return (name for name, module in self._known.items() if module is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _find(self, name: str) -> Module | None:
        parts = name.split(".")
        if not all(part.isidentifier() for part in parts):
            return None
        for root in self._folders(name):
            module = _module_at(root.joinpath(*parts), name)
            if module is not None:
                return module
        if self._is_allowed(name) and name in sys.builtin_module_names:
            return UNKNOWN
        return None

    def _folders(self, name: str) -> Iterator[Path]:
        yield from self._roots
        if self._is_allowed(name):
            yield from (Path(entry) for entry in sys.path if entry and Path(entry).is_dir())

    def _is_allowed(self, name: str) -> bool:
        return any(name == prefix or name.startswith(f"{prefix}.") for prefix in self._allow)


def _module_at(path: Path, name: str) -> Module | None:
    package = path / "__init__.py"
    if package.is_file():
        return _read(package, name, is_package=True)
    source = path.with_name(f"{path.name}.py")
    if source.is_file():
        return _read(source, name, is_package=False)
    compiled = (each for suffix in _EXTENSIONS for each in path.parent.glob(f"{path.name}*{suffix}"))
    if any(each.name.partition(".")[0] == path.name for each in compiled):
        return UNKNOWN
    return None


def _read(path: Path, name: str, *, is_package: bool) -> Module:
    try:
        with path.open("rb") as file:
            data = file.read(4 * MAX_SOURCE)
        return read_module(data.decode("utf-8"), name, is_package=is_package)
    except (OSError, UnicodeDecodeError):
        return UNKNOWN
