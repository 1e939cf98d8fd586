"""A person of an OpenID Connect issuer, as the last token or sign-in named the person."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

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
