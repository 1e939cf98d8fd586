"""From the declaration of an MCP server to what is connected to: rules first, then secrets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from kneo.agents.addresses import HostRules
from kneo.agents.secrets import CallSecrets, Secrets
from kneo.agents.tools.mcp.failures import McpRefused
from kneo.agents.tools.mcp.http import READ_SECONDS, ClientCredentials, Endpoint, Tls
from kneo.agents.tools.mcp.stdio import ServerCommand
from kneo.errors import Forbidden
from kneo.sandbox.levels import Rights
from kneo.settings import process_environment
from kneo.spec.models.spec import McpOAuth, McpServer
from kneo.spec.policy import ToolRules

MAX_MESSAGE_BYTES = 4_194_304
"""Bytes of one message of a server, where its declaration has no ``max_response_bytes``."""

_INHERITED = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER")
"""The only variables of the worker that a server outside a sandbox has; the others may be credentials."""


@dataclass(frozen=True, kw_only=True)
class ConnectionTarget:
    """What a connection is made to.

    Attributes:
        key: Equal for equal declarations with equal secrets, and for no others.
    """

    name: str
    to: ServerCommand | Endpoint
    key: str


def target_of(
    name: str,
    server: McpServer,
    rules: ToolRules,
    secrets: Secrets,
    hidden: CallSecrets,
    *,
    connect_seconds: float,
    rights: Rights | None,
    denied: tuple[str, ...] = (),
) -> ConnectionTarget:
    """Check a declaration against the rules, and fill in its secrets.

    Args:
        name: The server's name in the spec.
        server: The declaration.
        rules: The rules that hold now.
        secrets: The secrets of the process.
        hidden: Takes the values that are filled in.
        connect_seconds: Time to connect.
        rights: What the processes of a server over stdio may do; ``None`` of another server.
        denied: Domains that the agent must not reach.

    Raises:
        McpRefused: ``mcp_command_denied`` or ``mcp_host_denied``.
        Forbidden: ``secret_denied`` or ``secret_missing``.
    """
    filled = _Filled(secrets, hidden)
    if rights is not None:
        to: ServerCommand | Endpoint = _program(name, server, rules, filled, rights)
    else:
        to = _endpoint(name, server, rules, filled, connect_seconds, denied)
    content = json.dumps([name, type(to).__name__, asdict(to)], sort_keys=True, default=sorted)
    key = hashlib.sha256(content.encode()).hexdigest()
    return ConnectionTarget(name=name, to=to, key=key)


class _Filled:
    """Values with their references to secrets filled in."""

    def __init__(self, secrets: Secrets, hidden: CallSecrets) -> None:
        self._secrets, self._hidden = secrets, hidden

    def secret(self, name: str) -> str:
        return self._hidden.require(name, self._secrets)

    def each(self, values: Mapping[str, str] | None) -> dict[str, str]:
        return {key: self._hidden.fill(text, self._secrets) for key, text in (values or {}).items()}


def _program(name: str, server: McpServer, rules: ToolRules, filled: _Filled, rights: Rights) -> ServerCommand:
    command = server.command or ""
    if not command.startswith("/") or command not in rules.mcp.commands:
        msg = f"The MCP server {name} would start {command or 'no program'}, which is not an allowed command."
        hint = "Commands are allowed by their full path: in tools.mcp.commands of the environment, or in KNEO_SERV_MCP_COMMANDS where none is declared."
        raise McpRefused(msg, code="mcp_command_denied", hint=hint)
    if (unsafe := server.unsafe_start()) is not None:
        (field, _), why = unsafe
        hint = "Give secrets in env." if field == "args" else "Remove it from env."
        raise McpRefused(f"The MCP server {name} {why}.", code="mcp_command_denied", hint=hint)
    inherited = process_environment(*_INHERITED) if rights.level == "none" else {}
    return ServerCommand(
        name=name,
        command=command,
        args=server.args,
        env={**inherited, **filled.each(server.env)},
        cwd=server.cwd,
        max_message_bytes=server.max_response_bytes or MAX_MESSAGE_BYTES,
        rights=rights,
        inside=rules.inside,
    )


def _endpoint(
    name: str, server: McpServer, rules: ToolRules, filled: _Filled, connect_seconds: float, denied: tuple[str, ...]
) -> Endpoint:
    url = (server.sse_url if server.transport == "sse" else server.url) or ""
    allowed = ("*",) if rules.mcp.hosts is None else rules.mcp.hosts
    hosts = HostRules(allowed=allowed, denied=denied, inside=frozenset(each.lower() for each in rules.inside))
    try:
        hosts.check_url(url)
        if server.oauth is not None:
            hosts.check_url(server.oauth.issuer)
    except Forbidden as error:
        msg = f"The MCP server {name} cannot be connected to: {error.message}"
        hint = "The environment's tools.mcp.hosts and tools.inside decide, and the agent's denied_domains."
        raise McpRefused(msg, code="mcp_host_denied", hint=hint) from None
    tls = Tls(
        verify=server.verify is not False,
        ca_bundle=server.ca_bundle,
        client_cert=server.client_cert,
        client_key_file=server.client_key,
        client_key=filled.secret(server.client_key_ref) if server.client_key_ref is not None else None,
    )
    return Endpoint(
        url=url,
        is_sse=server.transport == "sse",
        message_url=server.message_url,
        headers=filled.each(server.headers),
        credentials=_credentials(server.oauth, filled) if server.oauth is not None else None,
        tls=tls,
        hosts=hosts,
        max_message_bytes=server.max_response_bytes or MAX_MESSAGE_BYTES,
        connect_seconds=connect_seconds,
        read_seconds=server.sse_read_timeout or READ_SECONDS,
    )


def _credentials(oauth: McpOAuth, filled: _Filled) -> ClientCredentials:
    secret = filled.secret(oauth.client_secret_ref)
    return ClientCredentials(issuer=oauth.issuer, client_id=oauth.client_id, client_secret=secret)
