"""A kind of tools that reads rows of an SQLite database; the spec has the query, a call gives its parameters."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from kneo.agents.tools.kinds import BackendContext, BackendKind
from kneo.agents.turn import ToolCall
from kneo.errors import Invalid
from kneo.spec.models.spec import Tool

MAX_ROWS = 100


class SqliteTools:
    """Makes the calls of all tools of the kind in one process."""

    async def call(self, call: ToolCall) -> object:
        """Return the rows that the query of a call's tool finds.

        Raises:
            Invalid: the query cannot be made with these arguments.
        """
        return await asyncio.to_thread(_rows, *_declared(call.tool), call.arguments)


def check_tool(tool: Tool) -> None:
    """Refuse a tool without an absolute path and a query, before its run starts."""
    _declared(tool)


def _declared(tool: Tool) -> tuple[Path, str]:
    config = tool.extension.config if tool.extension is not None else {}
    file, query = config.get("file"), config.get("query")
    if not isinstance(file, str) or not Path(file).is_absolute() or not isinstance(query, str):
        msg = "A tool of the kind sqlite has the absolute path of a file and a query."
        raise Invalid(msg, code="spec_invalid", hint="Write config: {file: /PATH, query: SELECT …}.")
    return Path(file), query


def _rows(file: Path, query: str, arguments: Mapping[str, object]) -> list[dict[str, object]]:
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            found = database.execute(query, dict(arguments)).fetchmany(MAX_ROWS)
    except sqlite3.Error as error:
        msg = f"The query failed: {error}"
        raise Invalid(msg, code="query_failed") from None
    return [dict(row) for row in found]


def _open(_context: BackendContext) -> SqliteTools:
    return SqliteTools()


KIND = BackendKind(open=_open, check=check_tool)
