"""Serving operations over HTTP: each becomes a route with the operation's own parameters, scopes and description."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from types import ModuleType
from typing import Annotated, get_args, get_origin

from fastapi import Depends, Query
from starlette.concurrency import run_in_threadpool

from kneo.api.context import Principal, Waiting
from kneo.api.operation import Operation, operations_of
from kneo.api.status_words import in_published_words
from kneo.records.run import RunStatus
from kneo.service.auth import principal_of, require
from kneo.service.context import LegacyClient, Service, ServiceDep
from kneo.service.router import ApiRouter, JsonResponse, Responses
from kneo.service.waiting import settled_after


def mount(module: ModuleType, tag: str) -> ApiRouter:
    """Make the routes of all operations that a module defines."""
    router = ApiRouter(tags=[tag])
    for operation in operations_of(module):
        router.operations[operation.id] = operation
        for path in (operation.path, *operation.aliases):
            router.add_api_route(
                path,
                _endpoint(operation),
                methods=[operation.method],
                operation_id=operation.id,
                responses=_responses(operation),
                dependencies=[Depends(require(scope)) for scope in operation.scopes],
                include_in_schema=path == operation.path,
            )
    return router


def _responses(operation: Operation[..., object]) -> Responses:
    return {status: {"model": operation.view, "description": text} for status, text in operation.statuses.items()}


def _endpoint(operation: Operation[..., object]) -> Callable[..., object]:
    serve: Callable[..., object] = _wait_for(operation) if operation.waits else _call(operation)
    edge = {
        "service": ServiceDep,
        "published": LegacyClient,
        "principal": Annotated[Principal, Depends(principal_of)],
    }
    own = operation.signature.parameters.values()
    serve.__name__, serve.__doc__ = operation.id, operation.function.__doc__
    serve.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what FastAPI reads
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind) for name, kind in edge.items()]
        + [_keyword(parameter) for parameter in own]
    )
    return serve


def _keyword(parameter: inspect.Parameter) -> inspect.Parameter:
    """Return a parameter as FastAPI reads it: one by name, and a list as part of the query rather than the body.

    ``from_`` is ``from`` in a query, which is no name in Python.
    """
    annotation = parameter.annotation
    bare = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if get_origin(bare) is list:
        annotation = Annotated[annotation, Query()]
    if parameter.name.endswith("_"):
        annotation = Annotated[annotation, Query(alias=parameter.name.removesuffix("_"))]
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=annotation)


def _call(operation: Operation[..., object]) -> Callable[..., JsonResponse]:
    status = next(iter(operation.statuses))

    def serve(*, service: Service, published: bool, principal: Principal, **values: object) -> JsonResponse:
        view = operation.function(service.context(principal), **values)
        return JsonResponse(in_published_words(view) if published else view, status)

    return serve


def _wait_for(operation: Operation[..., object]) -> Callable[..., Coroutine[object, object, JsonResponse]]:
    """Serve an operation that starts work on a run without a thread per request: many requests may wait at once."""

    async def serve(*, service: Service, published: bool, principal: Principal, **values: object) -> JsonResponse:
        mark = service.changes.store.notifier.mark()
        waiting = await run_in_threadpool(operation.function, service.context(principal), **values)
        assert isinstance(waiting, Waiting)
        settled = await settled_after(service.changes, waiting, mark)
        view = waiting.view(settled)
        status = 202 if 202 in operation.statuses and settled.run.status is RunStatus.RUNNING else 200
        return JsonResponse(in_published_words(view) if published else view, status)

    return serve
