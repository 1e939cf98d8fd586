"""Webhooks of Git hosts: requests to reconcile now.

The body is bounded before anything is computed over it; its signature is compared in constant time; a delivery counts
once; and its only effect is one request row for the controller. The content of the payload is not used.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from kneo.errors import NotFound, Unauthorized
from kneo.service.context import ServiceDep
from kneo.service.limits import Rate
from kneo.service.problems import problem, too_large
from kneo.service.routing import ApiRouter, JsonResponse, responds
from kneo.store import requests

router = ApiRouter(tags=["hooks"], errors={"receive_hook": (401, 429)})

ID_CHARS = 200
"""Characters of a delivery's id that are stored."""

BODY_BYTES = 262_144
"""Largest body of a delivery in bytes. Hosts send far less for a push; the body is not parsed."""

PER_MINUTE = 120
"""Signed deliveries of one provider per minute and process; the interval makes up for refused ones."""


@dataclass(frozen=True)
class Provider:
    """How a Git host signs and identifies a delivery.

    Args:
        signature: The header with the signature or the token.
        delivery: The header with the delivery's id; empty where a host sends none.
        prefix: The text before the hex digest.
        token: Whether the header is the secret itself, as one host sends it, rather than an HMAC-SHA256 of the body.
    """

    signature: str
    delivery: str
    prefix: str = ""
    token: bool = False


PROVIDERS: Mapping[str, Provider] = {
    "github": Provider("x-hub-signature-256", "x-github-delivery", "sha256="),
    "gitlab": Provider("x-gitlab-token", "x-gitlab-event-uuid", token=True),
    "gitea": Provider("x-gitea-signature", "x-gitea-delivery"),
    "bitbucket": Provider("x-hub-signature", "x-request-uuid", "sha256="),
    "generic": Provider("x-signature", "x-delivery", "sha256="),
}


@dataclass(frozen=True, kw_only=True)
class HookAcceptedView:
    """A delivery that was accepted; a duplicate has no further effect."""

    accepted: bool
    duplicate: bool


_rate = Rate(PER_MINUTE)
"""The rate of each provider. Deliveries without a valid signature are not counted, so that they do not use it up."""


@router.post(
    "/hooks/{provider}",
    operation_id="receive_hook",
    status_code=202,
    response_model=None,
    responses=responds(HookAcceptedView, 202),
)
async def receive(provider: str, request: Request, service: ServiceDep) -> JsonResponse:
    """Accept a webhook and request a reconciliation."""
    known, secret = PROVIDERS.get(provider), service.settings.hook_secrets.get(provider)
    if known is None or not secret:
        msg = f"No webhook secret is configured for {provider[:40]!r}."
        raise NotFound(msg, code="hook_not_found", hint="Set KNEO_SERV_HOOK_SECRET_ and the provider's name.")
    counted = service.metrics
    body = await _body(request)
    if body is None:
        counted.delivered(provider, "too_large")
        return too_large(BODY_BYTES)
    if not is_signed(known, secret, request.headers, body):
        counted.delivered(provider, "refused")
        msg = "The signature of this delivery does not match the configured secret."
        raise Unauthorized(msg, code="hook_signature_invalid")
    if _rate.take(provider) > 0:
        counted.delivered(provider, "limited")
        return problem(429, "rate_limited", "Too many deliveries; the controller reconciles at its interval.", {})
    names = delivery_names(known, request.headers, body)
    news = await run_in_threadpool(requests.take_delivery, service.store, provider, names)
    counted.delivered(provider, "accepted" if news else "duplicate")
    return JsonResponse({"accepted": True, "duplicate": not news}, status_code=202)


async def _body(request: Request) -> bytes | None:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            return None
    return body


def delivery_names(provider: Provider, headers: Mapping[str, str], body: bytes) -> tuple[str, ...]:
    """Return the ids under which a delivery counts once.

    Where the signature covers the body only, the digest of the body is one of them: the id in the header is not signed,
    so a captured delivery under another id would count again. A host that sends the secret itself signs nothing; there
    the id is all there is.
    """
    delivery_id = headers.get(provider.delivery, "")[:ID_CHARS]
    body_name = f"body:{hashlib.sha256(body).hexdigest()}"
    if provider.token:
        return (delivery_id or body_name,)
    return (body_name, delivery_id) if delivery_id else (body_name,)


def is_signed(provider: Provider, secret: str, headers: Mapping[str, str], body: bytes) -> bool:
    """Return whether a delivery has a valid signature or token of its host."""
    offered = headers.get(provider.signature, "")
    if provider.token:
        expected = secret
    else:
        expected = provider.prefix + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(offered.encode(), expected.encode())
