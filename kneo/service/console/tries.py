"""Sign-ins that one address tries: the response to too many of them."""

from __future__ import annotations

from starlette.responses import HTMLResponse

from kneo.service.console.security import HEADERS
from kneo.service.limits import Rate, TooMany, network_of
from kneo.service.problems import retry_after

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
