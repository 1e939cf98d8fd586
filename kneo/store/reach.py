"""What a statement reads by which index: columns that are compared without one, and the newest rows of some environments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Column, ColumnElement, Select, UnaryExpression, select, union_all
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

MOST_PARTS = 20
"""Environments of a caller that are read one by one; more of them are mostly found soon in the order of all rows."""


class Unindexed(FunctionElement[Any]):
    """A column that SQLite compares without an index; PostgreSQL plans by its statistics."""

    inherit_cache = True

    def __init__(self, column: ColumnElement[Any]) -> None:
        super().__init__(column)
        self.type = column.type


@compiles(Unindexed)
def _as_it_is(element: Unindexed, compiler: SQLCompiler, **more: object) -> str:
    return compiler.process(element.clauses, **more)


@compiles(Unindexed, "sqlite")
def _with_a_plus(element: Unindexed, compiler: SQLCompiler, **more: object) -> str:
    return f"+{compiler.process(element.clauses, **more)}"


class Computed(Unindexed):
    """The value of a text column as an expression, which neither database reads or orders by an index."""

    inherit_cache = True


@compiles(Computed)
@compiles(Computed, "sqlite")
def _concatenated(element: Computed, compiler: SQLCompiler, **more: object) -> str:
    return f"({compiler.process(element.clauses, **more)} || '')"


def first_of_each(
    statement: Select[Any],
    row_id: Column[str],
    key: ColumnElement[Any],
    here: Sequence[ColumnElement[bool]],
    where: Sequence[ColumnElement[bool]],
    order: Callable[[ColumnElement[Any]], Sequence[UnaryExpression[Any]]],
    enough: ColumnElement[int] | int,
) -> Select[Any]:
    """Return a statement that reads the first rows of each environment, in one order.

    Neither database merges the entries of an index for ``environment IN (…)``: it sorts all of them, or reads all rows in order.

    Args:
        statement: The columns.
        row_id: The ids of the table.
        key: The column of the order.
        here: The condition of each environment.
        where: Further conditions.
        order: Returns the order by a key, of which an index begins with the environment.
        enough: Rows of each environment.
    """
    parts = (select(row_id).where(one, *where).order_by(*order(key)).limit(enough).subquery() for one in here)
    chosen = row_id.in_(union_all(*(select(part.c.id) for part in parts)))
    return statement.where(chosen).order_by(*order(Computed(key)))
