"""The fields that a view repeats of a record: copied by name, and only where the view's type includes the record's."""

from __future__ import annotations

from functools import cache
from types import UnionType
from typing import TypeVar, Union, get_args, get_origin, get_type_hints

V = TypeVar("V")


@cache
def _shared_fields(view: type, record: type, others: frozenset[str]) -> tuple[str, ...]:
    """Return the names of the fields that a view shares with a record, without those that are passed."""
    wanted, stored = get_type_hints(view), get_type_hints(record)
    names = tuple(name for name in wanted if name in stored and name not in others)
    different = [name for name in names if not _members(stored[name]) <= _members(wanted[name])]
    if different:
        msg = f"{view.__name__} and {record.__name__} have fields of different types: {', '.join(different)}."
        raise TypeError(msg)
    return names


def _members(kind: object) -> frozenset[object]:
    """Return the types of a union; a type that is no union is its only member."""
    return frozenset(get_args(kind)) if get_origin(kind) in {Union, UnionType} else frozenset({kind})


def view_of(view: type[V], record: object, **others: object) -> V:
    """Build a view from the fields of a record.

    Args:
        view: The view.
        record: The record, whose fields become those of the same name.
        others: The fields that the record lacks, and those that differ from the record's.

    Raises:
        TypeError: a field of the view is missing, or has another type in the record and is not among the others.
    """
    names = _shared_fields(view, type(record), frozenset(others))  # type: ignore[arg-type]  # mypy: a class has a hash
    return view(**{name: getattr(record, name) for name in names}, **others)
