"""Rows between the service and the controller: requests with their answers, webhook deliveries, leases, and the source.

The source has the commits of the config repository that were accepted and refused, which outlive a lost mirror.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial

from sqlalchemy import delete, exists, func, insert, or_, select, update

from kneo.clock import isoformat, new_id
from kneo.errors import Transient
from kneo.records.release import SourceRecord
from kneo.store import idempotency
from kneo.store.authenticated import MAC, is_authentic, with_mac
from kneo.store.change_feed import ChangeFeed, Subscription
from kneo.store.engine import Store, Tx, insert_ignoring_duplicates, upsert
from kneo.store.listening import RETRY_SECONDS, receive, reconnect
from kneo.store.prepared import Prepared, Row
from kneo.store.tables import environments, hook_deliveries, leases, requests, sources

CONTROLLER_LEASE = "controller"
"""The lease of the one controller that may write to a database."""

ANSWER_SECONDS = 60.0
"""The longest time to wait for the controller's answer."""

CHANNEL = "kneo_controller"
"""The channel of PostgreSQL on which controllers learn of requests, and of a lease that its holder gave up."""


@dataclass(frozen=True, kw_only=True)
class ControllerRequest:
    id: str
    kind: str
    payload: Mapping[str, object]
    actor: str
    status: str
    result: Mapping[str, object] | None
    created_at: str = ""


def insert_request(tx: Tx, kind: str, payload: Mapping[str, object], actor: str) -> str:
    request_id = new_id("ask", tx.now)
    row = {
        "id": request_id,
        "kind": kind,
        "payload": dict(payload),
        "actor": actor,
        "status": "open",
        "created_at": tx.at,
    }
    tx.connection.execute(insert(requests).values(**with_mac(tx, requests, row)))
    _wake_controllers(tx)
    return request_id


def _wake_controllers(tx: Tx) -> None:
    if tx.connection.dialect.name != "sqlite":
        tx.connection.execute(select(func.pg_notify(CHANNEL, "")))


@contextlib.contextmanager
def listen(store: Store, wake: Callable[[], None]) -> Iterator[threading.Event]:
    """Call back whenever a process has written a request or given up the lease, until the block ends.

    The event is set while every one is noticed: on SQLite never, and on PostgreSQL not while the server is away.
    """
    listening, closed = threading.Event(), threading.Event()
    if store.is_sqlite:
        yield listening
        return
    options = {"closed": closed, "listening": listening}
    work = partial(receive, store.conninfo, CHANNEL, lambda _: wake(), **options)
    thread = threading.Thread(
        target=partial(reconnect, work, "requests", **options), name="request-listener", daemon=True
    )
    thread.start()
    try:
        yield listening
    finally:
        closed.set()
        thread.join(2 * RETRY_SECONDS)


def open_requests(tx: Tx) -> tuple[ControllerRequest, ...]:
    """List the open requests that a process with the service key has written."""
    rows = tx.connection.execute(select(requests).where(requests.c.status == "open").order_by(requests.c.id))
    return tuple(_request(row) for row in rows if is_authentic(tx, requests, row))


def get(tx: Tx, request_id: str) -> ControllerRequest | None:
    row = tx.connection.execute(select(requests).where(requests.c.id == request_id)).first()
    return _request(row) if row else None


def finish(tx: Tx, request_id: str, status: str, result: Mapping[str, object]) -> None:
    opened = select(requests).where(requests.c.id == request_id, requests.c.status == "open").with_for_update()
    row = tx.connection.execute(opened).first()
    if row is not None and is_authentic(tx, requests, row):
        answered = with_mac(tx, requests, {**row._asdict(), "status": status})
        changes = {"status": status, "result": result, "finished_at": tx.at, MAC: answered[MAC]}
        tx.connection.execute(update(requests).where(requests.c.id == request_id).values(**changes))
    tx.notify(request_id)


@dataclass(frozen=True)
class _RequestAnswered(Subscription[ControllerRequest]):
    """The controller has answered a request."""

    request_id: str

    @property
    def topic(self) -> str:
        return self.request_id

    @classmethod
    def read(cls, tx: Tx, subscriptions: Sequence[_RequestAnswered]) -> Sequence[ControllerRequest | None]:
        answers = [get(tx, item.request_id) for item in subscriptions]
        return [request if request is not None and request.status != "open" else None for request in answers]


def ask(store: Store, kind: str, payload: Mapping[str, object], *, actor: str) -> dict[str, object]:
    """Write a request for the controller and wait for its answer in the same row.

    Raises:
        Transient: ``no_controller``: none is running, or it did not answer in time.
    """
    with store.write() as tx:
        if lease_holder(tx, CONTROLLER_LEASE) is None:
            msg = "No controller is running on this database."
            raise Transient(msg, code="no_controller", hint="Start one: kneo controller run, or kneo up.")
        idempotency.bind(tx, kind)
        request_id = insert_request(tx, kind, payload, actor)
    with ChangeFeed(store) as feed:
        answered = feed.wait_for(_RequestAnswered(request_id), ANSWER_SECONDS)
    if answered is not None:
        return dict(answered.result or {})
    msg = f"The controller did not answer within {ANSWER_SECONDS:.0f} s; the request stays open."
    raise Transient(msg, code="no_controller")


def _request(row: Row) -> ControllerRequest:
    return ControllerRequest(
        id=row.id,
        kind=row.kind,
        payload=row.payload,
        actor=row.actor,
        status=row.status,
        result=row.result,
        created_at=row.created_at,
    )


# ---- leases -----------------------------------------------------------------------------------------------------


def take_lease(tx: Tx, name: str, owner: str, duration: timedelta) -> int | None:
    """Take or renew a lease; return its fence, or ``None`` while it has another holder.

    The fence rises whenever the holder changes; a holder checks it inside the transaction it wants to protect.
    """
    insert_ignoring_duplicates(tx, leases, name=name, owner=None, fence=0, until=tx.at)
    row = tx.connection.execute(select(leases).where(leases.c.name == name).with_for_update()).one()
    if row.owner != owner and row.owner is not None and row.until > tx.at:
        return None
    fence: int = row.fence + (0 if row.owner == owner else 1)
    tx.connection.execute(
        update(leases).where(leases.c.name == name).values(owner=owner, fence=fence, until=isoformat(tx.now + duration))
    )
    return fence


def drop_lease(tx: Tx, name: str, owner: str) -> None:
    tx.connection.execute(
        update(leases).where(leases.c.name == name, leases.c.owner == owner).values(owner=None, until=tx.at)
    )
    _wake_controllers(tx)


@dataclass(frozen=True)
class Lease:
    """The controller lease, checked in every transaction that it protects."""

    name: str
    owner: str
    fence: int


def holds_lease(tx: Tx, lease: Lease) -> bool:
    """Return, locking the row for the rest of the transaction, whether a lease is still its owner's."""
    row = tx.connection.execute(select(leases).where(leases.c.name == lease.name).with_for_update()).first()
    return row is not None and row.owner == lease.owner and row.fence == lease.fence and row.until > tx.at


def check_lease(tx: Tx, lease: Lease) -> None:
    """Check that this controller still holds the lease.

    Raises:
        Transient: another controller took over.
    """
    if not holds_lease(tx, lease):
        msg = "Another controller took over; this one wrote nothing."
        raise Transient(msg, code="LeaseLost")


_CONTROLLED = Prepared(
    select(
        or_(
            exists(select(leases.c.name).where(leases.c.name == CONTROLLER_LEASE)),
            exists(select(sources.c.name)),
            exists(select(environments.c.name)),
        ).label("found")
    )
)


def had_controller(tx: Tx) -> bool:
    """Return whether a controller ever used this database."""
    row = _CONTROLLED.first(tx, {})
    return row is not None and bool(row.found)


def lease_holder(tx: Tx, name: str) -> str | None:
    """Return the holder of a lease."""
    row = tx.connection.execute(select(leases).where(leases.c.name == name)).first()
    return row.owner if row is not None and row.owner is not None and row.until > tx.at else None


REMEMBERED = timedelta(days=7)
"""The time for which deliveries are deduplicated. A replay of an older one triggers one reconciliation."""

RECONCILE = "reconcile"


def take_delivery(store: Store, provider: str, names: Sequence[str]) -> bool:
    """Record a webhook delivery and request a reconciliation; return whether the delivery is new.

    Deliveries before that request is answered share it.

    Args:
        store: The database.
        provider: The sender.
        names: The ids of the delivery; it is a duplicate where one of them is known.
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
        waiting = select(requests).where(
            requests.c.status == "open", requests.c.kind == RECONCILE, requests.c.actor == actor
        )
        if not any(is_authentic(tx, requests, row) for row in tx.connection.execute(waiting).all()):
            insert_request(tx, RECONCILE, {"environment": "-"}, actor)
    return True


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
