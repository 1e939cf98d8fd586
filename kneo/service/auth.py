"""Who is asking, and what they may do. Keys are people: a key's name is the actor of everything done with it."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request

from kneo.errors import Forbidden, Invalid, Unauthorized
from kneo.settings import Settings

_VIEWER = frozenset({"runs:read", "specs:read", "human:read", "audit:read"})

ROLES: Mapping[str, frozenset[str]] = {
    "admin": frozenset({"*"}),
    "operator": _VIEWER | {"runs:write", "credentials:read", "policies:read", "policies:write"},
    "reviewer": frozenset({"runs:read", "human:read", "human:write", "audit:read"}),
    "service": _VIEWER
    | {"runs:write", "human:write", "human:link", "audit:write", "credentials:read", "policies:read"},
    "viewer": _VIEWER,
    "approver": frozenset({"human:read", "human:write", "runs:read"}),
}

SCOPES = frozenset().union(*ROLES.values())


@dataclass(frozen=True)
class Principal:
    name: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        return "*" in self.scopes or scope in self.scopes


ANONYMOUS = Principal("anonymous", frozenset({"*"}))
"""Whoever asks a service that was started without keys."""


class Keyring:
    """The keys of this service, kept as hashes only."""

    def __init__(self, keys: Mapping[bytes, Principal], *, required: bool) -> None:
        self._keys = keys
        self.required = required

    def find(self, key: str) -> Principal | None:
        """Compare with every key in constant time."""
        offered = hashlib.sha256(key.encode()).digest()
        found = None
        for known, principal in self._keys.items():
            if hmac.compare_digest(known, offered):
                found = principal
        return found


def keyring(settings: Settings) -> Keyring:
    """Read the configured keys.

    Raises:
        Invalid: an entry is malformed, a role or scope is unknown, two entries share a key, or keys are required and
            there are none. The service does not start.
    """
    keys: dict[bytes, Principal] = {}
    entries = [entry.strip() for entry in settings.api_keys.split(";") if entry.strip()]
    for number, entry in enumerate(entries, start=1):
        name, key, grants = _entry(entry, number)
        _add(keys, key, Principal(name, _scopes(grants, name)))
    if settings.admin_api_key:
        _add(keys, settings.admin_api_key, Principal("admin", ROLES["admin"]))
    if settings.auth_enabled and not keys:
        msg = "KNEO_SERV_AUTH_ENABLED asks for keys, but KNEO_SERV_API_KEYS and KNEO_SERV_ADMIN_API_KEY are empty."
        raise Invalid(msg, code="invalid_setting")
    return Keyring(keys, required=settings.auth_enabled)


def _entry(entry: str, number: int) -> tuple[str, str, str]:
    parts = entry.split(":", 2)
    if len(parts) != 3 or not all(part.strip() for part in parts):
        msg = f"Entry {number} of KNEO_SERV_API_KEYS is not name:key:role."
        raise Invalid(msg, code="invalid_setting")
    return parts[0].strip(), parts[1].strip(), parts[2]


def _add(keys: dict[bytes, Principal], key: str, principal: Principal) -> None:
    hashed = hashlib.sha256(key.encode()).digest()
    if hashed in keys:
        msg = f"{principal.name} and {keys[hashed].name} have the same API key; keys are people."
        raise Invalid(msg, code="invalid_setting")
    keys[hashed] = principal


def _scopes(grants: str, name: str) -> frozenset[str]:
    scopes: set[str] = set()
    for word in (word.strip() for word in grants.split(",")):
        if word in ROLES:
            scopes |= ROLES[word]
        elif word in SCOPES:
            scopes.add(word)
        else:
            msg = f"The API key of {name} has the unknown role or scope {word!r}; roles are {', '.join(ROLES)}."
            raise Invalid(msg, code="invalid_setting")
    return frozenset(scopes)


def who_asks(ring: Keyring, headers: Mapping[str, str]) -> Principal:
    """Find out who sent a request.

    Args:
        ring: The keys of this service.
        headers: The request's, by lower-case name.

    Raises:
        Unauthorized: keys are required and this request has none that is known.
    """
    if not ring.required:
        return ANONYMOUS
    scheme, _, token = headers.get("authorization", "").partition(" ")
    key = token.strip() if scheme.lower() == "bearer" else headers.get("x-kneo-api-key", "")
    principal = ring.find(key) if key else None
    if principal is None:
        msg = "A valid API key is required."
        raise Unauthorized(msg, hint="Send Authorization: Bearer KEY.")
    return principal


def authenticate(request: Request) -> Principal:
    """Return who sent a request, as ``Admission`` found out before anything else was looked at.

    Raises:
        Unauthorized: keys are required and this request has none that is known.
    """
    known: object = request.scope.get(PRINCIPAL)
    if isinstance(known, Principal):
        return known
    return who_asks(request.app.state.service.keyring, request.headers)


PRINCIPAL = "kneo.principal"
"""Where a request's ASGI scope holds who sent it."""


class Require:
    """A dependency that lets only principals with a scope through."""

    def __init__(self, scope: str) -> None:
        self.scope = scope

    async def __call__(self, request: Request) -> Principal:
        principal = authenticate(request)
        self.check(principal)
        return principal

    def check(self, principal: Principal) -> None:
        """Check that somebody has the scope.

        Raises:
            Forbidden: they have not; the scope they need is in the details.
        """
        if not principal.may(self.scope):
            msg = f"{principal.name} may not do this; it needs the scope {self.scope}."
            raise Forbidden(msg, required_scope=self.scope)


def require(scope: str) -> Require:
    """Make a dependency that lets only principals with a scope through."""
    return Require(scope)
