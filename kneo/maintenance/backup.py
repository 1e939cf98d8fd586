"""Copies of the database, taken while it is in use, and bringing one back."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from kneo.clock import SystemClock
from kneo.errors import Conflict
from kneo.records.audit import ChainVerdict
from kneo.settings import Settings
from kneo.store import copies
from kneo.store.engine import Store
from kneo.store.migrate import open_store

SQLITE = "sqlite:///"


def backup_sqlite_database(source: str | Path, destination: str | Path) -> dict[str, object]:
    """Copy a database as it is at one moment, whoever writes to it meanwhile.

    Raises:
        NotFound: there is no database at ``source``.
        Invalid: the copy is damaged, or ``destination`` is ``source``.
    """
    copies.copy_file(Path(source), Path(destination))
    return _copied(source, destination)


def restore_sqlite_database(source: str | Path, destination: str | Path) -> dict[str, object]:
    """Put a backup in the place of a database, all of it or none.

    Raises:
        NotFound: there is no backup at ``source``.
        Invalid: the backup is damaged, written by a newer version, or ``destination`` itself.
        Conflict: ``store_in_use``: some process has the database open.
    """
    copies.restore_file(Path(source), Path(destination), SystemClock())
    return _copied(source, destination)


def backup(store: Store, destination: Path) -> dict[str, object]:
    """Copy a database of either kind into a SQLite file.

    Returns:
        ``destination``, ``bytes_copied``, and ``audit`` with what a restored database has to show again: ``valid``,
        ``size`` and ``head`` of the chain.

    Raises:
        Invalid: the copy is damaged.
    """
    verdict = copies.back_up(store, destination)
    return {
        "destination": str(destination),
        "bytes_copied": destination.stat().st_size,
        "audit": _chain(verdict),
    }


def restore(settings: Settings, source: Path, *, replace: bool = False) -> dict[str, object]:
    """Bring a backup back into the database of these settings: into an empty one, or in the place of a SQLite file.

    Args:
        settings: Which database is meant.
        source: The backup.
        replace: Whether a SQLite file that is there may go.

    Returns:
        ``source``, and ``audit`` as ``backup`` does.

    Raises:
        NotFound: there is no backup.
        Invalid: it is damaged, or written by a newer version.
        Conflict: ``store_in_use``, ``store_not_empty``.
    """
    url, clock = settings.database_url, SystemClock()
    if url.startswith(SQLITE):
        path = Path(url.removeprefix(SQLITE))
        if path.is_file() and not replace:
            msg = f"There is a database at {path} already."
            raise Conflict(msg, code="store_not_empty", hint="Say --replace to put the backup in its place.")
        verdict = copies.restore_file(source, path, clock)
    else:
        with closing(open_store(url, clock)) as store:
            verdict = copies.restore(source, store)
    return {"source": str(source), "audit": _chain(verdict)}


def vacuum(store: Store) -> dict[str, int]:
    """Give unused space back; return ``bytes_before`` and ``bytes_after``."""
    before, after = copies.vacuum(store)
    return {"bytes_before": before, "bytes_after": after}


def _chain(verdict: ChainVerdict) -> dict[str, object]:
    return {"valid": verdict.valid, "size": verdict.size, "head": verdict.head}


def _copied(source: str | Path, destination: str | Path) -> dict[str, object]:
    size = Path(destination).stat().st_size
    return {"source": str(source), "destination": str(destination), "bytes_copied": size}
