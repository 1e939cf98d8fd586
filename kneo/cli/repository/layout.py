"""The layout of a config repository on disk: paths of bundles, environments and specs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kneo.cli.files import read_bytes
from kneo.trust.dsse import ENVELOPE_BYTES
from kneo.trust.verify import bundle_path, parse_bundle_path

TRUST_PATH = Path("environments/trust.json")

_ENVIRONMENT_FILE = re.compile(r"([a-z0-9][a-z0-9-]{0,62})\.ya?ml")


@dataclass(frozen=True)
class ConfigRepository:
    """A working copy: ``bundles/``, ``environments/``, ``specs/``."""

    root: Path

    @property
    def trust_file(self) -> Path:
        return self.root / TRUST_PATH

    def bundle_file(self, name: str, version: str) -> Path:
        return self.root / bundle_path(name, version)

    def environment_names(self) -> list[str]:
        """The environments that have files, sorted."""
        folder = self.root / "environments"
        matches = (_ENVIRONMENT_FILE.fullmatch(path.name) for path in _listing(folder) if path.is_file())
        return sorted(match[1] for match in matches if match)


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


def _listing(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
