"""The files of one commit that matter to us, and nothing else of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kneo.errors import NotFound


class BlobReader(Protocol):
    def read_blobs(self, blobs: Sequence[Blob]) -> list[bytes]:
        """Return the content of these blobs, in order."""
        ...


@dataclass(frozen=True)
class Blob:
    id: str
    size: int


@dataclass(frozen=True)
class SourceSnapshot:
    """One commit's files, as they were and will be."""

    commit: str
    tree: str
    ref: str
    """The branch, the full name of another kind of ref, or the commit itself when it was asked for by its id."""

    files: Mapping[str, Blob]
    """Every file below ``bundles`` and ``environments``, sorted by path."""

    reader: BlobReader = field(repr=False, compare=False)
    committed_at: int | None = None
    """When the committer says the commit was made, Unix time. For measuring; nothing that decides may believe it."""

    @property
    def revision(self) -> str:
        """What was looked at, for people and records: ``main@sha1:<commit>``."""
        named = "" if self.ref == self.commit else f"{self.ref}@"
        return f"{named}{'sha1' if len(self.commit) == 40 else 'sha256'}:{self.commit}"

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Return the content of these files, all by one command.

        Raises:
            NotFound: the snapshot has no such file.
            Invalid: ``LimitExceeded``: together they are too large; ask for fewer.
        """
        wanted = list(dict.fromkeys(paths))
        missing = [path for path in wanted if path not in self.files]
        if missing:
            msg = f"{self.revision} has no file {missing[0]}."
            raise NotFound(msg)
        return dict(zip(wanted, self.reader.read_blobs([self.files[path] for path in wanted]), strict=True))


def changed_paths(old: SourceSnapshot | None, new: SourceSnapshot) -> frozenset[str]:
    """Say which files were added, changed or removed between two snapshots; from nothing, all of them."""
    before: Mapping[str, Blob] = old.files if old is not None else {}
    return frozenset(path for path, _ in before.items() ^ new.files.items())
