"""The parts of a service that its routes use, and the routes of operations, with their own parameters and scopes."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Annotated, TypeVar, get_args, get_origin

from fastapi import Depends, Query, Request
from starlette.concurrency import run_in_threadpool

from kneo import registry
from kneo.api.operation import Context, Operation, Principal, Waiting, bound_lists, operations_of
from kneo.records.run import RunStatus
from kneo.runtime.engine.start import Starter
from kneo.runtime.engine.wait import SettledRun, read_settled_run, wait_until_settled
from kneo.service.auth import Keyring, Require, principal_of
from kneo.service.callers import Callers
from kneo.service.events import Streams
from kneo.service.hidden_reads import HiddenReads
from kneo.service.limits import CountedRequest
from kneo.service.metrics import Metrics
from kneo.service.published import expects_published_words, in_published_words, own_parameters
from kneo.service.readiness import Readiness
from kneo.service.routing import ApiRouter, JsonResponse, Responses
from kneo.service.shared_reads import SharedReads
from kneo.settings import Settings
from kneo.store import idempotency
from kneo.store.change_feed import ChangeFeed, Subscription
from kneo.store.engine import Store


@dataclass(frozen=True)
class Service:
    """The parts of a service that its routes use.

    Args:
        settings: This process's settings.
        store: The database.
        starter: Starts runs.
        callers: The callers that are admitted: owners of API keys, people of an issuer.
        alive: Returns whether the other components of this process still work.
        metrics: The metrics.
        specs: Loads specs for requests.
        changes: The change feed of the database.
        reads: The reads that the streams of one feed share.
        streams: Counts the open streams.
        readiness: The readiness checks.
        hidden_reads: Counts requests about environments that their callers may not read.
        tools: The tools of this process, which specs may name.
    """

    settings: Settings
    store: Store
    starter: Starter
    callers: Callers
    alive: Callable[[], bool]
    metrics: Metrics
    changes: ChangeFeed
    reads: SharedReads
    streams: Streams
    readiness: Readiness
    hidden_reads: HiddenReads
    tools: frozenset[str] = frozenset()

    @property
    def keyring(self) -> Keyring:
        """The API keys."""
        return self.callers.keyring

    def context(self, principal: Principal) -> Context:
        """Return the context of an operation for a caller."""
        return Context(
            store=self.store,
            settings=self.settings,
            principal=principal,
            project=self.starter.project,
            make_starter=lambda: self.starter,
            settle=self._settle,
            drive=lambda _run_id: None,
            tools=self.tools,
            over_http=True,
            find_caller=self.callers.find,
            count_hidden=partial(self.hidden_reads.count, principal.name),
            find_access=registry.find_access,
            request_quota=CountedRequest(self.store),
        ).within(())

    def _settle(self, waiting: Waiting[object]) -> SettledRun:
        return wait_until_settled(self.store, waiting.settling, waiting.seconds)


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _published(request: Request) -> bool:
    # Coroutines, because the framework would run anything else in a thread.
    return expects_published_words(
        (await _service(request)).settings.status_words, request.headers.get("user-agent", "")
    )


ServiceDep = Annotated[Service, Depends(_service)]
"""The service of this request."""

LegacyClient = Annotated[bool, Depends(_published)]
"""Whether this request gets the published status words in its response."""


T = TypeVar("T")


async def next_change(
    feed: ChangeFeed, subscription: Subscription[T], seconds: float | None = None, since: int | None = None
) -> T | None:
    """Wait for a change on the event loop, without ``seconds`` until the feed is stopped; see ``ChangeFeed.wait_for``."""
    with feed.subscribe(subscription, since) as future:
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            return None


async def settled_after(feed: ChangeFeed, waiting: Waiting[object], mark: int) -> SettledRun:
    """Wait for the run that an operation works on.

    Args:
        feed: The feed of changes.
        waiting: The run, and how long to wait.
        mark: A mark of the notifier from before the operation was called.
    """
    if waiting.settled is not None and waiting.seconds <= 0:
        return waiting.settled
    # An earlier execution of the request may have notified before the mark.
    since = mark if waiting.notified and idempotency.made() is None else None
    settled = await next_change(feed, waiting.settling, waiting.seconds, since)
    return (
        settled
        if settled is not None
        else await run_in_threadpool(read_settled_run, feed.store, waiting.settling.run_id)
    )


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
                dependencies=[Depends(Require(scope)) for scope in operation.scopes],
                include_in_schema=path == operation.path,
            )
    return router


def _responses(operation: Operation[..., object]) -> Responses:
    return {status: {"model": operation.view, "description": text} for status, text in operation.statuses.items()}


def _endpoint(operation: Operation[..., object]) -> Callable[..., object]:
    serve: Callable[..., object] = _wait_for(operation) if operation.waits else _call(operation)
    edge = {
        **({"request": Request} if operation.waits else {}),
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
        values = own_parameters(operation.id, bound_lists(values, service.settings.limits.page_items))
        view = operation.begin(service.context(principal), **values)
        return JsonResponse(in_published_words(view) if published else view, status)

    return serve


def _wait_for(operation: Operation[..., object]) -> Callable[..., Coroutine[object, object, JsonResponse]]:
    """Serve an operation that starts work on a run without a thread per request: many requests may wait at once."""

    async def serve(
        *, request: Request, service: Service, published: bool, principal: Principal, **values: object
    ) -> JsonResponse:
        values = bound_lists(values, service.settings.limits.page_items)
        mark = service.changes.store.notifier.mark()
        waiting = await run_in_threadpool(operation.begin, service.context(principal), **values)
        assert isinstance(waiting, Waiting)
        settled = await settled_after(service.changes, waiting, mark)
        if not waiting.delivers:
            view = waiting.view(settled)
        elif await request.is_disconnected():
            return JsonResponse(None)
        else:
            view = await run_in_threadpool(waiting.view, settled)
        status = 202 if 202 in operation.statuses and settled.run.status is RunStatus.RUNNING else 200
        return JsonResponse(in_published_words(view) if published else view, status)

    return serve
