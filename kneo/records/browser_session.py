"""Sessions of browsers that are signed in to the console, and the one-time links that start one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from kneo.clock import parse_time

LIFETIME = timedelta(hours=12)
"""The longest session."""

IDLE = timedelta(hours=1)
"""The time without a request after which a session ends."""

SEEN_EVERY = timedelta(minutes=1)
"""The precision of ``BrowserSession.seen_at``, so that a request rarely writes."""

LINK_LIFETIME = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class BrowserSession:
    """One row of ``browser_sessions``. Only the SHA-256 of the cookie is stored."""

    token_hash: str
    person: str
    method: str
    """How the person signed in: ``api_key``, ``link`` or ``oidc``."""
    key_hash: str | None
    """SHA-256 of the API key; the session ends when the key is removed. ``None`` for a person without a key."""
    groups: tuple[str, ...] | None
    """The groups that the identity provider named at the sign-in; ``None`` for other methods."""
    created_at: str
    seen_at: str

    def has_ended(self, now: datetime) -> bool:
        """Return whether the session is too old, or was not used for too long."""
        return parse_time(self.created_at) + LIFETIME <= now or parse_time(self.seen_at) + IDLE <= now


@dataclass(frozen=True, kw_only=True)
class SignInLink:
    """One row of ``sign_in_links``: a link that signs one browser in, once. Only the SHA-256 of its token is stored."""

    token_hash: str
    person: str
    key_hash: str | None
    created_at: str
    expires_at: str
