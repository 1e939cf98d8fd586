"""What an operator can set, and the only reader of the process environment.

Each field says what it is, its unit, and why the default is what it is. Variables keep the ``KNEO_SERV_`` prefix that
existing deployments use.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from kneo.digest import Digest, parse_digest
from kneo.errors import Invalid

TRUE = frozenset({"1", "true", "yes", "on"})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on what comes from outside. Sizes in bytes unless the name says characters."""

    body_bytes: int = 1_048_576
    input_chars: int = 20_000
    human_content_chars: int = 20_000
    inline_spec_bytes: int = 262_144
    overrides_bytes: int = 65_536
    metadata_bytes: int = 32_768
    path_chars: int = 4_096
    page_items: int = 1_000


@dataclass(frozen=True, kw_only=True)
class Http:
    """How the service answers, and how its client asks."""

    request_logs: bool = True
    """Whether every request is logged, ``KNEO_SERV_REQUEST_LOGS``."""

    log_level: str = "INFO"
    """What the process logs at least, ``KNEO_SERV_LOG_LEVEL``."""

    metrics: bool = True
    """Whether ``/metrics`` answers, ``KNEO_SERV_METRICS_ENABLED``."""

    open_pages: tuple[str, ...] = ()
    """Pages that need no key where others do, ``KNEO_SERV_OPEN_PAGES``: ``metrics``, and ``docs`` for ``/openapi.json``,
    ``/docs`` and ``/redoc``."""

    allowed_hosts: tuple[str, ...] = ()
    """Host names by which the service may be asked, ``KNEO_SERV_ALLOWED_HOSTS``; ``*`` is any. Empty: any with keys, and
    without keys those of this machine."""

    anonymous: bool = False
    """Whether a service without keys may listen where others reach it, ``KNEO_SERV_ALLOW_ANONYMOUS``."""

    header_bytes: int = 32_768
    """Bytes that the head of a request may have, ``KNEO_SERV_MAX_HEADER_BYTES``. Browsers and proxies send a few thousand."""

    request_seconds: float = 30.0
    """Seconds in which a request has to arrive whole, ``KNEO_SERV_REQUEST_TIMEOUT_SECONDS``. Enough for the largest body on a
    slow line; whoever takes longer holds a connection for nothing. A client that reads less than 64 KiB of an answer in that time
    does too."""

    rate_per_minute: int = 0
    """Requests that one API key may send in a minute, ``KNEO_SERV_RATE_LIMIT_PER_MINUTE``; 0 does not count them."""

    idempotency_days: int | None = None
    """Days for which an idempotency key is remembered, ``KNEO_SERV_RETENTION_IDEMPOTENCY_DAYS``."""

    max_streams: int = 200
    """Answers that go on (server-sent events) at once in one process, ``KNEO_SERV_MAX_STREAMS``."""

    max_streams_per_person: int = 20
    """The same of one person, ``KNEO_SERV_MAX_STREAMS_PER_PERSON``; a service without API keys knows one person."""

    stream_heartbeat_seconds: float = 15.0
    """How often such an answer says that it is still there, ``KNEO_SERV_STREAM_HEARTBEAT_SECONDS``."""

    stream_slow_seconds: float = 30.0
    """How long its reader may take nothing before it is cut off, ``KNEO_SERV_STREAM_SLOW_SECONDS``."""

    health_providers: tuple[str, ...] = ()
    """Providers whose keys must be there for the service to be ready, ``KNEO_SERV_HEALTH_PROVIDERS``."""

    health_mcp_secrets: tuple[str, ...] = ()
    """Variables that must be there for the service to be ready, ``KNEO_SERV_HEALTH_MCP_SECRETS``."""

    health_free_bytes: int = 67_108_864
    """Bytes that must be free where the state is kept for the service to be ready, ``KNEO_SERV_HEALTH_FREE_BYTES``."""

    client_retries: int = 2
    """How often the client asks again where that is harmless, ``KNEO_SERV_CLIENT_RETRIES``."""

    client_backoff_seconds: float = 0.25
    """How much longer it waits each time, ``KNEO_SERV_CLIENT_RETRY_BACKOFF_SECONDS``."""

    client_idempotency_key: str = ""
    """The key that the client sends instead of a new one each time, ``KNEO_SERV_IDEMPOTENCY_KEY``."""


@dataclass(frozen=True, kw_only=True)
class Tracing:
    """What is told to OpenTelemetry. Where to is what the standard ``OTEL_…`` variables say."""

    enabled: bool = False
    """Whether spans are recorded, ``KNEO_SERV_OTEL_ENABLED``."""

    record_arguments: bool = False
    """Whether they carry what went into steps and tools, ``KNEO_SERV_OTEL_RECORD_ARGUMENTS``."""

    record_results: bool = False
    """Whether they carry what came out, ``KNEO_SERV_OTEL_RECORD_RESULTS``."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How runs are executed and how long what they leave behind is kept."""

    max_queue_depth: int = 10_000
    """Runs that may wait for a worker before further ones are refused, ``KNEO_SERV_MAX_QUEUE_DEPTH``."""

    checkpoint_compress_bytes: int = 65_536
    """Checkpoints from this size on are compressed, ``KNEO_SERV_CHECKPOINT_COMPRESS_BYTES``."""

    checkpoint_max_bytes: int = 1_048_576
    """Checkpoints that are larger even so keep only a preview, ``KNEO_SERV_CHECKPOINT_MAX_BYTES``."""

    checkpoint_preview_chars: int = 1_200
    """Characters of each text in such a preview, ``KNEO_SERV_CHECKPOINT_PREVIEW_CHARS``."""

    retention_days: Mapping[str, int] = field(default_factory=dict)
    """Days by what is kept (``runs``, ``checkpoints``, …), ``KNEO_SERV_RETENTION_<WHAT>_DAYS``; what is not named is
    kept as the project says, or for good."""

    retention_run_statuses: tuple[str, ...] = ()
    """Statuses of runs that may be deleted, ``KNEO_SERV_RETENTION_RUN_STATUSES``; empty: all final ones."""

    dispatch: str = "auto"
    """How due runs find a process to drive them, ``KNEO_SERV_DISPATCH``: ``auto`` needs nothing but the database,
    ``temporal`` leaves it to a Temporal server. The same for every process on a database."""

    temporal_address: str = "localhost:7233"
    """``host:port`` of the Temporal server, ``KNEO_SERV_TEMPORAL_ADDRESS``."""

    temporal_namespace: str = "default"
    """Its namespace, ``KNEO_SERV_TEMPORAL_NAMESPACE``; one for each database."""

    platform: str = ""
    """``module:factory`` that makes an embedding's platform, ``KNEO_SERV_PLATFORM``; empty: Kneo's own."""


@dataclass(frozen=True, kw_only=True)
class GitCredentials:
    """How processes log in to the host of a config repository. Paths only: each git and ssh reads the files itself, so
    that secrets which are rotated need no restart. Public https repositories need none of it.
    """

    username: str = "git"
    """User name that goes with the token, ``KNEO_SERV_GIT_USERNAME``; most hosts ignore it."""

    token_file: Path | None = None
    """A file whose first line is an access token, for https, ``KNEO_SERV_GIT_TOKEN_FILE``."""

    ssh_key_file: Path | None = None
    """A deploy key without a passphrase, for ssh, ``KNEO_SERV_GIT_SSH_KEY_FILE``."""

    known_hosts_file: Path | None = None
    """The host keys to accept, for ssh, ``KNEO_SERV_GIT_KNOWN_HOSTS_FILE``. Required there: an unknown host is never
    trusted on first use."""

    ca_file: Path | None = None
    """Certificate authorities to trust instead of the system's, for https, ``KNEO_SERV_GIT_CA_FILE``."""

    client_cert_file: Path | None = None
    """Client certificate for hosts that ask for one, ``KNEO_SERV_GIT_CLIENT_CERT_FILE``."""

    client_key_file: Path | None = None
    """Private key of the client certificate, ``KNEO_SERV_GIT_CLIENT_KEY_FILE``."""

    github_app_id: str = ""
    """App id or client id of a GitHub App, ``KNEO_SERV_GIT_GITHUB_APP_ID``, instead of a token file."""

    github_installation_id: str = ""
    """Id of the App's installation, ``KNEO_SERV_GIT_GITHUB_INSTALLATION_ID``."""

    github_app_key_file: Path | None = None
    """Private key of the App (RSA, PEM), ``KNEO_SERV_GIT_GITHUB_APP_KEY_FILE``."""

    github_api_url: str = ""
    """Base address of GitHub's API, ``KNEO_SERV_GIT_GITHUB_API_URL``; empty: derived from the repository's host."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One process's settings, read once at its start."""

    project_root: Path
    """Where the project is: the folder of ``.kneo``, or the working directory. Relative paths start here."""

    database_url: str = field(repr=False)
    """``sqlite:///path`` or ``postgresql+psycopg://…``; ``KNEO_SERV_DATABASE_URL``."""

    state_dir: Path
    """Folder for what is kept beside the database: Git mirrors, the service key. Mode 0700."""

    project_config: Path | None = None
    """The project's config file: ``KNEO_PROJECT_CONFIG``, or the one found at the project root; None where there is none."""

    environment: str = ""
    """The environment that commands use when none is named, ``KNEO_ENV``; empty means the project's own default."""

    spec_root: Path
    """Where specs named by path are read from, ``KNEO_SERV_SPEC_ROOT``; nothing outside it is."""

    trust_root: Digest | None = None
    """Digest of the first trust root this process believes, ``KNEO_SERV_TRUST_ROOT``."""

    import_allow: tuple[str, ...] = ()
    """Module prefixes that ``implementation:`` may name, ``KNEO_SERV_IMPORT_ALLOW``; empty means modules found under
    the import roots."""

    import_roots: tuple[Path, ...] = ()
    """Folders that ``implementation:`` modules are looked for in."""

    api_keys: str = field(default="", repr=False)
    """``name:key:role_or_scope[,…]`` joined by ``;``, ``KNEO_SERV_API_KEYS``."""

    admin_api_key: str = field(default="", repr=False)
    auth_enabled: bool = False
    status_words: str = "auto"
    """``auto``, ``documented`` or ``published``: which of two vocabularies answers speak."""

    known_roots_path: Path = Path("~/.kneo_serv/known_roots.json")
    """Where ``kneo init`` remembers which first trust root it made for which local repository."""

    profiles_path: Path = Path("~/.kneo_serv/profiles.json")
    client_api_key: str = field(default="", repr=False)
    """The key this process presents when it is a client, ``KNEO_SERV_API_KEY``."""

    client_timeout_seconds: float = 120.0
    key_passphrase: str = field(default="", repr=False)
    service_key: str = field(default="", repr=False)
    """PEM of the key that signs receipts, checkpoints and recorded decisions, ``KNEO_SERV_SERVICE_KEY``; on SQLite one is
    made when this is empty."""

    spec_signing_key: str = field(default="", repr=False)
    """Shared secret of bundles in the older HMAC format, ``KNEO_SERV_SPEC_SIGNING_KEY``."""

    hook_secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Secrets of webhooks by provider, ``KNEO_SERV_HOOK_SECRET_GITHUB`` and so on; a provider without one is refused."""

    notify: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Where notifications go, by channel: ``KNEO_SERV_NOTIFY_WEBHOOK``, ``…_SLACK`` (addresses), ``…_GITHUB``, ``…_GITLAB``,
    ``…_GITEA`` (API address of the repository, for commit statuses)."""

    channels: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Where people are told of questions, by the names that specs use: ``KNEO_SERV_CHANNEL_NAME``, where SLACK_OPS is ``slack-ops``.
    ``https://…`` is a webhook, ``slack:https://…`` a Slack-compatible one, ``smtp://…`` and ``smtps://…`` a mail server."""

    webhook_keys: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict, repr=False)
    """Secrets that sign messages to webhooks of tasks (Standard Webhooks), by channel: ``KNEO_SERV_CHANNEL_NAME_SECRET``;
    several separated by spaces while a receiver changes to another. A channel without one is sent unsigned messages."""

    notify_webhook_keys: tuple[bytes, ...] = field(default=(), repr=False)
    """The same for ``KNEO_SERV_NOTIFY_WEBHOOK``, ``KNEO_SERV_NOTIFY_WEBHOOK_SECRET``."""

    public_url: str = ""
    """Where people reach the service, ``KNEO_SERV_PUBLIC_URL``; links in messages begin with it. Empty: no links."""

    notify_token: str = field(default="", repr=False)
    """Token for commit statuses, ``KNEO_SERV_NOTIFY_TOKEN``."""

    metrics_port: int = 0
    """Where ``controller run`` answers liveness and metrics, ``KNEO_SERV_METRICS_PORT``; 0 is nowhere."""

    limits: Limits = field(default_factory=Limits)
    git: GitCredentials = field(default_factory=GitCredentials)
    http: Http = field(default_factory=Http)
    execution: Execution = field(default_factory=Execution)
    tracing: Tracing = field(default_factory=Tracing)

    def on(self, url: str) -> Settings:
        """Return the same for another database, with what is kept beside that one.

        Raises:
            Invalid: ``invalid_setting``: it is no database that we know.
        """
        url = _database_url(url, self.state_dir)
        return replace(self, database_url=url, state_dir=_state_dir(url, self.project_root))


def debug_wanted(env: Mapping[str, str] | None = None) -> bool:
    """Say whether errors come with their traceback, ``KNEO_SERV_DEBUG``.

    Beside ``Settings`` rather than in it, because it is also asked when the settings themselves are wrong.
    """
    env = _environment() if env is None else env
    return env.get("KNEO_SERV_DEBUG", "").strip().lower() in TRUE


def colour_wanted(env: Mapping[str, str] | None = None) -> bool:
    """Say whether a terminal may be coloured: not with ``NO_COLOR`` (no-color.org), not on a dumb terminal."""
    env = _environment() if env is None else env
    return not env.get("NO_COLOR") and env.get("TERM") != "dumb"


def process_environment(*names: str) -> dict[str, str]:
    """Pick variables to hand on to a process that starts with nothing else."""
    found = _environment()
    return {name: found[name] for name in names if name in found}


OWN_PREFIX = "KNEO_SERV_"
"""How the names of this program's own settings begin. Keys, passwords and addresses with passwords are among them."""

_hidden: dict[str, str] = {}
"""Settings that are no longer in the process's environment."""


def hide_settings() -> None:
    """Take this program's settings out of the environment, where functions of specs and what they start would see them.

    :func:`from_env` goes on knowing them. Code in the same process can still find them in memory.
    """
    for name in [name for name in os.environ if name.startswith(OWN_PREFIX)]:  # noqa: TID251 - this is that one reader
        _hidden[name] = os.environ.pop(name)  # noqa: TID251


def function_environment() -> dict[str, str]:
    """Return what a process that executes functions of specs starts with: everything but this program's settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith(OWN_PREFIX)}  # noqa: TID251


def _environment() -> Mapping[str, str]:
    return {**_hidden, **os.environ}  # noqa: TID251 - this is that one reader


def forget_calling_repository() -> None:
    """Drop the variables by which a Git hook that calls us says which repository it works on.

    Git, and what is built on it, would otherwise do in that repository what it is told to do in another.
    """
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX"):
        os.environ.pop(name, None)  # noqa: TID251 - this is that one reader


def _positive(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, "").strip()
    if not text:
        return default
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value <= 0:
        msg = f"{name} must be a whole number above 0, not {text[:40]!r}."
        raise Invalid(msg, code="invalid_setting")
    return value


def _count(env: Mapping[str, str], name: str, default: int) -> int:
    return 0 if env.get(name, "").strip() == "0" else _positive(env, name, default)


def _seconds(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        msg = f"{name} must be a number of seconds above 0, not {text[:40]!r}."
        raise Invalid(msg, code="invalid_setting")
    return value


def _switch(env: Mapping[str, str], name: str, *, default: bool) -> bool:
    text = env.get(name, "").strip().lower()
    return text in TRUE if text else default


def _listed(env: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in env.get(name, "").split(",") if part.strip())


OPEN_PAGES = ("metrics", "docs")
_HOST = re.compile(r"\*|[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\]")


def _pages(env: Mapping[str, str], name: str) -> tuple[str, ...]:
    pages = _listed(env, name)
    unknown = sorted(set(pages) - set(OPEN_PAGES))
    if unknown:
        msg = f"{name} lists {' and '.join(OPEN_PAGES)}, not {unknown[0][:40]!r}."
        raise Invalid(msg, code="invalid_setting")
    return pages


def _hosts(env: Mapping[str, str], name: str) -> tuple[str, ...]:
    hosts = tuple(host.lower() for host in _listed(env, name))
    wrong = [host for host in hosts if not _HOST.fullmatch(host)]
    if wrong:
        msg = f"{name} lists host names without scheme and port, as kneo.example.org, not {wrong[0][:60]!r}."
        raise Invalid(msg, code="invalid_setting")
    return hosts


LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def _http(env: Mapping[str, str]) -> Http:
    level = env.get("KNEO_SERV_LOG_LEVEL", "").strip().upper() or Http.log_level
    if level not in LOG_LEVELS:
        msg = f"KNEO_SERV_LOG_LEVEL must be one of {', '.join(LOG_LEVELS)}, not {level[:40]!r}."
        raise Invalid(msg, code="invalid_setting")
    return Http(
        request_logs=_switch(env, "KNEO_SERV_REQUEST_LOGS", default=True),
        log_level=level,
        metrics=_switch(env, "KNEO_SERV_METRICS_ENABLED", default=True),
        open_pages=_pages(env, "KNEO_SERV_OPEN_PAGES"),
        allowed_hosts=_hosts(env, "KNEO_SERV_ALLOWED_HOSTS"),
        anonymous=_switch(env, "KNEO_SERV_ALLOW_ANONYMOUS", default=False),
        header_bytes=_positive(env, "KNEO_SERV_MAX_HEADER_BYTES", Http.header_bytes),
        request_seconds=_seconds(env, "KNEO_SERV_REQUEST_TIMEOUT_SECONDS", Http.request_seconds),
        rate_per_minute=_count(env, "KNEO_SERV_RATE_LIMIT_PER_MINUTE", 0),
        idempotency_days=(
            _positive(env, "KNEO_SERV_RETENTION_IDEMPOTENCY_DAYS", 1)
            if env.get("KNEO_SERV_RETENTION_IDEMPOTENCY_DAYS", "").strip()
            else None
        ),
        max_streams=_positive(env, "KNEO_SERV_MAX_STREAMS", Http.max_streams),
        max_streams_per_person=_positive(env, "KNEO_SERV_MAX_STREAMS_PER_PERSON", Http.max_streams_per_person),
        stream_heartbeat_seconds=_seconds(env, "KNEO_SERV_STREAM_HEARTBEAT_SECONDS", Http.stream_heartbeat_seconds),
        stream_slow_seconds=_seconds(env, "KNEO_SERV_STREAM_SLOW_SECONDS", Http.stream_slow_seconds),
        health_providers=_listed(env, "KNEO_SERV_HEALTH_PROVIDERS"),
        health_mcp_secrets=_listed(env, "KNEO_SERV_HEALTH_MCP_SECRETS"),
        health_free_bytes=_count(env, "KNEO_SERV_HEALTH_FREE_BYTES", Http.health_free_bytes),
        client_retries=_count(env, "KNEO_SERV_CLIENT_RETRIES", Http.client_retries),
        client_backoff_seconds=_seconds(env, "KNEO_SERV_CLIENT_RETRY_BACKOFF_SECONDS", Http.client_backoff_seconds),
        client_idempotency_key=env.get("KNEO_SERV_IDEMPOTENCY_KEY", "").strip(),
    )


RETAINED = ("runs", "checkpoints", "queue", "continuations", "artifacts", "logs", "audit")
"""What can be kept for a number of days; idempotency keys have a setting of their own."""


def _execution(env: Mapping[str, str]) -> Execution:
    dispatch = env.get("KNEO_SERV_DISPATCH", "").strip() or Execution.dispatch
    if dispatch not in {"auto", "temporal"}:
        msg = f"KNEO_SERV_DISPATCH must be auto or temporal, not {dispatch[:40]!r}."
        raise Invalid(msg, code="invalid_setting")
    names = {what: "KNEO_SERV_RETENTION_" + what.upper() + "_DAYS" for what in RETAINED}
    return Execution(
        max_queue_depth=_positive(env, "KNEO_SERV_MAX_QUEUE_DEPTH", Execution.max_queue_depth),
        checkpoint_compress_bytes=_positive(
            env, "KNEO_SERV_CHECKPOINT_COMPRESS_BYTES", Execution.checkpoint_compress_bytes
        ),
        checkpoint_max_bytes=_positive(env, "KNEO_SERV_CHECKPOINT_MAX_BYTES", Execution.checkpoint_max_bytes),
        checkpoint_preview_chars=_positive(
            env, "KNEO_SERV_CHECKPOINT_PREVIEW_CHARS", Execution.checkpoint_preview_chars
        ),
        retention_days={what: _count(env, name, 0) for what, name in names.items() if env.get(name, "").strip()},
        retention_run_statuses=_listed(env, "KNEO_SERV_RETENTION_RUN_STATUSES"),
        dispatch=dispatch,
        temporal_address=env.get("KNEO_SERV_TEMPORAL_ADDRESS", "").strip() or Execution.temporal_address,
        temporal_namespace=env.get("KNEO_SERV_TEMPORAL_NAMESPACE", "").strip() or Execution.temporal_namespace,
        platform=env.get("KNEO_SERV_PLATFORM", "").strip(),
    )


_APP_ID = re.compile(r"[A-Za-z0-9]{1,100}")


def _git(env: Mapping[str, str], cwd: Path) -> GitCredentials:
    def text(name: str) -> str:
        return env.get(f"KNEO_SERV_GIT_{name}", "").strip()

    def file(name: str) -> Path | None:
        return cwd / Path(text(name)).expanduser() if text(name) else None

    git = GitCredentials(
        username=text("USERNAME") or GitCredentials.username,
        token_file=file("TOKEN_FILE"),
        ssh_key_file=file("SSH_KEY_FILE"),
        known_hosts_file=file("KNOWN_HOSTS_FILE"),
        ca_file=file("CA_FILE"),
        client_cert_file=file("CLIENT_CERT_FILE"),
        client_key_file=file("CLIENT_KEY_FILE"),
        github_app_id=text("GITHUB_APP_ID"),
        github_installation_id=text("GITHUB_INSTALLATION_ID"),
        github_app_key_file=file("GITHUB_APP_KEY_FILE"),
        github_api_url=text("GITHUB_API_URL").rstrip("/"),
    )
    problem = _git_problem(git)
    if problem is not None:
        raise Invalid(problem, code="invalid_setting")
    return git


def _git_problem(git: GitCredentials) -> str | None:
    """Name what makes no sense together, or alone."""
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


HOOK_PROVIDERS = ("github", "gitlab", "gitea", "bitbucket", "generic")
NOTIFY_CHANNELS = ("webhook", "slack", "github", "gitlab", "gitea", "bitbucket")


def _by_suffix(env: Mapping[str, str], prefix: str, names: Iterable[str]) -> dict[str, str]:
    return {name: value for name in names if (value := env.get(prefix + name.upper(), "").strip())}


MAX_CHANNELS = 100


def _named_by(env: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Read a family of variables whose ends are names: ``…_SLACK_OPS`` is ``slack-ops``."""
    found = {
        name.removeprefix(prefix).lower().replace("_", "-"): value.strip()
        for name, value in env.items()
        if name.startswith(prefix) and value.strip()
    }
    if len(found) > MAX_CHANNELS:
        msg = f"There are {len(found)} variables {prefix}…; at most {MAX_CHANNELS} are read."
        raise Invalid(msg, code="invalid_setting")
    return found


_RESERVED_ENDS = ("-file", "-secrets", "-token", "-password", "-key", "-keys")
"""Ends of names that say what a setting of a channel holds: never a channel, so that none is read as an address."""


def _channel_variable(name: str) -> str:
    return "KNEO_SERV_CHANNEL_" + name.upper().replace("-", "_")


def _channels(env: Mapping[str, str]) -> tuple[dict[str, str], dict[str, tuple[bytes, ...]]]:
    """Read the channels of tasks, and the secrets of those that are webhooks.

    Raises:
        Invalid: ``invalid_setting``: a secret belongs to no webhook, or is none, or a name is no setting.
    """
    found = _named_by(env, "KNEO_SERV_CHANNEL_")
    for name in sorted(found):
        if name.endswith(_RESERVED_ENDS):
            msg = f"{_channel_variable(name)} is no setting; names of channels do not end like that."
            hint = "KNEO_SERV_CHANNEL_NAME is a channel, KNEO_SERV_CHANNEL_NAME_SECRET its secret; name a channel otherwise."
            raise Invalid(msg, code="invalid_setting", hint=hint)
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
        msg = (
            f"{variable} is the secret of a webhook, and {variable.removesuffix('_SECRET')} is not the address of one."
        )
        raise Invalid(msg, code="invalid_setting")
    keys = []
    for secret in text.split():
        try:
            key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except ValueError:
            key = b""
        if not 24 <= len(key) <= 64:
            msg = f"{variable} holds no secret of a webhook: whsec_ and 24 to 64 random bytes in base64."
            hint = "python3 -c \"import base64, secrets; print('whsec_' + base64.b64encode(secrets.token_bytes(32)).decode())\""
            raise Invalid(msg, code="invalid_setting", hint=hint)
        keys.append(key)
    return tuple(keys)


def _public_url(env: Mapping[str, str], name: str) -> str:
    url = env.get(name, "").strip().rstrip("/")
    if url and not url.startswith(("https://", "http://")):
        msg = f"{name} must begin with https:// or http://, not {url[:40]!r}."
        raise Invalid(msg, code="invalid_setting")
    return url


def _port(env: Mapping[str, str], name: str) -> int:
    text = env.get(name, "").strip() or "0"
    if not (text.isascii() and text.isdecimal() and len(text) <= 5) or int(text) > 65_535:
        msg = f"{name} must be a port from 1 to 65535, or 0 for none, not {text[:40]!r}."
        raise Invalid(msg, code="invalid_setting")
    return int(text)


PROJECT_CONFIGS = (".kneo/config.yaml", ".kneo/config.yml", "kneo_serv.yaml", "kneo_serv.yml")
"""Where a project's config may stand below its root, in the order of preference."""


def find_project_config(start: Path) -> Path | None:
    """Find the project config in the nearest folder at or above ``start`` that has one."""
    candidates = (folder / name for folder in (start, *start.parents) for name in PROJECT_CONFIGS)
    return next((path for path in candidates if path.is_file()), None)


def project_root_of(config: Path) -> Path:
    """Return the folder a project config speaks of: its own, or the one that holds ``.kneo``."""
    return config.parent.parent if config.parent.name == ".kneo" else config.parent


def _project_config(env: Mapping[str, str], cwd: Path) -> Path | None:
    named = env.get("KNEO_PROJECT_CONFIG", "").strip()
    if not named:
        return find_project_config(cwd)
    path = cwd / Path(named).expanduser()
    if not path.is_file():
        msg = f"KNEO_PROJECT_CONFIG names {path}, and there is no such file."
        raise Invalid(msg, code="invalid_setting")
    return path


def variables_set(names: Iterable[str], env: Mapping[str, str] | None = None) -> frozenset[str]:
    """Tell which of these variables have a value, without looking at any value."""
    env = _environment() if env is None else env
    return frozenset(name for name in names if env.get(name))


def _trust_root(text: str) -> Digest | None:
    try:
        return parse_digest(text) if text else None
    except Invalid as error:
        msg = f"KNEO_SERV_TRUST_ROOT: {error.message}"
        raise Invalid(msg, code="invalid_setting") from error


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
    """Beside a file, what belongs to it; a server's is the project's."""
    return Path(url.removeprefix("sqlite:///")).parent if url.startswith("sqlite:///") else root / ".kneo"


def from_env(env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Settings:
    """Read the settings of this process.

    Raises:
        Invalid: a variable has a value that makes no sense; its name is in the message.
    """
    env = _environment() if env is None else env
    cwd = Path.cwd() if cwd is None else cwd
    config = _project_config(env, cwd)
    root = project_root_of(config) if config is not None else cwd
    state_path = root / ".kneo" / "kneo_runs.sqlite"
    url = _database_url(env.get("KNEO_SERV_DATABASE_URL", "").strip(), state_path)
    state_dir = _state_dir(url, root)
    limits = Limits(
        body_bytes=_positive(env, "KNEO_SERV_MAX_BODY_BYTES", Limits.body_bytes),
        input_chars=_positive(env, "KNEO_SERV_MAX_INPUT_CHARS", Limits.input_chars),
        human_content_chars=_positive(env, "KNEO_SERV_MAX_HUMAN_CONTENT_CHARS", Limits.human_content_chars),
        inline_spec_bytes=_positive(env, "KNEO_SERV_MAX_INLINE_SPEC_BYTES", Limits.inline_spec_bytes),
        overrides_bytes=_positive(env, "KNEO_SERV_MAX_OVERRIDES_BYTES", Limits.overrides_bytes),
        metadata_bytes=_positive(env, "KNEO_SERV_MAX_METADATA_BYTES", Limits.metadata_bytes),
        path_chars=_positive(env, "KNEO_SERV_MAX_PATH_CHARS", Limits.path_chars),
        page_items=_positive(env, "KNEO_SERV_MAX_LIST_ITEMS", Limits.page_items),
    )
    keys, admin = env.get("KNEO_SERV_API_KEYS", ""), env.get("KNEO_SERV_ADMIN_API_KEY", "")
    words = env.get("KNEO_SERV_STATUS_WORDS", "auto")
    if words not in {"auto", "documented", "published"}:
        msg = f"KNEO_SERV_STATUS_WORDS must be auto, documented or published, not {words[:40]!r}."
        raise Invalid(msg, code="invalid_setting")
    home = Path(env.get("HOME", "~")).expanduser()
    channels, webhook_keys = _channels(env)
    return Settings(
        project_root=root,
        database_url=url,
        state_dir=state_dir,
        project_config=config,
        environment=env.get("KNEO_ENV", "").strip(),
        spec_root=Path(env.get("KNEO_SERV_SPEC_ROOT", "") or root),
        trust_root=_trust_root(env.get("KNEO_SERV_TRUST_ROOT", "").strip()),
        import_allow=tuple(p.strip() for p in env.get("KNEO_SERV_IMPORT_ALLOW", "").split(",") if p.strip()),
        import_roots=(root,) if cwd == root else (root, cwd),
        api_keys=keys,
        admin_api_key=admin,
        auth_enabled=env.get("KNEO_SERV_AUTH_ENABLED", "").strip().lower() in TRUE or bool(keys or admin),
        status_words=words,
        known_roots_path=Path(
            env.get("KNEO_SERV_KNOWN_ROOTS_PATH", "") or home / ".kneo_serv" / "known_roots.json"
        ).expanduser(),
        profiles_path=Path(
            env.get("KNEO_SERV_PROFILES_PATH", "") or home / ".kneo_serv" / "profiles.json"
        ).expanduser(),
        client_api_key=env.get("KNEO_SERV_API_KEY", ""),
        client_timeout_seconds=float(_positive(env, "KNEO_SERV_CLIENT_TIMEOUT", 120)),
        key_passphrase=env.get("KNEO_SERV_KEY_PASSPHRASE", ""),
        service_key=env.get("KNEO_SERV_SERVICE_KEY", ""),
        spec_signing_key=env.get("KNEO_SERV_SPEC_SIGNING_KEY", ""),
        hook_secrets=_by_suffix(env, "KNEO_SERV_HOOK_SECRET_", HOOK_PROVIDERS),
        notify=_by_suffix(env, "KNEO_SERV_NOTIFY_", NOTIFY_CHANNELS),
        channels=channels,
        webhook_keys=webhook_keys,
        notify_webhook_keys=_webhook_keys(
            "KNEO_SERV_NOTIFY_WEBHOOK_SECRET",
            env.get("KNEO_SERV_NOTIFY_WEBHOOK_SECRET", ""),
            env.get("KNEO_SERV_NOTIFY_WEBHOOK", "").strip(),
        ),
        public_url=_public_url(env, "KNEO_SERV_PUBLIC_URL"),
        notify_token=env.get("KNEO_SERV_NOTIFY_TOKEN", ""),
        metrics_port=_port(env, "KNEO_SERV_METRICS_PORT"),
        limits=limits,
        git=_git(env, cwd),
        http=_http(env),
        execution=_execution(env),
        tracing=Tracing(
            enabled=_switch(env, "KNEO_SERV_OTEL_ENABLED", default=False),
            record_arguments=_switch(env, "KNEO_SERV_OTEL_RECORD_ARGUMENTS", default=False),
            record_results=_switch(env, "KNEO_SERV_OTEL_RECORD_RESULTS", default=False),
        ),
    )
