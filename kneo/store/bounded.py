"""Texts with a length that both databases hold to: PostgreSQL by itself, SQLite because of this type."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Dialect, String, TypeDecorator
from sqlalchemy.exc import DontWrapMixin
from sqlalchemy.sql.operators import OperatorType

from kneo.errors import Invalid


class TooLong(Invalid, DontWrapMixin):
    """A text is longer than its column. Nothing was written."""

    default_code = "unstorable_value"

    def __init__(self, length: int, limit: int) -> None:
        super().__init__(
            f"A value cannot be stored: it is {length} characters long, and at most {limit} are kept there.",
            hint="Use a shorter name.",
            limit=limit,
        )


class Bounded(TypeDecorator[str]):
    """A text of at most so many characters. What is only looked for may be longer: there is no such thing."""

    impl = String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Check a text that is to be stored.

        Raises:
            TooLong: it is too long.
        """
        del dialect
        if value is not None and len(value) > self.length:
            raise TooLong(len(value), self.length)
        return value

    def coerce_compared_value(self, op: OperatorType | None, value: Any) -> String:  # noqa: ANN401 - as it is declared
        """Return the type of what a column is compared with."""
        del op, value
        return String()
