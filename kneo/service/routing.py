"""The table of routes: path, scopes and parameters of each, known before a request is parsed; strict JSON in and out.

The outermost middleware matches a request once; inner ones read the match from the request's ASGI scope.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from fastapi import APIRouter
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic_core import PydanticSerializationError, to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from kneo.api.operation import Operation
from kneo.json_text import parse_json
from kneo.service.auth import Require

T = TypeVar("T")

Responses = dict[int | str, dict[str, object]]


class JsonResponse(Response):
    """A response in JSON."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        try:
            return to_json(content, inf_nan_mode="null", fallback=_plain)
        except PydanticSerializationError:
            # Data of a program may be nested deeper than pydantic serializes, and earlier versions kept halves of surrogate pairs.
            text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), default=_plain)
            return text.encode(errors="replace")


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    msg = f"a {type(value).__name__} has no form in JSON"
    raise TypeError(msg)


class StrictRequest(Request):
    """A request whose body is JSON with one meaning."""

    async def json(self) -> object:
        if not hasattr(self, "_json"):
            self._json = parse_json(await self.body())
        return self._json


class _StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[object, object, Response]]:
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return handle_strictly


class ApiRouter(APIRouter):
    """A router that parses requests strictly and writes what routes return.

    FastAPI would validate and copy each response by its model first, which takes longer than the rest of a request; tests check
    that responses match their models.

    Args:
        tags: The area of the routes.
        errors: Statuses of errors of routes that are not operations, by id.
        own_keys: Ids of routes whose messages carry idempotency keys of their own.

    Attributes:
        operations: The operations behind the routes, by id.
    """

    def __init__(
        self, *, tags: list[str | Enum], errors: Mapping[str, tuple[int, ...]] = {}, own_keys: Collection[str] = ()
    ) -> None:
        super().__init__(tags=tags, route_class=_StrictRoute)
        self.errors = errors
        self.own_keys = own_keys
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


VERSION = "/v1"

WITH_SLASHES = frozenset({"session_id"})
"""Parameters of paths whose values may contain slashes."""

MATCHED = "kneo.matched"
"""The key of the match in the ASGI scope of a request."""


@dataclass(frozen=True)
class RouteEntry:
    """A route.

    Attributes:
        id: The stable id of the operation.
        method: ``GET``, ``POST``, ``PUT``.
        template: The path, without the version: ``/runs/{run_id}``.
        required: The scopes that a caller needs; empty for a route that needs no key.
        query: The names of the query parameters.
        route: The route of the framework.
        key_scope: The scope of its idempotency keys.
        errors: Statuses of errors in addition to those that follow from the method and the path.
        takes_key: Whether the header ``Idempotency-Key`` names a request.
        shows_secret: Whether its response holds a secret that is shown once.
        is_live: Whether a repeated request gets the present state instead of the first response.
    """

    id: str
    method: str
    template: str
    required: tuple[Require, ...]
    query: frozenset[str]
    route: APIRoute
    key_scope: str
    errors: tuple[int, ...]
    takes_key: bool
    shows_secret: bool
    is_live: bool


ALLOWED = "kneo.allowed"
"""The key of the methods of a path, where the request has another method."""


@dataclass(frozen=True)
class RouteMatch:
    """A route, and the parameters in the path of a request."""

    operation: RouteEntry
    path_params: Mapping[str, str]


class RouteTable:
    """Matches requests with routes."""

    def __init__(self, routers: Iterable[ApiRouter]) -> None:
        self._by_length: dict[tuple[str, int], list[tuple[re.Pattern[str], RouteEntry]]] = {}
        self._of_any_length: list[tuple[re.Pattern[str], RouteEntry]] = []
        for operation in _listed(routers):
            pattern = re.compile(re.sub(r"\{([^}]*)\}", r"(?P<\1>[^/]+)", operation.template))
            length = operation.template.count("/")
            self._by_length.setdefault((operation.method, length), []).append((pattern, operation))
            if any(f"{{{name}}}" in operation.template for name in WITH_SLASHES):
                wide = re.compile(re.sub(r"\{([^}]*)\}", _wide, operation.template))
                self._of_any_length.append((wide, operation))
        self._methods = sorted({method for method, _ in self._by_length})

    def note(self, scope: Scope) -> RouteEntry | None:
        """Match a request, and note the match in its scope."""
        path = path_of(scope)
        match = self.find(scope["method"], path)
        scope[MATCHED] = match
        if match is not None:
            return match.operation
        scope[ALLOWED] = [method for method in self._methods if self.find(method, path) is not None]
        return None

    def find(self, method: str, path: str) -> RouteMatch | None:
        """Return the match of a request; ``None`` where no route matches.

        Args:
            method: The method of the request.
            path: The path of the request, with or without the version.
        """
        bare = without_version(path)
        for pattern, operation in self._by_length.get((method, bare.count("/")), ()):
            if match := pattern.fullmatch(bare):
                return RouteMatch(operation, match.groupdict())
        for pattern, operation in self._of_any_length:
            if operation.method == method and (match := pattern.fullmatch(bare)):
                return RouteMatch(operation, match.groupdict())
        return None

    def __iter__(self) -> Iterator[RouteEntry]:
        for routes in self._by_length.values():
            for _, operation in routes:
                yield operation


def route_of(scope: Scope) -> RouteEntry | None:
    """Return the route of a request, as it was noted."""
    match: RouteMatch | None = scope.get(MATCHED)
    return match.operation if match is not None else None


class DirectRoute(BaseRoute):
    """The route that a request was matched with, and the allowed methods where only the method does not match."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match: RouteMatch | None = scope.get(MATCHED)
        if match is None:
            return (Match.FULL, {"route": None}) if scope.get(ALLOWED) else (Match.NONE, {})
        route = match.operation.route
        return Match.FULL, {"endpoint": route.endpoint, "path_params": dict(match.path_params), "route": route}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        route: APIRoute | None = scope["route"]
        if route is None:
            # The framework names the methods of the first route with the path alone.
            raise HTTPException(405, headers={"Allow": ", ".join(scope[ALLOWED])})
        await route.handle(scope, receive, send)


def path_of(scope: Scope) -> str:
    """Return the path of a request below the path at which the application is mounted."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(root + "/") else path


def without_version(path: str) -> str:
    """Return a path as it is below the version."""
    return path[len(VERSION) :] if path.startswith(VERSION + "/") else path


def _wide(name: re.Match[str]) -> str:
    """Return the pattern of a parameter in a path."""
    return f"(?P<{name[1]}>{'.+' if name[1] in WITH_SLASHES else '[^/]+'})"


def _listed(routers: Iterable[ApiRouter]) -> Iterator[RouteEntry]:
    for router in routers:
        for route in router.routes:
            assert isinstance(route, APIRoute)
            for method in sorted(route.methods or ()):
                parts = list(_tree(route.dependant))
                name = route.operation_id or route.name
                operation = router.operations.get(name)
                yield RouteEntry(
                    id=name,
                    method=method,
                    template=route.path,
                    required=tuple(part.call for part in parts if isinstance(part.call, Require)),
                    query=frozenset(field.alias for part in parts for field in part.query_params),
                    route=route,
                    key_scope=(operation.key_scope if operation else None) or name,
                    errors=operation.errors if operation else router.errors.get(name, ()),
                    takes_key=method in {"POST", "PUT"} and name not in router.own_keys,
                    shows_secret=operation is not None and operation.shows_secret,
                    is_live=operation is not None and operation.is_live,
                )


def _tree(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for part in dependant.dependencies:
        yield from _tree(part)
