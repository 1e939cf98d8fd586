"""Snapshots: the relevant files of one commit, its folders, and the check of their entries.

Trees are read as they are stored, because git's listings normalise odd modes. A folder that did not change since the
last reconciliation is the same object, and is not read again. One entry that is not a plain file under a plain name
refuses the whole tree: a commit with one is a mistake or an attack.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from kneo.controller.source.git import SourceLimits
from kneo.errors import Invalid, NotFound
from kneo.names import visible

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


FOLDERS = ("bundles", "environments")
"""The folders of a repository that are read."""

PLAIN_FILE = "100644"
"""The only mode that is read. No links, which point elsewhere; no programs, which are not needed; no submodules."""

FOLDER = "40000"
PATH_CHARS = 400
DEPTH = 8

_KINDS = {"120000": "a symbolic link", "160000": "a submodule", "100755": "executable"}

# Printable ASCII without spaces: every path is its own normal form in every Unicode and on every file system.
_PART = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9._+:-]{0,199}")
_ENTRY = {size: re.compile(rb"([0-7]{1,7}) ([^\0]+)\0(.{%d})" % size, re.DOTALL) for size in (20, 32)}
"""An entry of a tree object: mode, name and id, which is as long as the repository's hash."""


class Trees(Protocol):
    """A source of tree objects and of the sizes of blobs."""

    def trees(self, ids: Sequence[str]) -> list[bytes]:
        """Return tree objects as they are stored, in order."""
        ...

    def sizes(self, ids: Sequence[str]) -> list[int]:
        """Return the sizes of blobs in bytes, in order."""
        ...


@dataclass(frozen=True)
class Folder:
    """A folder of one commit, with everything below it."""

    id: str
    files: Mapping[str, Blob]
    """Every file below, by its path from the root."""

    folders: Mapping[str, Folder]
    """The subfolders, by their path from the root."""


@dataclass(frozen=True)
class _Listing:
    files: Mapping[str, str]
    folders: Mapping[str, str]


def our_folders(root: bytes, id_bytes: int = 20) -> dict[str, str]:
    """Find the relevant folders in the tree of a commit: ids by name.

    Raises:
        Invalid: ``UnsafeTree``: one of them is not a folder.
    """
    folders: dict[str, str] = {}
    for mode, name, oid in _entries("the root", root, id_bytes):
        if name not in FOLDERS:
            continue
        if mode != FOLDER:
            why = "is a file and must be a folder" if mode == PLAIN_FILE else _of_mode(mode)
            raise _unsafe(name, why)
        if name in folders:
            raise _unsafe(name, "is listed twice")
        folders[name] = oid
    return folders


def read_folders(
    paths: Mapping[str, str], known: Mapping[str, Folder], trees: Trees, limits: SourceLimits, id_bytes: int = 20
) -> dict[str, Folder]:
    """Read folders recursively, level by level, all new ones of a level at once.

    Args:
        paths: Ids of the tree objects, by path.
        known: The same folders at an earlier reconciliation.
        trees: The source of objects.
        limits: The limits.
        id_bytes: The length of the ids of this repository.

    Raises:
        Invalid: ``UnsafeTree`` with the path, or ``LimitExceeded``.
    """
    new = [path for path, oid in paths.items() if path not in known or known[path].id != oid]
    _check_count(len(new), limits)
    contents = dict(zip(new, trees.trees([paths[path] for path in new]), strict=True)) if new else {}
    listings = {path: parse_folder(path, content, id_bytes, known.get(path)) for path, content in contents.items()}
    _check_count(sum(len(listing.files) + len(listing.folders) for listing in listings.values()), limits)
    blobs = _blobs(listings, known, trees, limits)
    below = {path: oid for listing in listings.values() for path, oid in listing.folders.items()}
    before = {path: folder for name in new if name in known for path, folder in known[name].folders.items()}
    inner = read_folders(below, before, trees, limits, id_bytes) if below else {}
    found = {path: known[path] for path in paths if path not in listings}
    for path, listing in listings.items():
        folders = {name: inner[name] for name in listing.folders}
        files = {name: blobs[name] for name in listing.files}
        for folder in folders.values():
            files.update(folder.files)
        _check_count(len(files), limits)
        found[path] = Folder(paths[path], files, folders)
    return found


def all_files(folders: Mapping[str, Folder], limits: SourceLimits) -> Mapping[str, Blob]:
    """Return every file of some folders, sorted by path.

    Raises:
        Invalid: ``LimitExceeded``.
    """
    files: dict[str, Blob] = {}
    for folder in folders.values():
        files.update(folder.files)
    _check_count(len(files), limits)
    return MappingProxyType(dict(sorted(files.items())))


def parse_folder(path: str, content: bytes, id_bytes: int = 20, known: Folder | None = None) -> _Listing:
    """Parse one tree object.

    Args:
        path: The folder's path.
        content: The object.
        id_bytes: The length of the ids of this repository.
        known: The same folder at an earlier reconciliation, whose names were checked then.

    Raises:
        Invalid: ``UnsafeTree`` with the path.
    """
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    names: dict[str, str] = {}
    for mode, name, oid in _entries(path, content, id_bytes):
        full = f"{path}/{name}"
        if known is None or not (full in known.folders or full in known.files):
            _check_name(full, name)
        other = names.get(name.casefold())
        if other == name:
            raise _unsafe(full, "is listed twice")
        if other is not None:
            raise _unsafe(full, f"differs from {path}/{other} only in upper and lower case")
        names[name.casefold()] = name
        if mode == FOLDER:
            folders[full] = oid
        elif mode == PLAIN_FILE:
            files[full] = oid
        else:
            raise _unsafe(full, _of_mode(mode))
    return _Listing(files, folders)


def _entries(path: str, content: bytes, id_bytes: int) -> Iterator[tuple[str, str, str]]:
    """Yield mode, name and id of each entry of a tree object."""
    entry, at = _ENTRY[id_bytes], 0
    while at < len(content):
        match = entry.match(content, at)
        if match is None:
            raise _unsafe(path, "is a folder with an invalid entry")
        mode, name, oid = match.groups()
        yield mode.decode("ascii"), name.decode(errors="backslashreplace"), oid.hex()
        at = match.end()


def _blobs(
    listings: Mapping[str, _Listing], known: Mapping[str, Folder], trees: Trees, limits: SourceLimits
) -> dict[str, Blob]:
    """Return the size of every file of some folders; only new files are requested."""
    blobs: dict[str, Blob] = {}
    new: dict[str, str] = {}
    for path, listing in listings.items():
        before = known[path].files if path in known else {}
        for name, oid in listing.files.items():
            old = before.get(name)
            if old is not None and old.id == oid:
                blobs[name] = old
            else:
                new[name] = oid
    for (name, oid), size in zip(new.items(), trees.sizes(list(new.values())), strict=True):
        blobs[name] = Blob(oid, size)
        if size > limits.blob_bytes:
            raise too_large(name, limits)
    return blobs


def too_large(path: str, limits: SourceLimits) -> Invalid:
    """Return the error of a file that is larger than the limit."""
    msg = f"{path} is larger than {limits.blob_bytes} bytes."
    return Invalid(msg, code="LimitExceeded", hint="Bundles and environment files have to be smaller.")


def _check_name(path: str, name: str) -> None:
    plain = _PART.fullmatch(name) and name not in {".", ".."} and name.casefold() != ".git"
    if not plain or len(path) > PATH_CHARS:
        raise _unsafe(path, "has a name that is not allowed; use letters, digits and . _ + : - only")
    if path.count("/") >= DEPTH:
        raise _unsafe(path, f"is more than {DEPTH} folders deep")


def _check_count(count: int, limits: SourceLimits) -> None:
    if count > limits.files:
        msg = f"There are more than {limits.files} files below {' and '.join(FOLDERS)}."
        raise Invalid(msg, code="LimitExceeded", hint="Remove versions that no environment names any more.")


def _of_mode(mode: str) -> str:
    what = _KINDS.get(mode, f"of mode {mode}")
    return f"is {what}; only plain files (mode {PLAIN_FILE}) are read"


def _unsafe(path: str, why: str) -> Invalid:
    shown = visible(path[:200])
    return Invalid(f"{shown} {why}.", code="UnsafeTree", hint="Remove it from the repository.", path=shown)
