"""A config repository on disk: its layout, and the trust roots that this machine has pinned."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from kneo.cli.files import PRIVATE_FILE, read_bytes, write_whole
from kneo.digest import Digest, parse_digest
from kneo.errors import Invalid, NotFound
from kneo.spec.reading.reader import read_json
from kneo.trust.dsse import ENVELOPE_BYTES
from kneo.trust.verify import bundle_path, parse_bundle_path

TRUST_PATH = Path("environments/trust.json")

_ENVIRONMENT_FILE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\.ya?ml")


@dataclass(frozen=True)
class ConfigRepository:
    """A working copy: ``bundles/``, ``environments/``, ``specs/``."""

    root: Path

    @property
    def trust_file(self) -> Path:
        return self.root / TRUST_PATH

    def bundle_file(self, name: str, version: str) -> Path:
        return self.root / bundle_path(name, version)

    def environment_file(self, name: str) -> Path | None:
        """Return the file of an environment; None where there is none."""
        return next((path for path in self._environment_files() if path.stem == name), None)

    def environment_names(self) -> list[str]:
        """The environments that have files, sorted."""
        return sorted(path.stem for path in self._environment_files())

    def _environment_files(self) -> list[Path]:
        folder = self.root / "environments"
        listed = sorted(folder.iterdir()) if folder.is_dir() else []
        return [path for path in listed if _ENVIRONMENT_FILE.fullmatch(path.name) and path.is_file()]


def find_repository(start: Path) -> ConfigRepository | None:
    """Find the nearest folder at or above ``start`` with an ``environments`` folder."""
    for folder in (start, *start.parents):
        if (folder / TRUST_PATH).is_file():
            return ConfigRepository(folder)
        if (folder / ".git").exists():
            return ConfigRepository(folder) if (folder / "environments").is_dir() else None
    return None


def repository_of(bundle: Path) -> ConfigRepository | None:
    """Find the repository of a bundle file ``bundles/<name>/<version>.dsse.json``, by its path alone."""
    path = bundle.absolute()
    if len(path.parts) < 4 or parse_bundle_path("/".join(path.parts[-3:])) is None:
        return None
    return ConfigRepository(path.parents[2])


def read_bundle(path: Path) -> bytes:
    """Read a bundle's envelope.

    Raises:
        NotFound, Invalid: the file does not exist, or is too large.
    """
    return read_bytes(path, max_bytes=ENVELOPE_BYTES, what="bundle")


KNOWN_ROOTS_BYTES = 1_048_576


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
            data = read_bytes(self._path, max_bytes=KNOWN_ROOTS_BYTES, what="list of known trust roots")
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
