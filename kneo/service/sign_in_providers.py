"""Sign-in providers: extensions that admit the people of an issuer, and where a client without a key learns of the issuer (RFC 9728)."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from urllib.parse import quote

from starlette.types import Scope

from kneo.api.operation import Principal
from kneo.errors import Invalid
from kneo.extension_points import Point
from kneo.service.auth import Keyring
from kneo.service.routing import VERSION
from kneo.settings import OidcSettings, Settings
from kneo.store.engine import Store

OIDC = "oidc"
"""The provider of the settings ``KNEO_SERV_OIDC_…``."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The person that a token names.

    Attributes:
        issuer: The issuer.
        subject: The issuer's id of the person.
        name: The name of the person, in its normal spelling.
        groups: The groups of the person.
        issued_at: When the issuer stated this.
        expires_at: When the token is not accepted any more.
    """

    issuer: str
    subject: str
    name: str
    groups: frozenset[str]
    issued_at: datetime
    expires_at: datetime


class IssuedPeople(Protocol):
    """The people of an issuer."""

    def accepts(self, credential: str) -> bool:
        """Return whether a credential of a request is a token rather than an API key, and tokens are accepted."""
        ...

    async def authenticate(self, token: str) -> Principal:
        """Return the caller whom a token names.

        Raises:
            Unauthorized: the token is not accepted.
            Forbidden: ``no_role``: no group of the person has a role.
            Transient: the issuer cannot be asked, and its keys are not known yet.
        """
        ...

    def roles_of(self, groups: Collection[str]) -> frozenset[str]:
        """Return the roles of a person in these groups."""

    def scopes_of(self, groups: Collection[str]) -> frozenset[str]:
        """Return the scopes of a person in these groups; empty where no group has a role."""
        ...

    def admit(self, identity: Identity) -> Principal:
        """Return a person as a caller, and record the person and the groups.

        Raises:
            Forbidden: ``no_role``.
        """
        ...


@dataclass(frozen=True)
class SignInProvider:
    """A sign-in provider.

    Attributes:
        make_people: Makes the people of the issuer that the settings name; raises ``Invalid`` for a role that is unknown.
        check: Asks the issuer; returns what it found as a sentence, or raises the problem.
        routes: ``module:attribute`` of what makes the routes of the console: ``kneo.service.console.sign_in.MakeSignInRoutes``.
    """

    make_people: Callable[[OidcSettings, Store, Keyring], IssuedPeople]
    check: Callable[[OidcSettings], str]
    routes: str


SIGN_IN_PROVIDERS = Point("sign_in_providers", SignInProvider)


def find_provider(settings: OidcSettings) -> SignInProvider | None:
    """Return the provider of the settings; ``None`` where they name no issuer.

    Raises:
        Invalid: ``invalid_setting``: the provider is not installed.
        ExtensionFailed: it cannot be loaded.
    """
    if not settings.issuer:
        return None
    if not SIGN_IN_PROVIDERS.has(OIDC):
        msg = "KNEO_SERV_OIDC_ISSUER is set, and no installed package signs people in with OpenID Connect."
        raise Invalid(msg, code="invalid_setting", hint="Install Kneo again, with its extensions.")
    return SIGN_IN_PROVIDERS.load(OIDC)


WELL_KNOWN = "/.well-known/oauth-protected-resource"

_RESOURCE = re.compile(rf"{VERSION}/mcp/[^/]+/[^/]+")


def address_of(scope: Scope, settings: Settings) -> str:
    """Return the public address of this service, else the one that it listens at.

    The Host header is the sender's choice, and what is signed or names an issuer must not name an address that others chose.
    """
    if settings.public_url:
        return settings.public_url.rstrip("/")
    host, port = scope["server"]
    name = f"[{host}]" if ":" in host else host
    return f"{scope['scheme']}://{name}:{port}"


def challenge(scope: Scope, settings: Settings) -> str:
    """Return the challenge to a request without an accepted credential; it names the metadata of a resource that has some."""
    if not accepts_tokens(settings) or not _RESOURCE.fullmatch(scope["path"]):
        return "Bearer"
    return f'Bearer resource_metadata="{address_of(scope, settings)}{WELL_KNOWN}{quote(scope["path"])}"'


def accepts_tokens(settings: Settings) -> bool:
    """Return whether people sign in at an issuer whose tokens this service accepts."""
    return bool(settings.oidc.issuer and settings.oidc.audience)


def metadata_of(resource: str, settings: Settings, scope: str) -> Mapping[str, object]:
    """Return the metadata of a resource, which is the same whether or not it exists."""
    return {
        "resource": resource,
        "authorization_servers": [settings.oidc.issuer],
        "scopes_supported": [scope],
        "bearer_methods_supported": ["header"],
    }
