"""OpenID Connect: tokens of an issuer as credentials of the API, and signing in to the console."""

from __future__ import annotations

import importlib

from kneo.service.auth import Keyring
from kneo.service.sign_in_providers import IssuedPeople, SignInProvider
from kneo.settings import OidcSettings
from kneo.store.engine import Store


def make_people(settings: OidcSettings, store: Store, keyring: Keyring) -> IssuedPeople:
    """Return the people of the issuer.

    Raises:
        Invalid: a role or scope of a group is unknown.
    """
    # Imports an HTTP client, which a service without an issuer does not need.
    people: IssuedPeople = importlib.import_module("kneo.extensions.oidc.people").make_people(settings, store, keyring)
    return people


def check(settings: OidcSettings) -> str:
    """Ask the issuer for its keys; return how many can be used.

    Raises:
        IssuerUnavailable: it does not respond, or publishes no usable key.
    """
    found = importlib.import_module("kneo.extensions.oidc.discovery").IssuerClient(settings).discover()
    return f"{settings.issuer} publishes {len(found.keys)} keys."


PROVIDER = SignInProvider(make_people, check, "kneo.extensions.oidc.console:OidcRoutes")
