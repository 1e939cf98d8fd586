"""Protection of the console: headers of pages, cookies, the origin of forms, and the sign-ins that one address tries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from urllib.parse import urlsplit

from starlette.responses import HTMLResponse, Response

from kneo.errors import Forbidden
from kneo.names import visible
from kneo.service.limits import Rate, TooMany, network_of
from kneo.service.problems import retry_after

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; manifest-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types kneo kneo-worker"
)
"""The content security policy: nothing from other sites, no inline script or style, two Trusted Types policies: for pages, and for
the script of notifications."""

HEADERS: Mapping[str, str] = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Under no-referrer browsers send forms with "Origin: null", which the check below would refuse.
    "referrer-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}

HOME = "/console/"


def check_same_origin(headers: Mapping[str, str], public_url: str) -> None:
    """Check that a request that changes something comes from a page of this service.

    Browsers send ``Sec-Fetch-Site`` over https and to localhost, otherwise ``Origin`` with each form. A request with neither is
    refused.

    Args:
        headers: The headers of the request, by lower-case name.
        public_url: The address at which people reach the service; empty where it is not set.

    Raises:
        Forbidden: ``origin_not_allowed``.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        allowed = site in {"same-origin", "none"}
    else:
        authority = urlsplit(origin or "").netloc.lower()
        allowed = bool(authority) and authority in {
            headers.get("host", "").lower(),
            urlsplit(public_url).netloc.lower(),
        }
    if not allowed:
        msg = "This request was not sent by a page of this console."
        raise Forbidden(msg, code="origin_not_allowed", hint="Open the console and send the form there.")


def safe_next(target: str) -> str:
    """Return the page to show after signing in: a path below the console, else its first page."""
    path = re.split("[?#]", target, maxsplit=1)[0]
    # Browsers resolve dot segments, encoded ones too, before they send a request.
    segments = re.sub("%2e", ".", path, flags=re.IGNORECASE).split("/")
    below = path.startswith(HOME) and "\\" not in target and "//" not in path and not {".", ".."} & {*segments}
    return target if below and visible(target) == target and len(target) <= 2_000 else HOME


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


TOO_MANY = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    '<title>Too many sign-ins · Kneo</title><link rel="stylesheet" href="/console/static/console.css"></head>'
    '<body><main><h1>Too many sign-ins</h1><p role="alert">Too many sign-ins were tried from this address; wait a minute.</p>'
    '<p><a href="/console/login">Sign in</a></p></main></body></html>'
).encode()
"""The response to more sign-ins than an address may try: one text, because strangers send as many as they like, and short, so that
it is not compressed."""


def refuse_too_many(tries: Rate, address: str) -> HTMLResponse | None:
    """Count a sign-in that an address tries; return a refusal where there are too many."""
    try:
        tries.check(network_of(address))
    except TooMany as error:
        return HTMLResponse(TOO_MANY, error.http_status, headers={**HEADERS, **retry_after(error)})
    return None
