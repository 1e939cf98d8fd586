"""The clients of models: one client of a provider's library for each connection and event loop, and a limit of its requests.

The libraries are imported when a client is first made; ``warm_up`` imports them earlier, in a thread.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from pydantic_ai.models import Model

from kneo.agents.http import limit_replies
from kneo.agents.providers import ProviderConnection
from kneo.settings import ModelSettings
from kneo.spec.models.providers import PROVIDERS, WireFormat

MAX_CLIENTS = 64
"""Clients that stay open; beyond that those that no request uses are closed."""


class RequestLimit:
    """The number of requests at a time over one connection, halved when the provider has too many, and raised again slowly."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(most)
        self._active = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a free place and hold it."""
        await self._acquire()
        try:
            yield
        finally:
            self._active -= 1
            self._wake()

    @property
    def is_used(self) -> bool:
        """Whether a request holds a place or waits for one."""
        return self._active > 0 or bool(self._waiting)

    def shrink(self) -> None:
        """Halve the limit, after a 429."""
        self.limit = max(1.0, self.limit / 2)

    def grow(self) -> None:
        """Raise the limit by one, after a reply."""
        self.limit = min(float(self.most), self.limit + 1)
        self._wake()

    async def _acquire(self) -> None:
        if self._active < int(self.limit) and not self._waiting:
            self._active += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # woken and cancelled at once: the place is for the next one
                self._active -= 1
                self._wake()
            else:
                self._waiting.remove(turn)
            raise

    def _wake(self) -> None:
        while self._waiting and self._active < int(self.limit):
            turn = self._waiting.popleft()
            if not turn.done():
                self._active += 1
                turn.set_result(None)


@dataclass(eq=False)
class ModelClient:
    """An open client of a provider's library, and the models that were asked through it."""

    connection: ProviderConnection
    make: Callable[[str], Model]
    close: Callable[[], Awaitable[None]]
    models: dict[str, Model] = field(default_factory=dict)
    users: int = 0

    def model(self, name: str) -> Model:
        """Return a model of the provider by its name."""
        if name not in self.models:
            if len(self.models) >= MAX_CLIENTS:
                self.models.clear()
            self.models[name] = self.make(name)
        return self.models[name]


class ModelClients:
    """The open clients of one process.

    A client belongs to the event loop that made it, because its sockets do; ``close`` is called on that loop.

    Args:
        reply_bytes: Bytes of a reply that are read; a longer one fails.
    """

    def __init__(self, reply_bytes: int = ModelSettings.reply_bytes) -> None:
        self._reply_bytes = reply_bytes
        self._clients: OrderedDict[tuple[ProviderConnection, asyncio.AbstractEventLoop], ModelClient] = OrderedDict()
        self._limits: dict[tuple[str | None, ProviderConnection, asyncio.AbstractEventLoop], RequestLimit] = {}

    @asynccontextmanager
    async def lease(self, connection: ProviderConnection) -> AsyncIterator[ModelClient]:
        """Hold the client of a connection open."""
        client = self.client(connection)
        client.users += 1
        try:
            yield client
        finally:
            client.users -= 1
            if len(self._clients) > MAX_CLIENTS:
                await self._close([each for each in self._clients.values() if not each.users][: -MAX_CLIENTS // 2])

    def client(self, connection: ProviderConnection) -> ModelClient:
        """Return the client of a connection on this event loop."""
        key = (connection, asyncio.get_running_loop())
        if key not in self._clients:
            self._clients[key] = _CLIENTS[connection.wire](connection, self._reply_bytes)
        self._clients.move_to_end(key)
        return self._clients[key]

    def limit(self, environment: str | None, connection: ProviderConnection, most: int) -> RequestLimit:
        """Return the limit of an environment's requests over a connection."""
        key = (environment, connection, asyncio.get_running_loop())
        limit = self._limits.get(key)
        if limit is None:
            if len(self._limits) >= MAX_CLIENTS * 4:
                self._limits = {each: known for each, known in self._limits.items() if known.is_used}
            limit = self._limits[key] = RequestLimit(most)
        if limit.most != most:  # the environment has changed it
            limit.most, limit.limit = most, float(most)
        return limit

    async def close(self) -> None:
        """Close the clients of this event loop."""
        here = asyncio.get_running_loop()
        await self._close([client for (_, loop), client in self._clients.items() if loop is here])

    async def _close(self, clients: Iterable[ModelClient]) -> None:
        closing = list(clients)
        for key in [key for key, client in self._clients.items() if client in closing]:
            del self._clients[key]
        for client in closing:
            await client.close()


def warm_up(providers: Iterable[str]) -> None:
    """Import the libraries of providers, in a thread: the first import takes seconds on a busy machine.

    A library that is not installed is left out; a run that needs it is refused with the command that installs it.
    """
    for wire in {PROVIDERS[name].wire for name in providers if name in PROVIDERS}:
        try:
            _IMPORTS[wire]()
        except ImportError:
            continue


# ---- one wire format each ---------------------------------------------------------------------------------------


def _import_chat() -> None:
    # The library would import its resources at the first request, on the event loop.
    import openai.resources.chat.chat  # noqa: F401
    import pydantic_ai.models.openai
    import pydantic_ai.providers.openai  # noqa: F401


def _import_responses() -> None:
    import openai.resources.responses.responses  # noqa: F401

    _import_chat()


def _import_anthropic() -> None:
    import anthropic.resources.messages.messages  # noqa: F401
    import pydantic_ai.models.anthropic  # noqa: F401


def _import_google() -> None:
    import google.genai  # noqa: F401
    import pydantic_ai.models.google  # noqa: F401


AS_MANY_AS_REQUESTS = {"max_connections": None, "max_keepalive_connections": 100}
"""The limits of a client's connections: the concurrency of models limits the open ones, and some stay open without a request."""


def _openai(connection: ProviderConnection, reply_bytes: int) -> ModelClient:
    from httpx2 import Limits
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.profiles import ModelProfile
    from pydantic_ai.profiles.openai import OpenAIModelProfile
    from pydantic_ai.providers.openai import OpenAIProvider

    http = DefaultAsyncHttpxClient(limits=Limits(**AS_MANY_AS_REQUESTS), event_hooks=limit_replies(reply_bytes))
    key = connection.key or "none"
    sdk = AsyncOpenAI(api_key=key, base_url=connection.base_url, max_retries=0, http_client=http)
    provider = OpenAIProvider(openai_client=sdk)
    if connection.wire == "responses":
        return ModelClient(connection, lambda name: OpenAIResponsesModel(name, provider=provider), sdk.close)
    if connection.provider.has_prices:
        return ModelClient(connection, lambda name: OpenAIChatModel(name, provider=provider), sdk.close)

    def compatible(name: str) -> Model:
        # Other servers know max_tokens and no strict tools; what they do not know they refuse or, worse, ignore.
        profile: ModelProfile = OpenAIModelProfile(
            openai_chat_supports_max_completion_tokens=False, openai_supports_strict_tool_definition=False
        )
        return OpenAIChatModel(name, provider=provider, profile=profile)

    return ModelClient(connection, compatible, sdk.close)


def _anthropic(connection: ProviderConnection, reply_bytes: int) -> ModelClient:
    from anthropic import AsyncAnthropic, DefaultAsyncHttpxClient
    from httpx2 import Limits
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    http = DefaultAsyncHttpxClient(limits=Limits(**AS_MANY_AS_REQUESTS), event_hooks=limit_replies(reply_bytes))
    sdk = AsyncAnthropic(api_key=connection.key, base_url=connection.base_url, max_retries=0, http_client=http)
    provider = AnthropicProvider(anthropic_client=sdk)
    return ModelClient(connection, lambda name: AnthropicModel(name, provider=provider), sdk.close)


def _google(connection: ProviderConnection, reply_bytes: int) -> ModelClient:
    import httpx
    from google.genai import Client
    from google.genai.types import HttpOptions
    from pydantic_ai.models.google import GoogleModel
    from pydantic_ai.providers.google import GoogleProvider

    # Requests have a time limit of their own. Without this client the library would use aiohttp where that is installed.
    hooks, limits = limit_replies(reply_bytes), httpx.Limits(**AS_MANY_AS_REQUESTS)
    http = httpx.AsyncClient(timeout=None, follow_redirects=True, limits=limits, event_hooks=hooks)  # noqa: S113
    options = HttpOptions(base_url=connection.base_url, httpx_async_client=http)
    sdk = Client(vertexai=False, api_key=connection.key, http_options=options)
    provider = GoogleProvider(client=sdk)

    async def close() -> None:
        await sdk.aio.aclose()
        sdk.close()
        await http.aclose()

    return ModelClient(connection, lambda name: GoogleModel(name, provider=provider), close)


_CLIENTS: dict[WireFormat, Callable[[ProviderConnection, int], ModelClient]] = {
    "responses": _openai,
    "chat": _openai,
    "messages": _anthropic,
    "gemini": _google,
}

_IMPORTS: dict[WireFormat, Callable[[], None]] = {
    "responses": _import_responses,
    "chat": _import_chat,
    "messages": _import_anthropic,
    "gemini": _import_google,
}
