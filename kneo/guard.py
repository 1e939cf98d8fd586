"""A guard around functions of a program that runs its own agent: people approve calls in Kneo, the program makes them.

    guard = Guard("https://kneo.example.com", env="prod", bundle="payments")

    @guard
    def delete_branch(branch: str) -> str: ...

The module imports httpx alone, so that it can be copied into a program. A function of the same name is a tool of the bundle, with
``review: {external: {human: caller}}``. Where the service does not answer, nothing is called.
"""

from __future__ import annotations

import functools
import inspect
import os
import ssl
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import httpx

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")

POLL_SECONDS = 50
"""Seconds that one request waits for people."""


class CallRefused(Exception):
    """A call was refused, or failed; ``call`` is the response of the service."""

    def __init__(self, message: str, call: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.call = call


class CallWaiting(CallRefused):
    """People had not decided when the time to wait ended. The same key continues to wait."""


class CallInterrupted(CallRefused):
    """A call under this key was begun before and its result was not reported: it may have taken effect, and people look it up."""


BEGUN_BY_ANOTHER = {"call_begun", "call_ended"}
"""The errors of a begin where another attempt under the same key came first."""

RETRIES = 3
"""Further attempts to connect."""

Steps = Generator[dict[str, Any], httpx.Response, R]
"""Requests of which each gets its response."""


class Guard:
    """Guards functions of one program.

    Args:
        url: The address of the service.
        key: The API key; by default that of ``KNEO_API_KEY``.
        env: The environment that serves the tools.
        bundle: The bundle that declares them.
        wait: Seconds to wait for people.
    """

    def __init__(self, url: str, key: str | None = None, *, env: str, bundle: str, wait: float = 3600) -> None:
        key = os.environ.get("KNEO_API_KEY", "") if key is None else key  # noqa: TID251 - a copied module reads it itself
        self._options: dict[str, Any] = {
            "base_url": f"{url.rstrip('/')}/v1",
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "timeout": POLL_SECONDS + 30,
        }
        self.env, self.bundle, self.wait = env, bundle, wait

    @functools.cached_property
    def _tls(self) -> ssl.SSLContext:
        """The trusted authorities, which take 20 ms to read: a guarded call opens a client for its begin and one for its report."""
        return httpx.create_ssl_context()

    @overload
    def __call__(self, function: F) -> F: ...

    @overload
    def __call__(
        self, *, name: str | None = None, wait: float | None = None, session: str | None = None
    ) -> Callable[[F], F]: ...

    def __call__(
        self,
        function: Callable[..., Any] | None = None,
        *,
        name: str | None = None,
        wait: float | None = None,
        session: str | None = None,
    ) -> Any:
        """Guard a function, sync or async; ``keyed(KEY, …)`` of the guarded function makes a call once per key."""
        if function is None:
            return functools.partial(self._guarded, name=name, wait=wait, session=session)
        return self._guarded(function, name=name, wait=wait, session=session)

    def _guarded(
        self, function: Callable[..., Any], *, name: str | None, wait: float | None, session: str | None
    ) -> Callable[..., Any]:
        tool, seconds = name or function.__name__, self.wait if wait is None else wait

        def decide(key: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps[_Decided]:
            arguments = inspect.signature(function).bind(*args, **kwargs).arguments
            body = {"environment": self.env, "bundle": self.bundle, "tool": tool, "arguments": arguments}
            return _decide({**body, "session_id": session}, key, time.monotonic() + seconds)

        def call(key: str, *args: Any, **kwargs: Any) -> Any:
            decided = self._send(decide(key, args, kwargs))
            if decided.begun is None:
                return decided.result
            try:
                result = function(**decided.begun)
            except Exception as error:
                self._send(_report(decided.id, {"error": f"{type(error).__name__}: {error}"}))
                raise
            return _result_of(self._send(_report(decided.id, {"result": result})))

        async def call_later(key: str, *args: Any, **kwargs: Any) -> Any:
            decided = await self._send_later(decide(key, args, kwargs))
            if decided.begun is None:
                return decided.result
            try:
                result = await function(**decided.begun)
            except Exception as error:
                await self._send_later(_report(decided.id, {"error": f"{type(error).__name__}: {error}"}))
                raise
            return _result_of(await self._send_later(_report(decided.id, {"result": result})))

        keyed = call_later if inspect.iscoroutinefunction(function) else call

        @functools.wraps(function)
        def once(*args: Any, **kwargs: Any) -> Any:
            return keyed(str(uuid.uuid4()), *args, **kwargs)

        once.keyed = keyed  # type: ignore[attr-defined]
        return once

    def _send(self, steps: Steps[R]) -> R:
        with httpx.Client(transport=httpx.HTTPTransport(verify=self._tls, retries=RETRIES), **self._options) as http:
            try:
                asked = next(steps)
                while True:
                    asked = steps.send(http.request(**asked))
            except StopIteration as end:
                result: R = end.value
                return result

    async def _send_later(self, steps: Steps[R]) -> R:
        async with httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(verify=self._tls, retries=RETRIES), **self._options
        ) as http:
            try:
                asked = next(steps)
                while True:
                    asked = steps.send(await http.request(**asked))
            except StopIteration as end:
                result: R = end.value
                return result


@dataclass(frozen=True)
class _Decided:
    """A call that has a result, or that its caller makes now with the arguments ``begun``."""

    id: str
    result: Any = None
    begun: dict[str, Any] | None = None


def _decide(body: Mapping[str, Any], key: str, until: float) -> Steps[_Decided]:
    """Make a call, wait for people, and begin it."""
    wait = {"wait": "1s"}  # the same for all attempts, since a key belongs to one request
    made = {"method": "POST", "url": "/calls", "json": body, "params": wait, "headers": {"Idempotency-Key": key}}
    call = _checked((yield made))
    while call["status"] != "ended":
        if call["status"] == "begun":
            raise CallInterrupted(f"{call['id']} was begun before, and its result was not reported.", call)
        if call["status"] == "allowed":
            begun = yield {"method": "POST", "url": f"/calls/{call['id']}/begin"}
            if begun.status_code != 409 or begun.json().get("error") not in BEGUN_BY_ANOTHER:
                return _Decided(call["id"], begun=_checked(begun)["arguments"])
        elif time.monotonic() > until:
            links = ", ".join(question["url"] for question in call["questions"])
            state = f"waits for approval: {links}" if links else "is under way; the same key continues to wait"
            raise CallWaiting(f"{call['id']} {state}", call)
        call = _checked((yield {"method": "GET", "url": f"/calls/{call['id']}", "params": _wait(until)}))
    return _Decided(call["id"], _result_of(call))


def _wait(until: float) -> dict[str, str]:
    """Return how long a request waits: to a moment of the monotonic clock, 1 to `POLL_SECONDS`."""
    return {"wait": f"{max(1, min(POLL_SECONDS, int(until - time.monotonic())))}s"}


def _report(call_id: str, report: Mapping[str, Any]) -> Steps[dict[str, Any]]:
    """Report what became of a call, and wait until the service has checked it."""
    call = _checked((yield {"method": "POST", "url": f"/calls/{call_id}/result", "json": report}))
    while call["status"] != "ended":
        call = _checked((yield {"method": "GET", "url": f"/calls/{call_id}", "params": {"wait": f"{POLL_SECONDS}s"}}))
    return call


def _checked(response: httpx.Response) -> dict[str, Any]:
    """Return the body of a response; a refusal is raised."""
    if response.status_code < 400:
        body: dict[str, Any] = response.json()
        return body
    if response.status_code >= 500:
        response.raise_for_status()
    refused = response.json()
    kind = CallInterrupted if refused.get("error") == "call_begun" else CallRefused
    raise kind(str(refused.get("message")), refused)


def _result_of(call: Mapping[str, Any]) -> Any:
    if call["outcome"] == "success":
        return call["result"]
    reason = call["error"]["message"] if call["error"] is not None else call["result"]
    raise CallRefused(f"{call['id']} was {call['outcome']}: {reason}", call)
