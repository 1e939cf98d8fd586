"""The limit of the time that a text search takes: texts have no index, so a search reads every row of its period."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from kneo.api.operation import Context
from kneo.api.page import SearchPeriod
from kneo.errors import InvalidValue
from kneo.store.engine import Tx
from kneo.store.time_limit import StatementTooSlow, limit_statements


@contextlib.contextmanager
def limit_search(context: Context, tx: Tx, text: str | None, searched: SearchPeriod | None) -> Iterator[None]:
    """End the statements of a text search that take too long; without a text nothing is limited.

    Raises:
        InvalidValue: ``search_too_slow``: the search was ended. The hint names a shorter period.
    """
    if not text:
        yield
        return
    seconds = context.settings.http.search_seconds
    try:
        with limit_statements(tx, seconds):
            yield
    except StatementTooSlow as error:
        if searched is None:
            period, hint = "", "Search for another text, or name the environment."
        else:
            period = f" from {searched.created_after} to {searched.created_before or 'now'}"
            hint = f"Search a shorter period: set created_after to {searched.half(context.store.clock.now())}."
        msg = f"The text search{period} took longer than {seconds:g} s and was ended."
        raise InvalidValue(msg, code="search_too_slow", field="created_after", hint=hint) from error
