"""A watch on the branches of a local repository. A hint: the interval finds new commits too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

QUIET = frozenset({"opened", "closed_no_write"})
"""Events that reading causes; a fetch from the repository must not trigger the next one."""


class _OnRefChange(FileSystemEventHandler):
    def __init__(self, poke: Callable[[], None]) -> None:
        self.poke = poke

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type not in QUIET and not str(event.src_path).endswith(".lock"):
            self.poke()


def git_dir(repository: Path) -> Path | None:
    """Return the folder of refs of a local repository; ``None`` when it is not one."""
    for folder in (repository / ".git", repository):
        if (folder / "refs").is_dir() and (folder / "HEAD").is_file():
            return folder
    return None


@contextlib.contextmanager
def watching(repository: Path, poke: Callable[[], None]) -> Iterator[None]:
    """Call ``poke`` soon after a branch of a local repository moved."""
    folder = git_dir(repository)
    if folder is None:
        yield
        return
    observer = Observer()
    handler = _OnRefChange(poke)
    observer.schedule(handler, str(folder / "refs"), recursive=True)
    observer.start()
    try:
        yield
    finally:
        observer.stop()
        observer.join()
