"""What git says is in a tree, and whether we are willing to look at it.

One entry that is not a plain file under a plain name refuses the whole tree: a commit that carries one is somebody's mistake
or somebody's attack, and either way a person should look at it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from controller.source.limits import SourceLimits
from controller.source.snapshot import Blob
from kneo.errors import Invalid

FOLDERS = ("bundles", "environments")
"""The only parts of a repository that are looked at."""

PLAIN_FILE = "100644"
"""The only mode read. Not links, which point elsewhere; not programs, which nothing here needs; not submodules."""

FOLDER = "040000"
PATH_CHARS = 400
DEPTH = 8

_KINDS = {"120000": "a symbolic link", "160000": "a submodule", "100755": "executable"}

# Printable ASCII without spaces: so every path is its own normal form in every Unicode and on every file system.
_PART = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9._+:-]{0,199}")
_ENTRY = re.compile(rb"([0-9]{6}) ([a-z]+) ([0-9a-f]{40}|[0-9a-f]{64}) +(-|BAD|[0-9]+)\t(.+)", re.DOTALL)


@dataclass(frozen=True)
class Tree:
    files: Mapping[str, Blob]
    """Every file, sorted by path."""

    folders: tuple[str, ...]
    """Ids of the tree objects that hold them."""


def parse_tree(listing: bytes, limits: SourceLimits) -> Tree:
    """Read what ``git ls-tree -r -t -z -l`` says.

    Raises:
        Invalid: ``UnsafeTree`` with the path, or ``LimitExceeded``.
    """
    files: dict[str, Blob] = {}
    folders: set[str] = set()
    spelled: dict[str, str] = {}
    for entry in listing.split(b"\0")[:-1]:
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise _unsafe(repr(entry[:100]), "is an entry git should not have listed")
        mode, kind, oid, size, path = (part.decode(errors="backslashreplace") for part in match.groups())
        _check_name(path)
        _check_spelling(path, spelled)
        if (mode, kind) == (FOLDER, "tree"):
            folders.add(oid)
            continue
        _check_file(path, mode, kind)
        if path in files:
            raise _unsafe(path, "is listed twice")
        files[path] = Blob(oid, _size(path, size, limits))
        if len(files) > limits.files:
            msg = f"There are more than {limits.files} files below {' and '.join(FOLDERS)}."
            raise Invalid(msg, code="LimitExceeded", hint="Remove versions that no environment names any more.")
    return Tree(MappingProxyType(dict(sorted(files.items()))), tuple(sorted(folders)))


def check_modes(trees: Iterable[bytes], id_bytes: int = 20) -> None:
    """Check the modes as they stand in the tree objects themselves; git's listings show odd ones mended.

    Raises:
        Invalid: ``UnsafeTree``.
    """
    plain = {PLAIN_FILE.encode(), FOLDER.lstrip("0").encode()}
    for tree in trees:
        at = 0
        while at < len(tree):
            space, end = tree.find(b" ", at), tree.find(b"\0", at)
            mode, name = tree[at:space], tree[space + 1 : end].decode(errors="backslashreplace")
            if not at < space < end or mode not in plain:
                raise _unsafe(name, f"has the mode {mode[:10].decode(errors='replace')}; only {PLAIN_FILE} is read")
            at = end + 1 + id_bytes


def _check_name(path: str) -> None:
    parts = path.split("/")
    plain = all(_PART.fullmatch(part) and part not in {".", ".."} and part.casefold() != ".git" for part in parts)
    if not plain or len(path) > PATH_CHARS or parts[0] not in FOLDERS:
        raise _unsafe(path, "is not a name we read; use letters, digits and . _ + : - only")
    if len(parts) > DEPTH:
        raise _unsafe(path, f"is more than {DEPTH} folders deep")


def _check_file(path: str, mode: str, kind: str) -> None:
    if mode != PLAIN_FILE or kind != "blob":
        what = _KINDS.get(mode, f"of mode {mode}")
        raise _unsafe(path, f"is {what}; only plain files (mode {PLAIN_FILE}) are read")
    if path in FOLDERS:
        raise _unsafe(path, "is a file and must be a folder")


def _check_spelling(path: str, spelled: dict[str, str]) -> None:
    """Refuse two names, of files or of folders, that some file systems and most readers take for one."""
    known = spelled.setdefault(path.casefold(), path)
    if known != path:
        raise _unsafe(path, f"differs from {known} only in upper and lower case")


def _size(path: str, text: str, limits: SourceLimits) -> int:
    if text.isdigit() and int(text) <= limits.blob_bytes:
        return int(text)
    # A blob over the limit was not even fetched when the host can filter; git then has no size to show.
    msg = f"{path} is larger than {limits.blob_bytes} bytes."
    raise Invalid(msg, code="LimitExceeded", hint="A bundle or environment file is never that large.")


def _unsafe(path: str, why: str) -> Invalid:
    shown = "".join(letter if letter.isprintable() else "?" for letter in path[:200])
    return Invalid(f"{shown} {why}.", code="UnsafeTree", hint="Remove it from the repository.", path=shown)
