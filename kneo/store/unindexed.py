"""A column without its indexes on SQLite.

SQLite keeps no statistics here: it would take any index for a condition, then read and sort all matching rows, where a scan in the
order of the list ends after a page.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


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
