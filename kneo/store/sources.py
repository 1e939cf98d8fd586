"""How far the repository was followed: what a lost mirror must not make us forget."""

from __future__ import annotations

from sqlalchemy import select, update

from kneo.records.release import SourceRecord
from kneo.store.engine import Tx, upsert
from kneo.store.prepared import Prepared
from kneo.store.tables import sources

SOURCE = "config"
"""A database follows one repository; following another one is a rewriting of history."""


def source(tx: Tx) -> SourceRecord | None:
    row = tx.connection.execute(select(sources).where(sources.c.name == SOURCE)).first()
    return SourceRecord(**{name: value for name, value in row._asdict().items() if name != "name"}) if row else None


_REBUILDING = Prepared(select(sources.c.rebuilding_since).where(sources.c.rebuilding_since.is_not(None)))


def is_rebuilding(tx: Tx) -> bool:
    """Say whether the registry is being rebuilt from the commits, so that what it serves may be of another day."""
    return _REBUILDING.first(tx, {}) is not None


def begin_rebuild(tx: Tx, url: str, ref: str) -> None:
    """Note that the commits of a repository are followed one after the other into an empty registry."""
    upsert(tx, sources, {"name": SOURCE}, url=url, ref=ref, rebuilding_since=tx.at)


def end_rebuild(tx: Tx) -> None:
    """Note that the newest commit was reached, or the last that can be followed."""
    tx.connection.execute(update(sources).values(rebuilding_since=None))


def accept_commit(tx: Tx, url: str, ref: str, commit: str) -> bool:
    """Remember the commit that was accepted last; say whether that is news."""
    before = source(tx)
    known = before is not None and (before.accepted_commit, before.refused_code, before.url, before.ref) == (
        commit,
        None,
        url,
        ref,
    )
    if known and before is not None and before.failed_code is None:
        return False
    upsert(
        tx,
        sources,
        {"name": SOURCE},
        url=url,
        ref=ref,
        accepted_commit=commit,
        accepted_at=tx.at,
        refused_commit=None,
        refused_code=None,
        refused_message=None,
        **_ANSWERED,
    )
    return not known


def refuse_commit(tx: Tx, url: str, ref: str, commit: str | None, code: str, message: str) -> None:
    """Remember why the newest commit could not be accepted."""
    before = source(tx)
    if before is not None and (
        before.refused_commit,
        before.refused_code,
        before.refused_message,
        before.failed_code,
    ) == (commit, code, message, None):
        return
    upsert(
        tx,
        sources,
        {"name": SOURCE},
        url=url,
        ref=ref,
        refused_commit=commit,
        refused_code=code,
        refused_message=message,
        **_ANSWERED,
    )


_ANSWERED = {"failed_at": None, "failed_code": None, "failed_message": None}


def record_failure(tx: Tx, url: str, ref: str, code: str, message: str) -> None:
    """Record that the repository's host could not be asked, and since when; what was accepted or refused stays."""
    before = source(tx)
    if before is not None and (before.failed_code, before.failed_message) == (code, message):
        return
    since = before.failed_at if before is not None and before.failed_at is not None else tx.at
    failed = {"failed_at": since, "failed_code": code, "failed_message": message}
    upsert(tx, sources, {"name": SOURCE}, url=url, ref=ref, **failed)


def forget_failure(tx: Tx) -> None:
    """Record that the repository's host answers again."""
    tx.connection.execute(sources.update().where(sources.c.failed_code.is_not(None)).values(**_ANSWERED))
