"""Protected-resource metadata (RFC 9728): where a client of MCP without a key learns at which issuer its person signs in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

from starlette.types import Scope

from kneo.service.routing import VERSION
from kneo.settings import Settings

WELL_KNOWN = "/.well-known/oauth-protected-resource"

_RESOURCE = re.compile(rf"{VERSION}/mcp/[^/]+/[^/]+")


def address_of(scope: Scope, settings: Settings) -> str:
    """Return the public address of this service, else the one that it listens at.

    The Host header is the sender's choice, and what is signed or names an issuer must not name an address that others chose.
    """
    if settings.public_url:
        return settings.public_url.rstrip("/")
    host, port = scope["server"]
    name = f"[{host}]" if ":" in host else host
    return f"{scope['scheme']}://{name}:{port}"


def challenge(scope: Scope, settings: Settings) -> str:
    """Return the challenge to a request without an accepted credential; it names the metadata of a resource that has some."""
    if not accepts_tokens(settings) or not _RESOURCE.fullmatch(scope["path"]):
        return "Bearer"
    return f'Bearer resource_metadata="{address_of(scope, settings)}{WELL_KNOWN}{quote(scope["path"])}"'


def accepts_tokens(settings: Settings) -> bool:
    """Return whether people sign in at an issuer whose tokens this service accepts."""
    return bool(settings.oidc.issuer and settings.oidc.audience)


def metadata_of(resource: str, settings: Settings, scope: str) -> Mapping[str, object]:
    """Return the metadata of a resource, which is the same whether or not it exists."""
    return {
        "resource": resource,
        "authorization_servers": [settings.oidc.issuer],
        "scopes_supported": [scope],
        "bearer_methods_supported": ["header"],
    }
