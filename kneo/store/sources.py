"""The commits of the config repository that were accepted and refused, which outlive a lost mirror."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import select, update

from kneo.records.release import SourceRecord
from kneo.store.connections import Prepared
from kneo.store.engine import Tx, upsert
from kneo.store.tables import sources

SOURCE = "config"
"""The one source of a database; another repository in its place counts as rewritten history."""


_SOURCE = Prepared(select(sources).where(sources.c.name == SOURCE))


def source(tx: Tx) -> SourceRecord | None:
    row = _SOURCE.first(tx, {})
    return SourceRecord(**{name: value for name, value in row._asdict().items() if name != "name"}) if row else None


_REBUILDING = Prepared(select(sources.c.rebuilding_since).where(sources.c.rebuilding_since.is_not(None)))


def is_rebuilding(tx: Tx) -> bool:
    """Return whether the registry is being rebuilt from the commits, so that its releases may be outdated."""
    return _REBUILDING.first(tx, {}) is not None


def begin_rebuild(tx: Tx, url: str, ref: str) -> None:
    """Record that an empty registry is being rebuilt from the commits of a repository, one after the other."""
    _put(tx, url, ref, rebuilding_since=tx.at)


def end_rebuild(tx: Tx) -> None:
    """Record that the rebuild reached the newest commit that can be accepted."""
    tx.connection.execute(update(sources).values(rebuilding_since=None))


def accept_commit(tx: Tx, url: str, ref: str, commit: str) -> bool:
    """Record the newest accepted commit; return whether it is a change."""
    before = source(tx)
    accepted = replace(before, url=url, ref=ref, accepted_commit=commit, refused_code=None) if before else None
    if before is not None and before == accepted and before.failed_code is None:
        return False
    refused = {"refused_commit": None, "refused_code": None, "refused_message": None}
    _put(tx, url, ref, accepted_commit=commit, accepted_at=tx.at, **refused, **_REACHABLE)
    return before is None or before != accepted


def refuse_commit(tx: Tx, url: str, ref: str, commit: str | None, code: str, message: str) -> None:
    """Record why the newest commit was refused."""
    before = source(tx)
    if before is not None and before == replace(
        before, refused_commit=commit, refused_code=code, refused_message=message, failed_code=None
    ):
        return
    _put(tx, url, ref, refused_commit=commit, refused_code=code, refused_message=message, **_REACHABLE)


def _put(tx: Tx, url: str, ref: str, **values: object) -> None:
    upsert(tx, sources, {"name": SOURCE}, url=url, ref=ref, **values)


_REACHABLE = {"failed_at": None, "failed_code": None, "failed_message": None}


def record_failure(tx: Tx, url: str, ref: str, code: str, message: str) -> None:
    """Record that the repository cannot be fetched, and since when; the accepted and refused commits stay."""
    before = source(tx)
    if before is not None and (before.failed_code, before.failed_message) == (code, message):
        return
    since = before.failed_at if before is not None and before.failed_at is not None else tx.at
    failed = {"failed_at": since, "failed_code": code, "failed_message": message}
    _put(tx, url, ref, **failed)


def forget_failure(tx: Tx) -> None:
    """Record that the repository can be fetched again."""
    tx.connection.execute(sources.update().where(sources.c.failed_code.is_not(None)).values(**_REACHABLE))
