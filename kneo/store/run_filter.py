"""Filters and orders of run lists. Each combination of conditions is one statement, built once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Integer,
    Select,
    String,
    UnaryExpression,
    and_,
    bindparam,
    func,
    null,
    or_,
    select,
    tuple_,
)

from kneo.records.run import RunStatus
from kneo.store.reach import MOST_PARTS, Computed, Unindexed, first_of_each
from kneo.store.tables import runs, task_candidates, tasks

LIKE_ESCAPE = "\\"

SORTABLE: Mapping[str, ColumnElement[Any]] = {
    "run_id": runs.c.id,
    **{
        name: runs.c[name]
        for name in (
            "id",
            "status",
            "created_at",
            "updated_at",
            "started_at",
            "completed_at",
            "deadline_at",
            "agent_name",
            "workflow_name",
            "environment",
            "session_id",
        )
    },
}

LASTING = frozenset({"id", "run_id", "created_at"})
"""Orders in which runs keep their place, so that a list can continue after any of them."""

EQUAL = ("bundle", "target", "workflow_type", "workflow_name", "session_id", "requester")
ENDED_BY_ERROR = (RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.EXPIRED, RunStatus.TIMED_OUT)
"""The statuses of runs that may have an error."""

INDEXED = frozenset({"reach", "status", "statuses"})
"""Conditions on the columns of the indexes of environments."""

NARROW = frozenset({"bundle", "workflow_name"})
"""Conditions on columns whose index has the runs in the order of their changes, each with its environment."""

OTHERS = ("updated_after", "created_after", "created_before")


@dataclass(frozen=True, kw_only=True)
class RunFilter:
    """Conditions that all hold; ``None`` is no condition. Times are ISO-8601 texts, the end excluded."""

    statuses: Collection[RunStatus] = ()
    """One of these statuses; none is no condition."""
    environment: str | None = None
    bundle: str | None = None
    target: str | None = None
    """``workflow`` or ``agent``; on the wire ``workflow_kind``, like the type."""
    workflow_type: str | None = None
    workflow_name: str | None = None
    session_id: str | None = None
    requester: str | None = None
    waiting_for: Collection[str] | None = None
    """The identities of a person, as in ``task_candidates``; only runs with an open task that the person may decide."""
    asks: bool | None = None
    """Whether the run is paused and has an open task."""
    has_error: bool | None = None
    updated_after: str | None = None
    created_after: str | None = None
    created_before: str | None = None
    text: str | None = None
    """A substring of the input or output, ignoring case. Every run in the period of creation is read for it."""
    reach: tuple[str, ...] | None = None
    """Only runs of these environments."""

    def within(self, reach: frozenset[str] | None) -> RunFilter:
        """Return this filter for a transaction that reads these environments."""
        if self.environment is not None:
            return replace(self, environment=None, reach=(self.environment,))
        return replace(self, reach=tuple(sorted(reach))) if reach is not None else self

    @property
    def parts(self) -> int:
        """The number of environments that are read one by one; 0 for a single scan."""
        return len(self.reach or ()) if len(self.reach or ()) <= MOST_PARTS else 0

    @property
    def values(self) -> dict[str, object]:
        """The parameters of the conditions."""
        values = {name: value for name in (*EQUAL, *OTHERS) if (value := getattr(self, name)) is not None}
        if self.text is not None:
            values["text"] = f"%{escaped(self.text)}%"
        if len(self.statuses) == 1:
            values["status"] = next(iter(self.statuses))
        elif self.statuses:
            values["statuses"] = sorted(self.statuses)
        if self.waiting_for is not None:
            values |= identity_values(self.waiting_for)
        if self.reach is not None:
            values["reach"] = list(self.reach)
            values |= {f"reach_{number}": name for number, name in enumerate(self.reach[:MOST_PARTS])}
        return values

    @property
    def conditions(self) -> frozenset[str]:
        """The names of the conditions."""
        error = {None: set(), True: {"has_error"}, False: {"has no error"}}[self.has_error]
        waits = {"waits"} if self.waiting_for is not None else set()
        asks = {None: set(), True: {"asks"}, False: {"asks nothing"}}[self.asks]
        names = {name for name in self.values if not name.startswith("reach_")}
        return frozenset({*names, *error, *waits, *asks}) - {"who", "refused"}


EVERY_RUN = RunFilter()


def identity_values(who: Collection[str]) -> dict[str, list[str]]:
    """Return the parameters of the conditions on the identities of a person: their own, and those that a task excludes."""
    users = [one.removeprefix("user:") for one in who if one.startswith("user:")]
    return {"who": sorted(who), "refused": sorted(f"not:{name}" for name in users)}


def escaped(text: str) -> str:
    """Escape the wildcards of LIKE in a search text."""
    for special in (LIKE_ESCAPE, "%", "_"):
        text = text.replace(special, LIKE_ESCAPE + special)
    return text


def _named(parameter: str) -> Select[Any]:
    return select(task_candidates.c.task_id).where(
        task_candidates.c.candidate.in_(bindparam(parameter, expanding=True))
    )


_OPEN = select(tasks.c.run_id).where(tasks.c.resolved_at.is_(None))
"""The runs with an open task."""

_OF_OPEN_TASKS = select(tasks.c.run_id).where(
    tasks.c.resolved_at.is_(None),
    or_(tasks.c.restricted.is_(False), tasks.c.id.in_(_named("who"))),
    tasks.c.id.not_in(_named("refused")),
)
"""The runs with an open task that a person may decide."""


def _conditions(column: Callable[[str], ColumnElement[Any]]) -> Mapping[str, ColumnElement[bool]]:
    sought: ColumnElement[str] = bindparam("text", type_=String)
    return {
        **{name: column(name) == bindparam(name) for name in ("status", *EQUAL)},
        # An index of its own leads to the runs of a person in the order of creation.
        "requester": runs.c.requester == bindparam("requester"),
        "statuses": column("status").in_(bindparam("statuses", expanding=True)),
        "reach": column("environment").in_(bindparam("reach", expanding=True)),
        "waits": runs.c.id.in_(_OF_OPEN_TASKS),
        "asks": and_(runs.c.status == RunStatus.PAUSED, runs.c.id.in_(_OPEN)),
        "asks nothing": or_(runs.c.status != RunStatus.PAUSED, runs.c.id.not_in(_OPEN)),
        # The status, which indexes have, rules out most runs before their rows are read.
        "has_error": and_(Unindexed(runs.c.status).in_(ENDED_BY_ERROR), runs.c.error.is_not(None)),
        "has no error": runs.c.error.is_(None),
        "updated_after": runs.c.updated_at >= bindparam("updated_after"),
        "created_after": runs.c.created_at >= bindparam("created_after"),
        "created_before": runs.c.created_at < bindparam("created_before"),
        "text": or_(*(runs.c[name].ilike(sought, escape=LIKE_ESCAPE) for name in ("input_text", "output_text"))),
    }


_CHOOSING = _conditions(lambda name: runs.c[name])
"""Conditions that may use an index."""

_WALKING = _conditions(lambda name: Unindexed(runs.c[name]))
"""Conditions that are evaluated for each run in the order of creation, mostly within the index."""

_LISTED = select(*(column for column in runs.c if column.name != "state"), null().label("state"))
"""Runs without their state, which may be long and is in no view."""


@cache
def listing(names: frozenset[str], sort_by: str, *, descending: bool, after: bool, parts: int = 0) -> Select[Any]:
    """Return the statement that lists runs; rows without the sort value come last.

    Its parameters are those of the conditions, ``most``, ``skipped``, and ``after`` for the id of the last listed run. With
    ``parts`` the newest of each of so many environments are read by its index, and then merged.
    """
    conditions = _WALKING if sort_by == "created_at" else _CHOOSING
    if sort_by == "updated_at" and names & NARROW:
        conditions, parts = {**conditions, "reach": _WALKING["reach"]}, 0
    column = SORTABLE[sort_by]
    nullable = getattr(column, "nullable", False)
    if "text" in names and sort_by != "created_at":
        # In any other order a rare text would be looked for in runs outside of the period.
        column = Computed(column)

    def order(key: ColumnElement[Any]) -> Sequence[UnaryExpression[Any]]:
        first, second = (key.desc(), runs.c.id.desc()) if descending else (key.asc(), runs.c.id.asc())
        # NULLS LAST on a column without NULLs would prevent an ordered scan of its index.
        return (first.nulls_last() if nullable else first, second)

    most, skipped = bindparam("most", type_=Integer), bindparam("skipped", type_=Integer)
    rest = [beyond(column, runs.c.id, descending=descending)] if after else []
    if parts:
        here = [runs.c.environment == bindparam(f"reach_{number}") for number in range(parts)]
        rest += [(_WALKING if name in INDEXED else _CHOOSING)[name] for name in sorted(names - {"reach"})]
        statement = first_of_each(_LISTED, runs.c.id, column, here, rest, order, most + skipped)
    else:
        statement = _LISTED.where(*(conditions[name] for name in sorted(names)), *rest).order_by(*order(column))
    return statement.limit(most).offset(skipped)


def beyond(column: ColumnElement[Any], row_id: Column[Any], *, descending: bool) -> ColumnElement[bool]:
    """Return the condition for rows after the last listed one, whose id is ``after``: a row comparison that an index serves."""
    last_id = bindparam("after", type_=String)
    if column is row_id:
        return row_id < last_id if descending else row_id > last_id
    last = select(column).where(row_id == last_id).scalar_subquery()
    here, there = tuple_(column, row_id), tuple_(last, last_id)
    return here < there if descending else here > there


@cache
def counting(names: frozenset[str]) -> Select[Any]:
    """Return the statement that counts runs, with the parameters of the conditions."""
    conditions = _CHOOSING if len(names) == 1 else _WALKING
    if names & NARROW:
        conditions = {**conditions, **{name: _CHOOSING[name] for name in NARROW}}
    elif names <= INDEXED or names == {"reach", "has_error"}:
        conditions = {**conditions, "reach": _CHOOSING["reach"]}
    return select(func.count()).select_from(runs).where(*(conditions[name] for name in sorted(names)))
