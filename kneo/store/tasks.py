"""Rows of human tasks. Every change is a compare-and-set on the version that was read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, fields, replace
from functools import cache
from operator import attrgetter

from sqlalchemy import bindparam, delete, func, insert, or_, select, update

from kneo.clock import new_id
from kneo.records.run import check_transition
from kneo.records.task import TAKES_OVER, UNRESOLVED, HumanTask, TaskEvent, TaskLink, TaskStatus
from kneo.store import task_statistics
from kneo.store.authenticated import MAC, body_of, is_authentic, with_mac
from kneo.store.engine import Tx
from kneo.store.prepared import Prepared, Row
from kneo.store.tables import task_candidates, task_events, task_links, tasks
from kneo.store.task_filter import TASK, WAITING, TaskFilter, counting, listing, read_task, store_task

COVERED_FIELDS = (
    *(
        "id",
        "request_id",
        "run_id",
        "environment",
        "workflow_name",
        "workflow_type",
        "step_id",
        "key",
        "kind",
        "status",
    ),
    *("version", "title", "prompt", "subject", "subject_digest", "options", "default_option", "decisions", "assignee"),
    *("timeout_seconds", "on_timeout", "on_reject", "deadline_at", "escalated_at", "decision", "position", "step_path"),
    *(
        "attempt",
        "requester",
        "bundle_digest",
        "previous",
        "answer_schema",
        "multiple",
        "candidates",
        "quorum",
        "votes",
    ),
    *("plan", "consequences", "priority", "claimed_by", "snoozed_until", "escalation", "due_at", "next_at"),
    *("resolved_at", "metadata"),
)
"""The fields of a task that its MAC covers: all but the times of its first and last write. One that is added later is not among them."""

_COVERED = attrgetter(*COVERED_FIELDS)


def body_of_row(row: Row) -> bytes:
    """Return what the MAC of a row covers."""
    return body_of(_COVERED(read_task([getattr(row, item.name) for item in fields(HumanTask)])))


def _mac(tx: Tx, task: HumanTask) -> bytes | None:
    return tx.macs.make(tasks.name, body_of(_COVERED(task)))


def authenticated(tx: Tx, task: HumanTask) -> HumanTask:
    """Return a task with its MAC, to be stored as it is."""
    return replace(task, mac=_mac(tx, task))


def check(tx: Tx, task: HumanTask) -> HumanTask:
    """Return a task as it was read, after a check that a process of this installation wrote it.

    Raises:
        Untrusted, Invalid: as ``RecordMacs.check``.
    """
    tx.macs.check(tasks.name, body_of(_COVERED(task)), task.mac, f"The human task {task.id}")
    return task


_INSERT = Prepared(insert(tasks))
_ADD_CANDIDATE = Prepared(insert(task_candidates))
_REMOVE_CANDIDATES = Prepared(delete(task_candidates).where(task_candidates.c.task_id == bindparam("of_task")))


def insert_task(tx: Tx, task: HumanTask, who: Collection[str] = ()) -> None:
    """Store a new task with its candidates and excluded people (``user:ann``, ``group:prod/editors``, ``not:bob``)."""
    _INSERT.insert(tx, store_task(task) | {"created_at": tx.at, "updated_at": tx.at, "mac": _mac(tx, task)})
    _ADD_CANDIDATE.insert(tx, *({"candidate": one, "task_id": task.id} for one in sorted(set(who))))
    if task.status in UNRESOLVED:
        task_statistics.add(tx, [(task, 1)])


def add_candidates(tx: Tx, task_id: str, who: Collection[str]) -> None:
    """Add candidates to a task; known ones are skipped."""
    if not who:
        return
    known = select(task_candidates.c.candidate).where(task_candidates.c.task_id == task_id)
    new = set(who) - set(tx.connection.execute(known).scalars())
    if new:
        tx.connection.execute(insert(task_candidates), [{"candidate": one, "task_id": task_id} for one in sorted(new)])


_GET = Prepared(TASK.where(tasks.c.id == bindparam("of_task")))


def get(tx: Tx, task_id: str) -> HumanTask | None:
    """Read a task.

    Raises:
        Untrusted, Invalid: as ``check``.
    """
    row = _GET.first(tx, {"of_task": task_id})
    task = read_task(row) if row else None
    return check(tx, task) if task is not None and tx.sees(task.environment) else None


_ENVIRONMENT = Prepared(select(tasks.c.environment).where(tasks.c.id == bindparam("of_task")))


def environment_of(tx: Tx, task_id: str) -> tuple[str | None] | None:
    """Return the environment of a task; ``None`` where there is no such task."""
    row = _ENVIRONMENT.first(tx, {"of_task": task_id})
    return (row.environment,) if row else None


_ENVIRONMENTS = select(tasks.c.id, tasks.c.environment).where(tasks.c.id.in_(bindparam("tasks", expanding=True)))


def environments_of(tx: Tx, task_ids: Collection[str]) -> Mapping[str, str | None]:
    """Return the environments of tasks, by id."""
    rows = tx.connection.execute(_ENVIRONMENTS, {"tasks": sorted(task_ids)})
    return {row.id: row.environment for row in rows}


_RUN = Prepared(select(tasks.c.run_id).where(tasks.c.id == bindparam("of_task")))


def run_of(tx: Tx, task_id: str) -> str | None:
    """Return the run of a task."""
    row = _RUN.first(tx, {"of_task": task_id})
    return row.run_id if row else None


_CHANGE = Prepared(
    update(tasks).where(tasks.c.id == bindparam("of_task"), tasks.c.version == bindparam("seen_version"))
)
"""The statement of all changes; its parameters are the columns it sets."""


def change(tx: Tx, task: HumanTask, **changes: object) -> HumanTask | None:
    """Change a task that was checked when it was read, and return it; return ``None`` where it changed since.

    A resolved task loses its candidates and its next deadline.

    Raises:
        IllegalTransition: the status does not follow the present one.
    """
    return _change(tx, task, changes, is_checked=True)


def withdraw(tx: Tx, task: HumanTask, metadata: Mapping[str, object]) -> HumanTask | None:
    """Cancel a task as ``change`` does, also one that is not authentic; that does not make it so."""
    changes: dict[str, object] = {"status": TaskStatus.CANCELLED, "metadata": metadata}
    body = body_of(_COVERED(task))
    return _change(tx, task, changes, is_checked=tx.macs.is_valid(tasks.name, body, task.mac))


def _change(tx: Tx, task: HumanTask, changes: dict[str, object], *, is_checked: bool) -> HumanTask | None:
    status = TaskStatus(str(changes.get("status", task.status)))
    if status is not task.status:
        check_transition(task.status, status)
    resolves = task.status in UNRESOLVED and status not in UNRESOLVED
    if resolves:
        changes |= {"resolved_at": tx.at, "next_at": None}
    changes |= {"version": task.version + 1, "updated_at": tx.at}
    after = replace(task, **changes)  # type: ignore[arg-type]
    changes["mac"] = _mac(tx, after) if is_checked else None
    if "candidates" in changes:
        changes["restricted"] = after.is_restricted
    if _CHANGE.change(tx, {"of_task": task.id, "seen_version": task.version} | changes) != 1:
        return None
    if resolves:
        task_statistics.add(tx, [(task, -1)])
        if task.is_restricted or task.candidates.exclude:
            _REMOVE_CANDIDATES.change(tx, {"of_task": task.id})
    elif task.status in UNRESOLVED and (status is not task.status or "escalation" in changes):
        task_statistics.add(tx, [(task, -1), (after, 1)])
    return after


def note(tx: Tx, task: HumanTask, metadata: Mapping[str, object]) -> HumanTask:
    """Replace the metadata of a task that this transaction created; return it."""
    after = change(tx, task, metadata=metadata)
    assert after is not None, "no other transaction sees it"
    return after


@cache
def _of_run(statuses: int) -> Prepared:
    """Return the statement that reads a run's tasks in one of this many statuses."""
    states = or_(*(tasks.c.status == bindparam(f"status_{number}") for number in range(statuses)))
    return Prepared(TASK.where(tasks.c.run_id == bindparam("of_run"), states).order_by(tasks.c.id))


def of_run(tx: Tx, run_id: str, statuses: Iterable[TaskStatus]) -> tuple[HumanTask, ...]:
    """Read the tasks of a run in these statuses.

    Raises:
        Untrusted, Invalid: as ``check``.
    """
    return tuple(check(tx, task) for task in unchecked_of_run(tx, run_id, statuses))


def unchecked_of_run(tx: Tx, run_id: str, statuses: Iterable[TaskStatus]) -> tuple[HumanTask, ...]:
    """Read the tasks of a run in these statuses, also those that are not authentic."""
    statuses_by_name = {f"status_{number}": status for number, status in enumerate(sorted(statuses))}
    return tuple(
        read_task(row) for row in _of_run(len(statuses_by_name)).rows(tx, {"of_run": run_id, **statuses_by_name})
    )


_RESOLVED = Prepared(
    select(tasks.c.step_path, tasks.c.step_id).where(
        tasks.c.run_id == bindparam("of_run"), tasks.c.resolved_at.is_not(None)
    )
)


def resolved_steps(tx: Tx, run_id: str) -> tuple[frozenset[str], ...]:
    """Read the path and the id of the step of each question of a run that is not open any more."""
    return tuple(frozenset({row.step_path, row.step_id}) for row in _RESOLVED.rows(tx, {"of_run": run_id}))


def resolved_calls(tx: Tx, environment: str, digest: str, *, since: str, limit: int) -> tuple[HumanTask, ...]:
    """Read the newest questions before calls of a bundle that were decided since a time.

    Raises:
        Untrusted, Invalid: as ``check``.
    """
    query = TASK.where(
        tasks.c.environment == environment,
        tasks.c.bundle_digest == digest,
        tasks.c.position == "tool",
        tasks.c.decision.is_not(None),
        tasks.c.resolved_at >= since,
    )
    rows = tx.connection.execute(query.order_by(tasks.c.resolved_at.desc()).limit(limit))
    return tuple(check(tx, read_task(row)) for row in rows)


def list_unreported_calls(tx: Tx, limit: int) -> tuple[str, ...]:
    """List the runs of calls whose caller was to make them and reported no result in time, and that wait for people now."""
    late = tasks.c.metadata[TAKES_OVER].as_string().is_not(None) & (tasks.c.escalation > 0)
    query = select(tasks.c.run_id).where(tasks.c.resolved_at.is_(None), late).order_by(tasks.c.id).limit(limit)
    return tuple(tx.connection.execute(query).scalars())


_FIRST = TASK.where(
    tasks.c.id.in_(
        select(func.min(tasks.c.id))
        .where(tasks.c.run_id.in_(bindparam("runs", expanding=True)), tasks.c.resolved_at.is_(None))
        .group_by(tasks.c.run_id)
    )
)


def first_of_runs(tx: Tx, run_ids: Collection[str]) -> Mapping[str, HumanTask]:
    """Read the oldest unresolved task of each of these runs, in one statement."""
    if not run_ids:
        return {}
    oldest = (read_task(row) for row in tx.connection.execute(_FIRST, {"runs": sorted(run_ids)}))
    return {task.run_id: task for task in oldest}


_ANSWERED = TASK.where(
    tasks.c.run_id.in_(bindparam("runs", expanding=True)),
    or_(tasks.c.decision.is_not(None), tasks.c.votes.is_not(None)),
).order_by(tasks.c.id)


def answered_of_runs(tx: Tx, run_ids: Collection[str]) -> Mapping[str, tuple[HumanTask, ...]]:
    """Read the tasks of each of these runs that have a vote or a decision, in one statement.

    Raises:
        Untrusted, Invalid: as ``check``.
    """
    if not run_ids:
        return {}
    answered = [check(tx, read_task(row)) for row in tx.connection.execute(_ANSWERED, {"runs": sorted(run_ids)})]
    return {run_id: tuple(task for task in answered if task.run_id == run_id) for run_id in run_ids}


def due(tx: Tx, limit: int, *, offset: int = 0) -> tuple[HumanTask, ...]:
    """List tasks with a deadline, reminder or escalation that is due, the oldest first. The cost grows with the due ones."""
    is_due = TASK.where(tasks.c.next_at.is_not(None), tasks.c.next_at <= tx.at)
    rows = tx.connection.execute(is_due.order_by(tasks.c.next_at).limit(limit).offset(offset))
    return tuple(read_task(row) for row in rows)


def list_tasks(
    tx: Tx,
    where: TaskFilter = WAITING,
    *,
    sort_by: str = "id",
    descending: bool = False,
    limit: int = 100,
    offset: int = 0,
    after: str | None = None,
) -> tuple[HumanTask, ...]:
    """List tasks; those after the task ``after`` in this order, regardless of changes since it was listed."""
    if not tx.sees(where.environment) and where.environment is not None:
        return ()
    where = where.within(tx.reach)
    statement = listing(where.conditions, sort_by, descending=descending, after=after is not None)
    values = {**where.values, "most": limit, "skipped": offset} | ({"after": after} if after is not None else {})
    return tuple(read_task(row) for row in tx.connection.execute(statement, values))


def count_tasks(tx: Tx, where: TaskFilter = WAITING) -> int:
    """Count tasks, from the stored counts where they suffice."""
    if not tx.sees(where.environment) and where.environment is not None:
        return 0
    where = where.within(tx.reach)
    known = task_statistics.count(tx, where)
    if known is not None:
        return known
    return sum(tx.connection.execute(counting(part.conditions), part.values).scalar_one() for part in where.parts())


# ---- events -------------------------------------------------------------------------------------------------------


EVENT = [column for column in task_events.c if column.name != "seq"]
"""The columns of an event without its feed position, which belongs to ``task_feed``."""

_ADD_EVENT = Prepared(insert(task_events))


def open_environments(tx: Tx) -> frozenset[str | None]:
    """Return the environments of unresolved tasks; ``None`` for that of tasks without one."""
    query = select(tasks.c.environment).where(tasks.c.resolved_at.is_(None)).distinct()
    return frozenset(tx.connection.execute(query).scalars())


def add_event(tx: Tx, task: HumanTask, kind: str, actor: str | None, data: Mapping[str, object]) -> None:
    row = {"id": new_id("tev", tx.now), "task_id": task.id, "run_id": task.run_id, "at": tx.at}
    _ADD_EVENT.insert(tx, row | {"type": kind, "actor": actor, "data": data})


def events_of(tx: Tx, task_id: str) -> tuple[TaskEvent, ...]:
    rows = tx.connection.execute(select(*EVENT).where(task_events.c.task_id == task_id).order_by(task_events.c.id))
    return tuple(read_event(row) for row in rows)


def read_event(row: Row) -> TaskEvent:
    """Return the event of a row with the columns of ``EVENT``."""
    return TaskEvent(**{column.name: getattr(row, column.name) for column in EVENT})


def insert_link(tx: Tx, link: TaskLink) -> None:
    tx.connection.execute(insert(task_links).values(**with_mac(tx, task_links, asdict(link))))


def find_link(tx: Tx, token_hash: str) -> TaskLink | None:
    """Find a link by the hash of its token; ``None`` also for one that is not authentic."""
    row = tx.connection.execute(select(task_links).where(task_links.c.token_hash == token_hash)).first()
    return _link(row) if row is not None and is_authentic(tx, task_links, row) else None


def _link(row: Row) -> TaskLink:
    return TaskLink(**{item.name: getattr(row, item.name) for item in fields(TaskLink)})


def count_links(tx: Tx, task_id: str) -> int:
    statement = select(func.count()).select_from(task_links).where(task_links.c.task_id == task_id)
    return tx.connection.execute(statement).scalar_one()


def list_links(tx: Tx, task_id: str) -> tuple[TaskLink, ...]:
    """List the links of a task, oldest first; ``kneo.tasks.links`` bounds their number."""
    rows = tx.connection.execute(select(task_links).where(task_links.c.task_id == task_id).order_by(task_links.c.id))
    return tuple(_link(row) for row in rows)


def expire_links(tx: Tx, *, task_id: str, link_id: str) -> int:
    """Expire an unused link of a task; return how many links that were."""
    named = task_links.c.task_id == task_id, task_links.c.id == link_id
    unused = select(task_links).where(*named, task_links.c.used_at.is_(None), task_links.c.expires_at > tx.at)
    rows = tx.connection.execute(unused.with_for_update()).all()
    for row in rows:
        _change_link(tx, row, {"expires_at": tx.at})
    return len(rows)


def end_links(tx: Tx) -> None:
    """Expire all unused links of a restored database, also in a process without the service key: their codes end with them."""
    unused = update(task_links).where(task_links.c.used_at.is_(None), task_links.c.expires_at > tx.at)
    tx.connection.execute(unused.values(expires_at=tx.at, mac=None))


def _change_link(tx: Tx, row: Row, changes: Mapping[str, object]) -> None:
    """Change a link; one that is not authentic does not become so."""
    mac = with_mac(tx, task_links, {**row._asdict(), **changes})[MAC] if is_authentic(tx, task_links, row) else None
    tx.connection.execute(update(task_links).where(task_links.c.id == row.id).values(**changes, mac=mac))


def use_link(tx: Tx, link: TaskLink) -> bool:
    """Mark a link as used; return whether it was unused."""
    unused = select(task_links).where(task_links.c.id == link.id, task_links.c.used_at.is_(None)).with_for_update()
    row = tx.connection.execute(unused).first()
    if row is None:
        return False
    _change_link(tx, row, {"used_at": tx.at})
    return True
