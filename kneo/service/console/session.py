"""Signing in to the console, and the person behind the cookie of a request."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from kneo.api.operation import Principal
from kneo.clock import isoformat, parse_time
from kneo.digest import hash_text
from kneo.records.sign_in import LINK_LIFETIME, SEEN_EVERY, BrowserSession, SignInLink
from kneo.roles import EVERYTHING
from kneo.service.auth import ANONYMOUS, Keyring
from kneo.service.callers import Callers
from kneo.service.console.security import PUSH, SESSION, read_cookie
from kneo.service.limits import Rate, network_of
from kneo.service.sign_in_providers import Identity, IssuedPeople
from kneo.store import audit, browser_sessions, oidc_people, push_subscriptions
from kneo.store.engine import Store, Tx

NOTIFICATIONS_ENDED = "console.notifications_ended"

TOKEN_BYTES = 32

REFUSALS_PER_MINUTE, REFUSALS_PER_ADDRESS = 60, 10
"""Refused sign-ins that a process records per minute: of one method, and of one address. The access log has all of them."""


def push_browser(cookies: Mapping[str, str], *, secure: bool) -> str:
    """Return the hash by which the browser of a request is known for notifications; empty where it has none."""
    token = read_cookie(cookies, PUSH, secure=secure)
    return hash_text(token) if token else ""


@dataclass(frozen=True)
class SignedIn:
    """The person of a request.

    Attributes:
        principal: The person and the scopes.
        token_hash: The session; ``None`` where the service has no keys and the request no session.
    """

    principal: Principal
    token_hash: str | None = None


class Sessions:
    """The browser sessions of a service.

    Args:
        store: The database.
        callers: The callers of the service, who sign in.
    """

    def __init__(self, store: Store, callers: Callers) -> None:
        self.store = store
        self.keyring = callers.keyring
        self.people = callers.people
        self._refused = Rate(REFUSALS_PER_MINUTE)
        self._refused_here = Rate(REFUSALS_PER_ADDRESS)

    def find(self, cookies: Mapping[str, str], *, secure: bool) -> SignedIn | None:
        """Return the person of a request; ``None`` where nobody is signed in.

        Without API keys every caller of the API has all permissions, and so has the console without a session.
        """
        token = read_cookie(cookies, SESSION, secure=secure)
        session = self._session(token) if token else None
        principal = self._caller(session) if session is not None else None
        if session is not None and principal is not None:
            return SignedIn(principal, session.token_hash)
        return None if self.keyring.required else SignedIn(ANONYMOUS)

    def _session(self, token: str) -> BrowserSession | None:
        with self.store.read() as tx:
            session = browser_sessions.find(tx, hash_text(token))
            now = tx.now
        if session is not None and parse_time(session.seen_at) + SEEN_EVERY <= now:
            key = session.token_hash
            self.store.transact(lambda tx: browser_sessions.touch(tx, key))
        return session

    def _caller(self, session: BrowserSession) -> Principal | None:
        """Return the present permissions of a session; ``None`` where its key or its person is not known any more."""
        if session.method != "oidc":
            return self._principal(session.person, session.key_hash)
        people, groups = self.people, session.groups or ()
        scopes, roles = (people.scopes_of(groups), people.roles_of(groups)) if people else (frozenset(), frozenset())
        with self.store.read() as tx:
            is_known = oidc_people.find(tx, session.person) is not None
        return Principal(session.person, scopes, roles=roles) if scopes and is_known else None

    def _principal(self, person: str, key_hash: str | None) -> Principal | None:
        """Return the present permissions of a session; ``None`` where its key was removed from the keyring."""
        if key_hash is not None:
            return self.keyring.owner(bytes.fromhex(key_hash))
        # A session without a key comes from the link of a service without keys.
        return None if self.keyring.required else Principal(person, frozenset({EVERYTHING}))

    def sign_in_with_key(self, key: str, address: str, push: str = "") -> str | None:
        """Start a session for the owner of an API key; return its token, or ``None`` for an unknown key."""
        principal = self.keyring.find(key) if key else None
        if principal is None:
            return None
        key_hash = hash_text(key)
        return self.store.transact(
            lambda tx: start(tx, principal.name, "api_key", address, push=push, key_hash=key_hash)
        )

    def sign_in_with_link(self, token: str, address: str, push: str = "") -> str | None:
        """Start a session with a one-time link; return its token, or ``None`` where the link does not work any more."""

        def use(tx: Tx) -> str | None:
            link = browser_sessions.use_link(tx, hash_text(token))
            if link is None or self._principal(link.person, link.key_hash) is None:
                return None
            return start(tx, link.person, "link", address, push=push, key_hash=link.key_hash)

        return self.store.transact(use)

    def sign_in_with_issuer(self, people: IssuedPeople, identity: Identity, address: str, push: str = "") -> str:
        """Start a session for a person of the issuer; return its token.

        Raises:
            Forbidden: ``no_role``.
        """
        name, groups = people.admit(identity).name, tuple(sorted(identity.groups))
        facts = {"issuer": identity.issuer, "subject": identity.subject}
        return self.store.transact(lambda tx: start(tx, name, "oidc", address, push=push, groups=groups, facts=facts))

    def record_refusal(self, method: str, address: str) -> None:
        """Record in the audit log that a sign-in was refused, unless the method or the address has reached its limit."""
        if self._refused_here.take(network_of(address)) or self._refused.take(method):
            return
        facts = {"method": method, "address": address}
        self.store.transact(lambda tx: audit.record(tx, "console.sign_in_refused", actor=None, metadata=facts))


def end(store: Store, signed_in: SignedIn, push: str = "") -> None:
    """End a session, and the notifications that were switched on in it and in its browser.

    Args:
        store: The database.
        signed_in: The person and the session.
        push: The hash by which the browser is known for notifications.
    """
    token_hash, name = signed_in.token_hash, signed_in.principal.name

    def work(tx: Tx) -> None:
        if token_hash is None:
            return
        is_ended = browser_sessions.end(tx, token_hash)
        push_subscriptions.lock(tx)
        _record_end(tx, push_subscriptions.end_of_session(tx, token_hash, push), "signed_out", name)
        if is_ended:
            audit.record(tx, "console.signed_out", actor=name)

    store.transact(work)


def _record_end(tx: Tx, ended: int, reason: str, actor: str | None = None) -> None:
    if ended:
        audit.record(tx, NOTIFICATIONS_ENDED, actor=actor, metadata={"reason": reason, "count": ended})


def start(
    tx: Tx,
    person: str,
    method: str,
    address: str,
    *,
    push: str = "",
    key_hash: str | None = None,
    groups: tuple[str, ...] | None = None,
    facts: Mapping[str, str] | None = None,
) -> str:
    """Store a new session and its audit event; return the token for the cookie.

    Notifications to another person in the browser end.
    """
    token = secrets.token_urlsafe(TOKEN_BYTES)
    session = BrowserSession(
        token_hash=hash_text(token),
        person=person,
        method=method,
        key_hash=key_hash,
        groups=groups,
        created_at=tx.at,
        seen_at=tx.at,
    )
    browser_sessions.start(tx, session)
    _record_end(tx, push_subscriptions.end_of_others(tx, push, person), "another_person")
    audit.record(
        tx, "console.signed_in", actor=person, metadata={"method": method, "address": address, **(facts or {})}
    )
    return token


def make_link(store: Store, keyring: Keyring, person: str | None = None, *, operator: str) -> str | None:
    """Create a one-time sign-in link; return its path.

    Args:
        store: The database.
        keyring: The API keys.
        person: The owner of an API key; left out, the owner of a key with every permission.
        operator: The person of a service without keys.

    Returns:
        The path, or ``None`` where no such key exists.
    """
    name, key_hash = person or operator, None
    if keyring.required:
        found = keyring.find_person(person) if person is not None else keyring.find_admin()
        if found is None:
            return None
        key_hash, name = found[0].hex(), found[1].name
    token = secrets.token_urlsafe(TOKEN_BYTES)

    def store_link(tx: Tx) -> None:
        browser_sessions.insert_link(
            tx,
            SignInLink(
                token_hash=hash_text(token),
                person=name,
                key_hash=key_hash,
                created_at=tx.at,
                expires_at=isoformat(tx.now + LINK_LIFETIME),
            ),
        )

    store.transact(store_link)
    return f"/console/link/{token}"
