"""The router of this service: strict JSON in requests; responses written as the routes return them."""

from __future__ import annotations

import codecs
import dataclasses
import functools
import inspect
import json
import re
from collections.abc import Callable, Coroutine, Mapping
from enum import Enum
from typing import TypeVar

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic_core import PydanticSerializationError, from_json, to_json
from starlette.requests import Request
from starlette.responses import Response

from kneo.api.operation import Operation

T = TypeVar("T")

Responses = dict[int | str, dict[str, object]]


class JsonResponse(Response):
    """A response in JSON."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        try:
            return to_json(content, inf_nan_mode="null", fallback=_plain)
        except PydanticSerializationError:
            # Data of a program may be nested deeper than pydantic serializes.
            return json.dumps(content, ensure_ascii=False, separators=(",", ":"), default=_plain).encode()


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    msg = f"a {type(value).__name__} has no form in JSON"
    raise TypeError(msg)


_HUGE = re.compile(rb"[eE]\+?[0-9]{3}")
"""Infinite numbers can only be written with such an exponent."""


def read_json(body: bytes) -> object:
    """Parse a body as JSON that can be written again: UTF-8, no lone surrogates, no NaN or infinity, 200 levels at most.

    Raises:
        JSONDecodeError: the body is not such JSON.
    """
    try:
        value = from_json(body.removeprefix(codecs.BOM_UTF8), allow_inf_nan=False)
        if _HUGE.search(body):
            json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise _unreadable(body, error) from error
    return value


def _unreadable(body: bytes, error: ValueError) -> json.JSONDecodeError:
    """Return the error in a body, with its position where that is known."""
    try:
        json.loads(body)
    except json.JSONDecodeError as cause:
        return cause
    except (ValueError, RecursionError):
        pass
    return json.JSONDecodeError(f"It is not valid JSON, or is nested too deep: {error}", "", 0)


class _StrictRequest(Request):
    async def json(self) -> object:
        if not hasattr(self, "_json"):
            self._json = read_json(await self.body())
        return self._json


class _StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[object, object, Response]]:
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return handle_strictly


class ApiRouter(APIRouter):
    """A router that parses requests strictly and writes what routes return.

    FastAPI would validate and copy each response by its model first, which takes longer than the rest of a request; tests check
    that responses match their models.

    Attributes:
        operations: The operations behind the routes, by id.
    """

    def __init__(self, *, tags: list[str | Enum]) -> None:
        super().__init__(tags=tags, route_class=_StrictRoute)
        self.operations: dict[str, Operation[..., object]] = {}

    def add_api_route(self, path: str, endpoint: Callable[..., object], **more: object) -> None:
        """Add a route; ``responses`` describes its responses."""
        super().add_api_route(path, _writing(endpoint), **{**more, "response_model": None})  # type: ignore[arg-type]


def _writing(endpoint: Callable[..., object]) -> Callable[..., object]:
    if inspect.iscoroutinefunction(endpoint):
        return endpoint

    @functools.wraps(endpoint)
    def write(*args: object, **values: object) -> Response:
        response = endpoint(*args, **values)
        return response if isinstance(response, Response) else JsonResponse(response)

    return write


def responds(model: object, status: int = 200, description: str = "Done.") -> Responses:
    """Describe a response by a model."""
    return {status: {"model": model, "description": description}}
