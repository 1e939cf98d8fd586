"""Rows of canaries, which are written whole with their MAC, and of the runs that a canary compares."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, bindparam, delete, func, insert, or_, select, update

from kneo.clock import isoformat, parse_time
from kneo.records.canary import Canary, CanaryFigures, CanaryState, CountedRun, MetricFigures, candidate_part
from kneo.records.run import AgentUsage, RunStatus
from kneo.records.task import DecisionKind
from kneo.store.authenticated import check, is_authentic, with_mac
from kneo.store.engine import Tx
from kneo.store.prepared import Prepared, Row
from kneo.store.tables import canaries, canary_runs, runs, tasks

if TYPE_CHECKING:
    from kneo.spec.models.canary import StopRule

MAX_COUNTED = 10_000
"""The most runs of a canary that are counted in one step."""

POINTS = 10_000

KEPT = timedelta(days=30)
"""How long the runs of a canary that has ended are kept."""

_FIGURES = [item.name for item in fields(MetricFigures)]
_NAMES = [item.name for item in fields(Canary) if item.name != "figures"]


def put(tx: Tx, canary: Canary) -> Canary:
    """Write a canary that this transaction inserts, or changes behind the lock of its environment; return it."""
    row = with_mac(
        tx,
        canaries,
        {
            **{name: getattr(canary, name) for name in _NAMES},
            "approvals": [*canary.approvals],
            "share": _points(canary.share),
            "result": asdict(canary.figures),
        },
    )
    if tx.connection.execute(update(canaries).where(canaries.c.id == canary.id).values(**row)).rowcount == 0:
        tx.connection.execute(insert(canaries).values(**row))
    return canary


def _read(row: Row) -> Canary:
    values = {name: getattr(row, name) for name in _NAMES}
    # Rows of earlier versions have a further figure of each metric.
    metrics = tuple(MetricFigures(**{name: item[name] for name in _FIGURES}) for item in row.result["metrics"])
    figures = CanaryFigures(**{**row.result, "metrics": metrics})
    values |= {"approvals": tuple(row.approvals), "state": CanaryState(row.state), "share": row.share / POINTS}
    return Canary(**values, figures=figures)


def _points(share: float) -> int:
    """Return a share as it is stored: in hundredths of a percent."""
    return round(share * POINTS)


_IN_PLACE = [canaries.c.environment == bindparam("of_environment"), canaries.c.bundle == bindparam("of_bundle")]
_LIVE = Prepared(select(canaries).where(*_IN_PLACE, canaries.c.ended_at.is_(None)))
# One that has not ended comes first, also where the clocks of two controllers differ.
_LATEST = Prepared(
    select(canaries).where(*_IN_PLACE).order_by(canaries.c.ended_at.is_not(None), canaries.c.id.desc()).limit(1)
)


def find_live(tx: Tx, environment: str, bundle: str) -> Canary | None:
    """Read the canary of a bundle that has not ended; a row that is not authentic is none."""
    return _one(tx, _LIVE.first(tx, {"of_environment": environment, "of_bundle": bundle}))


def find_latest(tx: Tx, environment: str, bundle: str) -> Canary | None:
    """Read the canary of a bundle that has not ended, or the newest one.

    Raises:
        Untrusted, Invalid: something else changed it; see ``RecordMacs.check``.
    """
    row = _LATEST.first(tx, {"of_environment": environment, "of_bundle": bundle})
    return _read(check(tx, canaries, row)) if row is not None else None


def _one(tx: Tx, row: Row | None) -> Canary | None:
    return _read(row) if row is not None and is_authentic(tx, canaries, row) else None


REMEMBERED = 64
"""Canaries that a process remembers."""

_remembered: dict[tuple[object, ...], Canary] = {}
"""Canaries by service key, id and MAC. The MAC covers the whole row, so that each change of it is another entry."""


def get(tx: Tx, canary_id: str, mac: bytes | None = None) -> Canary | None:
    """Read a canary by its id; a row that is not authentic is none. One whose MAC the caller has read may be remembered."""
    key = (tx.macs.head, canary_id, mac)
    if key in _remembered:
        return _remembered[key]
    row = tx.connection.execute(select(canaries).where(canaries.c.id == canary_id)).first()
    canary = _one(tx, row)
    if canary is not None and mac is not None and row is not None and row.mac == mac:
        if len(_remembered) >= REMEMBERED:
            _remembered.clear()
        _remembered[key] = canary
    return canary


def list_live(tx: Tx, environment: str | None = None) -> tuple[Canary, ...]:
    """List the canaries that have not ended: of all environments, or of one."""
    where: list[ColumnElement[bool]] = [canaries.c.ended_at.is_(None)]
    if environment is not None:
        where.append(canaries.c.environment == environment)
    return _list(tx, where)


def list_ended(tx: Tx, since: str) -> tuple[Canary, ...]:
    """List the newest canary of each bundle that ended at a time or later; none of a bundle that has one now."""
    where = [or_(canaries.c.ended_at.is_(None), canaries.c.ended_at >= since)]
    newest = {(canary.environment, canary.bundle): canary for canary in _list(tx, where)}
    return tuple(canary for canary in newest.values() if canary.ended_at is not None)


def newest_by_digest(tx: Tx, environment: str, digests: Collection[str]) -> Mapping[str, Canary]:
    """Return the newest canary of each of these bundles in an environment."""
    if not digests:
        return {}
    where = [canaries.c.environment == environment, canaries.c.digest.in_(sorted(digests))]
    return {canary.digest: canary for canary in _list(tx, where)}


def _list(tx: Tx, where: Iterable[ColumnElement[bool]]) -> tuple[Canary, ...]:
    rows = tx.connection.execute(select(canaries).where(*where).order_by(canaries.c.id)).all()
    return tuple(_read(row) for row in rows if is_authentic(tx, canaries, row))


# ---- runs -------------------------------------------------------------------------------------------------------

_ADD = Prepared(insert(canary_runs))
_OF_SESSION = Prepared(
    select(runs.c.id)
    .where(
        runs.c.session_id == bindparam("of_session"),
        runs.c.requester == bindparam("of_requester"),
        runs.c.environment == bindparam("of_environment"),
        runs.c.bundle == bindparam("of_bundle"),
        runs.c.created_at >= bindparam("since"),
        runs.c.id != bindparam("but"),
    )
    .limit(1)
)


def count_run(tx: Tx, canary: Canary, run_id: str, *, candidate: bool) -> None:
    """Add a run to those that a canary compares."""
    row = {"candidate": candidate, "share": _points(canary.share), "bad": {}, "settled": False, "started_at": tx.at}
    _ADD.change(tx, {"canary_id": canary.id, "run_id": run_id, **row})


def is_first_of_session(tx: Tx, canary: Canary, requester: str, session: str, run_id: str) -> bool:
    """Return whether a session has no other run of the bundle since the canary began."""
    names = {"of_environment": canary.environment, "of_bundle": canary.bundle, "since": canary.began_at}
    return _OF_SESSION.first(tx, {**names, "of_session": session, "of_requester": requester, "but": run_id}) is None


def list_runs(tx: Tx, canary: Canary) -> tuple[CountedRun, ...]:
    """List the runs that a canary compares, in the order of their starts."""
    columns = (*(canary_runs.c[name] for name in ("candidate", "share", "bad", "settled")), canary_runs.c.started_at)
    rows = tx.connection.execute(
        select(*columns).where(canary_runs.c.canary_id == canary.id).order_by(canary_runs.c.run_id)
    )
    return tuple(
        CountedRun(
            candidate=row.candidate,
            part=candidate_part(row.share / POINTS),
            bad=row.bad,
            settled=row.settled,
            started_at=parse_time(row.started_at),
        )
        for row in rows
    )


def count_new_runs(tx: Tx, canary: Canary) -> int:
    """Count the new runs of the bundle in the environment since the present step began."""
    where = (
        runs.c.environment == canary.environment,
        runs.c.bundle == canary.bundle,
        runs.c.created_at >= canary.step_at,
    )
    return tx.connection.execute(select(func.count()).select_from(runs).where(*where)).scalar_one()


def total_bad(tx: Tx) -> Mapping[tuple[str, str, str, str], int]:
    """Count the bad runs of canaries that have not ended, by environment, bundle, metric and arm."""
    found: dict[tuple[str, str, str, str], int] = {}
    columns = (canaries.c.environment, canaries.c.bundle, canary_runs.c.candidate, canary_runs.c.bad)
    joined = canary_runs.join(canaries, canaries.c.id == canary_runs.c.canary_id)
    for row in tx.connection.execute(select(*columns).select_from(joined).where(canaries.c.ended_at.is_(None))):
        for metric in row.bad:
            key = (row.environment, row.bundle, metric, "candidate" if row.candidate else "control")
            found[key] = found.get(key, 0) + 1
    return found


def prune(tx: Tx) -> int:
    """Delete the runs of canaries that ended long enough ago; return how many."""
    old = select(canaries.c.id).where(canaries.c.ended_at < isoformat(tx.now - KEPT))
    return tx.connection.execute(delete(canary_runs).where(canary_runs.c.canary_id.in_(old))).rowcount


# ---- what became of them ------------------------------------------------------------------------------------------

_GUARDRAIL = "guardrail_violation"
_FAILED = (RunStatus.FAILED, RunStatus.TIMED_OUT)
_BY_PEOPLE: Mapping[str, str] = {"rejected_by_people": DecisionKind.REJECTED, "edited": DecisionKind.EDITED}
_SETTLE = Prepared(
    update(canary_runs).where(
        canary_runs.c.canary_id == bindparam("of_canary"), canary_runs.c.run_id == bindparam("of_run")
    )
)


def settle_runs(tx: Tx, canary: Canary, rules: Sequence[StopRule], within: timedelta) -> None:
    """Record which runs have become bad, and which can become bad no more: they have ended, or are old enough."""
    joined = canary_runs.outerjoin(runs, runs.c.id == canary_runs.c.run_id)
    columns = (
        *(canary_runs.c.run_id, canary_runs.c.bad, canary_runs.c.started_at),
        *(runs.c.status, runs.c.completed_at, runs.c.error, runs.c.usage),
    )
    mine = (canary_runs.c.canary_id == canary.id, canary_runs.c.settled.is_(False))
    rows = tx.connection.execute(select(*columns).select_from(joined).where(*mine)).all()
    decisions = _decisions(tx, canary) if rows and any(rule.metric in _BY_PEOPLE for rule in rules) else {}
    changes = []
    for row in rows:
        run = _Seen.of(row, decisions.get(row.run_id, ()), tx.now)
        bad = {**row.bad, **{rule.metric: age for rule in rules if (age := run.bad_age(rule)) is not None}}
        settled = run.has_ended or run.age >= within.total_seconds()
        if settled or bad != row.bad:
            changes.append({"of_canary": canary.id, "of_run": row.run_id, "bad": bad, "settled": settled})
    if changes:
        _SETTLE.change_many(tx, changes)


def _decisions(tx: Tx, canary: Canary) -> Mapping[str, Sequence[tuple[str, datetime]]]:
    """Return the decisions of people in the runs that are not settled: their kind and time, by run."""
    joined = tasks.join(canary_runs, canary_runs.c.run_id == tasks.c.run_id)
    mine = (canary_runs.c.canary_id == canary.id, canary_runs.c.settled.is_(False), tasks.c.decision.is_not(None))
    found: dict[str, list[tuple[str, datetime]]] = {}
    for row in tx.connection.execute(select(tasks.c.run_id, tasks.c.decision).select_from(joined).where(*mine)):
        if row.decision["by"] == "person":
            found.setdefault(row.run_id, []).append((row.decision["kind"], parse_time(row.decision["at"])))
    return found


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """A run as it stands, and what became of it."""

    started: datetime
    now: datetime
    ended: datetime | None
    status: str | None
    error: str | None
    cost: float
    decisions: Sequence[tuple[str, datetime]]

    @classmethod
    def of(cls, row: Row, decisions: Sequence[tuple[str, datetime]], now: datetime) -> _Seen:
        is_final = row.status is not None and RunStatus(row.status).is_final
        return cls(
            started=parse_time(row.started_at),
            now=now,
            ended=parse_time(row.completed_at) if is_final and row.completed_at is not None else None,
            status=row.status,
            error=row.error["type"] if row.error else None,
            cost=AgentUsage.of_counts(row.usage).cost_micros / 1_000_000 if row.usage else 0.0,
            decisions=decisions,
        )

    @property
    def has_ended(self) -> bool:
        return self.status is None or self.ended is not None  # retention deletes runs that have ended

    @property
    def age(self) -> float:
        """Its age in seconds."""
        return self._age_at(self.now)

    def _age_at(self, time: datetime) -> float:
        return max(0.0, (time - self.started).total_seconds())

    def bad_age(self, rule: StopRule) -> float | None:
        """Return the age at which it became bad by a metric; None where it is not."""
        if rule.metric in _BY_PEOPLE:
            kind = _BY_PEOPLE[rule.metric]
            return min((self._age_at(at) for found, at in self.decisions if found == kind), default=None)
        if rule.over is not None:
            end = self._age_at(self.ended) if self.ended is not None else self.age
            return end if self.cost > rule.over else None
        is_bad = self.error == _GUARDRAIL if rule.metric == "guardrail_blocked" else self.status in _FAILED
        return self._age_at(self.ended) if is_bad and self.ended is not None else None


def count_in_step(tx: Tx, canary: Canary, within: timedelta) -> tuple[int, int]:
    """Count the runs of a canary in its present step: all that are counted, and those that can become bad no more."""
    mine = (
        canary_runs.c.canary_id == canary.id,
        canary_runs.c.candidate.is_(True),
        canary_runs.c.started_at >= canary.step_at,
    )
    is_known = or_(canary_runs.c.settled.is_(True), canary_runs.c.started_at <= isoformat(tx.now - within))
    row = tx.connection.execute(select(func.count(), func.count().filter(is_known)).where(*mine)).one()
    return row[0], row[1]
