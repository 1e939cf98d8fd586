"""HTTP requests that deliver a message."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import httpx


@dataclass(frozen=True)
class Reply:
    """The result of a request: the status of the response, and without success the problem, without the address."""

    status: int | None
    problem: str | None


def post(url: str, body: bytes, headers: Mapping[str, str], seconds: float) -> Reply:
    """Send one request, and follow no redirect."""
    try:
        status = asyncio.run(_send(url, body, headers, seconds))
    except TimeoutError:
        return Reply(None, f"no answer in {seconds:g} s")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Reply(None, f"no answer: {type(error).__name__}")
    return Reply(status, None if 200 <= status < 300 else f"answered {status}")


async def _send(url: str, body: bytes, headers: Mapping[str, str], seconds: float) -> int:
    """Send one request. Cancellation bounds all of it: the timeouts of the client start again with each byte of a head."""
    async with (
        asyncio.timeout(seconds),
        httpx.AsyncClient(verify=_tls(), timeout=seconds, follow_redirects=False) as http,
        # The body of the response is not read: it may be large, or never end.
        http.stream("POST", url, content=body, headers=headers) as response,
    ):
        return response.status_code


@cache
def _tls() -> ssl.SSLContext:
    """Return the trusted authorities, which take tens of milliseconds to read."""
    return httpx.create_ssl_context()
