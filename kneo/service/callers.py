"""Authentication of requests: by an API key, or by a token of the OpenID Connect issuer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kneo.api.context import Principal
from kneo.service.auth import ANONYMOUS, Keyring, credential_of, unauthorized
from kneo.settings import OidcSettings
from kneo.store.engine import Store

if TYPE_CHECKING:  # A service without an issuer loads neither the HTTP client nor the library of tokens.
    from kneo.service.oidc.people import OidcPeople


class Callers:
    """The callers of a service.

    Args:
        keyring: The API keys.
        people: The people of the issuer; ``None`` where no issuer is configured.
    """

    def __init__(self, keyring: Keyring, people: OidcPeople | None = None) -> None:
        self.keyring = keyring
        self.people = people

    async def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """Return the caller of a request. A known API key is one also where it looks like a token.

        Args:
            headers: The headers of the request, by lower-case name.

        Raises:
            Unauthorized: the request has no known key and no accepted token, and needs one.
            Forbidden: ``no_role``: no group of the token's person has a role.
            IssuerUnavailable: the keys of the issuer are not known yet.
        """
        if not self.keyring.required:
            return ANONYMOUS
        credential = credential_of(headers)
        owner = self.keyring.find(credential) if credential else None
        if owner is not None:
            return owner
        if self.people is not None and self.people.accepts(credential):
            return await self.people.authenticate(credential)
        raise unauthorized()


def make_callers(settings: OidcSettings, store: Store, keyring: Keyring) -> Callers:
    """Return the callers of a service with an issuer, where one is configured and credentials are required.

    Raises:
        Invalid: a role or scope of a group is unknown.
    """
    if not settings.issuer or not keyring.required:
        return Callers(keyring)
    from kneo.service.oidc.discovery import IssuerClient
    from kneo.service.oidc.issuer_cache import IssuerCache
    from kneo.service.oidc.people import OidcPeople

    issuer = IssuerCache(IssuerClient(settings).discover, store.clock)
    return Callers(keyring, OidcPeople(settings, issuer, store, keyring))
