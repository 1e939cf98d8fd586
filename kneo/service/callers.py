"""The callers of a service: the hosts and sites that requests may come from, and the API key or token that names a caller.

A service without keys trusts every caller that reaches it. A web page in a browser on this machine reaches it too: by a form that is
sent across sites, or by a host name that resolves to this machine. So without keys a request has to name this machine, and a browser
has to state that the request comes from the service's own pages.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from kneo.api.operation import Principal
from kneo.errors import Forbidden, Invalid, KneoError
from kneo.service.auth import ANONYMOUS, PRINCIPAL, Keyring, credential_of, unauthorized
from kneo.service.problems import refusal
from kneo.service.routing import path_of
from kneo.service.sign_in_providers import IssuedPeople, find_provider
from kneo.settings import OidcSettings, Settings
from kneo.store import oidc_people
from kneo.store.engine import Store, Tx

PAGES: Mapping[str, str] = {
    "/metrics": "metrics",
    "/openapi.json": "docs",
    "/docs": "docs",
    "/docs/oauth2-redirect": "docs",
    "/redoc": "docs",
}
"""Pages outside of the API that need a key, where keys are required and ``KNEO_SERV_OPEN_PAGES`` is off."""

PROBES = frozenset({"/livez", "/healthz", "/readyz", "/v1/livez", "/v1/healthz", "/v1/readyz"})
"""Probes, which an orchestrator may call by any host name: they change nothing and return no content."""

SINGLE = frozenset(
    {b"host", b"authorization", b"x-kneo-api-key", b"idempotency-key", b"origin", b"sec-fetch-site", b"content-type"}
)
"""Headers that decide about a request, and that a request has once."""

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_OWN_SITE = frozenset({"same-origin", "none"})


class HeadersTooLarge(Invalid):
    """The head of a request is larger than the limit."""

    http_status = 431
    default_code = "headers_too_large"


class HeadCheck:
    """Middleware that refuses requests by their head.

    Args:
        app: The application behind it.
        settings: Limits, and the allowed hosts.
        callers: The callers that are admitted, and whether a credential is required.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings, callers: Callers) -> None:
        self.app = app
        self.callers = callers
        self.keyring = callers.keyring
        self.max_bytes = settings.http.header_bytes
        self.hosts = frozenset(settings.http.allowed_hosts)
        self.public_host = _host_of(urlsplit(settings.public_url).netloc) if settings.public_url else ""
        self.open_pages = frozenset(settings.http.open_pages)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                await self._check(scope)
            except KneoError as error:
                await refusal(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    async def _check(self, scope: Scope) -> None:
        self._check_size(scope)
        self._check_repeated(scope)
        headers, path = Headers(scope=scope), path_of(scope)
        if path not in PROBES:
            self._check_host(headers.get("host", ""))
        if not self.keyring.required:
            self._check_origin(scope["method"], headers)
        if PAGES.get(path, "") not in {"", *self.open_pages}:
            scope[PRINCIPAL] = await self.callers.authenticate(headers)

    def _check_size(self, scope: Scope) -> None:
        line = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        if line + sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > self.max_bytes:
            msg = f"The head of this request is larger than {self.max_bytes} bytes."
            raise HeadersTooLarge(msg, max_header_bytes=self.max_bytes)

    def _check_repeated(self, scope: Scope) -> None:
        """Refuse a header that is there twice: a proxy in front may read the other one."""
        names = [name for name, _ in scope["headers"] if name in SINGLE]
        if len(names) > len(set(names)):
            twice = next(name for name in names if names.count(name) > 1).decode()
            msg = f"The header {twice} is in this request more than once."
            raise Invalid(msg, code="repeated_header", hint="Send it once.")

    def _check_host(self, host: str) -> None:
        name = _host_of(host)
        if "*" in self.hosts or (self.keyring.required and not self.hosts):
            return
        if name and (
            name in self.hosts or name == self.public_host or (not self.keyring.required and is_loopback(name))
        ):
            return
        msg = f"The host {host[:100]!r} is not allowed."
        hint = "Use a host of KNEO_SERV_ALLOWED_HOSTS."
        if not self.keyring.required:
            hint = "Without API keys only localhost is allowed; set KNEO_SERV_API_KEYS or KNEO_SERV_ALLOWED_HOSTS."
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
    """Return whether a host name or address always means this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def check_reachable(settings: Settings, host: str) -> None:
    """Check that a service without keys listens on this machine only.

    Raises:
        Invalid: ``keys_required``: other machines can reach the address, and anonymous access is not allowed.
    """
    if settings.auth_enabled or settings.http.anonymous or is_loopback(host.lower()):
        return
    msg = f"Every caller that reaches {host or 'this machine'} would have all permissions: no API keys are set."
    hint = "Set KNEO_SERV_API_KEYS, listen on 127.0.0.1, or set KNEO_SERV_ALLOW_ANONYMOUS=true."
    raise Invalid(msg, code="keys_required", hint=hint)


def _host_of(authority: str) -> str:
    """Return the host of ``host:port``, in lower case and without a final dot."""
    text = authority.strip().lower()
    if text.startswith("["):
        return text.partition("]")[0] + "]" if "]" in text else ""
    return text.partition(":")[0].removesuffix(".")


class Callers:
    """The callers of a service.

    Args:
        keyring: The API keys.
        people: The people of the issuer; ``None`` where no issuer is configured.
        issuer: The issuer; empty where none is configured.
    """

    def __init__(self, keyring: Keyring, people: IssuedPeople | None = None, issuer: str = "") -> None:
        self.keyring = keyring
        self.people = people
        self.issuer = issuer

    def find(self, tx: Tx, name: str) -> Principal | None:
        """Return a person of an API key or, with the groups of the last token, of the issuer; ``None`` for others."""
        found = self.keyring.find_person(name)
        if found is not None:
            return found[1]
        issued = oidc_people.find(tx, name)
        scopes = self.people.scopes_of(issued.groups) if self.people and issued else frozenset()
        if self.people is None or issued is None or not scopes:
            return None
        return Principal(issued.name, scopes, roles=self.people.roles_of(issued.groups))

    async def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """Return the caller of a request. A known API key is one also where it looks like a token.

        Args:
            headers: The headers of the request, by lower-case name.

        Raises:
            Unauthorized: the request has no known key and no accepted token, and needs one.
            Forbidden: ``no_role``: no group of the token's person has a role.
            Transient: the keys of the issuer are not known yet.
        """
        if not self.keyring.required:
            return ANONYMOUS
        credential = credential_of(headers)
        owner = self.keyring.find(credential) if credential else None
        if owner is not None:
            return owner
        if self.people is not None and self.people.accepts(credential):
            return await self.people.authenticate(credential)
        raise unauthorized()


def make_callers(settings: OidcSettings, store: Store, keyring: Keyring) -> Callers:
    """Return the callers of a service with an issuer, where one is configured and credentials are required.

    Raises:
        Invalid: a role or scope of a group is unknown, or the sign-in provider is not installed.
        ExtensionFailed: the provider cannot be loaded.
    """
    provider = find_provider(settings) if keyring.required else None
    if provider is None:
        return Callers(keyring)
    return Callers(keyring, provider.make_people(settings, store, keyring), settings.issuer)
