"""Subscriptions of browsers to Web Push, and the push services that messages may be sent to. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

MAX_PER_PERSON = 10
"""Browsers of one person; another one ends the oldest subscription."""

MAX_FAILURES = 5
"""Messages in a row that a push service did not accept, after which a subscription ends."""

MAX_ENDPOINT_CHARS = 2_000

_ENDPOINT = re.compile(r"https://(?P<host>[a-z0-9.-]{1,253})(?::(?P<port>[0-9]{1,5}))?/[!-\[\]-~]*")
"""An address as browsers state it: a host in lower case, no user, no backslash, no space."""


@dataclass(frozen=True, kw_only=True)
class PushSubscription:
    """One row of ``push_subscriptions``. The address and the keys are secrets: with them, messages can be sent to the browser.

    Attributes:
        id: The id.
        browser_hash: SHA-256 of the cookie by which the browser is known.
        session_hash: The session in which the person subscribed.
        person: The person who is notified.
        key_hash: SHA-256 of the API key of that session; the subscription ends when the key is removed. ``None`` for a
            person without a key.
        endpoint: The address of the browser at its push service.
        p256dh: The public key of the browser, in base64url.
        auth: The secret of the browser, in base64url.
        failures: Messages in a row that the push service did not accept.
        created_at: When the person subscribed.
    """

    id: str
    browser_hash: str
    session_hash: str
    person: str
    key_hash: str | None
    endpoint: str = field(repr=False)
    p256dh: str = field(repr=False)
    auth: str = field(repr=False)
    failures: int = 0
    created_at: str

    @property
    def endpoint_hash(self) -> str:
        """SHA-256 of the address, of which there is one subscription."""
        return hashlib.sha256(self.endpoint.encode()).hexdigest()


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
