"""The context of a request: the parts of the service that routes use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from kneo.api.context import Context, Principal, Waiting
from kneo.api.spec_loader import SpecLoader
from kneo.api.status_words import speaks_published
from kneo.runtime.engine.start import Starter
from kneo.runtime.engine.wait import SettledRun, wait_until_settled
from kneo.service.auth import Keyring
from kneo.service.callers import Callers
from kneo.service.events import Streams
from kneo.service.metrics import Metrics
from kneo.service.readiness import Readiness
from kneo.settings import Settings
from kneo.store.change_feed import ChangeFeed
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
        streams: Counts the open streams.
        readiness: The readiness checks.
        tools: The tools of this process, which specs may name.
    """

    settings: Settings
    store: Store
    starter: Starter
    callers: Callers
    alive: Callable[[], bool]
    metrics: Metrics
    specs: SpecLoader
    changes: ChangeFeed
    streams: Streams
    readiness: Readiness
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
        )

    def _settle(self, waiting: Waiting[object]) -> SettledRun:
        return wait_until_settled(self.store, waiting.settling, waiting.seconds)


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _published(request: Request) -> bool:
    # Coroutines, because the framework would run anything else in a thread.
    return speaks_published((await _service(request)).settings.status_words, request.headers.get("user-agent", ""))


ServiceDep = Annotated[Service, Depends(_service)]
"""The service of this request."""

LegacyClient = Annotated[bool, Depends(_published)]
"""Whether this request gets the published status words in its response."""
