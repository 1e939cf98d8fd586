"""The fields that a view repeats of a record: copied by name, and only where the types are equal."""

from __future__ import annotations

from functools import cache
from typing import TypeVar, get_type_hints

V = TypeVar("V")


@cache
def _shared_fields(view: type, record: type, others: frozenset[str]) -> tuple[str, ...]:
    """Return the names of the fields that a view shares with a record, without those that are passed."""
    wanted, stored = get_type_hints(view), get_type_hints(record)
    names = tuple(name for name in wanted if name in stored and name not in others)
    different = [name for name in names if wanted[name] != stored[name]]
    if different:
        msg = f"{view.__name__} and {record.__name__} have fields of different types: {', '.join(different)}."
        raise TypeError(msg)
    return names


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
