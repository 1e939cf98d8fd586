"""Files that a spec can refer to, confined to its project."""

from __future__ import annotations

from pathlib import Path

from kneo.spec.base import MAX_TEXT


def is_hidden(path: Path, root: Path) -> bool:
    """Tell whether a path below a root has a part that begins with a dot."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


class SpecFiles:
    """Files that a spec names by a path relative to its own folder, or to the project's root.

    Files outside the project are never read: ``..`` and links are followed first, and their target is checked. Hidden
    files, whose name or folder begins with a dot, are not read either: they hold keys, databases, ``.env`` and the
    configuration of Git.

    Args:
        folder: Where the spec is.
        root: The project's root. A spec outside the project has its own folder as root.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self._folder = folder.resolve()
        resolved = root.resolve()
        self._root = resolved if self._folder.is_relative_to(resolved) else self._folder

    def text(self, path: str) -> str | None:
        """Return a file's text; None where there is none that may be read, or it is not text."""
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
        """Return the names of the files in a folder, sorted; None where there is no such folder."""
        found = self._inside(path)
        if found is None or not found.is_dir():
            return None
        try:
            return tuple(sorted(each.name for each in found.iterdir() if each.is_file()))
        except OSError:
            return None

    def _inside(self, path: str) -> Path | None:
        for base in dict.fromkeys((self._folder, self._root)):
            try:
                found = (base / path).resolve()
                if found.is_relative_to(self._root) and not is_hidden(found, self._root) and found.exists():
                    return found
            except (OSError, ValueError, RuntimeError):  # a NUL in the name, a name too long, links in a circle
                continue
        return None
