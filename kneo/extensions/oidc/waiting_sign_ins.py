"""The sign-ins of one browser that wait for the issuer, sealed in the browser's own cookie.

The service stores none of them, so that strangers who begin sign-ins and leave them take no place of anyone's.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterable
from dataclasses import asdict

from kneo.clock import parse_time
from kneo.records.sign_in import OidcSignIn
from kneo.trust.sealed_text import Seal

MAX_COOKIE_CHARS = 3_800
"""Longest value of the cookie; browsers keep 4,096 bytes with its name and attributes. One more sign-in ends the oldest."""

SEPARATOR = "."


def add(seal: Seal, cookie: str, sign_in: OidcSignIn) -> str | None:
    """Return the cookie with one more sign-in; ``None`` where this one alone is too long for a cookie."""
    sealed = seal.close(json.dumps(asdict(sign_in), ensure_ascii=False))
    if len(sealed) > MAX_COOKIE_CHARS:
        return None
    return _bounded([sealed, *cookie.split(SEPARATOR)])


def take(seal: Seal, cookie: str, state: str) -> tuple[OidcSignIn | None, str]:
    """Return the sign-in with a state, and the cookie without it."""
    found: OidcSignIn | None = None
    others: list[str] = []
    for sealed in cookie[:MAX_COOKIE_CHARS].split(SEPARATOR):
        sign_in = _open(seal, sealed)
        if sign_in is not None and hmac.compare_digest(sign_in.state.encode(), state.encode()):
            found = sign_in
        elif sign_in is not None:
            others.append(sealed)
    return found, _bounded(others)


def _open(seal: Seal, sealed: str) -> OidcSignIn | None:
    text = seal.open(sealed)
    if text is None:
        return None
    try:
        sign_in = OidcSignIn(**json.loads(text))
        parse_time(sign_in.created_at)
    except (TypeError, ValueError):
        # Another version of this service sealed it.
        return None
    return sign_in


def _bounded(sealed: Iterable[str]) -> str:
    cookie = ""
    for each in sealed:
        longer = f"{cookie}{SEPARATOR}{each}" if cookie else each
        if len(longer) > MAX_COOKIE_CHARS:
            break
        cookie = longer
    return cookie
