"""The trust roots that this machine has pinned, by repository.

A pin must not come from the repository that it verifies. ``kneo init`` created the first root and so knows it; this
file stores the pin in the operator's home, outside the repository.
"""

from __future__ import annotations

import json
from pathlib import Path

from kneo.cli.files import PRIVATE_FILE, read_bytes, write_whole
from kneo.digest import Digest, parse_digest
from kneo.errors import Invalid, NotFound
from kneo.spec.reading.reader import read_json

MAX_BYTES = 1_048_576


class KnownRoots:
    """The pins of one file, by default ``~/.kneo_serv/known_roots.json``.

    Args:
        path: The file; it may be missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def lookup(self, repository: Path) -> Digest | None:
        """Return the pinned first root of a repository; None without a pin.

        Raises:
            Invalid: the file is damaged; a damaged pin is not treated as missing.
        """
        text = self._read().get(_key(repository))
        return None if text is None else parse_digest(text)

    def remember(self, repository: Path, digest: Digest) -> None:
        """Pin a repository's first root, in place of an earlier pin.

        Raises:
            Invalid: the file is damaged or cannot be written.
        """
        known = {**self._read(), _key(repository): digest}
        write_whole(self._path, json.dumps(known, indent=2, sort_keys=True).encode() + b"\n", mode=PRIVATE_FILE)

    def forget(self, repository: Path) -> None:
        """Remove a repository's pin."""
        known = self._read()
        if known.pop(_key(repository), None) is not None:
            write_whole(self._path, json.dumps(known, indent=2, sort_keys=True).encode() + b"\n", mode=PRIVATE_FILE)

    def _read(self) -> dict[str, str]:
        try:
            data = read_bytes(self._path, max_bytes=MAX_BYTES, what="list of known trust roots")
        except NotFound:
            return {}
        value = read_json(data, file=str(self._path)).value
        if not isinstance(value, dict):
            raise self._damaged()
        known: dict[str, str] = {}
        for repository, digest in value.items():
            if not isinstance(digest, str):
                raise self._damaged()
            known[str(repository)] = parse_digest(digest)
        return known

    def _damaged(self) -> Invalid:
        msg = f"{self._path} is not a map from repositories to digests."
        return Invalid(msg, hint="Restore it, or move it away and pin with --trust-root.", file=str(self._path))


def _key(repository: Path) -> str:
    return str(repository.expanduser().resolve())
