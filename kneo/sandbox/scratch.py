"""The removal of scratch folders, whatever a sandbox left in them. The standard library alone: the launcher imports it."""

from __future__ import annotations

import os
from contextlib import suppress


def remove_folder(path: str) -> None:
    """Remove a folder and all in it, however deep it is, and also where permissions hide a part of it."""
    folders = [path]
    with suppress(OSError):
        os.chmod(path, 0o700)
    for folder in folders:
        for entry in _entries(folder):
            with suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    # Next to the others: the path of a folder below it could be longer than paths may be.
                    os.chmod(entry.path, 0o700)
                    os.rename(entry.path, moved := f"{path}/{os.urandom(8).hex()}")
                    folders.append(moved)
                else:
                    os.unlink(entry.path)
    for folder in reversed(folders):
        with suppress(OSError):
            os.rmdir(folder)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []
