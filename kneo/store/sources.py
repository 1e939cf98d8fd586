"""How far the repository was followed: what a lost mirror must not make us forget."""

from __future__ import annotations

from sqlalchemy import select

from kneo.state.release import SourceRecord
from kneo.store.engine import Tx, upsert
from kneo.store.tables import sources

SOURCE = "config"
"""A database follows one repository; following another one is a rewriting of history."""


def source(tx: Tx) -> SourceRecord | None:
    row = tx.connection.execute(select(sources).where(sources.c.name == SOURCE)).first()
    return SourceRecord(**{name: value for name, value in row._asdict().items() if name != "name"}) if row else None


def accept_commit(tx: Tx, url: str, ref: str, commit: str) -> bool:
    """Remember the commit that was accepted last; say whether that is news."""
    before = source(tx)
    if before is not None and (before.accepted_commit, before.refused_commit, before.url, before.ref) == (
        commit,
        None,
        url,
        ref,
    ):
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
    )
    return True


def refuse_commit(tx: Tx, url: str, ref: str, commit: str | None, code: str, message: str) -> None:
    """Remember why the newest commit could not be accepted."""
    before = source(tx)
    if before is not None and (before.refused_commit, before.refused_code, before.refused_message) == (
        commit,
        code,
        message,
    ):
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
    )
