"""The cookies of the console that scripts cannot read: their names, by the scheme of the address, and their attributes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from starlette.responses import Response

SESSION = "kneo_session"
"""The session of the person who is signed in."""

PUSH = "kneo_push"
"""The browser with a subscription to notifications."""

SIGN_INS = "kneo_oidc"
"""The sign-ins of the browser that wait for the issuer, sealed."""


def cookie_name(name: str, *, secure: bool) -> str:
    """Return the name of a cookie.

    Over https only this origin can set a ``__Host-`` cookie; any page below the same domain, or anyone on the way of a request over
    http, can set another one. Over http to this machine browsers keep no ``Secure`` cookie.
    """
    return f"__Host-{name}" if secure else name


def read_cookie(cookies: Mapping[str, str], name: str, *, secure: bool) -> str:
    """Return the value of a cookie; empty where the browser has none."""
    return cookies.get(cookie_name(name, secure=secure), "")


def set_cookie(response: Response, name: str, value: str, *, secure: bool, lasts: timedelta) -> None:
    """Add a cookie to a response; an empty value removes it from the browser."""
    response.set_cookie(
        cookie_name(name, secure=secure),
        value,
        max_age=int(lasts / timedelta(seconds=1)) if value else 0,
        path="/",
        secure=secure,
        httponly=True,
        samesite="lax",
    )
