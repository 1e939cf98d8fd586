"""Rows of browser sessions and of the links that start them."""

from __future__ import annotations

from sqlalchemy import delete, insert, or_, select, update

from kneo.clock import isoformat
from kneo.records.sign_in import IDLE, LIFETIME, BrowserSession, SignInLink
from kneo.store.authenticated import MAC, is_authentic, with_mac
from kneo.store.engine import Tx
from kneo.store.tables import browser_sessions, sign_in_links


def find(tx: Tx, token_hash: str) -> BrowserSession | None:
    """Read a session that has not ended and that a process with the service key has started."""
    row = tx.connection.execute(select(browser_sessions).where(browser_sessions.c.token_hash == token_hash)).first()
    if row is None or not is_authentic(tx, browser_sessions, row):
        return None
    values = row._asdict()
    del values[MAC]
    session = BrowserSession(**{**values, "groups": tuple(values["groups"]) if values["groups"] is not None else None})
    return None if session.has_ended(tx.now) else session


def start(tx: Tx, session: BrowserSession) -> None:
    """Store a new session, and delete those that have ended."""
    _delete_ended(tx)
    groups = list(session.groups) if session.groups is not None else None
    row = with_mac(tx, browser_sessions, {**vars(session), "groups": groups})
    tx.connection.execute(insert(browser_sessions).values(**row))


def touch(tx: Tx, token_hash: str) -> None:
    """Record that a session is used now."""
    mine = browser_sessions.c.token_hash == token_hash
    tx.connection.execute(update(browser_sessions).where(mine).values(seen_at=tx.at))


def end(tx: Tx, token_hash: str) -> bool:
    """Delete a session; return whether there was one."""
    return (
        tx.connection.execute(delete(browser_sessions).where(browser_sessions.c.token_hash == token_hash)).rowcount > 0
    )


def end_of_issuer(tx: Tx, person: str) -> None:
    """Delete the sessions that a person has started at the issuer."""
    theirs = (browser_sessions.c.person == person) & (browser_sessions.c.method == "oidc")
    tx.connection.execute(delete(browser_sessions).where(theirs))


def end_all(tx: Tx) -> None:
    """Delete all sessions, and the links that would start further ones."""
    tx.connection.execute(delete(browser_sessions))
    tx.connection.execute(delete(sign_in_links))


def insert_link(tx: Tx, link: SignInLink) -> None:
    """Store a link, and delete those that have expired."""
    tx.connection.execute(delete(sign_in_links).where(sign_in_links.c.expires_at <= tx.at))
    tx.connection.execute(insert(sign_in_links).values(**with_mac(tx, sign_in_links, vars(link))))


def use_link(tx: Tx, token_hash: str) -> SignInLink | None:
    """Delete a link and return it, where it has not expired: of two requests at once, one gets it."""
    row = tx.connection.execute(select(sign_in_links).where(sign_in_links.c.token_hash == token_hash)).first()
    gone = tx.connection.execute(delete(sign_in_links).where(sign_in_links.c.token_hash == token_hash)).rowcount
    if row is None or not gone or not is_authentic(tx, sign_in_links, row):
        return None
    values = row._asdict()
    del values[MAC]
    link = SignInLink(**values)
    return link if link.expires_at > tx.at else None


def _delete_ended(tx: Tx) -> None:
    old = browser_sessions.c.created_at <= isoformat(tx.now - LIFETIME)
    unused = browser_sessions.c.seen_at <= isoformat(tx.now - IDLE)
    tx.connection.execute(delete(browser_sessions).where(or_(old, unused)))
