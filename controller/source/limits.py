"""How much of a repository we are willing to take in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SourceLimits:
    """Bounds on git and on what it brings. A repository beyond one of them is refused with ``LimitExceeded``."""

    fetch_seconds: float = 120.0
    """Longest one fetch may take. Cold, a repository of 2,000 bundles takes under a second on a local network."""

    poll_seconds: float = 30.0
    read_seconds: float = 60.0
    """Longest one local reading command may take."""

    pack_bytes: int = 536_870_912
    """Largest file git may write, so also the largest fetch. The kernel enforces it (``RLIMIT_FSIZE``)."""

    blob_bytes: int = 1_048_576
    """Largest file read; the same as the largest envelope. Larger blobs are not even fetched where the host can filter."""

    files: int = 100_000
    """Most files below ``bundles`` and ``environments``."""

    commits: int = 1_000
    """Most commits judged at once, where commits have to be signed; and most from which a registry is rebuilt."""

    read_bytes: int = 536_870_912
    """Most content read at once."""
