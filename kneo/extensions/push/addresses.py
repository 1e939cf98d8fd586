"""Addresses of browsers at their push services."""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_ENDPOINT_CHARS = 2_000

_ENDPOINT = re.compile(r"https://(?P<host>[a-z0-9.-]{1,253})(?::(?P<port>[0-9]{1,5}))?/[!-\[\]-~]*")
"""An address as browsers state it: a host in lower case, no user, no backslash, no space."""


def push_service(endpoint: str, hosts: Iterable[str]) -> str | None:
    """Return the origin of the push service of an address; ``None`` where messages may not be sent to it.

    Args:
        endpoint: The address.
        hosts: The allowed hosts: ``host``, ``host:port``, or ``*.domain`` for every host below a domain.
    """
    found = _ENDPOINT.fullmatch(endpoint) if len(endpoint) <= MAX_ENDPOINT_CHARS else None
    if found is None:
        return None
    authority = found["host"] + (f":{found['port']}" if found["port"] not in {None, "443"} else "")
    return f"https://{authority}" if any(_fits(authority, host) for host in hosts) else None


def _fits(authority: str, host: str) -> bool:
    return authority.endswith(host[1:]) and len(authority) >= len(host) if host.startswith("*.") else authority == host
