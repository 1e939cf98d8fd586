"""Statements that are compiled once and executed by the driver: those that every run executes.

They are written with SQLAlchemy like all others, without its work at each execution. Listeners of the engine are called for them
too. ADR 22 has the measurements.
"""

from __future__ import annotations

import re
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import BindParameter, Connection, Delete, Dialect, Insert, Select, Table, Update
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.sql import visitors
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine

from kneo.store.connections import translate_error
from kneo.store.tables import Bounded, TooLong

MAX_INSERTED = 5_000
"""Values of the inserts that wait for one statement; PostgreSQL takes 65,535."""

FEW_ROWS = {"sqlite": 1, "postgresql": 3}
"""Rows that are written one after the other: a batch of PostgreSQL's driver costs more, and another statement (``_watch_idle``)."""

Statement = Select[Any] | Insert | Update | Delete
Values = Mapping[str, object]
Parameters = Sequence[Any] | Mapping[str, Any]


class Transaction(Protocol):
    """The transaction of a statement."""

    @property
    def opened(self) -> Connection: ...

    @property
    def dialect(self) -> Dialect: ...

    @property
    def driver(self) -> DBAPIConnection: ...

    @property
    def inserts(self) -> list[tuple[Insertion, list[Any]]]:
        """The inserts that wait, each with its values, and are executed before the next statement."""
        ...


class Row(Protocol):
    """A row: a named tuple of the selected columns."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as the database has it
        ...

    def __iter__(self) -> Iterator[Any]: ...

    def _asdict(self) -> dict[str, Any]: ...


class Prepared:
    """A statement, compiled once for each kind of database and each set of parameters."""

    def __init__(self, statement: Statement) -> None:
        self.statement = statement
        self._compiled: dict[tuple[str, ...], _Compiled] = {}

    def change(self, tx: Transaction, values: Values) -> int:
        """Execute a change; return the number of changed rows."""
        compiled = self._of(tx, values)
        count: int = self._execute(tx, compiled, compiled.bind(values)).rowcount
        return count

    def change_many(self, tx: Transaction, rows: Sequence[Values]) -> None:
        """Execute a change for each row of parameters, which have the same names in the same order."""
        if len(rows) <= FEW_ROWS[tx.dialect.name]:
            for row in rows:
                self.change(tx, row)
        else:
            compiled = self._of(tx, rows[0])
            self._execute(tx, compiled, [compiled.bind(row) for row in rows], many=True)

    def insert(self, tx: Transaction, *rows: Values) -> None:
        """Insert rows with the same columns.

        On PostgreSQL they wait for the next statement about their table, or for the end of the transaction; all that wait become
        one statement. An error of theirs is raised there.
        """
        compiled = self._of(tx, rows[0]) if rows else None
        if compiled is None or compiled.insertion is None or len(rows) * len(compiled.insertion.names) > MAX_INSERTED:
            self.change_many(tx, rows)
            return
        names = compiled.insertion.names
        for row in rows:
            bound: Any = compiled.bind(row)
            tx.inserts.append((compiled.insertion, [bound[name] for name in names]))
        if sum(len(values) for _, values in tx.inserts) > MAX_INSERTED:
            execute_inserts(tx)

    def first(self, tx: Transaction, values: Values) -> Row | None:
        """Execute and read the first row."""
        compiled = self._of(tx, values)
        row = self._execute(tx, compiled, compiled.bind(values)).fetchone()
        return compiled.read(row) if row is not None else None

    def rows(self, tx: Transaction, values: Values) -> list[Row]:
        """Execute and read all rows."""
        compiled = self._of(tx, values)
        fetched = self._execute(tx, compiled, compiled.bind(values)).fetchall()
        return [compiled.read(row) for row in fetched]

    def _execute(self, tx: Transaction, compiled: _Compiled, values: Any, *, many: bool = False) -> DBAPICursor:  # noqa: ANN401
        """Execute the statement; before it the inserts that wait, where one is into a table of the statement."""
        if any(insertion.table in compiled.tables for insertion, _ in tx.inserts):
            execute_inserts(tx)
        return _execute(tx, compiled.text, values, many=many)

    def _of(self, tx: Transaction, values: Values) -> _Compiled:
        key = (tx.dialect.name, *values)
        compiled = self._compiled.get(key)
        if compiled is None:
            compiled = self._compiled[key] = _compile(self.statement, tx.dialect, list(values))
        return compiled


@dataclass(frozen=True, slots=True)
class Insertion:
    """A statement of PostgreSQL in parts, so that it can have any number of rows: an insert, or a call of a function."""

    table: str
    head: str
    row: str
    names: tuple[str, ...]
    """The names of the parameters of a row, in the order of the text."""
    tail: str = ""


_PARAMETER = re.compile(r"%\((\w+)\)s")


def _insertion(statement: Statement, dialect: Dialect, text: str) -> Insertion | None:
    head, _, row = text.partition(" VALUES ")
    if (
        not isinstance(statement, Insert)
        or dialect.name != "postgresql"
        or not row.endswith(")")
        or "ON CONFLICT" in row
    ):
        return None
    return Insertion(statement.table.name, f"{head} VALUES ", _PARAMETER.sub("%s", row), tuple(_PARAMETER.findall(row)))


def execute_inserts(tx: Transaction, calls: Sequence[tuple[Insertion, list[Any]]] = ()) -> None:
    """Execute the inserts that wait, and then calls of a function, as one statement with the rows of each table together."""
    tables: dict[Insertion, list[list[Any]]] = {}
    for insertion, values in (*tx.inserts, *calls):
        tables.setdefault(insertion, []).append(values)
    tx.inserts.clear()
    # Of a query that is not the last one PostgreSQL executes nothing.
    *before, last = (_text(insertion, len(rows)) for insertion, rows in tables.items())
    named = ", ".join(f"i{number} AS ({text})" for number, text in enumerate(before))
    values = [value for rows in tables.values() for row in rows for value in row]
    _execute(tx, f"WITH {named} {last}" if named else last, values)


def _text(insertion: Insertion, rows: int) -> str:
    return f"{insertion.head}{', '.join([insertion.row] * rows)}{insertion.tail}"


@dataclass(frozen=True, slots=True)
class _Compiled:
    text: str
    tables: frozenset[str]
    insertion: Insertion | None
    bind: Callable[[Values], Parameters]
    """Converts parameters for the driver."""
    read: Callable[[Sequence[Any]], Row]


def _compile(statement: Statement, dialect: Dialect, names: list[str]) -> _Compiled:
    sets = isinstance(statement, Insert | Update)
    compiled = statement.compile(dialect=dialect, column_keys=names if sets else None)
    assert isinstance(compiled, SQLCompiler)
    constants = {name: part for name, part in compiled.binds.items() if not part.required}
    text = _with_literals(str(compiled), constants, dialect)
    return _Compiled(
        text=text,
        tables=frozenset(part.name for part in visitors.iterate(statement) if isinstance(part, Table)),
        insertion=_insertion(statement, dialect, text),
        bind=_binder(compiled, text, dialect),
        read=_reader(statement, dialect),
    )


def _with_literals(text: str, constants: Mapping[str, BindParameter[Any]], dialect: Dialect) -> str:
    """Write the constants into a statement of PostgreSQL, which plans it once then, and not for their values at each execution."""
    if dialect.name != "postgresql":
        return text

    def literal(name: re.Match[str]) -> str:
        part = constants.get(name[1])
        if part is None:
            return name[0]
        if part.effective_value is None:
            return "NULL"
        processor = _impl(part).dialect_impl(dialect).literal_processor(dialect)
        return str(processor(part.effective_value)) if processor is not None else name[0]

    return _PARAMETER.sub(literal, text)


def _binder(compiled: SQLCompiler, text: str, dialect: Dialect) -> Callable[[Values], Parameters]:
    assert not compiled.post_compile_params, "how many values an IN has must be known"
    names = compiled.positiontup if compiled.positional else list(dict.fromkeys(_PARAMETER.findall(text)))
    assert names is not None
    stores = compiled.isinsert or compiled.isupdate
    parameters = [compiled.binds[name] for name in names]
    constants = {name: part.effective_value for name, part in zip(names, parameters, strict=True) if not part.required}
    # A value that is compared may have any length.
    limits = [
        (index, part.type.length)
        for index, part in enumerate(parameters)
        if stores and part.required and isinstance(part.type, Bounded)
    ]
    processors = [
        (index, processor)
        for index, part in enumerate(parameters)
        if (processor := _impl(part).dialect_impl(dialect).bind_processor(dialect)) is not None
    ]

    def bind(values: Mapping[str, Any]) -> list[Any]:
        if constants:
            values = {**values, **constants}
        bound = [values[name] for name in names]
        for index, limit in limits:
            text = bound[index]
            if text is not None and len(text) > limit:
                raise TooLong(len(text), limit)
        for index, processor in processors:
            bound[index] = processor(bound[index])
        return bound

    if compiled.positional:
        return bind
    return lambda values: dict(zip(names, bind(values), strict=True))


def _impl(parameter: BindParameter[Any]) -> TypeEngine[Any]:
    """Return the type that converts a parameter, without the check of its length."""
    return parameter.type.impl_instance if isinstance(parameter.type, Bounded) else parameter.type


def _reader(statement: Statement, dialect: Dialect) -> Callable[[Sequence[Any]], Row]:
    columns = statement.exported_columns
    names: Any = [column.key for column in columns]
    shape: Any = namedtuple("Row", names, rename=True)  # type: ignore[misc]  # noqa: PYI024 - known only here
    make: Any = shape._make
    processors = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
    processed = [(index, processor) for index, processor in enumerate(processors) if processor is not None]

    def read(row: Sequence[Any]) -> Row:
        values = list(row)
        for index, processor in processed:
            values[index] = processor(values[index])
        record: Row = make(values)
        return record

    return read


def _execute(tx: Transaction, text: str, parameters: Any, *, many: bool = False) -> DBAPICursor:  # noqa: ANN401 - one, or a list
    """Execute a statement, call the engine's listeners, and translate the driver's errors as SQLAlchemy does."""
    events = tx.opened.engine.dispatch
    cursor = tx.driver.cursor()
    for listener in events.before_cursor_execute:
        listener(tx.opened, cursor, text, parameters, None, many)
    try:
        (cursor.executemany if many else cursor.execute)(text, parameters)
    except Exception as error:
        raise translate_error(tx.opened, error, text) from error
    for listener in events.after_cursor_execute:
        listener(tx.opened, cursor, text, parameters, None, many)
    return cursor
