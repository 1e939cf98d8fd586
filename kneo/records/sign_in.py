"""People who sign in: sessions of browsers, one-time links, sign-ins at an OpenID Connect issuer, and subscriptions to Web Push.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from kneo.clock import parse_time
from kneo.digest import hash_text

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


KNOWN_FOR = timedelta(days=30)
"""Time after the last token or sign-in for which a person is known and in the groups."""


@dataclass(frozen=True, kw_only=True)
class OidcPerson:
    """One row of ``oidc_people``, with the person's rows of ``oidc_groups``."""

    name: str
    """The name under which the person acts. One name is one person, also where the person has an API key."""
    issuer: str
    subject: str
    """The issuer's id of the person."""
    groups: frozenset[str]
    issued_at: str
    """When the issuer issued the token. An older token changes nothing."""


SIGN_IN_LIFETIME = timedelta(minutes=10)
"""The longest time between the begin and the end of a sign-in."""


@dataclass(frozen=True, kw_only=True)
class OidcSignIn:
    """A sign-in of one browser that waits for the issuer. The browser keeps it, sealed in a cookie."""

    state: str
    """The value with which the issuer sends the browser back."""
    nonce: str
    """The value that the ID token has to repeat."""
    code_verifier: str
    """The secret of PKCE, with which the code is exchanged."""
    target: str
    """The page to show afterwards."""
    created_at: str


MAX_PER_PERSON = 10
"""Browsers of one person; another one ends the oldest subscription."""

MAX_FAILURES = 5
"""Messages in a row that a push service did not accept, after which a subscription ends."""


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
        return hash_text(self.endpoint)
