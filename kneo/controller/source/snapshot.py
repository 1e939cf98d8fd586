"""Snapshots: the relevant files of one commit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kneo.errors import Invalid, NotFound

ID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SIGNATURE = b"gpgsig"


@dataclass(frozen=True)
class Commit:
    """A commit with its unverified signature."""

    id: str
    tree: str
    parents: frozenset[str]
    at: int | None
    """The committer's date, Unix time."""

    signature: bytes | None
    signed: bytes
    """The signed content: the commit without its signature."""


def parse_commit(commit: str, content: bytes) -> Commit:
    """Parse a commit object.

    Raises:
        Invalid: ``UnsafeTree``: it names no tree, or carries more than one signature.
    """
    head, gap, message = content.partition(b"\n\n")
    fields, signatures = _fields(head)
    trees = [value.decode("ascii", "replace") for name, value in fields if name == b"tree"]
    if len(trees) != 1 or not ID.fullmatch(trees[0]):
        raise _odd(commit, "names no tree")
    if len(signatures) > 1:
        raise _odd(commit, "carries more than one signature")
    signed = b"\n".join(name + b" " + value.replace(b"\n", b"\n ") for name, value in fields)
    return Commit(
        id=commit,
        tree=trees[0],
        parents=frozenset(value.decode("ascii", "replace") for name, value in fields if name == b"parent"),
        at=_time(next((value for name, value in fields if name == b"committer"), b"")),
        signature=signatures[0] if signatures else None,
        signed=signed + gap + message,
    )


def _fields(head: bytes) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    """Parse the headers; a line that begins with a space continues the previous one."""
    fields: list[tuple[bytes, bytes]] = []
    for line in head.split(b"\n"):
        if line.startswith(b" ") and fields:
            name, value = fields[-1]
            fields[-1] = name, value + b"\n" + line[1:]
        else:
            name, _, value = line.partition(b" ")
            fields.append((name, value))
    signatures = [value for name, value in fields if name.startswith(_SIGNATURE)]
    return [item for item in fields if not item[0].startswith(_SIGNATURE)], signatures


def _time(committer: bytes) -> int | None:
    text = committer.split(b" ")[-2:-1]
    return int(text[0]) if text and text[0].isdigit() and len(text[0]) < 12 else None


def _odd(commit: str, why: str) -> Invalid:
    return Invalid(f"The commit {commit} {why}.", code="UnsafeTree", hint="Name a branch.")


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
    """The immutable files of one commit."""

    commit: str
    tree: str
    ref: str
    """The branch, the full name of another kind of ref, or the id of the commit where it was requested by id."""

    files: Mapping[str, Blob]
    """Every file below ``bundles`` and ``environments``, sorted by path."""

    reader: BlobReader = field(repr=False, compare=False)
    committed_at: int | None = None
    """The committer's date, Unix time. For measurements; no decision may rely on it."""

    @property
    def revision(self) -> str:
        """The revision in messages and records: ``main@sha1:<commit>``."""
        named = "" if self.ref == self.commit else f"{self.ref}@"
        return f"{named}{'sha1' if len(self.commit) == 40 else 'sha256'}:{self.commit}"

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Return the content of these files, read by one command.

        Raises:
            NotFound: the snapshot has no such file.
            Invalid: ``LimitExceeded``: together they are too large; ask for fewer.
        """
        names = list(dict.fromkeys(paths))
        missing = [path for path in names if path not in self.files]
        if missing:
            msg = f"{self.revision} has no file {missing[0]}."
            raise NotFound(msg)
        return dict(zip(names, self.reader.read_blobs([self.files[path] for path in names]), strict=True))


def changed_paths(old: SourceSnapshot | None, new: SourceSnapshot) -> frozenset[str]:
    """Return the added, changed and removed files between two snapshots; without an earlier one, all files are added."""
    before: Mapping[str, Blob] = old.files if old is not None else {}
    return frozenset(path for path, _ in before.items() ^ new.files.items())
