"""The connection of the Agent2Agent SDK to a remote agent: each request passes the host rules of tools."""

from __future__ import annotations

from collections.abc import Mapping

import httpx

from kneo.agents.http import HttpClient, HttpFailed, WebRequest

_KEPT_HEADERS = frozenset({"accept", "content-type", "a2a-version", "a2a-extensions"})
"""Headers of the SDK's requests that are sent; the client writes its own."""


class CheckedTransport(httpx.AsyncBaseTransport):
    """Sends the requests of the SDK with the client of tools.

    Args:
        client: Checks hosts and addresses, follows redirects and bounds responses.
        url: The address of the agent; only its origin receives secrets.
        secret_headers: The headers with secrets.
        seconds: Time for one request.
    """

    def __init__(self, client: HttpClient, url: str, secret_headers: Mapping[str, str], seconds: float) -> None:
        self._client, self._secret_headers, self._seconds = client, secret_headers, seconds
        self._origin = _origin(httpx.URL(url))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return its whole response.

        Raises:
            Forbidden: the host, an address or a header is refused.
            HttpFailed: no response came, one that is too long, or one of status 300 and above.
        """
        response = await self._client.send(
            WebRequest(
                url=str(request.url),
                method=request.method,
                headers={name: value for name, value in request.headers.items() if name.lower() in _KEPT_HEADERS},
                secret_headers=self._secret_headers if _origin(request.url) == self._origin else {},
                body=await request.aread() or None,
            ),
            self._seconds,
        )
        text = response.body.decode("utf-8", errors="replace")
        if response.is_cut:
            msg = f"The response of {request.url.host} has more than {len(response.body)} bytes."
            raise HttpFailed(msg, code="response_too_large")
        if response.status >= 300:
            msg = f"{request.url.host} answers {request.method} with the status {response.status}: {text}"
            raise HttpFailed(msg, code="http_status", status=response.status)
        headers = {"content-type": response.media_type or "application/json"}
        return httpx.Response(response.status, headers=headers, content=text.encode(), request=request)


def _origin(url: httpx.URL) -> tuple[str, bytes, int | None]:
    return url.scheme, url.raw_host, url.port
