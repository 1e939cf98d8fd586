"""Rows of the outbox: messages to deliver."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import func, select, update

from kneo.clock import new_id
from kneo.store.engine import Tx, insert_many_ignoring_duplicates
from kneo.store.tables import outbox

PROBLEM_CHARS = 500


@dataclass(frozen=True, kw_only=True)
class Message:
    id: str
    channel: str
    payload: Mapping[str, object]
    attempts: int


@dataclass(frozen=True, kw_only=True)
class Letter:
    """A new message; messages with one key are sent once."""

    key: str
    channel: str
    payload: Mapping[str, object]


def insert(tx: Tx, letters: Iterable[Letter]) -> None:
    """Add the messages whose key was never added."""
    begun = {"status": "waiting", "attempts": 0, "next_at": tx.at, "created_at": tx.at}
    rows = [
        {
            "id": new_id("msg", tx.now),
            "dedupe_key": item.key,
            "channel": item.channel,
            "payload": item.payload,
            "run_id": item.payload.get("run_id"),
            "continuation_id": item.payload.get("continuation_id"),
            **begun,
        }
        for item in letters
    ]
    insert_many_ignoring_duplicates(tx, outbox, rows)


def due(tx: Tx, channels: Collection[str], limit: int) -> tuple[Message, ...]:
    """List due messages to these channels, oldest first. Channel names are compared as in settings: lower case, with hyphens."""
    plain = func.replace(func.lower(outbox.c.channel), "_", "-")
    rows = tx.connection.execute(
        select(outbox)
        .where(outbox.c.status == "waiting", outbox.c.next_at <= tx.at, plain.in_(list(channels)))
        .order_by(outbox.c.next_at, outbox.c.id)
        .limit(limit)
    )
    return tuple(Message(id=row.id, channel=row.channel, payload=row.payload, attempts=row.attempts) for row in rows)


def finish(tx: Tx, message_id: str, status: str, problem: str | None) -> None:
    tx.connection.execute(
        update(outbox)
        .where(outbox.c.id == message_id)
        .values(status=status, attempts=outbox.c.attempts + 1, error=_cut(problem), finished_at=tx.at)
    )


def retry(tx: Tx, message_id: str, next_at: str, problem: str) -> None:
    tx.connection.execute(
        update(outbox)
        .where(outbox.c.id == message_id)
        .values(attempts=outbox.c.attempts + 1, next_at=next_at, error=_cut(problem))
    )


def _cut(problem: str | None) -> str | None:
    return problem[:PROBLEM_CHARS] if problem is not None else None
