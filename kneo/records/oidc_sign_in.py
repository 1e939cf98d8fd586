"""A sign-in to the console that waits for an answer of the OpenID Connect issuer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

SIGN_IN_LIFETIME = timedelta(minutes=10)
"""The longest time between the begin and the end of a sign-in."""

MAX_SIGN_INS = 10_000
"""Sign-ins that wait at once; one more ends the oldest."""


@dataclass(frozen=True, kw_only=True)
class OidcSignIn:
    """One row of ``oidc_sign_ins``. Of the state and of the browser's cookie only the SHA-256 is stored."""

    state_hash: str
    browser_hash: str
    nonce: str
    """The value that the ID token has to repeat."""
    code_verifier: str
    """The secret of PKCE, with which the code is exchanged."""
    target: str
    """The page to show afterwards."""
    created_at: str
