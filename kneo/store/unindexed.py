"""Keeping SQLite from an index. It knows nothing about how much a condition leaves: it would take any index there is for one,
and read and sort every row that this finds, where walking an order ends after a page.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class Unindexed(FunctionElement[Any]):
    """A column for whose value SQLite takes no index; PostgreSQL, which does know, takes what it likes."""

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
