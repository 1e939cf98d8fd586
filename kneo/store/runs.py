"""Rows of runs. A commit of a driver is fenced: it fails once the run's epoch has changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from operator import attrgetter

from sqlalchemy import Boolean, Row, bindparam, case, func, insert, literal_column, or_, select, update

from kneo.clock import isoformat
from kneo.records.run import (
    STATE_VERSION,
    AgentUsage,
    ReleaseRef,
    Run,
    RunError,
    RunStatus,
    Suspicion,
    check_transition,
    ending,
)
from kneo.store.authenticated import body_of
from kneo.store.engine import Tx, insert_ignoring_duplicates
from kneo.store.history import add_trace, read_error, visited
from kneo.store.prepared import Prepared
from kneo.store.prepared import Row as PreparedRow
from kneo.store.queue import DueRun, enqueue
from kneo.store.run_filter import EVERY_RUN, RunFilter, counting, listing
from kneo.store.tables import runs, specs, tasks

AnyRow = Row[*tuple[object, ...]]


class Fenced(Exception):
    """Another driver has the run, or it has ended; the commit is discarded."""


_KEEP_SPEC = Prepared(
    select(specs.c.digest).where(specs.c.digest == bindparam("digest")).with_for_update(read=True, key_share=True)
)


def insert_spec(tx: Tx, digest: str, body: bytes) -> None:
    """Store a frozen spec once; it is not deleted before this transaction ends."""
    # Nearly every run finds its spec. One that retention deletes between the two statements is inserted in the next turn.
    while _KEEP_SPEC.first(tx, {"digest": digest}) is None:
        if insert_ignoring_duplicates(tx, specs, digest=digest, body=body, created_at=tx.at):
            return


_LOAD_SPEC = Prepared(select(specs.c.body).where(specs.c.digest == bindparam("digest")))


def load_spec(tx: Tx, digest: str) -> bytes | None:
    row = _LOAD_SPEC.first(tx, {"digest": digest})
    return row.body if row else None


def latest_specs(tx: Tx, limit: int) -> tuple[bytes, ...]:
    """Return the frozen specs that runs first used last."""
    rows = tx.connection.execute(select(specs.c.body).order_by(specs.c.created_at.desc()).limit(limit))
    return tuple(rows.scalars())


COVERED_FIELDS = (
    *("id", "target", "spec_digest", "release", "environment", "agent_name", "workflow_name", "workflow_type"),
    *("input_text", "requester", "metadata", "deadline_at", "state", "state_version", "output_text", "error"),
)
"""The fields of a run that its MAC covers, and its status once it has ended. The others belong to its driver and to lists."""

_COVERED = attrgetter(*COVERED_FIELDS)

_CHANGE_MAC = frozenset({"status", "state", "state_version", "output_text", "error", "metadata"})
"""The columns that a driver changes and the MAC covers."""


def _body(run: Run) -> bytes:
    return body_of((run.status if run.status.is_final else None, *_COVERED(run)))


def body_of_row(row: AnyRow | PreparedRow) -> bytes:
    """Return what the MAC of a row covers."""
    return _body(_run(row))


def _mac(tx: Tx, run: Run) -> bytes | None:
    return tx.macs.make(runs.name, _body(run))


def check(tx: Tx, run: Run) -> Run:
    """Return a run as it was read, after a check that a process of this installation wrote it.

    Raises:
        Untrusted, Invalid: as ``RecordMacs.check``.
    """
    tx.macs.check(runs.name, _body(run), run.mac, f"The run {run.id}")
    return run


_INSERT = Prepared(insert(runs))


def insert_run(tx: Tx, run: Run) -> None:
    """Store a new run; a running one is enqueued."""
    completed_at = tx.at if run.status.is_final else None
    times = {"created_at": tx.at, "updated_at": tx.at, "started_at": tx.at, "completed_at": completed_at}
    _INSERT.insert(tx, _row(tx, run) | times)
    if run.status is RunStatus.RUNNING:
        enqueue(tx, run.id, run.environment)


def insert_ended(tx: Tx, run: Run) -> bool:
    """Store a run that ended elsewhere, with its own times; return false where its id exists."""
    assert run.status.is_final, "nothing continues it"
    return insert_ignoring_duplicates(tx, runs, **_row(tx, run))


def _row(tx: Tx, run: Run) -> dict[str, object]:
    release = run.release
    row = {name: value for name, value in vars(run).items() if name != "release"}
    return row | {
        "bundle": release.bundle if release else None,
        "bundle_version": release.version if release else None,
        "bundle_digest": release.digest if release else None,
        "revision": release.revision if release else None,
        "promotion_id": release.promotion_id if release else None,
        "epoch": 0,
        "owner": None,
        "signal_seq": 0,
        "session_id": run.metadata.get("session_id"),
        "mac": _mac(tx, run),
    }


_GET = Prepared(select(runs).where(runs.c.id == bindparam("of_run")))


def get(tx: Tx, run_id: str) -> Run | None:
    """Read a run without a check of its MAC."""
    row = _GET.first(tx, {"of_run": run_id})
    return _run(row) if row and tx.sees(row.environment) else None


_ENVIRONMENT = Prepared(select(runs.c.environment).where(runs.c.id == bindparam("of_run")))


def environment_of(tx: Tx, run_id: str) -> tuple[str | None] | None:
    """Return the environment of a run; ``None`` where there is no such run."""
    row = _ENVIRONMENT.first(tx, {"of_run": run_id})
    return (row.environment,) if row else None


@dataclass(frozen=True, kw_only=True)
class RunLease:
    """The fence of a run, and the number of its last signal."""

    status: RunStatus
    epoch: int
    signal_seq: int


def read_leases(tx: Tx, run_ids: Sequence[str]) -> Mapping[str, RunLease]:
    """Read the leases of several runs in one statement."""
    columns = select(runs.c.id, runs.c.status, runs.c.epoch, runs.c.signal_seq)
    rows = tx.connection.execute(columns.where(runs.c.id.in_(list(run_ids))))
    return {row.id: RunLease(status=RunStatus(row.status), epoch=row.epoch, signal_seq=row.signal_seq) for row in rows}


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """The status of a run and the length of its trace."""

    status: RunStatus
    trace_count: int


def progress(tx: Tx, run_ids: Sequence[str]) -> Mapping[str, RunProgress]:
    """Read the progress of several runs in one statement."""
    columns = select(runs.c.id, runs.c.status, runs.c.trace_count)
    rows = tx.connection.execute(columns.where(runs.c.id.in_(list(run_ids))))
    return {row.id: RunProgress(status=RunStatus(row.status), trace_count=row.trace_count) for row in rows}


_LOCK = Prepared(select(runs.c.id).where(runs.c.id == bindparam("of_run")).with_for_update())


def lock(tx: Tx, run_id: str) -> None:
    """Lock a run's row before the rows of its tasks.

    Every writer of both locks them in this order; on PostgreSQL any other order deadlocks. SQLite has one writer.
    """
    if tx.dialect.name != "sqlite" and run_id not in tx.locked:
        _LOCK.first(tx, {"of_run": run_id})
        tx.locked.add(run_id)


_LOCK_OF_TASK = Prepared(
    select(runs.c.id)
    .where(runs.c.id == select(tasks.c.run_id).where(tasks.c.id == bindparam("of_task")).scalar_subquery())
    .with_for_update()
)


def lock_of_task(tx: Tx, task_id: str) -> None:
    """Lock the row of the run of a task; see ``lock``."""
    if tx.dialect.name != "sqlite":
        row = _LOCK_OF_TASK.first(tx, {"of_task": task_id})
        if row is not None:
            tx.locked.add(row.id)


_LOCK_OWN = Prepared(
    select(runs.c.id)
    .where(
        runs.c.id == bindparam("of_run"),
        runs.c.epoch == bindparam("seen_epoch"),
        runs.c.status == RunStatus.RUNNING.value,
    )
    .with_for_update()
)


def lock_own(tx: Tx, run: Run) -> None:
    """Lock the row of a run that this driver owns, before it changes rows of the run's tasks.

    Raises:
        Fenced: another driver took the run over, or it was cancelled or ended.
    """
    if run.id in tx.locked:
        return
    if _LOCK_OWN.first(tx, {"of_run": run.id, "seen_epoch": run.epoch}) is None:
        raise Fenced(run.id)
    tx.locked.add(run.id)


_IS_ALONE = runs.c.suspicion == Suspicion.ALONE.value

AFTER_DEATH = case(
    (runs.c.suspicion >= Suspicion.ALONE.value, Suspicion.CONFIRMED.value),
    (runs.c.suspicion >= Suspicion.ONE.value, Suspicion.SUSPECT.value),
    else_=Suspicion.ONE.value,
)
"""The suspicion of a run whose driver died."""

_ACQUIRE = Prepared(
    update(runs)
    .where(
        runs.c.id == bindparam("of_run"),
        runs.c.status == RunStatus.RUNNING.value,
        # The state of a newer version waits for a worker of that version.
        runs.c.state_version <= STATE_VERSION,
        (runs.c.owner.is_(None)) | (runs.c.owner == bindparam("claim")),
    )
    .values(
        owner=bindparam("claim"),
        epoch=runs.c.epoch + 1,
        resume_at=None,
        suspicion=case(
            # A driver that released the run had not died.
            (runs.c.owner.is_(None), case((_IS_ALONE, Suspicion.SUSPECT.value), else_=runs.c.suspicion)),
            (bindparam("again", type_=Boolean), runs.c.suspicion),
            else_=AFTER_DEATH,
        ),
    )
    .returning(runs)
)


def acquire(tx: Tx, run_id: str, claim: str, *, again: bool = False) -> Run | None:
    """Claim a running run for a driver; return ``None`` when another driver has it or it no longer runs.

    A driver that crashed and restarts with the same claim takes the run over; others wait until the owner is cleared. The epoch
    rises, so that later commits of an earlier owner are refused.

    Args:
        tx: The transaction.
        run_id: The run.
        claim: The driver's claim.
        again: Whether this driver may have acquired the run in a transaction whose end it does not know: the run is not suspected for it.

    Raises:
        Untrusted, Invalid: as ``check``.
    """
    row = _ACQUIRE.first(tx, {"of_run": run_id, "claim": claim, "again": again})
    if row is None:
        return None
    tx.locked.add(run_id)
    return check(tx, _run(row))


_OWN = update(runs).where(
    runs.c.id == bindparam("of_run"), runs.c.epoch == bindparam("seen_epoch"), runs.c.status == RunStatus.RUNNING.value
)
_COMMIT = Prepared(_OWN)
"""The statement of all commits; its parameters are the columns it sets."""


def commit(tx: Tx, run: Run, **changes: object) -> None:
    """Change a run that this driver owns.

    Args:
        tx: The transaction.
        run: The run after the change.
        changes: The columns to set.

    Raises:
        Fenced: another driver took the run over, or it was cancelled or ended.
        IllegalTransition: a running run cannot get that status.
    """
    status = RunStatus(str(changes.get("status", RunStatus.RUNNING)))
    if status is not RunStatus.RUNNING:
        check_transition(RunStatus.RUNNING, status)
    if not _CHANGE_MAC.isdisjoint(changes):
        changes["mac"] = _mac(tx, run)
    if _COMMIT.change(tx, _committed(tx, run, changes)) != 1:
        raise Fenced(run.id)
    tx.locked.add(run.id)


def _committed(tx: Tx, run: Run, changes: Mapping[str, object]) -> dict[str, object]:
    """Return the parameters of a commit: the fence, the columns that each sets, and those of this one."""
    return {
        "of_run": run.id,
        "seen_epoch": run.epoch,
        "updated_at": tx.at,
        "step_count": run.step_count,
        "checkpoint_count": run.checkpoint_count,
        "trace_count": run.trace_count,
        "suspicion": int(run.suspicion),
        **changes,
    }


_UNSIGNALLED = runs.c.signal_seq == bindparam("seen_signal")
_PAUSE = Prepared(
    _OWN.values(
        status=case((_UNSIGNALLED, RunStatus.PAUSED.value), else_=runs.c.status),
        owner=case((_UNSIGNALLED, None), else_=runs.c.owner),
    ).returning(runs.c.status)
)


def pause(tx: Tx, run: Run) -> Run | None:
    """Commit the state of a run as ``commit`` does and pause it; return the paused run.

    The visited steps are written with it for readers of the paused run. Where the run got a signal since it was read, it is not
    paused, and the result is ``None``: the driver continues.

    Raises:
        Fenced: another driver took the run over, or it was cancelled or ended.
    """
    steps = visited(tx, run)
    values = {
        "state": run.state,
        "state_version": run.state_version,
        "visited_steps": list(steps),
        "mac": _mac(tx, run),
    }
    row = _PAUSE.first(tx, _committed(tx, run, {**values, "seen_signal": run.signal_seq}))
    if row is None:
        raise Fenced(run.id)
    tx.locked.add(run.id)
    if row.status != RunStatus.PAUSED:
        return None
    return replace(run, status=RunStatus.PAUSED, owner=None, updated_at=tx.at, visited_steps=steps)


_PARK = Prepared(_OWN.where(_UNSIGNALLED))


def park(tx: Tx, run: Run, until: str) -> bool:
    """Release a run that has nothing to do before a time; return false where it got a signal since it was read.

    The run is due again at that time, or at its next signal.
    """
    expected = {"of_run": run.id, "seen_epoch": run.epoch, "seen_signal": run.signal_seq}
    return _PARK.change(tx, expected | {"owner": None, "resume_at": until, "updated_at": tx.at}) == 1


def list_resumable(tx: Tx, limit: int) -> tuple[DueRun, ...]:
    """List parked runs whose time has come, and let them count as due."""
    parked = (
        select(runs.c.id, runs.c.environment)
        .where(runs.c.resume_at <= tx.at, runs.c.owner.is_(None))
        .order_by(runs.c.resume_at)
    )
    found = tuple(DueRun(*row) for row in tx.connection.execute(parked.limit(limit).with_for_update(skip_locked=True)))
    if found:
        tx.connection.execute(update(runs).where(runs.c.id.in_([run.id for run in found])).values(resume_at=None))
    return found


def release(tx: Tx, run_id: str, claim: str, *, epoch: int | None = None, again: bool = True) -> None:
    """Release a run that this driver cannot continue.

    Args:
        tx: The transaction.
        run_id: The run.
        claim: The driver's claim; nothing is changed where another driver has the run.
        epoch: The epoch of the claim, where the driver knows it; nothing is changed in another epoch.
        again: Whether to enqueue the run for another driver at once.
    """
    held = [runs.c.id == run_id, runs.c.owner == claim, runs.c.status == RunStatus.RUNNING]
    if epoch is not None:
        held.append(runs.c.epoch == epoch)
    row = tx.connection.execute(update(runs).where(*held).values(owner=None).returning(runs.c.environment)).first()
    if row is not None and again:
        enqueue(tx, run_id, row.environment)


_SIGNAL = Prepared(
    update(runs)
    .where(
        runs.c.id == bindparam("of_run"),
        or_(runs.c.status == RunStatus.RUNNING.value, runs.c.status == RunStatus.PAUSED.value),
    )
    .values(status=RunStatus.RUNNING.value, signal_seq=runs.c.signal_seq + 1, updated_at=bindparam("at"))
    .returning(runs.c.environment)
)


def signal(tx: Tx, run_id: str) -> None:
    """Signal a run that its tasks changed; a paused one runs again."""
    row = _SIGNAL.first(tx, {"of_run": run_id, "at": tx.at})
    if row is not None:
        enqueue(tx, run_id, row.environment)


def end(tx: Tx, run_id: str, status: RunStatus, error: RunError, *, allowed: Iterable[RunStatus]) -> bool:
    """End a run and its trace from outside its driver (cancel, deadline); the driver's next commit is refused.

    Raises:
        IllegalTransition: a run in one of the ``allowed`` statuses cannot get that status.
    """
    allowed = tuple(allowed)
    for before in allowed:
        check_transition(before, status)
    lock(tx, run_id)
    run = get(tx, run_id)
    ended = run is not None and run.status in allowed
    if run is not None and ended:
        # A run that something else has changed can be stopped, and stays unauthenticated.
        is_authentic = tx.macs.is_valid(runs.name, _body(run), run.mac)
        tx.connection.execute(
            update(runs)
            .where(runs.c.id == run_id)
            .values(
                status=status,
                error=error,
                owner=None,
                epoch=runs.c.epoch + 1,
                updated_at=tx.at,
                completed_at=tx.at,
                mac=_mac(tx, replace(run, status=status, error=error)) if is_authentic else None,
            )
        )
        add_trace(tx, run_id, ending(status), error=asdict(error))
    tx.notify(run_id)
    return ended


def revive(tx: Tx, run: Run, *, state: Mapping[str, object], state_version: int) -> bool:
    """Run a failed run again from a state; return whether it was still the failed run that was read and checked."""
    after = replace(run, status=RunStatus.RUNNING, state=state, state_version=state_version, error=None)
    done = tx.connection.execute(
        update(runs)
        .where(runs.c.id == run.id, runs.c.epoch == run.epoch, runs.c.status == RunStatus.FAILED)
        .values(
            status=RunStatus.RUNNING,
            state=state,
            state_version=state_version,
            error=None,
            owner=None,
            suspicion=Suspicion.NONE.value,
            epoch=runs.c.epoch + 1,
            signal_seq=runs.c.signal_seq + 1,
            updated_at=tx.at,
            completed_at=None,
            mac=_mac(tx, after),
        )
    )
    if done.rowcount:
        enqueue(tx, run.id, run.environment)
    return done.rowcount == 1


def clear_owners(tx: Tx) -> int:
    """Release the runs of dead processes. Only the one process that may execute steps calls this, at its start."""
    held = runs.c.status == RunStatus.RUNNING.value, runs.c.owner.is_not(None)
    return tx.connection.execute(update(runs).where(*held).values(owner=None, suspicion=AFTER_DEATH)).rowcount


def list_suspects(tx: Tx, limit: int) -> tuple[tuple[str, RunStatus], ...]:
    """List the runs that are suspected of ending their workers, and those that ended for it, the latest first."""
    suspected = select(runs.c.id, runs.c.status).where(runs.c.suspicion >= Suspicion.SUSPECT.value)
    rows = tx.connection.execute(suspected.order_by(runs.c.updated_at.desc()).limit(limit))
    return tuple((row.id, RunStatus(row.status)) for row in rows)


def count_suspects(tx: Tx) -> int:
    """Count the runs that ``list_suspects`` lists."""
    suspected = select(func.count()).select_from(runs).where(runs.c.suspicion >= Suspicion.SUSPECT.value)
    return tx.connection.execute(suspected).scalar_one()


_RUNNABLE = Prepared(
    select(runs.c.id, runs.c.epoch, runs.c.environment)
    .where(
        runs.c.status == RunStatus.RUNNING.value,
        runs.c.owner.is_(None),
        runs.c.state_version <= STATE_VERSION,
        or_(runs.c.resume_at.is_(None), runs.c.resume_at <= bindparam("now")),
    )
    .order_by(runs.c.updated_at)
    .limit(bindparam("most"))
)


def list_runnable(tx: Tx, limit: int) -> tuple[DueRun, ...]:
    """List runs that are due and have no driver, oldest first."""
    rows = _RUNNABLE.rows(tx, {"most": limit, "now": tx.at})
    return tuple(DueRun(row.id, row.environment) for row in rows)


# Without a parameter, so that the planner can use the partial index.
_IS_RUNNING = runs.c.status == literal_column(f"'{RunStatus.RUNNING}'")

_DUE = select(runs.c.id, runs.c.environment).where(
    _IS_RUNNING,
    runs.c.owner.is_(None),
    runs.c.state_version <= STATE_VERSION,
    or_(runs.c.resume_at.is_(None), runs.c.resume_at <= bindparam("now")),
)
_OF_NONE = Prepared(_DUE.where(runs.c.environment.is_(None)).order_by(runs.c.owner, runs.c.id).limit(1))
_OF_NEXT = Prepared(
    _DUE.where(runs.c.environment > bindparam("before")).order_by(runs.c.environment, runs.c.owner, runs.c.id).limit(1)
)


def list_first_runnable(tx: Tx) -> tuple[DueRun, ...]:
    """List the first run of each environment that is due and has no driver."""
    found = [DueRun(*row) for row in _OF_NONE.rows(tx, {"now": tx.at})]
    environment = ""
    while (row := _OF_NEXT.first(tx, {"now": tx.at, "before": environment})) is not None:
        found.append(DueRun(row.id, row.environment))
        environment = row.environment
    return tuple(found)


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
    """List runs that are due and have no driver, oldest first, each with a claim that is new in each epoch."""
    rows = _RUNNABLE.rows(tx, {"most": limit, "now": tx.at})
    return tuple((row.id, f"{row.id}.{row.epoch}") for row in rows)


def find_stalled(tx: Tx, older_than: timedelta, limit: int) -> tuple[tuple[str, str], ...]:
    """List runs whose driver has written nothing for this long, the longest first, each with the driver's claim."""
    rows = _STALLED.rows(tx, {"most": limit, "before": isoformat(tx.now - older_than)})
    return tuple((row.id, row.owner) for row in rows)


_WAITING = Prepared(
    select(runs.c.id)
    .where(runs.c.status == RunStatus.RUNNING.value, runs.c.owner.is_(None), runs.c.resume_at.is_(None))
    .order_by(runs.c.status, runs.c.updated_at)
    .offset(bindparam("others"))
    .limit(1)
)


def is_queue_full(tx: Tx, limit: int) -> bool:
    """Return whether this many runs wait for a driver. The cost grows with the queue, not with the number of stored runs."""
    return _WAITING.first(tx, {"others": limit - 1}) is not None


_WAITING_HERE = Prepared(
    select(runs.c.id)
    .where(
        _IS_RUNNING,
        runs.c.owner.is_(None),
        runs.c.resume_at.is_(None),
        runs.c.environment == bindparam("of_environment"),
    )
    .offset(bindparam("others"))
    .limit(1)
)


_DRIVEN_HERE = (
    select(runs.c.id)
    # A comparison instead of IS NOT NULL, so that both databases search the index.
    .where(
        _IS_RUNNING, runs.c.environment == bindparam("of_environment"), runs.c.owner > "", runs.c.id != bindparam("but")
    )
    .limit(bindparam("most"))
)
_COUNT_DRIVEN = Prepared(select(func.count().label("number")).select_from(_DRIVEN_HERE.subquery()))


def count_driven(tx: Tx, environment: str, most: int, *, but: str = "") -> int:
    """Count the runs of an environment that have a driver, up to a number; without one run, where it is named."""
    row = _COUNT_DRIVEN.first(tx, {"of_environment": environment, "but": but, "most": most})
    return int(row.number) if row is not None else 0


_NEXT_HERE = Prepared(
    _DUE.where(runs.c.environment == bindparam("of_environment")).order_by(runs.c.id).limit(bindparam("most"))
)


def list_waiting(tx: Tx, environment: str, limit: int) -> tuple[str, ...]:
    """List the first due runs of an environment that have no driver."""
    return tuple(row.id for row in _NEXT_HERE.rows(tx, {"now": tx.at, "of_environment": environment, "most": limit}))


def has_waiting(tx: Tx, environment: str, number: int) -> bool:
    """Return whether this many runs of an environment wait for a driver. The cost grows with the queue."""
    return number == 0 or _WAITING_HERE.first(tx, {"of_environment": environment, "others": number - 1}) is not None


def list_overdue(tx: Tx) -> tuple[str, ...]:
    """List runs whose deadline has passed."""
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
    if not tx.sees(where.environment) and where.environment is not None:
        return ()
    where = where.within(tx.reach)
    statement = listing(where.conditions, sort_by, descending=descending, after=after is not None, parts=where.parts)
    values = {**where.values, "most": limit, "skipped": offset} | ({"after": after} if after is not None else {})
    return tuple(_run(row) for row in tx.connection.execute(statement, values))


def count_runs(tx: Tx, where: RunFilter = EVERY_RUN) -> int:
    if not tx.sees(where.environment) and where.environment is not None:
        return 0
    where = where.within(tx.reach)
    return int(tx.connection.execute(counting(where.conditions), where.values).scalar_one())


_OWN_COLUMNS = tuple(item.name for item in fields(Run) if item.name not in {"release", "environment"})


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
    values = {name: getattr(row, name) for name in _OWN_COLUMNS}
    values |= {
        "status": RunStatus(row.status),
        "error": read_error(row.error),
        "state": row.state or {},
        "visited_steps": tuple(row.visited_steps),
        "usage": AgentUsage.of_counts(row.usage),
        "suspicion": Suspicion(row.suspicion),
    }
    return Run(release=release, environment=row.environment, **values)
