"""Conversion of human tasks to rows and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from sqlalchemy import select

from kneo.records.task import Candidates, Decision, DecisionKind, Escalation, HumanTask, Plan, Quorum, TaskStatus, Vote
from kneo.store.tables import tasks

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


def stored(value: object) -> object:
    """Return the stored form of a field's value."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, tuple):
        return [stored(item) for item in value]
    return value


def store_task(task: HumanTask) -> dict[str, object]:
    """Return the columns of a task."""
    values: dict[str, object] = {}
    for name in _COLUMNS:
        value = getattr(task, name)
        values[name] = None if name in _DEFAULTS and value == _DEFAULTS[name] else stored(value)
    return values | {"restricted": task.is_restricted}


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
