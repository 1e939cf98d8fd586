"""Headers of pages, and the check that a form was sent by a page of this service. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from kneo.errors import Forbidden
from kneo.names import visible

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
