"""A repository's objects, written past everything that git would check."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path


class RawObjects:
    """The objects of a repository that somebody else controls, down to their bytes."""

    def __init__(self, git_dir: Path) -> None:
        self.git_dir = git_dir

    def put(self, kind: str, content: bytes) -> str:
        """Store an object without anybody checking what it is."""
        data = kind.encode() + b" %d\0" % len(content) + content
        name = hashlib.sha1(data).hexdigest()
        file = self.git_dir / "objects" / name[:2] / name[2:]
        file.parent.mkdir(exist_ok=True)
        if not file.exists():
            file.write_bytes(zlib.compress(data))
        return name

    def tree(self, *entries: tuple[str, bytes, str]) -> str:
        return self.put(
            "tree", b"".join(mode.encode() + b" " + name + b"\0" + bytes.fromhex(oid) for mode, name, oid in entries)
        )

    def point(self, tree: str, parents: Sequence[str], ref: str = "refs/heads/main") -> str:
        """Make a ref a commit of this tree."""
        who = "a <a@example.org> 1700000000 +0000"
        above = "".join(f"parent {parent}\n" for parent in parents)
        commit = self.put("commit", f"tree {tree}\n{above}author {who}\ncommitter {who}\n\nhostile\n".encode())
        (self.git_dir / ref).write_text(commit + "\n")
        return commit
