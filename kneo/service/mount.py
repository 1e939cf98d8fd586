"""Serving operations over HTTP: each becomes a route with the operation's own parameters, scope and description."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Annotated

from fastapi import Depends

from kneo.api.operation import Context, Operation, operations_of
from kneo.api.status_words import in_published_words
from kneo.service.auth import Principal, require
from kneo.service.context import LegacyClient, Service, ServiceDep
from kneo.service.router import JsonResponse, Router, responds


def mount(module: ModuleType, tag: str) -> Router:
    """Make the routes of all operations that a module defines."""
    router = Router(tags=[tag])
    for operation in operations_of(module):
        router.add_api_route(
            operation.path,
            _endpoint(operation),
            methods=[operation.method],
            operation_id=operation.id,
            responses=responds(operation.view),
        )
    return router


def _endpoint(operation: Operation[..., object]) -> Callable[..., JsonResponse]:
    def serve(*, service: Service, published: bool, principal: Principal, **values: object) -> JsonResponse:
        view = operation(Context(service.store, principal.name), **values)
        return JsonResponse(in_published_words(view) if published else view)

    edge = {
        "service": ServiceDep,
        "published": LegacyClient,
        "principal": Annotated[Principal, Depends(require(operation.scope))],
    }
    own = operation.signature.parameters.values()
    serve.__name__, serve.__doc__ = operation.id, operation.function.__doc__
    serve.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what FastAPI reads
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind) for name, kind in edge.items()]
        + [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    )
    return serve
