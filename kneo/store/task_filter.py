"""Rows of human tasks, and filters and orders of task lists. Each combination of conditions is one statement, built once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Integer, Select, bindparam, func, or_, select

from kneo.clock import first_id, parse_time
from kneo.records.task import (
    UNRESOLVED,
    Candidates,
    Decision,
    DecisionKind,
    Escalation,
    HumanTask,
    Plan,
    Quorum,
    TaskStatus,
    Vote,
)
from kneo.store.reach import Unindexed
from kneo.store.run_filter import LIKE_ESCAPE, beyond, escaped, identity_values
from kneo.store.tables import task_candidates, tasks

SORTABLE: Mapping[str, ColumnElement[Any]] = {
    "id": tasks.c.id,
    "created_at": tasks.c.id,
    "priority": tasks.c.priority,
    "due_at": tasks.c.due_at,
    "expires_at": tasks.c.deadline_at,
}
"""The sort keys of a list. The order of ids is the order of creation. Tasks without a deadline come last."""

EQUAL = ("environment", "kind", "assignee", "claimed_by", "step_id", "run_id", "workflow_name", "workflow_type")
"""Filters that compare a task's own value."""

PERIOD = ("created_after", "created_before")

TASK_PREFIX = "cont"
"""The prefix of task ids."""

_EVERY_STATUS = frozenset(TaskStatus)


@dataclass(frozen=True, kw_only=True)
class TaskFilter:
    """Conditions that all hold; ``None`` is no condition."""

    statuses: Collection[TaskStatus] = UNRESOLVED
    escalated: bool | None = None
    overdue_at: str | None = None
    """Only tasks that were due before this time."""
    environment: str | None = None
    kind: str | None = None
    assignee: str | None = None
    claimed_by: str | None = None
    step_id: str | None = None
    run_id: str | None = None
    workflow_name: str | None = None
    workflow_type: str | None = None
    who: Collection[str] | None = None
    """The identities of a person, as in ``task_candidates``; only tasks that the person may decide."""
    restricted: bool | None = None
    """With ``who``: only tasks with named candidates, or only those without."""
    created_after: str | None = None
    created_before: str | None = None
    """The end of the period of creation, excluded. Times are ISO-8601 texts, compared in milliseconds."""
    text: str | None = None
    """A substring of the title, ignoring case."""
    reach: tuple[str, ...] | None = None
    """Only tasks of these environments."""

    def within(self, reach: frozenset[str] | None) -> TaskFilter:
        """Return this filter for a transaction that reads these environments."""
        is_limited = reach is not None and self.environment is None
        return replace(self, reach=tuple(sorted(reach or ()))) if is_limited else self

    @property
    def waits(self) -> bool:
        """Whether the filter is limited to unresolved tasks, which the indexes of the inbox cover."""
        return UNRESOLVED.issuperset(self.statuses)

    @property
    def reads_history(self) -> bool:
        """Whether a text is searched in tasks that were ever resolved, which are limited by their period of creation alone."""
        return self.text is not None and not self.waits and self.run_id is None

    @property
    def _picks_statuses(self) -> bool:
        return frozenset(self.statuses) not in {UNRESOLVED, _EVERY_STATUS}

    @property
    def conditions(self) -> frozenset[str]:
        """The names of the conditions."""
        names = {name for name in EQUAL if getattr(self, name) is not None}
        if self.waits:
            names.add("waits")
        if self._picks_statuses:
            names.add("statuses")
        if self.escalated is not None:
            names.add("escalated" if self.escalated else "not escalated")
        if self.overdue_at is not None:
            names.add("overdue_at")
        names |= {name for name in (*PERIOD, "text", "reach") if getattr(self, name) is not None}
        if self.who is not None:
            names |= {"not refused", {None: "open to person", True: "named", False: "unrestricted"}[self.restricted]}
        return frozenset(names)

    @property
    def values(self) -> dict[str, object]:
        """The parameters of the conditions."""
        values: dict[str, object] = {name: getattr(self, name) for name in EQUAL if getattr(self, name) is not None}
        if self._picks_statuses:
            values["statuses"] = sorted(self.statuses)
        if self.overdue_at is not None:
            values["overdue_at"] = self.overdue_at
        for name in PERIOD:
            if (moment := getattr(self, name)) is not None:
                values[name] = first_id(TASK_PREFIX, parse_time(moment))
        if self.text is not None:
            values["text"] = f"%{escaped(self.text)}%"
        if self.reach is not None:
            values["reach"] = list(self.reach)
        if self.who is not None:
            values |= identity_values(self.who)
            if self.restricted is False:
                del values["who"]
        return values

    def parts(self) -> tuple[TaskFilter, ...]:
        """Split the filter into disjoint ones that an index serves."""
        if self.who is None or self.restricted is not None:
            return (self,)
        return replace(self, restricted=False), replace(self, restricted=True)


EVERY_TASK = TaskFilter(statuses=_EVERY_STATUS)
WAITING = TaskFilter()

_NAMED = select(task_candidates.c.task_id).where(task_candidates.c.candidate.in_(bindparam("who", expanding=True)))
_REFUSED = select(task_candidates.c.task_id).where(
    task_candidates.c.candidate.in_(bindparam("refused", expanding=True))
)
"""Evaluated once rather than for each task."""

_escalated = tasks.alias("escalated")
_ESCALATED = select(_escalated.c.id).where(_escalated.c.resolved_at.is_(None), _escalated.c.escalation > 0)
"""Few tasks are escalated; their own index finds them."""


def _conditions(column: Callable[[str], ColumnElement[Any]]) -> dict[str, ColumnElement[bool]]:
    return {
        **{name: column(name) == bindparam(name) for name in EQUAL},
        # Without a parameter, so that the planner can use the partial indexes of the inbox.
        "waits": tasks.c.resolved_at.is_(None),
        "statuses": column("status").in_(bindparam("statuses", expanding=True)),
        "reach": column("environment").in_(bindparam("reach", expanding=True)),
        "escalated": column("escalation") > 0,
        "not escalated": column("escalation") == 0,
        "overdue_at": tasks.c.due_at < bindparam("overdue_at"),
        "created_after": tasks.c.id >= bindparam("created_after"),
        "created_before": tasks.c.id < bindparam("created_before"),
        "text": tasks.c.title.ilike(bindparam("text"), escape=LIKE_ESCAPE),
        "open to person": or_(column("restricted").is_(False), column("id").in_(_NAMED)),
        "named": column("restricted").is_(True) & column("id").in_(_NAMED),
        "unrestricted": column("restricted").is_(False),
        "not refused": column("id").not_in(_REFUSED),
    }


_WALKING = _conditions(lambda name: Unindexed(tasks.c[name]))
"""Conditions that are evaluated for each task in the order of the list."""

_CHOOSING = _conditions(lambda name: tasks.c[name]) | {"escalated": tasks.c.id.in_(_ESCALATED)}
"""Conditions that may use an index."""

_LEADING = frozenset({"assignee", "claimed_by", "named", "unrestricted"})
"""Conditions with an index on SQLite, in the order of ids."""


def _where(statement: Select[Any], names: frozenset[str], *, by_id: bool) -> Select[Any]:
    others = names - {"waits", "not refused"}
    may_choose = "waits" not in names or "run_id" in names or (by_id and len(others) == 1 and others <= _LEADING)
    conditions = _CHOOSING if may_choose else _WALKING
    return statement.where(*(conditions[name] for name in sorted(names)))


@cache
def listing(names: frozenset[str], sort_by: str, *, descending: bool, after: bool) -> Select[Any]:
    """Return the statement that lists tasks.

    Its parameters are those of the conditions, ``most``, ``skipped``, and ``after`` for the id of the last listed task.
    """
    column = SORTABLE[sort_by]
    by_id = column is tasks.c.id
    statement = _where(TASK, names, by_id=by_id)
    if after:
        statement = statement.where(beyond(column, tasks.c.id, descending=descending))
    first = (tasks.c.resolved_at,) if by_id and "waits" in names else ()
    keys = (*first, tasks.c.id) if by_id else (column, tasks.c.id)
    ordered = statement.order_by(*(key.desc() if descending else key.asc() for key in keys))
    return ordered.limit(bindparam("most", type_=Integer)).offset(bindparam("skipped", type_=Integer))


@cache
def counting(names: frozenset[str]) -> Select[Any]:
    """Return the statement that counts tasks, with the parameters of the conditions."""
    return _where(select(func.count()).select_from(tasks), names, by_id=True)


_COLUMNS = tuple(item.name for item in fields(HumanTask))

TASK = select(*(tasks.c[name] for name in _COLUMNS))
"""The columns of a record, in the order of its fields."""

_DEFAULTS: Mapping[str, object] = {
    "candidates": Candidates(),
    "quorum": Quorum(),
    "votes": (),
    "plan": Plan(),
    "consequences": {},
}
"""The defaults of most tasks, which are stored as NULL and not parsed."""


def store_task(task: HumanTask) -> dict[str, object]:
    """Return the columns of a task."""
    values = vars(task) | {"restricted": task.is_restricted}
    return values | {name: None for name, default in _DEFAULTS.items() if values[name] == default}


def _decisions(stored_value: list[str]) -> tuple[DecisionKind, ...]:
    return tuple(map(DecisionKind, stored_value))


def _decision(stored_value: Mapping[str, Any]) -> Decision:
    lists = {name: tuple(stored_value.get(name) or ()) for name in ("selected_options", "voters")}
    return Decision(**{**stored_value, "kind": DecisionKind(stored_value["kind"]), **lists})


def _candidates(stored_value: Mapping[str, list[str]]) -> Candidates:
    return Candidates(**{name: tuple(names) for name, names in stored_value.items()})


def _quorum(stored_value: Mapping[str, Any]) -> Quorum:
    return Quorum(**{**stored_value, "each": tuple((role, number) for role, number in stored_value["each"])})


def _votes(stored_value: list[dict[str, Any]]) -> tuple[Vote, ...]:
    return tuple(Vote(**{**vote, "decision": DecisionKind(vote["decision"])}) for vote in stored_value)


def _plan(stored_value: Mapping[str, Any]) -> Plan:
    escalate = tuple(Escalation(**{**one, "notify": tuple(one["notify"])}) for one in stored_value["escalate"])
    return Plan(
        **{
            **stored_value,
            "escalate": escalate,
            "remind": tuple(stored_value["remind"]),
            "notify": tuple(stored_value["notify"]),
        }
    )


_READERS: Mapping[str, Callable[[Any], object]] = {
    "status": TaskStatus,
    "options": tuple,
    "decisions": _decisions,
    "decision": _decision,
    "candidates": _candidates,
    "quorum": _quorum,
    "votes": _votes,
    "plan": _plan,
}
"""The parsers of stored values whose form differs from the record's."""


def read_task(row: Iterable[Any]) -> HumanTask:
    """Return the record of a row of ``TASK``."""
    # A page of the inbox does this a hundred times, so defaults are shared and no value is read twice.
    values: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True))
    for name, read in _READERS.items():
        if values[name] is not None:
            values[name] = read(values[name])
    for name, default in _DEFAULTS.items():
        if values[name] is None:
            values[name] = default
    return HumanTask(**values)
