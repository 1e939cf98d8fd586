"""The router of this service: what a route returns is written out as JSON as it is, and described by a model beside it."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from typing import TypeVar

from fastapi import APIRouter
from starlette.responses import Response

T = TypeVar("T")

Answers = dict[int | str, dict[str, object]]


class JsonAnswer(Response):
    """An answer in JSON."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"), default=_plain).encode()


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    msg = f"a {type(value).__name__} has no form in JSON"
    raise TypeError(msg)


class Router(APIRouter):
    """Answers with what routes return.

    FastAPI would copy every answer value by value before it writes it, which takes longer than all the rest; and it would
    check it against the described model, which tests do.
    """

    def add_api_route(self, path: str, endpoint: Callable[..., object], **more: object) -> None:
        """Add a route; ``responses`` says what its answers look like."""
        super().add_api_route(path, _writing(endpoint), **{**more, "response_model": None})  # type: ignore[arg-type]


def _writing(endpoint: Callable[..., object]) -> Callable[..., object]:
    if inspect.iscoroutinefunction(endpoint):
        return endpoint

    @functools.wraps(endpoint)
    def write(*args: object, **values: object) -> Response:
        answer = endpoint(*args, **values)
        return answer if isinstance(answer, Response) else JsonAnswer(answer)

    return write


def shows(model: object, status: int = 200, description: str = "Done.") -> Answers:
    """Describe an answer by a model."""
    return {status: {"model": model, "description": description}}
