"""Marks of what pages show: each changes when a task, an environment or a run changes, and states nothing else.

They are the same for all readers, also for those who may read some environments only, so they hold no id, time or count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select

from kneo.digest import hash_text
from kneo.store import task_feed
from kneo.store.change_feed import Subscription
from kneo.store.engine import Store, Tx
from kneo.store.prepared import Prepared
from kneo.store.tables import (
    approvals,
    conditions,
    environments,
    holds,
    pending_releases,
    promotions,
    runs,
    suspensions,
)

_RUNS = Prepared(select(func.max(runs.c.updated_at).label("mark")))
_ENVIRONMENTS = Prepared(
    select(
        select(func.max(environments.c.updated_at)).scalar_subquery(),
        select(func.max(conditions.c.since)).scalar_subquery(),
        select(func.max(promotions.c.id)).scalar_subquery(),
        select(func.max(approvals.c.first_seen_at)).scalar_subquery(),
        select(func.count()).select_from(pending_releases).scalar_subquery(),
        select(func.max(pending_releases.c.id)).scalar_subquery(),
        select(func.count()).select_from(holds).scalar_subquery(),
        select(func.count()).select_from(suspensions).scalar_subquery(),
    )
)


@dataclass(frozen=True)
class Marks:
    """The marks of the inbox, of environments and of runs."""

    inbox: str
    environments: str
    runs: str


def read(tx: Tx) -> Marks:
    """Read the present marks."""
    unnumbered = task_feed.has_unnumbered(tx)
    run, environment = _RUNS.first(tx, {}), _ENVIRONMENTS.first(tx, {})
    return Marks(
        inbox=_opaque(tx, f"{task_feed.last_position(tx)}{'+' if unnumbered else ''}"),
        environments=_opaque(tx, " ".join(str(part) for part in tuple(environment or ()))),
        runs=_opaque(tx, str(run.mark if run is not None else "")),
    )


def _opaque(tx: Tx, state: str) -> str:
    """Return the mark of a state, which nothing can be learned from without the service key."""
    return (tx.macs.make("marks", state.encode()) or b"").hex() or hash_text(state)


@dataclass(frozen=True)
class MarksChanged(Subscription[Marks]):
    """A mark differs from those that the reader knows."""

    known: Marks | None

    @classmethod
    def read(cls, tx: Tx, subscriptions: Sequence[MarksChanged]) -> Sequence[Marks | None]:
        """Read the marks once for all readers."""
        now = read(tx)
        return [now if now != item.known else None for item in subscriptions]


def numbered(store: Store) -> Marks:
    """Number the task events, so that the next one changes the mark, and read the marks."""
    task_feed.number(store)
    with store.read() as tx:
        return read(tx)
