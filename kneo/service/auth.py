"""API keys, scopes and roles. A key stands for a person: its name is the actor of everything done with it.

``kneo.service.callers`` authenticates requests, by these keys or by tokens of an issuer.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fastapi import Request

from kneo.api.operation import Principal
from kneo.errors import Invalid, Unauthorized
from kneo.names import person_key, person_name, shown
from kneo.roles import EVERYTHING, ROLES, SCOPES, with_included
from kneo.settings import Settings

ANONYMOUS = Principal("anonymous", frozenset({"*"}))
"""The caller of a service without API keys."""


class Keyring:
    """The keys of this service, kept as hashes only.

    Attributes:
        required: Whether a request needs a key, or a token of an issuer.
        may_be_empty: Whether the service works without keys: none is required, or tokens of an issuer are accepted.
        version: Changes whenever the keys are replaced.
    """

    def __init__(self, keys: Mapping[bytes, Principal], *, required: bool, may_be_empty: bool = False) -> None:
        self._keys = keys
        self.required = required
        self.may_be_empty = may_be_empty or not required
        self.version = 0

    def replace(self, keys: Mapping[bytes, Principal]) -> bool:
        """Replace all keys while requests are served; return whether they differ from those before.

        A keyring that must have keys never becomes empty.

        Raises:
            Invalid: keys are required and there are none, or the other way round.
        """
        if not (self.required if keys else self.may_be_empty):
            msg = "Reloading cannot switch authentication on or off."
            raise Invalid(msg, code="invalid_setting", hint="Restart the service.")
        differs = dict(keys) != dict(self._keys)
        self._keys = keys
        self.version += 1
        return differs

    @property
    def names(self) -> frozenset[str]:
        """The names of the keys' owners; empty where no key is required, because then no key identifies the caller."""
        return frozenset(principal.name for principal in self._keys.values()) if self.required else frozenset()

    def find(self, key: str) -> Principal | None:
        """Return the owner of a key; every comparison takes constant time."""
        digest = hashlib.sha256(key.encode()).digest()
        entry = None
        for known, principal in self._keys.items():
            if hmac.compare_digest(known, digest):
                entry = principal
        return entry

    def owner(self, digest: bytes) -> Principal | None:
        """Return the owner of a key by the key's SHA-256."""
        return self._keys.get(digest)

    def digests_with(self, scope: str) -> frozenset[str]:
        """Return the SHA-256 of each key whose owner has a scope, in hex."""
        return frozenset(digest.hex() for digest, principal in self._keys.items() if principal.may(scope))

    def find_person(self, name: str) -> tuple[bytes, Principal] | None:
        """Return the SHA-256 and the owner of a person's key."""
        key = person_key(name)
        return next((entry for entry in self._keys.items() if person_key(entry[1].name) == key), None)

    def find_admin(self) -> tuple[bytes, Principal] | None:
        """Return the SHA-256 and the owner of a key with every permission; the admin key where there is one."""
        admins = [entry for entry in self._keys.items() if EVERYTHING in entry[1].scopes]
        return admins[-1] if admins else None


@dataclass(frozen=True)
class APIKeyRecord:
    """An API key, its owner and its scopes. The key is a text, or ``sha256:`` and the hex digits of its SHA-256."""

    name: str
    key: str = field(repr=False)
    roles: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AuthConfig:
    """The API keys, whether a request needs one, and the issuer whose tokens are accepted as well."""

    enabled: bool = False
    api_keys: tuple[APIKeyRecord, ...] = ()
    issuer: str = ""


def configured(settings: Settings) -> AuthConfig:
    """Read the configured keys.

    Raises:
        Invalid: an entry is malformed.
    """
    entries = [entry.strip() for entry in re.split(r"[;\r\n]", settings.api_keys) if entry.strip()]
    keys = [_entry(entry, number) for number, entry in enumerate(entries, start=1)]
    if settings.admin_api_key:
        keys.append(APIKeyRecord("admin", settings.admin_api_key, roles=("admin",)))
    return AuthConfig(settings.auth_enabled, tuple(keys), settings.oidc.issuer)


def _entry(entry: str, number: int) -> APIKeyRecord:
    parts = [part.strip() for part in entry.split(":", 2)]
    if len(parts) == 3 and parts[1] == _DIGEST:
        digest, _, last = parts[2].partition(":")
        parts = [parts[0], f"{_DIGEST}:{digest.strip()}", last.strip()]
    if len(parts) != 3 or not all(parts):
        msg = f"Entry {number} of KNEO_SERV_API_KEYS is not name:key:role or name:sha256:digest:role."
        raise Invalid(msg, code="invalid_setting", hint="kneo keys api-key NAME --role ROLE prints an entry.")
    words = [word.strip() for word in parts[2].split(",")]
    roles = tuple(word for word in words if word in ROLES)
    return APIKeyRecord(parts[0], parts[1], roles, tuple(word for word in words if word not in ROLES))


_DIGEST = "sha256"
_HEX = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[A-Za-z]{1,16}(:[A-Za-z]{1,16})?")


def key_digest(key: str) -> str:
    """Return a key as settings may hold it instead of the key: ``sha256:`` and the hex digits of its SHA-256."""
    return f"{_DIGEST}:{hashlib.sha256(key.encode()).hexdigest()}"


def _hashed(record: APIKeyRecord) -> bytes:
    """Return the SHA-256 of a record's key.

    Raises:
        Invalid: the digest is malformed. Taken for a key, whoever reads the settings could use it.
    """
    scheme, separator, digest = record.key.partition(":")
    if scheme != _DIGEST or not separator:
        return hashlib.sha256(record.key.encode()).digest()
    if not _HEX.fullmatch(digest):
        msg = f"The API key of {record.name} is not sha256: and 64 hex digits in lower case."
        raise Invalid(msg, code="invalid_setting")
    return bytes.fromhex(digest)


def keyring(config: AuthConfig) -> Keyring:
    """Make the keyring of a service.

    Raises:
        Invalid: as in ``hash_keys``. The service does not start.
    """
    return Keyring(hash_keys(config), required=config.enabled, may_be_empty=bool(config.issuer))


def hash_keys(config: AuthConfig) -> Mapping[bytes, Principal]:
    """Return the owners of the keys, by the SHA-256 of each key.

    Raises:
        Invalid: a name or key is empty, a name is not valid or has two spellings, a role or scope is unknown, a digest is
            malformed, two entries have the same key, or keys are required and there are neither keys nor an issuer.
    """
    keys: dict[bytes, Principal] = {}
    names: dict[str, str] = {}
    for record in config.api_keys:
        if not record.name or not record.key:
            msg = f"The API key of {record.name} is empty." if record.name else "An API key has no name."
            raise Invalid(msg, code="invalid_setting")
        name = person_name(record.name, "The name of an API key")
        first = names.setdefault(person_key(name), name)
        if first != name:
            msg = f"{shown(name)} and {shown(first)} are two spellings of one name; give both API keys the same."
            raise Invalid(msg, code="invalid_setting")
        hashed = _hashed(record)
        if hashed in keys:
            msg = f"{record.name} and {keys[hashed].name} have the same API key; keys are people."
            raise Invalid(msg, code="invalid_setting")
        keys[hashed] = Principal(name, _scopes(record), roles=frozenset(record.roles))
    if config.enabled and not keys and not config.issuer:
        msg = "API keys are required, and there are none."
        hint = "KNEO_SERV_AUTH_ENABLED asks for those of KNEO_SERV_API_KEYS and KNEO_SERV_ADMIN_API_KEY."
        raise Invalid(msg, code="invalid_setting", hint=hint)
    return keys


def _scopes(record: APIKeyRecord) -> frozenset[str]:
    return _checked_scopes(f"The API key of {record.name}", record.roles, record.scopes)


def _checked_scopes(where: str, roles: Iterable[str], scopes: Iterable[str]) -> frozenset[str]:
    roles, scopes = frozenset(roles), frozenset(scopes)
    for word in sorted((roles - ROLES.keys()) | (scopes - SCOPES.keys())):
        # What looks like no scope may hold a key: the next entry after a wrong separator.
        shown_word = repr(word) if _WORD.fullmatch(word) else f"with {len(word)} characters"
        msg = f"{where} has an unknown role or scope {shown_word}."
        hint = f"Roles are {', '.join(ROLES)}; scopes are {', '.join(SCOPES)}."
        raise Invalid(msg, code="invalid_setting", hint=hint)
    return with_included(scopes.union(*(ROLES[role] for role in roles)))


def group_scopes(roles: Iterable[tuple[str, tuple[str, ...]]]) -> Mapping[str, frozenset[str]]:
    """Return the scopes of each group of an issuer that has roles or scopes.

    Raises:
        Invalid: a role or scope is unknown.
    """
    scopes: dict[str, frozenset[str]] = {}
    for group, words in roles:
        named = frozenset(words) & ROLES.keys()
        found = _checked_scopes(f"The group {shown(group)} of KNEO_SERV_OIDC_ROLES", named, frozenset(words) - named)
        scopes[group] = scopes.get(group, frozenset()) | found
    return scopes


def group_roles(roles: Iterable[tuple[str, tuple[str, ...]]]) -> Mapping[str, frozenset[str]]:
    """Return the roles of each group of an issuer."""
    found: dict[str, frozenset[str]] = {}
    for group, words in roles:
        found[group] = found.get(group, frozenset()) | (frozenset(words) & ROLES.keys())
    return found


def credential_of(headers: Mapping[str, str]) -> str:
    """Return the API key or token of a request; empty where it has none.

    Args:
        headers: The headers of the request, by lower-case name.
    """
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-kneo-api-key", "")


def unauthorized() -> Unauthorized:
    """Return the refusal of a request without a known credential."""
    msg = "A valid API key is required."
    return Unauthorized(msg, hint="Send Authorization: Bearer KEY.")


def principal_of(request: Request) -> Principal:
    """Return the caller of a request, as ``Admission`` authenticated it.

    Raises:
        Unauthorized: ``Admission`` has authenticated no caller.
    """
    known: object = request.scope.get(PRINCIPAL)
    if not isinstance(known, Principal):
        raise unauthorized()
    return known


PRINCIPAL = "kneo.principal"
"""The key of the caller in the ASGI scope of a request."""


class Require:
    """A dependency that requires a scope."""

    def __init__(self, scope: str) -> None:
        self.scope = scope

    async def __call__(self, request: Request) -> Principal:
        principal = principal_of(request)
        principal.require(self.scope)
        return principal
