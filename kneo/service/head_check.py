"""What is checked of a request's head before anything else: its size, the host it names, the site it comes from.

A service without keys trusts whoever can reach it. A web page that a person on this machine looks at can reach it too: by a form
that is sent across sites, or by a name that resolves to this machine. So without keys a request has to name this machine, and a
browser has to say that the request comes from the service's own pages.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from kneo.errors import Forbidden, Invalid, KneoError
from kneo.service.auth import Keyring, authenticate
from kneo.service.problems import refusal
from kneo.settings import Settings

PAGES: Mapping[str, str] = {
    "/metrics": "metrics",
    "/openapi.json": "docs",
    "/docs": "docs",
    "/docs/oauth2-redirect": "docs",
    "/redoc": "docs",
}
"""Pages beside the API that need any key, where keys are needed at all and ``KNEO_SERV_OPEN_PAGES`` does not open them."""

PROBES = frozenset({"/livez", "/healthz", "/readyz", "/v1/livez", "/v1/healthz", "/v1/readyz"})
"""Asked by whatever name an orchestrator has for this process; they change nothing and tell no content."""

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_OWN_SITE = frozenset({"same-origin", "none"})


class HeadersTooLarge(Invalid):
    """The head of a request is larger than it has to be."""

    http_status = 431
    default_code = "headers_too_large"


class HeadCheck:
    """Refuses requests by their head.

    Args:
        app: What answers the others.
        settings: Bounds, and hosts by which the service may be asked.
        keyring: Says whether keys are needed, and whose they are.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings, keyring: Keyring) -> None:
        self.app = app
        self.keyring = keyring
        self.max_bytes = settings.http.header_bytes
        self.hosts = frozenset(settings.http.allowed_hosts)
        self.public_host = _host_of(urlsplit(settings.public_url).netloc) if settings.public_url else ""
        self.open_pages = frozenset(settings.http.open_pages)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope)
            except KneoError as error:
                await refusal(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        self._check_size(scope)
        headers, path = Headers(scope=scope), _path(scope)
        if path not in PROBES:
            self._check_host(headers.get("host", ""))
        if not self.keyring.required:
            self._check_origin(scope["method"], headers)
        if PAGES.get(path, "") not in {"", *self.open_pages}:
            authenticate(self.keyring, headers)

    def _check_size(self, scope: Scope) -> None:
        line = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        if line + sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > self.max_bytes:
            msg = f"The head of this request is larger than {self.max_bytes} bytes."
            raise HeadersTooLarge(msg, max_header_bytes=self.max_bytes)

    def _check_host(self, host: str) -> None:
        name = _host_of(host)
        if "*" in self.hosts or (self.keyring.required and not self.hosts):
            return
        if name and (
            name in self.hosts or name == self.public_host or (not self.keyring.required and is_loopback(name))
        ):
            return
        msg = f"This service is not asked as {host[:100]!r}."
        hint = "Ask it by a name of KNEO_SERV_ALLOWED_HOSTS."
        if not self.keyring.required:
            hint = "Without API keys it is asked as localhost only; set KNEO_SERV_API_KEYS, or KNEO_SERV_ALLOWED_HOSTS."
        raise Forbidden(msg, code="host_not_allowed", hint=hint)

    def _check_origin(self, method: str, headers: Headers) -> None:
        site, origin = headers.get("sec-fetch-site", "none"), headers.get("origin")
        if method in SAFE and (site in _OWN_SITE or headers.get("sec-fetch-mode") == "navigate"):
            return
        if site in _OWN_SITE and (origin is None or self._is_own(origin, headers.get("host", ""))):
            return
        msg = "This request comes from a page of another site, and this service has no API keys."
        hint = "Set KNEO_SERV_API_KEYS, so that requests say who sends them."
        raise Forbidden(msg, code="origin_not_allowed", hint=hint)

    def _is_own(self, origin: str, host: str) -> bool:
        authority = origin.partition("://")[2].lower()
        return bool(authority) and (authority == host.lower() or _host_of(authority) in self.hosts | {self.public_host})


def is_loopback(host: str) -> bool:
    """Say whether a host name or address is always this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def check_reachable(settings: Settings, host: str) -> None:
    """Check that a service without keys listens on this machine only.

    Raises:
        Invalid: ``keys_required``: others can reach the address, and nothing says that they all may do everything.
    """
    if settings.auth_enabled or settings.http.anonymous or is_loopback(host.lower()):
        return
    msg = f"Everybody who reaches {host or 'this machine'} could do everything: there are no API keys."
    hint = "Set KNEO_SERV_API_KEYS, listen on 127.0.0.1, or set KNEO_SERV_ALLOW_ANONYMOUS=true."
    raise Invalid(msg, code="keys_required", hint=hint)


def _host_of(authority: str) -> str:
    """Return the host of ``host:port``, in lower case and without a final dot."""
    text = authority.strip().lower()
    if text.startswith("["):
        return text.partition("]")[0] + "]" if "]" in text else ""
    return text.partition(":")[0].removesuffix(".")


def _path(scope: Scope) -> str:
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(root + "/") else path
