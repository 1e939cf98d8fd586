"""Hosts of addresses, and the domains that they belong to."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit


def host_of(url: str) -> str | None:
    """Return the host of an HTTP address in lower case; None where there is none."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return None
    return host if parts.scheme in {"http", "https"} else None


def within(host: str, domains: Iterable[str]) -> bool:
    """Tell whether a host is one of some domains, or below one."""
    return any(host == domain.lower() or host.endswith(f".{domain.lower()}") for domain in domains)
