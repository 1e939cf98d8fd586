"""Runs. Fenced: a commit counts only while its epoch does. What they leave behind is in ``history``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta

from sqlalchemy import Row, bindparam, insert, or_, select, update

from kneo.clock import isoformat
from kneo.records.run import STATE_VERSION, ReleaseRef, Run, RunError, RunStatus, ending
from kneo.records.transition import check_transition
from kneo.store.engine import Tx, insert_ignoring_duplicates
from kneo.store.history import (
    add_checkpoint,
    add_trace,
    count_trace,
    insert_step,
    list_checkpoints,
    list_steps,
    list_trace,
    next_step_sequence,
    read_error,
    visited,
)
from kneo.store.prepared import Prepared
from kneo.store.prepared import Row as PreparedRow
from kneo.store.queue import enqueue
from kneo.store.run_filter import EVERY_RUN, RunFilter, counting, listing
from kneo.store.tables import runs, specs

AnyRow = Row[*tuple[object, ...]]

__all__ = [  # what a run leaves behind is read through here too
    "add_checkpoint",
    "add_trace",
    "count_trace",
    "insert_step",
    "list_checkpoints",
    "list_steps",
    "list_trace",
    "next_step_sequence",
]


class Fenced(Exception):
    """The run is no longer this driver's; whatever it was about to commit is discarded."""


_KEEP_SPEC = Prepared(
    select(specs.c.digest).where(specs.c.digest == bindparam("digest")).with_for_update(read=True, key_share=True)
)


def insert_spec(tx: Tx, digest: str, body: bytes) -> None:
    """Keep a frozen spec; the same one is kept once, and not deleted before this transaction has ended."""
    while not insert_ignoring_duplicates(tx, specs, digest=digest, body=body, created_at=tx.at):
        if _KEEP_SPEC.first(tx, {"digest": digest}) is not None:
            return


_LOAD_SPEC = Prepared(select(specs.c.body).where(specs.c.digest == bindparam("digest")))


def load_spec(tx: Tx, digest: str) -> bytes | None:
    row = _LOAD_SPEC.first(tx, {"digest": digest})
    return row.body if row else None


_INSERT = Prepared(insert(runs))


def insert_run(tx: Tx, run: Run) -> None:
    release = run.release
    row = {
        "id": run.id,
        "status": run.status,
        "target": run.target,
        "spec_digest": run.spec_digest,
        "environment": run.environment,
        "bundle": release.bundle if release else None,
        "bundle_version": release.version if release else None,
        "bundle_digest": release.digest if release else None,
        "revision": release.revision if release else None,
        "promotion_id": release.promotion_id if release else None,
        "agent_name": run.agent_name,
        "workflow_name": run.workflow_name,
        "workflow_type": run.workflow_type,
        "input_text": run.input_text,
        "output_text": run.output_text,
        "error": asdict(run.error) if run.error else None,
        "state": run.state,
        "state_version": run.state_version,
        "visited_steps": list(run.visited_steps),
        "requester": run.requester,
        "metadata": run.metadata,
        "epoch": 0,
        "owner": None,
        "signal_seq": 0,
        "created_at": tx.at,
        "updated_at": tx.at,
        "started_at": tx.at,
        "completed_at": None,
        "deadline_at": run.deadline_at,
        "step_count": run.step_count,
        "checkpoint_count": run.checkpoint_count,
        "trace_count": run.trace_count,
        "session_id": run.metadata.get("session_id"),
    }
    _INSERT.change(tx, row)
    if run.status is RunStatus.RUNNING:
        enqueue(tx, run.id)


_GET = Prepared(select(runs).where(runs.c.id == bindparam("of_run")))


def get(tx: Tx, run_id: str) -> Run | None:
    row = _GET.first(tx, {"of_run": run_id})
    return _run(row) if row else None


@dataclass(frozen=True, kw_only=True)
class RunLease:
    """Who may write to a run, and whether there is news for it."""

    status: RunStatus
    epoch: int
    signal_seq: int


def read_leases(tx: Tx, run_ids: Sequence[str]) -> Mapping[str, RunLease]:
    """Read how some runs stand without reading the runs, all at once."""
    columns = select(runs.c.id, runs.c.status, runs.c.epoch, runs.c.signal_seq)
    rows = tx.connection.execute(columns.where(runs.c.id.in_(list(run_ids))))
    return {row.id: RunLease(status=RunStatus(row.status), epoch=row.epoch, signal_seq=row.signal_seq) for row in rows}


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """How far a run is, as far as whoever looks on can tell."""

    status: RunStatus
    trace_count: int


def progress(tx: Tx, run_ids: Sequence[str]) -> Mapping[str, RunProgress]:
    """Read how far some runs are, all at once."""
    columns = select(runs.c.id, runs.c.status, runs.c.trace_count)
    rows = tx.connection.execute(columns.where(runs.c.id.in_(list(run_ids))))
    return {row.id: RunProgress(status=RunStatus(row.status), trace_count=row.trace_count) for row in rows}


_LOCK = Prepared(select(runs.c.id).where(runs.c.id == bindparam("of_run")).with_for_update())


def lock(tx: Tx, run_id: str) -> None:
    """Take a run's row before the rows of its tasks.

    Everybody who writes to both takes them in this order; on PostgreSQL any other order ends in deadlocks. SQLite has
    one writer.
    """
    if tx.dialect.name != "sqlite":
        _LOCK.first(tx, {"of_run": run_id})


_ACQUIRE = Prepared(
    update(runs)
    .where(
        runs.c.id == bindparam("of_run"),
        runs.c.status == RunStatus.RUNNING.value,
        # What a newer version wrote waits for a worker of that version.
        runs.c.state_version <= STATE_VERSION,
        (runs.c.owner.is_(None)) | (runs.c.owner == bindparam("claim")),
    )
    .values(owner=bindparam("claim"), epoch=runs.c.epoch + 1)
    .returning(runs)
)


def acquire(tx: Tx, run_id: str, claim: str) -> Run | None:
    """Take a running run for one driver; ``None`` when somebody else has it or it no longer runs.

    A driver that crashed and comes back with the same claim takes over; anyone else has to wait until the owner is
    cleared. Taking it raises the epoch, so whatever an earlier owner still commits is refused.
    """
    row = _ACQUIRE.first(tx, {"of_run": run_id, "claim": claim})
    return _run(row) if row else None


_OWN = update(runs).where(
    runs.c.id == bindparam("of_run"), runs.c.epoch == bindparam("seen_epoch"), runs.c.status == RunStatus.RUNNING.value
)
_COMMIT = Prepared(_OWN)
"""One statement for all commits, so that it is compiled once; what it sets are the parameters it is given."""


def commit(tx: Tx, run: Run, **changes: object) -> None:
    """Change a run that this driver owns.

    Raises:
        Fenced: somebody took it over, cancelled it or ended it.
        IllegalTransition: a running run never gets into that status.
    """
    status = RunStatus(str(changes.get("status", RunStatus.RUNNING)))
    if status is not RunStatus.RUNNING:
        check_transition(RunStatus.RUNNING, status)
    values = {
        "updated_at": tx.at,
        "step_count": run.step_count,
        "checkpoint_count": run.checkpoint_count,
        "trace_count": run.trace_count,
        **changes,
    }
    if _COMMIT.change(tx, {"of_run": run.id, "seen_epoch": run.epoch, **values}) != 1:
        raise Fenced(run.id)


_PAUSE = Prepared(_OWN.where(runs.c.signal_seq == bindparam("seen_signal")))


def pause(tx: Tx, run: Run) -> Run | None:
    """Let a run wait for people and return it as it then is, unless there is news for it: load it again and go on.

    What it has visited is written with it, because whoever looks at a waiting run wants to see where it stands.
    """
    steps = visited(tx, run.id)
    values = {"status": RunStatus.PAUSED, "owner": None, "updated_at": tx.at, "visited_steps": list(steps)}
    seen = {"of_run": run.id, "seen_epoch": run.epoch, "seen_signal": run.signal_seq}
    if _PAUSE.change(tx, seen | values) != 1:
        return None
    return replace(run, status=RunStatus.PAUSED, owner=None, updated_at=tx.at, visited_steps=steps)


def release(tx: Tx, run_id: str, claim: str, *, epoch: int | None = None, again: bool = True) -> None:
    """Free a run this driver cannot go on with, so that another attempt finds it.

    Args:
        tx: The transaction.
        run_id: Which run.
        claim: The driver's; nothing is done where another one has the run.
        epoch: The one the driver took it in, where it knows that; nothing is done in another one.
        again: Whether somebody should go on with it at once; else it is only freed.
    """
    held = [runs.c.id == run_id, runs.c.owner == claim, runs.c.status == RunStatus.RUNNING]
    if epoch is not None:
        held.append(runs.c.epoch == epoch)
    done = tx.connection.execute(update(runs).where(*held).values(owner=None))
    if done.rowcount and again:
        enqueue(tx, run_id)


_SIGNAL = Prepared(
    update(runs)
    .where(
        runs.c.id == bindparam("of_run"),
        or_(runs.c.status == RunStatus.RUNNING.value, runs.c.status == RunStatus.PAUSED.value),
    )
    .values(status=RunStatus.RUNNING.value, signal_seq=runs.c.signal_seq + 1, updated_at=bindparam("at"))
)


def signal(tx: Tx, run_id: str) -> None:
    """Say that there is news for a run; one that waits runs again."""
    if _SIGNAL.change(tx, {"of_run": run_id, "at": tx.at}):
        enqueue(tx, run_id)


def end(tx: Tx, run_id: str, status: RunStatus, error: RunError, *, allowed: Iterable[RunStatus]) -> bool:
    """End a run from outside its driver (cancel, deadline) and its trace; the driver's next commit is refused.

    Raises:
        IllegalTransition: a run in one of the ``allowed`` statuses never ends like that.
    """
    allowed = tuple(allowed)
    for before in allowed:
        check_transition(before, status)
    done = tx.connection.execute(
        update(runs)
        .where(runs.c.id == run_id, runs.c.status.in_(list(allowed)))
        .values(
            status=status,
            error=asdict(error),
            owner=None,
            epoch=runs.c.epoch + 1,
            updated_at=tx.at,
            completed_at=tx.at,
        )
    )
    ended = done.rowcount == 1
    if ended:
        add_trace(tx, run_id, ending(status), error=asdict(error))
    tx.notify(run_id)
    return ended


def revive(tx: Tx, run: Run, *, state: Mapping[str, object], state_version: int) -> bool:
    """Let a failed run run again from a state; false when it is no longer the failed run that was read."""
    done = tx.connection.execute(
        update(runs)
        .where(runs.c.id == run.id, runs.c.epoch == run.epoch, runs.c.status == RunStatus.FAILED)
        .values(
            status=RunStatus.RUNNING,
            state=state,
            state_version=state_version,
            error=None,
            owner=None,
            epoch=runs.c.epoch + 1,
            signal_seq=runs.c.signal_seq + 1,
            updated_at=tx.at,
            completed_at=None,
        )
    )
    if done.rowcount:
        enqueue(tx, run.id)
    return done.rowcount == 1


def clear_owners(tx: Tx) -> int:
    """Free every run a dead process held. Only the one process that may execute steps calls this, at its start."""
    return tx.connection.execute(update(runs).where(runs.c.owner.is_not(None)).values(owner=None)).rowcount


_RUNNABLE = Prepared(
    select(runs.c.id, runs.c.epoch)
    .where(runs.c.status == RunStatus.RUNNING.value, runs.c.owner.is_(None), runs.c.state_version <= STATE_VERSION)
    .order_by(runs.c.updated_at)
    .limit(bindparam("most"))
)


def list_runnable(tx: Tx, limit: int) -> tuple[str, ...]:
    """Find runs that nobody drives, oldest first."""
    rows = _RUNNABLE.rows(tx, {"most": limit})
    return tuple(row.id for row in rows)


_STALLED = Prepared(
    select(runs.c.id, runs.c.owner)
    .where(
        runs.c.status == RunStatus.RUNNING.value,
        runs.c.owner.is_not(None),
        runs.c.updated_at < bindparam("before"),
        runs.c.state_version <= STATE_VERSION,
    )
    .order_by(runs.c.updated_at)
    .limit(bindparam("most"))
)


def list_claimable(tx: Tx, limit: int) -> tuple[tuple[str, str], ...]:
    """Find runs that nobody drives, oldest first, each with the claim of whoever comes for it: another one each time."""
    rows = _RUNNABLE.rows(tx, {"most": limit})
    return tuple((row.id, f"{row.id}.{row.epoch}") for row in rows)


def find_stalled(tx: Tx, older_than: timedelta, limit: int) -> tuple[tuple[str, str], ...]:
    """Find runs whose driver has written nothing for a while, longest first, each with that driver's claim."""
    rows = _STALLED.rows(tx, {"most": limit, "before": isoformat(tx.now - older_than)})
    return tuple((row.id, row.owner) for row in rows)


_WAITING = Prepared(
    select(runs.c.id)
    .where(runs.c.status == RunStatus.RUNNING.value, runs.c.owner.is_(None))
    .order_by(runs.c.status, runs.c.updated_at)
    .offset(bindparam("others"))
    .limit(1)
)


def is_queue_full(tx: Tx, limit: int) -> bool:
    """Say whether this many runs wait for somebody to drive them. The cost grows with what waits, not with what is kept."""
    return _WAITING.first(tx, {"others": limit - 1}) is not None


def list_overdue(tx: Tx) -> tuple[str, ...]:
    """Find runs whose deadline has passed."""
    rows = tx.connection.execute(
        select(runs.c.id).where(runs.c.status.in_([RunStatus.RUNNING, RunStatus.PAUSED]), runs.c.deadline_at <= tx.at)
    )
    return tuple(row.id for row in rows)


def list_runs(
    tx: Tx,
    where: RunFilter = EVERY_RUN,
    *,
    sort_by: str = "updated_at",
    descending: bool = True,
    limit: int = 100,
    offset: int = 0,
    after: str | None = None,
) -> tuple[Run, ...]:
    """List runs without their state, in an order that is the same on every page.

    Rows without the value they are sorted by come last. ``after`` is the id of the last one seen, in one of the orders in
    which no run moves (``LASTING``).
    """
    statement = listing(where.conditions, sort_by, descending=descending, after=after is not None)
    values = {**where.values, "most": limit, "skipped": offset} | ({"after": after} if after is not None else {})
    return tuple(_run(row) for row in tx.connection.execute(statement, values))


def count_runs(tx: Tx, where: RunFilter = EVERY_RUN) -> int:
    return int(tx.connection.execute(counting(where.conditions), where.values).scalar_one())


def _run(row: AnyRow | PreparedRow) -> Run:
    release = None
    if row.bundle_digest is not None:
        release = ReleaseRef(
            bundle=row.bundle,
            version=row.bundle_version,
            digest=row.bundle_digest,
            environment=row.environment,
            revision=row.revision,
            promotion_id=row.promotion_id,
        )
    return Run(
        id=row.id,
        status=RunStatus(row.status),
        target=row.target,
        spec_digest=row.spec_digest,
        release=release,
        environment=row.environment,
        agent_name=row.agent_name,
        workflow_name=row.workflow_name,
        workflow_type=row.workflow_type,
        input_text=row.input_text,
        output_text=row.output_text,
        error=read_error(row.error),
        state=row.state or {},
        state_version=row.state_version,
        visited_steps=tuple(row.visited_steps),
        requester=row.requester,
        metadata=row.metadata,
        epoch=row.epoch,
        owner=row.owner,
        signal_seq=row.signal_seq,
        created_at=row.created_at,
        updated_at=row.updated_at,
        started_at=row.started_at,
        completed_at=row.completed_at,
        deadline_at=row.deadline_at,
        step_count=row.step_count,
        checkpoint_count=row.checkpoint_count,
        trace_count=row.trace_count,
    )
