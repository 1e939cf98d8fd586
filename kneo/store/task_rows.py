"""Human tasks as rows: what is stored of a record, and the record made of it again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from sqlalchemy import select

from kneo.records.task import Candidates, Decision, DecisionKind, Escalation, HumanTask, Plan, Quorum, TaskStatus, Vote
from kneo.store.tables import tasks

_COLUMNS = tuple(item.name for item in fields(HumanTask))

TASK = select(*(tasks.c[name] for name in _COLUMNS))
"""What a record is made of, in the record's order."""

_USUAL: Mapping[str, object] = {
    "candidates": Candidates(),
    "quorum": Quorum(),
    "votes": (),
    "plan": Plan(),
    "consequences": {},
}
"""What most tasks have; nothing is stored of it, and so nothing has to be read."""


def stored(value: object) -> object:
    """Return what is stored of one value of a record."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, tuple):
        return [stored(item) for item in value]
    return value


def store_task(task: HumanTask) -> dict[str, object]:
    """Return what is stored of a task, by column."""
    values: dict[str, object] = {}
    for name in _COLUMNS:
        value = getattr(task, name)
        values[name] = None if name in _USUAL and value == _USUAL[name] else stored(value)
    return values | {"restricted": task.is_restricted}


def _decisions(kept: list[str]) -> tuple[DecisionKind, ...]:
    return tuple(map(DecisionKind, kept))


def _decision(kept: Mapping[str, Any]) -> Decision:
    lists = {name: tuple(kept.get(name) or ()) for name in ("selected_options", "voters")}
    return Decision(**{**kept, "kind": DecisionKind(kept["kind"]), **lists})


def _candidates(kept: Mapping[str, list[str]]) -> Candidates:
    return Candidates(**{name: tuple(found) for name, found in kept.items()})


def _quorum(kept: Mapping[str, Any]) -> Quorum:
    return Quorum(**{**kept, "each": tuple((role, number) for role, number in kept["each"])})


def _votes(kept: list[dict[str, Any]]) -> tuple[Vote, ...]:
    return tuple(Vote(**{**vote, "decision": DecisionKind(vote["decision"])}) for vote in kept)


def _plan(kept: Mapping[str, Any]) -> Plan:
    escalate = tuple(Escalation(**{**one, "notify": tuple(one["notify"])}) for one in kept["escalate"])
    return Plan(**{**kept, "escalate": escalate, "remind": tuple(kept["remind"]), "notify": tuple(kept["notify"])})


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
"""What makes a stored value the record's, where it is not that already."""


def read_task(row: Iterable[Any]) -> HumanTask:
    """Make a record of what ``TASK`` selects."""
    # A page of the inbox does this a hundred times: no value is looked up twice, and what is usual is not made anew.
    values: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True))
    for name, read in _READERS.items():
        if values[name] is not None:
            values[name] = read(values[name])
    for name, usual in _USUAL.items():
        if values[name] is None:
            values[name] = usual
    return HumanTask(**values)
