"""What this service can be asked, known before a request is looked at: which path, for whom, with which parameters.

What a request means is found out once, by whoever is outermost; all others read it from the request's ASGI scope.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from fastapi import APIRouter
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from kneo.service.auth import Require

VERSION = "/v1"

MATCHED = "kneo.asked"
"""Where a request's ASGI scope holds what it asks for, if that is anything we know."""

SCOPES_OF_KEYS = {
    "create_run": "runs:create",
    "run_spec": "specs:run",
    "resume_human_task": "human:resume",
    "continue_run": "runs:continue",
}
"""Published names of the kinds of request that an idempotency key is for; others go by their operation's id."""


@dataclass(frozen=True)
class RouteEntry:
    """One thing that can be asked.

    Attributes:
        id: The operation's stable id.
        method: ``GET``, ``POST``, ``PUT``.
        template: Its path, without the version: ``/runs/{run_id}``.
        required: What whoever asks must be allowed; empty for what needs no key.
        query: The query parameters it knows.
        route: What answers it.
    """

    id: str
    method: str
    template: str
    required: tuple[Require, ...]
    query: frozenset[str]
    route: APIRoute

    @property
    def key_scope(self) -> str:
        return SCOPES_OF_KEYS.get(self.id, self.id)


ALLOWED = "kneo.allowed"
"""Where it holds the methods of a path that was asked for with another one."""


@dataclass(frozen=True)
class RouteMatch:
    """An operation, and the values that stand in a request's path."""

    operation: RouteEntry
    path_params: Mapping[str, str]


class RouteTable:
    """Finds the operation that a request means."""

    def __init__(self, routers: Iterable[APIRouter]) -> None:
        self._by_length: dict[tuple[str, int], list[tuple[re.Pattern[str], RouteEntry]]] = {}
        for operation in _listed(routers):
            pattern = re.compile(re.sub(r"\{([^}]*)\}", r"(?P<\1>[^/]+)", operation.template))
            length = operation.template.count("/")
            self._by_length.setdefault((operation.method, length), []).append((pattern, operation))
        self._methods = sorted({method for method, _ in self._by_length})

    def note(self, scope: Scope) -> RouteEntry | None:
        """Find out what a request means, and note it in its scope."""
        path, root = scope["path"], scope.get("root_path", "")
        path = path[len(root) :] if root and path.startswith(root + "/") else path
        asked = self.find(scope["method"], path)
        scope[MATCHED] = asked
        if asked is not None:
            return asked.operation
        scope[ALLOWED] = [method for method in self._methods if self.find(method, path) is not None]
        return None

    def find(self, method: str, path: str) -> RouteMatch | None:
        """Return what a request means; ``None`` where there is no such thing.

        Args:
            method: The request's method.
            path: Its path, with or without the version.
        """
        bare = without_version(path)
        for pattern, operation in self._by_length.get((method, bare.count("/")), ()):
            if found := pattern.fullmatch(bare):
                return RouteMatch(operation, found.groupdict())
        return None

    def __iter__(self) -> Iterator[RouteEntry]:
        for found in self._by_length.values():
            for _, operation in found:
                yield operation


def route_of(scope: Scope) -> RouteEntry | None:
    """Return what a request means, as it was noted."""
    asked: RouteMatch | None = scope.get(MATCHED)
    return asked.operation if asked is not None else None


class DirectRoute(BaseRoute):
    """The way to what a request means, where that is known: trying one route after the other takes longer than answering."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        asked: RouteMatch | None = scope.get(MATCHED)
        if asked is None:
            return (Match.FULL, {"route": None}) if scope.get(ALLOWED) else (Match.NONE, {})
        route = asked.operation.route
        return Match.FULL, {"endpoint": route.endpoint, "path_params": dict(asked.path_params), "route": route}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        route: APIRoute | None = scope["route"]
        if route is None:
            # The framework would name the methods of the first route that it met.
            raise HTTPException(405, headers={"Allow": ", ".join(scope[ALLOWED])})
        await route.handle(scope, receive, send)


def without_version(path: str) -> str:
    """Return a path as it is below the version."""
    return path[len(VERSION) :] if path.startswith(VERSION + "/") else path


def _listed(routers: Iterable[APIRouter]) -> Iterator[RouteEntry]:
    for router in routers:
        for route in router.routes:
            assert isinstance(route, APIRoute)
            for method in sorted(route.methods or ()):
                parts = list(_tree(route.dependant))
                yield RouteEntry(
                    id=route.operation_id or route.name,
                    method=method,
                    template=route.path,
                    required=tuple(part.call for part in parts if isinstance(part.call, Require)),
                    query=frozenset(field.alias for part in parts for field in part.query_params),
                    route=route,
                )


def _tree(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for part in dependant.dependencies:
        yield from _tree(part)
