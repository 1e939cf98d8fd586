"""Hosts and addresses that tools may reach: the domain lists of an agent, and public addresses only.

A name is resolved once and all its addresses are checked; a connection goes to a checked address, so that a second look-up
cannot lead elsewhere. Services inside the network are named by the environment, never by a spec.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import httpx

from kneo.agents.public_addresses import is_address, is_public
from kneo.errors import Forbidden, Invalid
from kneo.spec.coverage.exposure import permissions_of
from kneo.spec.models.agent import Agent

C = TypeVar("C")

MAX_ADDRESSES = 32
"""Addresses of one name; more are refused."""

MAX_URL_CHARS = 8_000
MAX_VALUES = 100_000
"""JSON values of one call that are searched for URLs."""

Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""From a host and a port to its addresses."""

_URL_SHAPED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[/\\]{2}|(?:https?|wss?|ftps?|file):\S|[/\\]{2}\S+$")
"""Texts that a client takes for the address of a host: with a scheme, or with the host alone (``//a.example/x``)."""

_DROPPED = re.compile(r"[\x00-\x1f\x7f]")
"""Characters that clients drop from a URL before they read it; a URL that has one is refused."""

_CONTROLS = re.compile(r"[\x00-\x20\x7f\\]")
_HOST = re.compile(r"[a-z0-9._-]{0,255}|[0-9a-f.:]{2,50}")


async def resolve(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a host from the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


async def first_connection(
    addresses: Iterable[str], connect: Callable[[str], Awaitable[C]], refusals: tuple[type[Exception], ...]
) -> C:
    """Connect to the first address that accepts a connection.

    Args:
        addresses: At least one checked address.
        connect: Connects to an address.
        refusals: The exceptions after which the next address is tried; the last one is raised.
    """
    refused: Exception | None = None
    for address in addresses:
        try:
            return await connect(address)
        except refusals as error:
            refused = error
    assert refused is not None
    raise refused


@dataclass(frozen=True, kw_only=True)
class HostRules:
    """The hosts that the tools of an agent may reach.

    Attributes:
        allowed: Domains; each covers its subdomains, ``*.a.example`` only those, ``*`` every host. Empty allows none.
        denied: Domains of the same form; they win.
        inside: ``host:port`` of services inside the network, which the environment names: private addresses and plain http.
    """

    allowed: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()
    inside: frozenset[str] = frozenset()

    @classmethod
    def of(cls, agent: Agent, inside: Sequence[str] = ()) -> HostRules:
        """Return the rules of an agent, with the inside services of its environment."""
        permissions = permissions_of(agent)
        named = frozenset(name.lower() for name in inside)
        if permissions is None:
            return cls(inside=named)
        return cls(allowed=permissions.allowed_domains, denied=permissions.denied_domains, inside=named)

    def is_inside(self, host: str, port: int) -> bool:
        name = f"[{host}]" if ":" in host else host
        return f"{name.rstrip('.').lower()}:{port}" in self.inside

    def check_host(self, host: str) -> None:
        """Refuse a host that the domain lists do not permit.

        Raises:
            Forbidden: ``domain_denied``.
        """
        if not host or _fits(host, self.denied) or not _fits(host, self.allowed):
            msg = f"The tools of this agent may not reach {host[:255] or 'an address without a host'}."
            raise Forbidden(msg, code="domain_denied", hint="allowed_domains and denied_domains of the agent decide.")

    def check_url(self, text: str) -> httpx.URL:
        """Parse an absolute http or https URL and check its host; plain http is for inside services.

        Raises:
            Forbidden: ``url_denied`` or ``domain_denied``.
        """
        url = _parse(text)
        if url.scheme not in {"http", "https"}:
            msg = f"Tools use https; {url.scheme or 'a relative reference'} is refused."
            raise Forbidden(msg, code="url_denied")
        host = _host(url)
        self.check_host(host)
        if url.scheme == "http" and not self.is_inside(host, url.port or 80):
            msg = f"Tools use https; plain http to {host} is refused."
            hint = "The environment names services inside the network in tools.inside."
            raise Forbidden(msg, code="url_denied", hint=hint)
        return url

    def check_arguments(self, arguments: Mapping[str, object]) -> None:
        """Refuse URL-shaped arguments whose host the domain lists do not permit; without a list, any host is permitted.

        Raises:
            Forbidden: ``url_denied`` or ``domain_denied``.
        """
        if not self.allowed and not self.denied:
            return
        lists = HostRules(allowed=self.allowed or ("*",), denied=self.denied)
        for text in _texts(arguments):
            if _URL_SHAPED.match(_DROPPED.sub("", text.strip())):
                lists.check_host(_host(_parse(text.strip())))

    async def addresses(self, host: str, port: int, resolver: Resolve = resolve) -> tuple[str, ...]:
        """Resolve a host once and check all its addresses.

        Raises:
            Forbidden: ``address_denied``: the host has an address that is not public, and is not an inside service.
            OSError: the host has no address.
        """
        found = tuple(dict.fromkeys(await resolver(host, port)))
        if not found:
            msg = f"{host} has no address."
            raise OSError(msg)
        public = len(found) <= MAX_ADDRESSES and all(is_public(address) for address in found)
        if not public and not self.is_inside(host, port):
            msg = f"{host} has an address inside a network; tools reach public addresses only."
            hint = f"The environment may name {host}:{port} in tools.inside."
            raise Forbidden(msg, code="address_denied", hint=hint)
        return found


def _parse(text: str) -> httpx.URL:
    """Parse a URL that every parser reads alike.

    Raises:
        Forbidden: ``url_denied``.
    """
    msg = "The URL is refused: it is too long, has spaces, backslashes or credentials, or cannot be read."
    if len(text) > MAX_URL_CHARS or _CONTROLS.search(text):
        raise Forbidden(msg, code="url_denied")
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        raise Forbidden(msg, code="url_denied") from None
    if url.userinfo or not _HOST.fullmatch(_host(url)):
        raise Forbidden(msg, code="url_denied")
    return url


def _host(url: httpx.URL) -> str:
    return url.raw_host.decode("ascii").rstrip(".").lower()


def _fits(host: str, patterns: Sequence[str]) -> bool:
    name = host.rstrip(".").lower()
    return any(_covers(pattern, name) for pattern in patterns)


def _covers(pattern: str, name: str) -> bool:
    if pattern == "*":
        return True
    below = pattern.startswith("*.")
    domain = _domain(pattern.removeprefix("*").removeprefix("."))
    return name.endswith(f".{domain}") or (not below and name == domain)


def _domain(pattern: str) -> str:
    """Return a domain of a list as hosts are written.

    Raises:
        Invalid: ``domain_invalid``: it is a URL, or has a port; a list must not seem to deny what it does not.
    """
    try:
        url = httpx.URL(scheme="https", host=pattern)
    except httpx.InvalidURL:
        url = None
    host = _host(url) if url is not None else ""
    if not host or re.search(r"[/*?#@\s]", pattern) or (":" in host and not is_address(host)):
        msg = (
            f"{pattern[:255]!r} in allowed_domains or denied_domains is not a domain such as a.example or *.a.example."
        )
        raise Invalid(msg, code="domain_invalid", hint="Write the host alone, without scheme, port and path.")
    return host


def _texts(value: object) -> Iterator[str]:
    """Yield the texts of a JSON value, keys included.

    Raises:
        Forbidden: ``url_denied``: there are too many values to check.
    """
    waiting, count = [value], 0
    while waiting:
        count += 1
        if count > MAX_VALUES:
            msg = f"The arguments have more than {MAX_VALUES} values, and cannot be checked against the domain lists."
            raise Forbidden(msg, code="url_denied")
        match waiting.pop():
            case str() as text:
                yield text
            case Mapping() as entries:
                waiting += [*entries, *entries.values()]
            case list() | tuple() as items:
                waiting += items
