"""What this service can be asked, known before a request is looked at: which path, for whom, with which parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fastapi import APIRouter
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from kneo.service.auth import Require

VERSION = "/v1"

SCOPES_OF_KEYS = {
    "create_run": "runs:create",
    "run_spec": "specs:run",
    "resume_human_task": "human:resume",
    "continue_run": "runs:continue",
}
"""Published names of the kinds of request that an idempotency key is for; others go by their operation's id."""


@dataclass(frozen=True)
class Operation:
    """One thing that can be asked.

    Attributes:
        id: The operation's stable id.
        method: ``GET``, ``POST``, ``PUT``.
        template: Its path, without the version: ``/runs/{run_id}``.
        required: What whoever asks must be allowed; empty for what needs no key.
        query: The query parameters it knows.
    """

    id: str
    method: str
    template: str
    required: tuple[Require, ...]
    query: frozenset[str]

    @property
    def key_scope(self) -> str:
        return SCOPES_OF_KEYS.get(self.id, self.id)


class Operations:
    """Finds the operation that a request means."""

    def __init__(self, routers: Iterable[APIRouter]) -> None:
        self._by_length: dict[tuple[str, int], list[tuple[re.Pattern[str], Operation]]] = {}
        for operation in _listed(routers):
            pattern = re.compile(re.sub(r"\{[^}]*\}", "[^/]+", operation.template))
            length = operation.template.count("/")
            self._by_length.setdefault((operation.method, length), []).append((pattern, operation))

    def find(self, method: str, path: str) -> Operation | None:
        """Return what a request means; ``None`` where there is no such thing.

        Args:
            method: The request's method.
            path: Its path, with or without the version.
        """
        bare = without_version(path)
        for pattern, operation in self._by_length.get((method, bare.count("/")), ()):
            if pattern.fullmatch(bare):
                return operation
        return None

    def __iter__(self) -> Iterator[Operation]:
        for found in self._by_length.values():
            for _, operation in found:
                yield operation


def without_version(path: str) -> str:
    """Return a path as it is below the version."""
    return path[len(VERSION) :] if path.startswith(VERSION + "/") else path


def _listed(routers: Iterable[APIRouter]) -> Iterator[Operation]:
    for router in routers:
        for route in router.routes:
            assert isinstance(route, APIRoute)
            for method in sorted(route.methods or ()):
                parts = list(_tree(route.dependant))
                yield Operation(
                    id=route.operation_id or route.name,
                    method=method,
                    template=route.path,
                    required=tuple(part.call for part in parts if isinstance(part.call, Require)),
                    query=frozenset(field.alias for part in parts for field in part.query_params),
                )


def _tree(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for part in dependant.dependencies:
        yield from _tree(part)
