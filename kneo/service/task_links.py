"""Links as answers, for HTTP and for commands beside the database."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from kneo.clock import parse_duration, parse_time
from kneo.records.task import TaskLink
from kneo.service.wire import Json
from kneo.store import links as stored
from kneo.store.engine import Store
from kneo.tasks import links
from kneo.tasks.inbox import find


def make_link(store: Store, task_id: str, order: Mapping[str, object], *, actor: str, at: str) -> Json:
    """Make a link; its token is in this answer and nowhere else.

    Args:
        store: The database.
        task_id: What it answers.
        order: For whom (``person``; left out, the actor) and how long it works (``expires_in``).
        actor: Who makes it.
        at: The address of the service; empty where that is not known.

    Raises:
        KneoError: as ``kneo.tasks.links.make_link`` says.
    """
    lasts = parse_duration(str(order.get("expires_in") or "24h"))
    person = str(order.get("person") or actor)
    with store.write() as tx:
        link, token = links.make_link(tx, task_id, person, actor=actor, lasts=lasts)
    return {
        "id": link.id,
        "continuation_id": link.task_id,
        "person": link.person,
        "subject_digest": link.subject_digest,
        "expires_at": link.expires_at,
        "path": f"/h/{token}",
        "url": f"{at.rstrip('/')}/h/{token}" if at else None,
    }


def list_links(store: Store, task_id: str) -> Json:
    """Tell which links there are to a question, and which of them still work.

    Raises:
        NotFound: there is no such question.
    """
    with store.read() as tx:
        find(tx, task_id)
        found = [_shown(link, tx.now) for link in stored.of_task(tx, task_id)]
    return {"continuation_id": task_id, "links": found, "count": len(found)}


def revoke_link(store: Store, task_id: str, link_id: str, *, actor: str) -> Json:
    """End a link's life, and say what it was.

    Raises:
        KneoError: as ``kneo.tasks.links.revoke_link`` says.
    """
    with store.write() as tx:
        return _shown(links.revoke_link(tx, task_id, link_id, actor=actor), tx.now)


def _shown(link: TaskLink, now: datetime) -> Json:
    state = "used" if link.used_at is not None else "expired" if parse_time(link.expires_at) <= now else "open"
    return {
        "id": link.id,
        "continuation_id": link.task_id,
        "person": link.person,
        "subject_digest": link.subject_digest,
        "state": state,
        "created_by": link.created_by,
        "created_at": link.created_at,
        "expires_at": link.expires_at,
        "used_at": link.used_at,
    }
