"""Rows of task links. A link is used by compare-and-set, so that it works once."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import func, insert, select, update

from kneo.records.task import TaskLink
from kneo.store.engine import Tx
from kneo.store.tables import task_links


def insert_link(tx: Tx, link: TaskLink) -> None:
    tx.connection.execute(insert(task_links).values(**asdict(link)))


def find(tx: Tx, token_hash: str) -> TaskLink | None:
    row = tx.connection.execute(select(task_links).where(task_links.c.token_hash == token_hash)).first()
    return TaskLink(**row._asdict()) if row else None


def count_of_task(tx: Tx, task_id: str) -> int:
    statement = select(func.count()).select_from(task_links).where(task_links.c.task_id == task_id)
    return tx.connection.execute(statement).scalar_one()


def of_task(tx: Tx, task_id: str) -> tuple[TaskLink, ...]:
    """List the links of a task, oldest first; ``kneo.tasks.links`` bounds their number."""
    rows = tx.connection.execute(select(task_links).where(task_links.c.task_id == task_id).order_by(task_links.c.id))
    return tuple(TaskLink(**row._asdict()) for row in rows)


def end(tx: Tx, *, task_id: str | None = None, link_id: str | None = None) -> int:
    """Expire unused links: one, those of a task, or all; return how many."""
    ended = update(task_links).where(task_links.c.used_at.is_(None), task_links.c.expires_at > tx.at)
    for column, value in ((task_links.c.task_id, task_id), (task_links.c.id, link_id)):
        if value is not None:
            ended = ended.where(column == value)
    return tx.connection.execute(ended.values(expires_at=tx.at)).rowcount


def use(tx: Tx, link: TaskLink) -> bool:
    """Mark a link as used; return whether it was unused."""
    done = tx.connection.execute(
        update(task_links).where(task_links.c.id == link.id, task_links.c.used_at.is_(None)).values(used_at=tx.at)
    )
    return done.rowcount == 1
