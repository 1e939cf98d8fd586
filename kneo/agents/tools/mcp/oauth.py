"""OAuth client credentials for MCP over HTTP, by the SDK's own flow. Tokens live as long as their connection."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import httpx2
from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken

KEPT_TOKENS = 20


@dataclass(frozen=True, kw_only=True)
class ClientCredentials:
    """The credentials of a client at one authorization server, the only one that gets them."""

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)

    def flow(self, url: str, tokens: ConnectionTokens) -> httpx2.Auth:
        """Return the flow that requests a token when the server at a URL answers 401, and sends it from then on."""
        return ClientCredentialsOAuthProvider(
            server_url=url,
            storage=tokens,
            client_id=self.client_id,
            client_secret=self.client_secret,
            issuer=self.issuer,
        )


class ConnectionTokens:
    """The tokens of one connection.

    Attributes:
        values: The newest tokens; a server may still repeat one that was replaced.
    """

    def __init__(self) -> None:
        self._tokens: OAuthToken | None = None
        self.values: deque[str] = deque(maxlen=KEPT_TOKENS)

    async def get_tokens(self) -> OAuthToken | None:
        return self._tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self._tokens = tokens
        self.values += [each for each in (tokens.access_token, tokens.refresh_token) if each]

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return None

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """Refuse a client of another authorization server: the credentials of the declaration are the only ones."""
        msg = f"The MCP server asks to register the client {client_info.client_id!r}."
        raise PermissionError(msg)
