"""Rows of sign-ins that wait for an answer of the OpenID Connect issuer."""

from __future__ import annotations

from sqlalchemy import delete, func, insert, select

from kneo.clock import isoformat
from kneo.records.sign_in import MAX_SIGN_INS, SIGN_IN_LIFETIME, OidcSignIn
from kneo.store.engine import Tx
from kneo.store.tables import oidc_sign_ins


def begin(tx: Tx, sign_in: OidcSignIn) -> None:
    """Store a sign-in, and delete those that have expired, and the oldest of more than ``MAX_SIGN_INS``.

    Sign-ins that strangers begin and leave end early for it; none is refused.
    """
    tx.connection.execute(delete(oidc_sign_ins).where(oidc_sign_ins.c.created_at <= _oldest(tx)))
    excess = (tx.connection.execute(select(func.count()).select_from(oidc_sign_ins)).scalar() or 0) - MAX_SIGN_INS + 1
    if excess > 0:
        oldest = select(oidc_sign_ins.c.state_hash).order_by(oidc_sign_ins.c.created_at, oidc_sign_ins.c.state_hash)
        tx.connection.execute(delete(oidc_sign_ins).where(oidc_sign_ins.c.state_hash.in_(oldest.limit(excess))))
    tx.connection.execute(insert(oidc_sign_ins).values(**vars(sign_in)))


def finish(tx: Tx, state_hash: str, browser_hash: str) -> OidcSignIn | None:
    """Delete a sign-in of a browser and return it, where it has not expired: of two requests at once, one gets it."""
    mine = (oidc_sign_ins.c.state_hash == state_hash) & (oidc_sign_ins.c.browser_hash == browser_hash)
    row = tx.connection.execute(select(oidc_sign_ins).where(mine)).first()
    gone = tx.connection.execute(delete(oidc_sign_ins).where(mine)).rowcount
    if row is None or not gone:
        return None
    sign_in = OidcSignIn(**row._asdict())
    return sign_in if sign_in.created_at > _oldest(tx) else None


def _oldest(tx: Tx) -> str:
    return isoformat(tx.now - SIGN_IN_LIFETIME)
