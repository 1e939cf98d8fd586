"""Deliveries of webhooks, each counted once, and the one request that any number of them makes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import delete, select

from kneo.clock import isoformat
from kneo.store import requests
from kneo.store.engine import Store, insert_ignoring_duplicates
from kneo.store.tables import hook_deliveries
from kneo.store.tables import requests as rows

REMEMBERED = timedelta(days=7)
"""How long a delivery is known again. Replaying an older one makes the controller look once, no more."""

RECONCILE = "reconcile"


def take_delivery(store: Store, provider: str, names: Sequence[str]) -> bool:
    """Remember a delivery and ask the controller to look; say whether it was new.

    Deliveries that come while a look is still asked for ask for nothing more.

    Args:
        store: The database.
        provider: Who sent it.
        names: What it is known by; one of them that is known already makes it no news.
    """
    with store.write() as tx:
        tx.connection.execute(
            delete(hook_deliveries).where(hook_deliveries.c.received_at < isoformat(tx.now - REMEMBERED))
        )
        new = [
            insert_ignoring_duplicates(tx, hook_deliveries, provider=provider, delivery=name, received_at=tx.at)
            for name in names
        ]
        if not all(new):
            return False
        actor = f"hook:{provider}"
        waiting = select(rows.c.id).where(rows.c.status == "open", rows.c.kind == RECONCILE, rows.c.actor == actor)
        if tx.connection.execute(waiting.limit(1)).first() is None:
            requests.insert_request(tx, RECONCILE, {"environment": "-"}, actor)
    return True
