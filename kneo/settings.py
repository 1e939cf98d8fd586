"""The settings of a process, and the only reader of its environment.

Each setting is written once, as a field with its variable, default, unit and meaning; ``docs/reference/settings.md`` is
generated from the fields. The dataclasses read the environment by themselves because ``pydantic-settings`` takes longer to
import than a local command takes to start. Variables keep the ``KNEO_SERV_`` prefix of existing deployments.
"""

from __future__ import annotations

import base64
import getpass
import ipaddress
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from kneo.clock import parse_duration
from kneo.digest import Digest, parse_digest
from kneo.errors import Invalid
from kneo.extension_points import is_name
from kneo.process_protection import protect_process

T = TypeVar("T")

TRUE = frozenset({"1", "true", "yes", "on"})
FALSE = frozenset({"0", "false", "no", "off"})

Parse = Callable[[str], T]
"""A parser of a variable's text, which is not empty; a ``ValueError`` completes the sentence "The variable must …"."""


@dataclass(frozen=True)
class Setting:
    """The variable of a setting, or several in one text, and its parser; None where ``from_env`` computes the value.

    The value of a secret setting can also stand in a file, which the variable with ``_FILE`` at its end names.
    """

    variable: str
    parse: Parse[Any] | None
    secret: bool = False


def setting(variable: str, default: T, parse: Parse[T] | None, *, secret: bool = False) -> T:
    """Declare a setting as a field of a dataclass.

    The field's docstring is its documentation in the reference: the meaning, then "Default: …" where the default value says
    too little, then "Read by: …" where other processes read it than the class says.
    """
    metadata = {"setting": Setting(variable, parse, secret)}
    if isinstance(default, dict):
        return field(default_factory=dict, repr=not secret, metadata=metadata)  # type: ignore[return-value]  # empty
    return field(default=default, repr=not secret, metadata=metadata)


def _text(text: str) -> str:
    return text


def _secret(text: str) -> str:
    """Return the text with the spaces around it."""
    return text


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _flag(text: str) -> bool:
    word = text.lower()
    if word not in TRUE | FALSE:
        # A typing error must not switch off what an operator asked for.
        msg = "be true or false"
        raise ValueError(msg)
    return word in TRUE


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value <= 0:
        msg = "be a whole number above 0"
        raise ValueError(msg)
    return value


def _count(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        msg = "be a number of seconds above 0"
        raise ValueError(msg)
    return value


def _call_wait(text: str) -> float:
    value = _seconds(text)
    if not 1 <= value <= MAX_CALL_WAIT:
        msg = f"be a number of seconds from 1 to {MAX_CALL_WAIT}"
        raise ValueError(msg)
    return value


MAX_CALL_WAIT = 600


def _duration(text: str) -> float:
    try:
        return _seconds(str(parse_duration(text).total_seconds()))
    except Invalid:
        msg = "be a duration such as 90s or 15m"
        raise ValueError(msg) from None


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5) or int(text) > 65_535:
        msg = "be a port from 1 to 65535, or 0 for none"
        raise ValueError(msg)
    return int(text)


def _one_of(*words: str) -> Parse[str]:
    def parse(text: str) -> str:
        if text not in words:
            msg = f"be one of {', '.join(words)}"
            raise ValueError(msg)
        return text

    return parse


def _extension(text: str) -> str:
    """Accept the name of an extension; whether it is installed is checked where it is used."""
    if not is_name(text):
        msg = "be the name of an extension: letters a to z, digits and hyphens"
        raise ValueError(msg)
    return text


def _url(text: str) -> str:
    if not text.startswith(("https://", "http://")):
        msg = "begin with https:// or http://"
        raise ValueError(msg)
    return text.rstrip("/")


_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def _issuer(text: str) -> str:
    """Return the address as it is: issuers are compared letter by letter, a final slash included."""
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        parts, host = urlsplit(""), ""
    is_plain = not (parts.query or parts.fragment or "@" in parts.netloc) and text.isprintable() and " " not in text
    if not host or not is_plain or not (parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK)):
        msg = "be an https:// address without a query (http:// on this machine only)"
        raise ValueError(msg)
    return text


def _contact(text: str) -> str:
    if not re.fullmatch(r"(mailto:[^\s@]+@[^\s@]+|https://\S+)", text) or len(text) > 200:
        msg = "be a mailto: or https: address"
        raise ValueError(msg)
    return text


_PUSH_HOST = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?(:[0-9]{1,5})?")


def _push_hosts(text: str) -> tuple[str, ...]:
    hosts = _list(text.lower())
    if not hosts or not all(_PUSH_HOST.fullmatch(host) for host in hosts):
        msg = "list host names, as push.example.org, push.example.org:8443 or *.push.example.org"
        raise ValueError(msg)
    return hosts


def _group_roles(text: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    roles = []
    for entry in text.split(";"):
        if not entry.strip():
            continue
        group, equals, words = entry.rpartition("=")
        if not equals or not group.strip() or not _list(words):
            msg = "list group=role, separated by semicolons"
            raise ValueError(msg)
        roles.append((group.strip(), _list(words)))
    return tuple(roles)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _digest(text: str) -> Digest:
    try:
        return parse_digest(text)
    except Invalid as error:
        msg = "be a digest, sha256: and 64 lower-case hex digits"
        raise ValueError(msg) from error


LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
OPEN_PAGES = ("metrics", "docs")
_HOST = re.compile(r"\*|[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\]")


def _log_level(text: str) -> str:
    return _one_of(*LOG_LEVELS)(text.upper())


def _pages(text: str) -> tuple[str, ...]:
    if not set(_list(text)) <= set(OPEN_PAGES):
        msg = f"list {' and '.join(OPEN_PAGES)}"
        raise ValueError(msg)
    return _list(text)


def _hosts(text: str) -> tuple[str, ...]:
    hosts = _list(text.lower())
    if not all(_HOST.fullmatch(host) for host in hosts):
        msg = "list host names without scheme and port, as kneo.example.org"
        raise ValueError(msg)
    return hosts


def _networks(text: str) -> tuple[str, ...]:
    try:
        return tuple(str(ipaddress.ip_network(part)) for part in _list(text))
    except ValueError:
        msg = "list addresses or networks, as 10.0.0.7 or 10.0.0.0/24"
        raise ValueError(msg) from None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on requests and specs. Sizes are in bytes unless the name says characters. Read by: service."""

    body_bytes: int = setting("KNEO_SERV_MAX_BODY_BYTES", 1_048_576, _positive)
    """Size of a request."""

    input_chars: int = setting("KNEO_SERV_MAX_INPUT_CHARS", 20_000, _positive)
    """Length of a run's input."""

    human_content_chars: int = setting("KNEO_SERV_MAX_HUMAN_CONTENT_CHARS", 20_000, _positive)
    """Length of a person's answer."""

    inline_spec_bytes: int = setting("KNEO_SERV_MAX_INLINE_SPEC_BYTES", 262_144, _positive)
    """Size of a spec sent with a request."""

    overrides_bytes: int = setting("KNEO_SERV_MAX_OVERRIDES_BYTES", 65_536, _positive)
    """Size of the overrides sent with a spec."""

    metadata_bytes: int = setting("KNEO_SERV_MAX_METADATA_BYTES", 32_768, _positive)
    """Size of a run's metadata."""

    path_chars: int = setting("KNEO_SERV_MAX_PATH_CHARS", 4_096, _positive)
    """Length of a path."""

    page_items: int = setting("KNEO_SERV_MAX_LIST_ITEMS", 1_000, _positive)
    """Items on a page of a list, up to 1,000, and in a list of a request. A request for a longer page gets one of this length,
    whose `limit` says so; a longer list in a request is refused."""


@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """The HTTP server and its client. Read by: service."""

    request_logs: bool = setting("KNEO_SERV_REQUEST_LOGS", True, _flag)
    """Write one log line for each request, on the logger `kneo_serv.service`."""

    log_level: str = setting("KNEO_SERV_LOG_LEVEL", "INFO", _log_level)
    """The lowest level that is logged. Read by: all processes."""

    call_wait_seconds: float = setting("KNEO_SERV_CALL_WAIT_SECONDS", 50.0, _call_wait)
    """Seconds, 1 to 600, that a request which makes a call waits for people where it states no `wait`. Clients of MCP often give
    up after 60."""

    metrics: bool = setting("KNEO_SERV_METRICS_ENABLED", True, _flag)
    """Serve `/metrics`."""

    open_pages: tuple[str, ...] = setting("KNEO_SERV_OPEN_PAGES", (), _pages)
    """Pages that need no API key when keys are set, separated by commas: `metrics`, and `docs` for `/openapi.json`,
    `/docs` and `/redoc`. Without keys all pages are open."""

    allowed_hosts: tuple[str, ...] = setting("KNEO_SERV_ALLOWED_HOSTS", (), _hosts)
    """Host names that requests may use, separated by commas; `*` allows every name. Default: every name with API
    keys; without keys the names of this machine."""

    trusted_proxies: tuple[str, ...] = setting("KNEO_SERV_TRUSTED_PROXIES", (), _networks)
    """Addresses and networks of reverse proxies, separated by commas. A request that comes from one of them has the client
    and the scheme that its `X-Forwarded-For` and `X-Forwarded-Proto` name; from any other address these headers are
    ignored. Default: none."""

    anonymous: bool = setting("KNEO_SERV_ALLOW_ANONYMOUS", False, _flag)
    """Let a service without API keys listen on addresses that other machines reach. Every caller has every right."""

    console_plain_http: bool = setting("KNEO_SERV_CONSOLE_PLAIN_HTTP", False, _flag)
    """Let people sign in to the console over `http://` from other machines. Their sessions can be read on the way. Without
    it the console needs `https://` or this machine."""

    header_bytes: int = setting("KNEO_SERV_MAX_HEADER_BYTES", 32_768, _positive)
    """Size of the head of a request."""

    request_seconds: float = setting("KNEO_SERV_REQUEST_TIMEOUT_SECONDS", 30.0, _seconds)
    """Time for a whole request to arrive, and for a client to read 64 KiB of a response or the rest of it. A slower
    connection is closed."""

    search_seconds: float = setting("KNEO_SERV_SEARCH_TIMEOUT_SECONDS", 10.0, _seconds)
    """Time that a statement of a text search may take. A slower search is ended with `search_too_slow`, which names a shorter
    period. Read by: all processes."""

    rate_per_minute: int = setting("KNEO_SERV_RATE_LIMIT_PER_MINUTE", 0, _count)
    """Requests that one API key may send to one process in a minute. Default: 0, no limit."""

    idempotency_days: int | None = setting("KNEO_SERV_RETENTION_IDEMPOTENCY_DAYS", None, _positive)
    """Retention of idempotency keys. Default: the project's, else 7."""

    max_streams: int = setting("KNEO_SERV_MAX_STREAMS", 200, _positive)
    """Open event streams of one process; further streams get 503 `too_many_streams`."""

    max_streams_per_person: int = setting("KNEO_SERV_MAX_STREAMS_PER_PERSON", 20, _positive)
    """Open event streams of one person (the name of an API key) in one process; further streams get 429
    `too_many_streams`."""

    stream_heartbeat_seconds: float = setting("KNEO_SERV_STREAM_HEARTBEAT_SECONDS", 15.0, _seconds)
    """Interval of the heartbeat of an event stream without events."""

    stream_slow_seconds: float = setting("KNEO_SERV_STREAM_SLOW_SECONDS", 30.0, _seconds)
    """Time after which an event stream whose client reads nothing is closed; the client reconnects where it stopped."""

    health_providers: tuple[str, ...] = setting("KNEO_SERV_HEALTH_PROVIDERS", (), _list)
    """Model providers whose keys must be set for `/readyz` to succeed, separated by commas."""

    health_mcp_secrets: tuple[str, ...] = setting("KNEO_SERV_HEALTH_MCP_SECRETS", (), _list)
    """Variables that must be set for `/readyz` to succeed, separated by commas."""

    health_free_bytes: int = setting("KNEO_SERV_HEALTH_FREE_BYTES", 67_108_864, _count)
    """Free space in the state folder that `/readyz` requires."""

    client_retries: int = setting("KNEO_SERV_CLIENT_RETRIES", 2, _count)
    """Retries of a request that is safe to repeat. Read by: client."""

    client_backoff_seconds: float = setting("KNEO_SERV_CLIENT_RETRY_BACKOFF_SECONDS", 0.25, _seconds)
    """Wait before a retry; each further retry waits longer by this time. Read by: client."""

    client_idempotency_key: str = setting("KNEO_SERV_IDEMPOTENCY_KEY", "", _text)
    """The idempotency key of the requests. Default: a new key for each request. Read by: client."""


@dataclass(frozen=True, kw_only=True)
class OidcSettings:
    """The OpenID Connect issuer whose tokens the API accepts, and at which people sign in to the console; see [OpenID Connect](../operations/oidc.md). Read by: service."""

    issuer: str = setting("KNEO_SERV_OIDC_ISSUER", "", _issuer)
    """Address of the issuer, exactly as its tokens and its discovery document name it. Default: none, no OIDC."""

    audience: str = setting("KNEO_SERV_OIDC_AUDIENCE", "", _text)
    """The audience of tokens that the API accepts. Default: none, the API accepts no tokens."""

    client_id: str = setting("KNEO_SERV_OIDC_CLIENT_ID", "", _text)
    """Client at the issuer with which people sign in to the console; needs `KNEO_SERV_PUBLIC_URL`. Default: none, people
    sign in with API keys."""

    client_secret: str = setting("KNEO_SERV_OIDC_CLIENT_SECRET", "", _secret, secret=True)
    """Secret of the client. Default: none, a public client."""

    scopes: tuple[str, ...] = setting("KNEO_SERV_OIDC_SCOPES", ("openid", "profile", "email"), _words)
    """Scopes of a sign-in, separated by spaces. Default: `openid profile email`."""

    name_claim: str = setting("KNEO_SERV_OIDC_NAME_CLAIM", "sub", _text)
    """Claim with the name of the person. `email` counts only with `email_verified`."""

    groups_claim: str = setting("KNEO_SERV_OIDC_GROUPS_CLAIM", "groups", _text)
    """Claim with the groups of the person: a list, or one group."""

    roles: tuple[tuple[str, tuple[str, ...]], ...] = setting("KNEO_SERV_OIDC_ROLES", (), _group_roles)
    """`group=role_or_scope[,…]`, separated by `;`; see [roles](roles.md). A person without a role is refused."""

    ca_file: Path | None = setting("KNEO_SERV_OIDC_CA_FILE", None, Path)
    """Certificate authorities to trust for the issuer. Default: the public ones."""


PUSH_HOSTS = (
    "fcm.googleapis.com",
    "updates.push.services.mozilla.com",
    "web.push.apple.com",
    "*.notify.windows.com",
)
"""The push services of Chrome, Firefox, Safari and Edge."""

WEB_PUSH = "web-push"
"""The channel of Web Push, which no address is set for."""


@dataclass(frozen=True, kw_only=True)
class PushSettings:
    """Web Push to the browsers of people; see [notifications](../guides/people/notify.md#notify-a-browser). Read by: service, worker, controller."""

    private_key: str = setting("KNEO_SERV_VAPID_PRIVATE_KEY", "", _secret, secret=True)
    """Private key with which Kneo identifies itself to push services: P-256 in PEM, as `kneo keys vapid` makes it; the same
    for every process. Default: none, no Web Push."""

    subject: str = setting("KNEO_SERV_VAPID_SUBJECT", "", _contact)
    """`mailto:` or `https:` address at which push services reach the operator. Required with the key."""

    hosts: tuple[str, ...] = setting("KNEO_SERV_PUSH_HOSTS", PUSH_HOSTS, _push_hosts)
    """Push services that messages may be sent to, over `https` only: `host`, `host:port` or `*.domain`, separated by commas.
    Default: those of Chrome, Firefox, Safari and Edge."""


@dataclass(frozen=True, kw_only=True)
class Tracing:
    """OpenTelemetry. The standard `OTEL_…` variables set the exporter. Read by: all processes."""

    enabled: bool = setting("KNEO_SERV_OTEL_ENABLED", False, _flag)
    """Record spans of requests, runs, steps, agents and tool calls; needs `pip install 'kneo[telemetry]'`."""

    record_arguments: bool = setting("KNEO_SERV_OTEL_RECORD_ARGUMENTS", False, _flag)
    """Add the inputs of steps, requests to models and tools to spans, redacted and truncated."""

    record_results: bool = setting("KNEO_SERV_OTEL_RECORD_RESULTS", False, _flag)
    """Add the outputs of steps, replies of models and results of tools to spans, redacted and truncated."""


RETAINED = ("runs", "checkpoints", "queue", "continuations", "sessions", "artifacts", "logs", "audit", "usage")
"""The data with a retention in days; idempotency keys have a setting of their own."""


def _retention_variable(kind: str) -> str:
    return "KNEO_SERV_RETENTION_" + kind.upper() + "_DAYS"


@dataclass(frozen=True, kw_only=True)
class ExecutionSettings:
    """The execution of runs, and the retention of their data. Read by: worker."""

    max_queue_depth: int = setting("KNEO_SERV_MAX_QUEUE_DEPTH", 10_000, _positive)
    """Runs that may wait for a worker; further runs get 503 `queue_full`. Read by: service, command."""

    checkpoint_compress_bytes: int = setting("KNEO_SERV_CHECKPOINT_COMPRESS_BYTES", 65_536, _positive)
    """Size from which checkpoints are compressed."""

    checkpoint_max_bytes: int = setting("KNEO_SERV_CHECKPOINT_MAX_BYTES", 1_048_576, _positive)
    """Compressed size above which a checkpoint keeps only a preview; a run cannot be forked from it."""

    checkpoint_preview_chars: int = setting("KNEO_SERV_CHECKPOINT_PREVIEW_CHARS", 1_200, _positive)
    """Length of each text in such a preview."""

    retention_days: Mapping[str, int] = setting(", ".join(_retention_variable(kind) for kind in RETAINED), {}, None)
    """Retention in days of each kind of data. Audit events are never deleted. Default: the project's, else without
    end. Read by: worker, command."""

    call_days: int = setting("KNEO_SERV_RETENTION_CALL_DAYS", 30, _positive)
    """Retention in days of calls of other programs that ended without a decision of people. Those with a decision are kept as long as
    runs are. Read by: worker, command."""

    retention_run_statuses: tuple[str, ...] = setting("KNEO_SERV_RETENTION_RUN_STATUSES", (), _list)
    """Statuses of runs that may be deleted, separated by commas. Default: every final status. Read by: worker,
    command."""

    dispatch: str = setting("KNEO_SERV_DISPATCH", "auto", _extension)
    """How runs reach a worker: `auto` needs only the database; `temporal` needs PostgreSQL and `pip install
    'kneo[temporal]'`; an installed package can add another. The same for every process of a database. Read by: service, worker."""

    worker_stall_seconds: float = setting("KNEO_SERV_WORKER_STALL_SECONDS", 30.0, _seconds)
    """Time without a sign of life after which a worker that is connected to PostgreSQL counts as dead, so that its steps are
    executed elsewhere a second time. One that is killed loses its connection, and counts as dead within three seconds."""

    temporal_address: str = setting("KNEO_SERV_TEMPORAL_ADDRESS", "localhost:7233", _text)
    """`host:port` of the Temporal server."""

    temporal_namespace: str = setting("KNEO_SERV_TEMPORAL_NAMESPACE", "default", _text)
    """Namespace of the Temporal server, one for each database."""

    stream_ms: int = setting("KNEO_SERV_STREAM_MS", 150, _positive)
    """Shortest time in milliseconds between two deltas of one reply of a model. A longer one makes fewer, larger events."""

    platform: str = setting("KNEO_SERV_PLATFORM", "", _text)
    """`module:factory` of a program that embeds Kneo and registers tools. Default: Kneo's own. Read by: all
    processes."""


@dataclass(frozen=True, kw_only=True)
class AgentSettings:
    """Bounds of tool calls, and of agents that call agents. Read by: worker, command."""

    tool_seconds: float = setting("KNEO_SERV_TOOL_TIMEOUT_SECONDS", 60.0, _seconds)
    """Time for a call of a tool that states no `timeout_seconds`."""

    sandbox: str = setting("KNEO_SERV_TOOLS_SANDBOX", "process", _one_of("none", "process", "kernel"))
    """The level of sandboxes of functions of specs in runs without an environment: `kernel`, `process` or `none`."""

    templates: int = setting("KNEO_SERV_SANDBOX_TEMPLATES", 8, _positive)
    """Processes of sandboxes that a worker keeps for functions of specs, each with one imported module."""

    argument_bytes: int = setting("KNEO_SERV_TOOL_ARGUMENT_BYTES", 65_536, _positive)
    """Size of the arguments of a call; a larger call is not made."""

    result_chars: int = setting("KNEO_SERV_TOOL_RESULT_CHARS", 100_000, _positive)
    """Characters of a result that the model is shown, of a tool that states no `max_result_chars`."""

    depth: int = setting("KNEO_SERV_AGENT_DEPTH", 5, _positive)
    """Agents that call each other as tools, below the agent of a step."""

    fetch_bytes: int = setting("KNEO_SERV_FETCH_BYTES", 1_000_000, _positive)
    """Size of an HTTP response that a tool reads; the rest is cut."""

    inside: tuple[str, ...] = setting("KNEO_SERV_TOOLS_INSIDE", (), _list)
    """Addresses inside the network that tools may reach, also without TLS, as `crm.internal:8443`, separated by commas,
    where no environment is declared; an environment names its own in `tools.inside`. Default: none."""


@dataclass(frozen=True, kw_only=True)
class McpSettings:
    """MCP servers. Read by: worker, command."""

    commands: tuple[str, ...] = setting("KNEO_SERV_MCP_COMMANDS", (), _list)
    """Full paths of the programs that MCP servers over stdio may be, separated by commas, where no environment is declared;
    an environment names its own in `tools.mcp.commands`. Default: none."""

    connect_seconds: float = setting("KNEO_SERV_MCP_CONNECT_TIMEOUT_SECONDS", 30.0, _seconds)
    """Time for a server to start and to agree on a protocol."""

    call_seconds: float = setting("KNEO_SERV_MCP_TIMEOUT_SECONDS", 60.0, _seconds)
    """Time for a call, where neither the tool nor its server states one."""

    idle_seconds: float = setting("KNEO_SERV_MCP_IDLE_SECONDS", 300.0, _seconds)
    """Time after its last call until a connection is closed, and a server over stdio is ended."""

    retries: int = setting("KNEO_SERV_MCP_RETRIES", 0, _count)
    """Further tries to connect to a server, and to make a call without effects that got no answer."""

    retry_backoff_seconds: float = setting("KNEO_SERV_MCP_RETRY_BACKOFF_SECONDS", 0.25, _seconds)
    """Wait before such a try; each further one waits longer by this time."""


_APP_ID = re.compile(r"[A-Za-z0-9]{1,100}")


@dataclass(frozen=True, kw_only=True)
class GitCredentials:
    """Credentials of the config repository. Each git and ssh process reads the files itself, so a rotated secret needs
    no restart. Public https repositories need none. Read by: controller, command.
    """

    username: str = setting("KNEO_SERV_GIT_USERNAME", "git", _text)
    """User name of the token; most hosts ignore it."""

    token_file: Path | None = setting("KNEO_SERV_GIT_TOKEN_FILE", None, Path)
    """File whose first line is an access token, for https repositories."""

    ssh_key_file: Path | None = setting("KNEO_SERV_GIT_SSH_KEY_FILE", None, Path)
    """Deploy key without a passphrase, for ssh repositories."""

    known_hosts_file: Path | None = setting("KNEO_SERV_GIT_KNOWN_HOSTS_FILE", None, Path)
    """Host keys to accept, required for ssh repositories."""

    ca_file: Path | None = setting("KNEO_SERV_GIT_CA_FILE", None, Path)
    """Certificate authorities to trust instead of the system's, for https repositories. Default: the system's."""

    client_cert_file: Path | None = setting("KNEO_SERV_GIT_CLIENT_CERT_FILE", None, Path)
    """Client certificate, for hosts that require one."""

    client_key_file: Path | None = setting("KNEO_SERV_GIT_CLIENT_KEY_FILE", None, Path)
    """Private key of the client certificate."""

    github_app_id: str = setting("KNEO_SERV_GIT_GITHUB_APP_ID", "", _text)
    """App id or client id of a GitHub App, instead of a token file."""

    github_installation_id: str = setting("KNEO_SERV_GIT_GITHUB_INSTALLATION_ID", "", _text)
    """Id of the installation of the GitHub App."""

    github_app_key_file: Path | None = setting("KNEO_SERV_GIT_GITHUB_APP_KEY_FILE", None, Path)
    """Private key of the GitHub App (RSA, PEM)."""

    github_api_url: str = setting("KNEO_SERV_GIT_GITHUB_API_URL", "", _text)
    """Address of GitHub's API, as `https://git.example.org/api/v3`. Default: derived from the repository's host."""


HOOK_PROVIDERS = ("github", "gitlab", "gitea", "bitbucket", "generic")
NOTIFY_CHANNELS = ("webhook", "slack", "github", "gitlab", "gitea", "bitbucket")
HOOK_PREFIX = "KNEO_SERV_HOOK_SECRET_"
NOTIFY_PREFIX = "KNEO_SERV_NOTIFY_"
CHANNEL_PREFIX = "KNEO_SERV_CHANNEL_"


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Requests to models. Read by: worker."""

    retries: int = setting("KNEO_SERV_PROVIDER_RETRIES", 3, _count)
    """Repetitions of a request that failed: connection errors, 408, 409, 425, 429 and 5xx. A wait that the provider asks
    for counts against `KNEO_SERV_MODEL_PATIENCE` instead."""

    backoff_seconds: float = setting("KNEO_SERV_PROVIDER_RETRY_BACKOFF_SECONDS", 0.25, _seconds)
    """Wait before the first repetition; each further wait is twice as long."""

    timeout_seconds: float = setting("KNEO_SERV_PROVIDER_TIMEOUT_SECONDS", 120.0, _seconds)
    """Time for one reply of a model whose spec has no `timeout_seconds`."""

    hold_seconds: float = setting("KNEO_SERV_MODEL_HOLD_SECONDS", 2.0, _seconds)
    """The longest wait during which a run stays in memory. When a provider asks to wait longer, the run is postponed."""

    patience_seconds: float = setting("KNEO_SERV_MODEL_PATIENCE", 900.0, _duration)
    """Time, as `90s` or `15m`, after which a request fails whose provider asks again and again to wait. Default: 15m."""

    concurrency: int = setting("KNEO_SERV_MODEL_CONCURRENCY", 32, _positive)
    """Requests at a time over one connection of a worker. Halved after a 429, and raised by one with each reply."""

    reply_bytes: int = setting("KNEO_SERV_MODEL_REPLY_BYTES", 33_554_432, _positive)
    """Bytes of one reply of a provider, with everything around its text. A longer one is not read to its end, and the
    request fails."""

    require_secrets: bool = setting("KNEO_SERV_REQUIRE_PROVIDER_SECRETS", False, _flag)
    """Start a worker only if every provider in the project's `secrets.provider_env` has its key. Without it, each run that
    needs a missing key is refused."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one process, read once at its start. Read by: service."""

    project_root: Path
    """The folder of ``.kneo``, or the working directory. Relative paths start here."""

    database_url: str = field(repr=False, metadata={"setting": Setting("KNEO_SERV_DATABASE_URL", None, secret=True)})
    """The database: ``sqlite:///path`` or ``postgresql://…``. Default: a SQLite file in the project. Read by: all processes."""

    state_dir: Path
    """The folder of data that belongs to the database: Git mirrors, the service key. Mode 0700."""

    migrate: str = setting("KNEO_SERV_MIGRATE", "auto", _one_of("auto", "never"))
    """Whether a process that opens the database migrates an older schema. With `never` it is refused, and `kneo maintenance
    migrate` migrates it. Read by: all processes."""

    record_macs: str = setting("KNEO_SERV_RECORD_MACS", "check", _one_of("check", "write"))
    """Whether records without a valid [message authentication code](../security/threats.md#a-person-who-can-write-to-the-database)
    are refused. With `write` codes are written and not checked, for the time of a
    [rolling upgrade](../operations/upgrade.md#authenticate-the-records-of-an-earlier-version). Read by: all processes."""

    project_config: Path | None = setting("KNEO_PROJECT_CONFIG", None, None)
    """The project's config file. Default: the nearest one at or above the working directory. Read by: all processes."""

    environment: str = setting("KNEO_ENV", "", _text)
    """The environment of commands that name none. Default: the project's own. Read by: command."""

    spec_root: Path = field(metadata={"setting": Setting("KNEO_SERV_SPEC_ROOT", None)})
    """The folder of specs that are named by path. Default: the project. Read by: service, command."""

    trust_root: Digest | None = setting("KNEO_SERV_TRUST_ROOT", None, _digest)
    """Digest of the first trust root; the repository cannot replace it. Read by: service, worker, controller,
    command."""

    import_allow: tuple[str, ...] = setting("KNEO_SERV_IMPORT_ALLOW", (), _list)
    """Module prefixes that `implementation:` may name, separated by commas. Default: modules below the project's root
    and the working directory. Read by: worker."""

    import_roots: tuple[Path, ...] = ()
    """The folders of ``implementation:`` modules."""

    api_keys: str = setting("KNEO_SERV_API_KEYS", "", _secret, secret=True)
    """`name:key:role_or_scope[,…]` or `name:sha256:digest:role_or_scope[,…]`, separated by `;` or a line break; see
    [roles](roles.md). A key switches authentication on. A file is read again when the process gets SIGHUP."""

    admin_api_key: str = setting("KNEO_SERV_ADMIN_API_KEY", "", _secret, secret=True)
    """A key with every right, or `sha256:` and its digest. A file is read again when the process gets SIGHUP."""

    key_files: bool = False
    """Whether API keys stand in files, which a service reads again on SIGHUP."""

    auth_enabled: bool = setting("KNEO_SERV_AUTH_ENABLED", False, _flag)
    """Refuse to start without API keys and without an issuer of tokens. Default: off without keys and issuer."""

    status_words: str = setting("KNEO_SERV_STATUS_WORDS", "auto", _one_of("auto", "documented", "published"))
    """The vocabulary of a run's status: `documented`, `published`, or `auto` by the client. Read by: service,
    command."""

    known_roots_path: Path = setting("KNEO_SERV_KNOWN_ROOTS_PATH", Path("~/.kneo_serv/known_roots.json"), None)
    """The trust roots that `kneo init` created, by repository. Read by: command."""

    profiles_path: Path = setting("KNEO_SERV_PROFILES_PATH", Path("~/.kneo_serv/profiles.json"), None)
    """Saved addresses of services. Read by: client."""

    client_api_key: str = setting("KNEO_SERV_API_KEY", "", _secret, secret=True)
    """The API key of the requests. Read by: client."""

    client_timeout_seconds: float = setting("KNEO_SERV_CLIENT_TIMEOUT", 120.0, _positive)
    """Time that a client waits for a response. Read by: client."""

    key_passphrase: str = setting("KNEO_SERV_KEY_PASSPHRASE", "", _secret, secret=True)
    """Passphrase of private key files. Read by: command."""

    service_key: str = setting("KNEO_SERV_SERVICE_KEY", "", _secret, secret=True)
    """PEM of the key that signs recorded decisions, receipts and checkpoints; the same for every process. Default: on
    SQLite, a key in the state folder. Read by: service, worker, controller, command."""

    data_keys: str = setting("KNEO_SERV_DATA_KEYS", "", _secret, secret=True)
    """Keys that seal what models and tools wrote in the journals and sessions of agents, and the push addresses of browsers: 32 bytes in
    base64, separated by commas. The first one seals, all open. Default: nothing is sealed. Read by: service, worker, command."""

    spec_signing_key: str = setting("KNEO_SERV_SPEC_SIGNING_KEY", "", _secret, secret=True)
    """Shared secret of bundles in the older HMAC format; without it they are neither served nor started. Read by:
    service, controller, command."""

    hook_secrets: Mapping[str, str] = setting(
        ", ".join(HOOK_PREFIX + name.upper() for name in HOOK_PROVIDERS), {}, None, secret=True
    )
    """Secrets of webhooks by provider; a provider without a secret is refused."""

    notify: Mapping[str, str] = setting(
        ", ".join(NOTIFY_PREFIX + name.upper() for name in NOTIFY_CHANNELS), {}, None, secret=True
    )
    """Addresses of release notifications: a webhook, Slack, or the API address of the repository for commit statuses.
    Read by: controller."""

    channels: Mapping[str, str] = setting("KNEO_SERV_CHANNEL_NAME", {}, None, secret=True)
    """Address of a channel for human tasks, by the name that specs use (`KNEO_SERV_CHANNEL_SLACK_OPS` is
    `slack-ops`): `https://…`, `slack:https://…`, `smtp://…` or `smtps://…`; see
    [notifications](../guides/people/notify.md). Names that end with `_KEY`, `_KEYS`, `_TOKEN`, `_PASSWORD` or
    `_SECRETS` are refused. Read by: worker."""

    webhook_keys: Mapping[str, tuple[bytes, ...]] = setting("KNEO_SERV_CHANNEL_NAME_SECRET", {}, None, secret=True)
    """Secrets that sign the [webhooks](../guides/people/notify.md#verify-a-webhook) of a channel,
    separated by spaces. Default: none, unsigned. Read by: worker."""

    notify_webhook_keys: tuple[bytes, ...] = setting("KNEO_SERV_NOTIFY_WEBHOOK_SECRET", (), None, secret=True)
    """Secrets that sign release notifications to a webhook, separated by spaces. Default: none, unsigned. Read by:
    controller."""

    public_url: str = setting("KNEO_SERV_PUBLIC_URL", "", _url)
    """Address at which people reach the service; links in messages begin with it. Default: none: no links. Read by:
    service, worker, controller."""

    notify_token: str = setting("KNEO_SERV_NOTIFY_TOKEN", "", _secret, secret=True)
    """Token for commit statuses. Read by: controller."""

    secrets_dir: Path | None = setting("KNEO_SERV_SECRETS_DIR", None, Path)
    """Folder of secrets, one file for each, named like the variable. Read by: worker, command."""

    metrics_port: int = setting("KNEO_SERV_METRICS_PORT", 0, _port)
    """Port at which `controller run` and `worker` serve `/livez` and `/metrics`, to everyone that reaches it. Default: 0,
    none. Read by: worker, controller."""

    slack_signing_secret: str = setting("KNEO_SERV_SLACK_SIGNING_SECRET", "", _secret, secret=True)
    """Signing secret of your app in Slack, whose [buttons](../guides/people/notify.md#decide-in-slack) decide questions. Default: none, they
    are refused. Read by: service."""

    limits: Limits = field(default_factory=Limits)
    git: GitCredentials = field(default_factory=GitCredentials)
    http: HttpSettings = field(default_factory=HttpSettings)
    oidc: OidcSettings = field(default_factory=OidcSettings)
    push: PushSettings = field(default_factory=PushSettings)
    execution: ExecutionSettings = field(default_factory=ExecutionSettings)
    tracing: Tracing = field(default_factory=Tracing)
    models: ModelSettings = field(default_factory=ModelSettings)
    agents: AgentSettings = field(default_factory=AgentSettings)
    mcp: McpSettings = field(default_factory=McpSettings)

    def secret(self, name: str) -> str | None:
        """Return a secret by the name of its variable, read anew; see :func:`read_secret`.

        Raises:
            Invalid: ``invalid_setting``.
        """
        return read_secret(name, self.secrets_dir)

    def on(self, url: str) -> Settings:
        """Return the settings with another database and its state folder.

        Raises:
            Invalid: ``invalid_setting``: the database is not a known one.
        """
        url = _database_url(url, self.state_dir)
        return replace(self, database_url=url, state_dir=_state_dir(url, self.project_root))


SETTINGS = (
    Settings,
    HttpSettings,
    OidcSettings,
    PushSettings,
    Limits,
    ExecutionSettings,
    GitCredentials,
    ModelSettings,
    Tracing,
    AgentSettings,
    McpSettings,
)
"""The classes with settings."""


def settings_of(group: type) -> Iterator[tuple[str, object, Setting]]:
    """Yield the name, the default and the declaration of each setting of a class."""
    for each in fields(group):
        if "setting" in each.metadata:
            yield each.name, each.default, each.metadata["setting"]


def _read(group: type, env: Mapping[str, str]) -> dict[str, Any]:
    """Parse the settings of a class that have a parser and a variable with a text.

    Raises:
        Invalid: ``invalid_setting``: a text does not fit; the message names its variable.
    """
    values: dict[str, Any] = {}
    for name, default, declared in settings_of(group):
        text = env.get(declared.variable, "")
        if text.strip() and declared.parse is not None:
            value = _parse(declared, text)
            values[name] = float(value) if isinstance(default, float) else value
    return values


def _parse(declared: Setting, text: str) -> Any:  # noqa: ANN401 - the type of the field
    """Parse the text of a variable.

    Raises:
        Invalid: ``invalid_setting``.
    """
    assert declared.parse is not None
    try:
        return declared.parse(text if declared.parse is _secret else text.strip())
    except ValueError as error:
        msg = f"{declared.variable} must {error}, not {text.strip()[:40]!r}."
        raise Invalid(msg, code="invalid_setting") from error


def debug_wanted(env: Mapping[str, str] | None = None) -> bool:
    """Return whether errors are printed with their traceback, also errors of settings: ``KNEO_SERV_DEBUG``."""
    env = _environment() if env is None else env
    return env.get(_DEBUG, "").strip().lower() in TRUE


def colour_wanted(env: Mapping[str, str] | None = None) -> bool:
    """Return whether output is coloured: not with ``NO_COLOR`` (no-color.org), not on a dumb terminal."""
    env = _environment() if env is None else env
    return not env.get("NO_COLOR") and env.get("TERM") != "dumb"


def user_name() -> str:
    """Return the name of the user of this process; ``uid-N`` for one without a name, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError since Python 3.13
        return f"uid-{os.getuid()}"


def process_environment(*names: str) -> dict[str, str]:
    """Return the variables with these names, for a process that starts with no others."""
    env = _environment()
    return {name: env[name] for name in names if name in env}


OWN_PREFIX = "KNEO_SERV_"
"""The prefix of Kneo's own settings, keys and passwords among them."""

_ELSEWHERE = frozenset(
    {
        "ARTIFACT_PATH",
        "AUDIT_EXPORT_ENABLED",
        "CHECKPOINT_MAX_DICT_ITEMS",
        "CHECKPOINT_MAX_LIST_ITEMS",
        "IDEMPOTENCY_LOCK_TTL_SECONDS",
        "LOG_PATH",
        "PROVIDER_RETRY_ON_TIMEOUT",
        "PROVIDER_TEST_MODEL",
        "QUEUE_MAX_ATTEMPTS",
        "RETENTION_QUEUE_STATUSES",
        "RUN_POSTGRES_INTEGRATION",
        "RUN_PROVIDER_INTEGRATION",
        "SHUTDOWN_TIMEOUT_SECONDS",
        "TOKEN_BUDGET",
        "TRACE_MAX_EVENTS",
        "WORKER_CONCURRENCY",
        "WORKER_IDLE_POLL_SECONDS",
        "WORKER_LEASE_SECONDS",
        "WORKFLOW_RETRY_ON_TIMEOUT",
    }
)
"""Settings of kneo-serv, after the prefix, that Kneo does not have; the page about moving says what to use instead."""

MAX_UNKNOWN = 20
"""Variables that one report names."""

_DEBUG = "KNEO_SERV_DEBUG"


def unknown_variables(env: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Describe each variable with Kneo's prefix that no setting reads: its name and the nearest setting, never its value."""
    env = _environment() if env is None else env
    known = _variables() | {_DEBUG}
    unknown = [
        name
        for name in sorted(env)
        if name.startswith(OWN_PREFIX)
        and name not in known
        and not name.startswith(CHANNEL_PREFIX)
        and not _is_service_link(name, env)
    ]
    return tuple(_description(name, known) for name in unknown[:MAX_UNKNOWN])


def _variables() -> frozenset[str]:
    """Return the variables of all settings, and those that name the files of secret ones."""
    declared = [each for group in SETTINGS for _name, _default, each in settings_of(group)]
    names = [(name, each.secret) for each in declared for name in each.variable.split(", ")]
    return frozenset([name for name, _ in names] + [name + FILE_END for name, secret in names if secret])


def is_secret_variable(name: str) -> bool:
    """Return whether a variable holds a secret of Kneo's settings."""
    return name in _secret_variables({}) or (name.startswith(CHANNEL_PREFIX) and not name.endswith(FILE_END))


def _is_service_link(name: str, env: Mapping[str, str]) -> bool:
    """Return whether Kubernetes made a variable: for a service kneo-serv it sets KNEO_SERV_SERVICE_HOST and KNEO_SERV_PORT."""
    host = "_SERVICE_HOST"
    links = [each.removesuffix(host) for each in env if each.endswith(host)]
    return any(name.startswith((f"{link}_SERVICE_", f"{link}_PORT")) for link in links)


def _description(name: str, known: Collection[str]) -> str:
    if name.removeprefix(OWN_PREFIX) in _ELSEWHERE:
        return f"{name} is a setting of kneo-serv and has no effect in Kneo; docs/moving/kneo-serv.md says what to use instead."
    # The prefix is equal in all of them, and would make any two names near.
    ends = sorted(each.removeprefix(OWN_PREFIX) for each in known)
    nearest = get_close_matches(name.removeprefix(OWN_PREFIX), ends, n=1, cutoff=0.75)
    guess = f"did you mean {OWN_PREFIX}{nearest[0]}?" if nearest else "docs/reference/settings.md lists the settings."
    return f"{name[:200]} is not a setting and has no effect; {guess}"


_hidden: dict[str, str] = {}
"""Settings that were removed from the process's environment."""


def hide_settings() -> None:
    """Remove Kneo's settings from the environment that functions of specs read, and protect the process from its children.

    :func:`from_env` still reads them. Code in the same process can find them in memory.
    """
    protect_process()
    for name in [name for name in os.environ if name.startswith(OWN_PREFIX)]:  # noqa: TID251 - this is that one reader
        _hidden[name] = os.environ.pop(name)  # noqa: TID251


def function_environment(*without: str) -> dict[str, str]:
    """Return the environment of a program that Kneo starts for its user: all variables but Kneo's settings and those named."""
    named = {each + end for each in without for end in ("", FILE_END)}
    return {
        name: value
        for name, value in os.environ.items()  # noqa: TID251 - this is that one reader
        if not name.startswith(OWN_PREFIX) and name not in named
    }


def named_files() -> list[Path]:
    """Return the files that variables of this process name, such as those of secrets."""
    return [Path(value.strip()) for name, value in _environment().items() if name.endswith(FILE_END) and value.strip()]


def _environment() -> Mapping[str, str]:
    return {**_hidden, **os.environ}  # noqa: TID251 - this is that one reader


def forget_calling_repository() -> None:
    """Remove the variables by which a Git hook that called this process names its repository.

    Git commands of this process would otherwise work on that repository.
    """
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX"):
        os.environ.pop(name, None)  # noqa: TID251 - this is that one reader


def _git(env: Mapping[str, str], cwd: Path) -> GitCredentials:
    values = _read(GitCredentials, env)
    files = {name: cwd / path.expanduser() for name, path in values.items() if isinstance(path, Path)}
    git = GitCredentials(**values | files)
    git = replace(git, github_api_url=git.github_api_url.rstrip("/"))
    problem = _git_problem(git)
    if problem is not None:
        raise Invalid(problem, code="invalid_setting")
    return git


def _git_problem(git: GitCredentials) -> str | None:
    """Return the first problem of credentials that do not fit together."""
    app = (git.github_app_id, git.github_installation_id, git.github_app_key_file)
    ids = git.github_app_id + git.github_installation_id
    problems = {
        "A GitHub App needs all of KNEO_SERV_GIT_GITHUB_APP_ID, KNEO_SERV_GIT_GITHUB_INSTALLATION_ID and "
        "KNEO_SERV_GIT_GITHUB_APP_KEY_FILE.": any(app) and not all(app),
        "KNEO_SERV_GIT_TOKEN_FILE and KNEO_SERV_GIT_GITHUB_APP_ID are both set; only one can log in.": any(app)
        and git.token_file is not None,
        "KNEO_SERV_GIT_GITHUB_APP_ID or KNEO_SERV_GIT_GITHUB_INSTALLATION_ID is not an id as GitHub shows it.": bool(
            ids
        )
        and not _APP_ID.fullmatch(ids),
        f"KNEO_SERV_GIT_GITHUB_API_URL must begin with https://, not {git.github_api_url[:40]!r}.": bool(
            git.github_api_url
        )
        and not git.github_api_url.startswith("https://"),
        "KNEO_SERV_GIT_CLIENT_KEY_FILE is set without KNEO_SERV_GIT_CLIENT_CERT_FILE.": git.client_key_file is not None
        and git.client_cert_file is None,
        "KNEO_SERV_GIT_USERNAME has characters that no user name has.": not git.username.isprintable()
        or bool(set(git.username) & {":", "@"}),
    }
    return next((problem for problem, is_so in problems.items() if is_so), None)


def _oidc(env: Mapping[str, str], own: Mapping[str, object]) -> OidcSettings:
    """Read the settings of the issuer.

    Raises:
        Invalid: ``invalid_setting``: a setting is missing that another one needs.
    """
    values = _read(OidcSettings, env)
    oidc = OidcSettings(**values)
    problems = {
        "KNEO_SERV_OIDC_ISSUER is missing, and other KNEO_SERV_OIDC_… settings are set.": bool(values)
        and not oidc.issuer,
        "KNEO_SERV_OIDC_ISSUER needs KNEO_SERV_OIDC_AUDIENCE, for tokens of the API, or KNEO_SERV_OIDC_CLIENT_ID, for "
        "signing in to the console.": bool(oidc.issuer) and not (oidc.audience or oidc.client_id),
        "KNEO_SERV_OIDC_CLIENT_ID needs KNEO_SERV_PUBLIC_URL, to which the issuer sends people back.": bool(
            oidc.client_id
        )
        and not own.get("public_url"),
        "KNEO_SERV_OIDC_CLIENT_SECRET is set without KNEO_SERV_OIDC_CLIENT_ID.": bool(oidc.client_secret)
        and not oidc.client_id,
        "KNEO_SERV_OIDC_SCOPES does not contain openid.": "openid" not in oidc.scopes,
        "KNEO_SERV_OIDC_ISSUER needs KNEO_SERV_OIDC_ROLES: no person would have a role.": bool(oidc.issuer)
        and not oidc.roles,
    }
    problem = next((problem for problem, is_so in problems.items() if is_so), None)
    if problem is not None:
        raise Invalid(problem, code="invalid_setting")
    return oidc


def _push(env: Mapping[str, str]) -> PushSettings:
    """Read the settings of Web Push.

    Raises:
        Invalid: ``invalid_setting``: a text does not fit, or the key has no contact.
    """
    push = PushSettings(**_read(PushSettings, env))
    if push.private_key and not push.subject:
        msg = "KNEO_SERV_VAPID_PRIVATE_KEY needs KNEO_SERV_VAPID_SUBJECT, at which push services reach the operator."
        raise Invalid(msg, code="invalid_setting", hint="Set it to an address, as mailto:ops@example.org.")
    return push


def _by_suffix(env: Mapping[str, str], prefix: str, names: Iterable[str]) -> dict[str, str]:
    return {name: value for name in names if (value := env.get(prefix + name.upper(), "").strip())}


MAX_CHANNELS = 100


def _named_by(env: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Read a family of variables by the names at their ends: ``…_SLACK_OPS`` is ``slack-ops``."""
    found = {
        name.removeprefix(prefix).lower().replace("_", "-"): value.strip()
        for name, value in env.items()
        if name.startswith(prefix) and value.strip()
    }
    if len(found) > MAX_CHANNELS:
        msg = f"There are {len(found)} variables {prefix}…; at most {MAX_CHANNELS} are read."
        raise Invalid(msg, code="invalid_setting")
    return found


_RESERVED_ENDS = ("-secrets", "-token", "-password", "-key", "-keys")
"""Ends of names that no channel may have: they would name a setting of a channel."""


def _channel_variable(name: str) -> str:
    return CHANNEL_PREFIX + name.upper().replace("-", "_")


def _channels(env: Mapping[str, str]) -> tuple[dict[str, str], dict[str, tuple[bytes, ...]]]:
    """Read the channels of human tasks, and the secrets of webhooks among them.

    Raises:
        Invalid: ``invalid_setting``: a secret has no webhook or does not parse, or a name is reserved.
    """
    found = _named_by(env, CHANNEL_PREFIX)
    for name in sorted(found):
        if name.endswith(_RESERVED_ENDS):
            msg = f"{_channel_variable(name)} is not a setting; the name of a channel cannot end like that."
            hint = "KNEO_SERV_CHANNEL_NAME is a channel, KNEO_SERV_CHANNEL_NAME_SECRET its secret; name a channel otherwise."
            raise Invalid(msg, code="invalid_setting", hint=hint)
    if WEB_PUSH in found:
        msg = f"{_channel_variable(WEB_PUSH)} is not a setting; {WEB_PUSH} is the channel of Web Push."
        raise Invalid(msg, code="invalid_setting", hint="Name the channel otherwise.")
    channels = {name: value for name, value in found.items() if not name.endswith("-secret")}
    keys = {}
    for name in found.keys() - channels.keys():
        channel = name.removesuffix("-secret")
        keys[channel] = _webhook_keys(_channel_variable(name), found[name], channels.get(channel, ""))
    return channels, keys


def _webhook_keys(variable: str, text: str, address: str) -> tuple[bytes, ...]:
    """Read the secrets of a webhook, separated by spaces: ``whsec_`` and 24 to 64 bytes in base64."""
    if not text.strip():
        return ()
    if not address.startswith(("https://", "http://")):
        msg = f"{variable} is the secret of a webhook, and {variable.removesuffix('_SECRET')} is not the address of a webhook."
        raise Invalid(msg, code="invalid_setting")
    keys = []
    for secret in text.split():
        try:
            key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except ValueError:
            key = b""
        if not 24 <= len(key) <= 64:
            msg = f"{variable} has no webhook secret: whsec_ and 24 to 64 random bytes in base64."
            hint = "python3 -c \"import base64, secrets; print('whsec_' + base64.b64encode(secrets.token_bytes(32)).decode())\""
            raise Invalid(msg, code="invalid_setting", hint=hint)
        keys.append(key)
    return tuple(keys)


PROJECT_CONFIGS = (".kneo/config.yaml", ".kneo/config.yml", "kneo_serv.yaml", "kneo_serv.yml")
"""The paths of a project's config below its root, in the order of preference."""


def find_project_config(start: Path) -> Path | None:
    """Find the project config in the nearest folder at or above ``start`` that has one."""
    candidates = (folder / name for folder in (start, *start.parents) for name in PROJECT_CONFIGS)
    return next((path for path in candidates if path.is_file()), None)


def project_root_of(config: Path) -> Path:
    """Return the project of a config: its folder, or the folder that holds ``.kneo``."""
    return config.parent.parent if config.parent.name == ".kneo" else config.parent


def _project_config(env: Mapping[str, str], cwd: Path) -> Path | None:
    named = env.get("KNEO_PROJECT_CONFIG", "").strip()
    if not named:
        return find_project_config(cwd)
    path = cwd / Path(named).expanduser()
    if not path.is_file():
        msg = f"KNEO_PROJECT_CONFIG names {path}, which does not exist."
        raise Invalid(msg, code="invalid_setting")
    return path


MAX_SECRET_BYTES = 65_536

FILE_END = "_FILE"
"""The end of a variable that names a file with the value of the variable before it."""


def read_secret_files(env: Mapping[str, str], cwd: Path) -> dict[str, str]:
    """Return the environment with the values of secret settings whose ``…_FILE`` variable names a file.

    Args:
        env: The environment.
        cwd: The folder of relative paths.

    Raises:
        Invalid: ``invalid_setting``: a setting is set in both ways, or its file is missing, empty, too large or not text.
    """
    values = dict(env)
    for name in _secret_variables(env):
        named = env.get(name + FILE_END, "").strip()
        if named:
            _check_one_source(name, env)
            values[name] = _secret_text(cwd / Path(named).expanduser(), name + FILE_END)
            del values[name + FILE_END]
    return values


def _secret_variables(env: Mapping[str, str]) -> list[str]:
    """Return the variables of all secret settings, and those of the channels whose ``…_FILE`` variable is set."""
    declared = [each for group in SETTINGS for _name, _default, each in settings_of(group) if each.secret]
    named = [variable for each in declared for variable in each.variable.split(", ")]
    channels = [name.removesuffix(FILE_END) for name in env if name.endswith(FILE_END)]
    return named + [name for name in channels if name.startswith(CHANNEL_PREFIX) and name != CHANNEL_PREFIX]


def _check_one_source(name: str, env: Mapping[str, str]) -> None:
    if env.get(name, "").strip() and env.get(name + FILE_END, "").strip():
        msg = f"{name} and {name}{FILE_END} are both set; only one can hold the secret."
        raise Invalid(msg, code="invalid_setting", hint=f"Unset {name} or {name}{FILE_END}.")


def read_secret(name: str, folder: Path | None = None, env: Mapping[str, str] | None = None) -> str | None:
    """Return a secret by the name of its variable: from the variable, the file that ``NAME_FILE`` names, or a folder.

    Files are read at each call, so that a rotated secret needs no restart. Kneo's own settings are never returned.

    Args:
        name: The variable.
        folder: A folder with one file for each secret; ``KNEO_SERV_SECRETS_DIR``.
        env: The environment; left out: that of the process.

    Raises:
        Invalid: ``invalid_setting``: the variable and ``NAME_FILE`` are both set, or the file cannot be read.
    """
    env = _environment() if env is None else env
    if name.startswith(OWN_PREFIX) or not _VARIABLE.fullmatch(name):
        return None
    _check_one_source(name, env)
    value, named = env.get(name, "").strip(), env.get(name + FILE_END, "").strip()
    if value:
        return value
    if named:
        return _secret_text(Path(named).expanduser(), name + FILE_END).strip()
    path = folder.expanduser() / name if folder is not None else None
    return _secret_text(path, "KNEO_SERV_SECRETS_DIR").strip() if path is not None and path.is_file() else None


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,200}")


def _secret_text(path: Path, variable: str) -> str:
    """Return the text of a secret's file without the newline at its end.

    Raises:
        Invalid: ``invalid_setting``; the message names the variable and the file, never its content.
    """
    problem = None
    try:
        data = _read_file(path, MAX_SECRET_BYTES + 1)
        text = data.decode("utf-8").rstrip("\r\n")
    except FileNotFoundError:
        problem = "which does not exist"
    except (OSError, UnicodeDecodeError) as error:
        problem = f"which cannot be read as text: {type(error).__name__}"
    else:
        if len(data) > MAX_SECRET_BYTES:
            problem = f"which is larger than {MAX_SECRET_BYTES} bytes"
        elif not text.strip():
            problem = "which is empty"
    if problem is not None:
        msg = f"{variable} names {path}, {problem}."
        raise Invalid(msg, code="invalid_setting")
    return text


def _read_file(path: Path, size: int) -> bytes:
    """Read the beginning of a regular file; a pipe or a device could block the process."""
    if path.exists() and not path.is_file():
        msg = "not a regular file"
        raise OSError(msg)
    with path.open("rb") as file:
        return file.read(size)


def variables_set(
    names: Iterable[str], env: Mapping[str, str] | None = None, folder: Path | None = None
) -> frozenset[str]:
    """Return those of these variables that have a value, in the environment or in a file; see :func:`read_secret`."""
    env = _environment() if env is None else env
    return frozenset(name for name in names if _is_set(name, env) or read_secret(name, folder, env))


def _is_set(name: str, env: Mapping[str, str]) -> bool:
    return bool(env.get(name)) or (name.startswith(OWN_PREFIX) and bool(env.get(name + FILE_END)))


def _database_url(text: str, state_path: Path) -> str:
    if not text:
        return f"sqlite:///{state_path}"
    for plain in ("postgresql://", "postgres://"):
        if text.startswith(plain):
            return "postgresql+psycopg://" + text.removeprefix(plain)
    if text.startswith(("sqlite:///", "postgresql+psycopg://")):
        return text
    scheme = text.split(":", 1)[0][:40]
    msg = f"KNEO_SERV_DATABASE_URL starts with {scheme!r}; use sqlite:///PATH or postgresql://…"
    raise Invalid(msg, code="invalid_setting")


def _state_dir(url: str, root: Path) -> Path:
    """Return the folder of a SQLite file; for a server, the project's state folder."""
    return Path(url.removeprefix("sqlite:///")).parent if url.startswith("sqlite:///") else root / ".kneo"


def from_env(env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Settings:
    """Read the settings of this process.

    Raises:
        Invalid: ``invalid_setting``: a variable's text does not fit, or the file of a secret cannot be read; the message
            names the variable.
    """
    cwd = Path.cwd() if cwd is None else cwd
    given = _environment() if env is None else env
    env = read_secret_files(given, cwd)
    config = _project_config(env, cwd)
    root = project_root_of(config) if config is not None else cwd
    url = _database_url(env.get("KNEO_SERV_DATABASE_URL", "").strip(), root / ".kneo" / "kneo_runs.sqlite")
    own = _read(Settings, env)
    execution = _read(ExecutionSettings, env)
    oidc = _oidc(env, own)
    if own.get("api_keys") or own.get("admin_api_key") or oidc.issuer:
        own["auth_enabled"] = True
    channels, webhook_keys = _channels(env)
    notify = _by_suffix(env, NOTIFY_PREFIX, NOTIFY_CHANNELS)
    webhook_secret = NOTIFY_PREFIX + "WEBHOOK_SECRET"
    return Settings(
        **own,
        project_root=root,
        database_url=url,
        state_dir=_state_dir(url, root),
        project_config=config,
        spec_root=Path(env.get("KNEO_SERV_SPEC_ROOT", "") or root),
        import_roots=(root,) if cwd == root else (root, cwd),
        key_files=any(
            given.get(name + FILE_END, "").strip() for name in ("KNEO_SERV_API_KEYS", "KNEO_SERV_ADMIN_API_KEY")
        ),
        known_roots_path=_home_path(env, "KNEO_SERV_KNOWN_ROOTS_PATH", Settings.known_roots_path),
        profiles_path=_home_path(env, "KNEO_SERV_PROFILES_PATH", Settings.profiles_path),
        hook_secrets=_by_suffix(env, HOOK_PREFIX, HOOK_PROVIDERS),
        notify=notify,
        channels=channels,
        webhook_keys=webhook_keys,
        notify_webhook_keys=_webhook_keys(webhook_secret, env.get(webhook_secret, ""), notify.get("webhook", "")),
        limits=Limits(**_read(Limits, env)),
        git=_git(env, cwd),
        http=HttpSettings(**_read(HttpSettings, env)),
        oidc=oidc,
        push=_push(env),
        execution=ExecutionSettings(
            **execution,
            retention_days={
                kind: _parse(Setting(name, _count), env[name])
                for kind in RETAINED
                if env.get(name := _retention_variable(kind), "").strip()
            },
        ),
        tracing=Tracing(**_read(Tracing, env)),
        models=ModelSettings(**_read(ModelSettings, env)),
        agents=AgentSettings(**_read(AgentSettings, env)),
        mcp=McpSettings(**_read(McpSettings, env)),
    )


def _home_path(env: Mapping[str, str], name: str, default: Path) -> Path:
    home = Path(env.get("HOME", "~")).expanduser()
    text = env.get(name, "")
    return Path(text).expanduser() if text else home / default.relative_to("~")
