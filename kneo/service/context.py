"""What a request may use."""

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
from kneo.service.events import Streams
from kneo.service.metrics import Metrics
from kneo.service.readiness import Readiness
from kneo.settings import Settings
from kneo.store.change_feed import ChangeFeed
from kneo.store.engine import Store


@dataclass(frozen=True)
class Service:
    """What routes may use.

    Args:
        settings: This process's settings.
        store: The database.
        starter: Starts runs.
        keyring: Who may ask for what.
        alive: Says whether what else runs in this process still does.
        metrics: What was counted.
        specs: Loads specs for requests.
        changes: The feed of changes in the database.
        streams: Counts the answers that go on.
        readiness: Looks whether requests can be served.
        tools: Tools of this process, which specs may name.
    """

    settings: Settings
    store: Store
    starter: Starter
    keyring: Keyring
    alive: Callable[[], bool]
    metrics: Metrics
    specs: SpecLoader
    changes: ChangeFeed
    streams: Streams
    readiness: Readiness
    tools: frozenset[str] = frozenset()

    def context(self, principal: Principal) -> Context:
        """Make the context of an operation that a caller asks for."""
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
    # Coroutines, because the framework would hop to a thread and back for anything else.
    return speaks_published((await _service(request)).settings.status_words, request.headers.get("user-agent", ""))


ServiceDep = Annotated[Service, Depends(_service)]
"""This service."""

LegacyClient = Annotated[bool, Depends(_published)]
"""Whether this request is answered in the published status words."""
