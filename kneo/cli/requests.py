"""Requests of operations, built from the options of a command."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from kneo.errors import InvalidValue

M = TypeVar("M", bound=BaseModel)


def request(model: type[M], **values: object) -> M:
    """Build a request. Values of ``None`` are left out.

    Raises:
        InvalidValue: the request does not accept a value.
    """
    try:
        return model.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InvalidValue(first["msg"].removeprefix("Value error, "), field=field) from error
