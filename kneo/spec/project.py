"""Project config, ``.kneo/config.yaml``: the name, folders, defaults and environments of a project.

Unknown keys are errors, except in ``environments.<env>``, where projects keep notes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import indent
from typing import Literal

from pydantic import ConfigDict, Field

from kneo.spec.base import JsonObject, ListOf, MapOf, SpecModel
from kneo.spec.models.agent import RuntimeMode
from kneo.spec.models.providers import PROVIDER_VARIABLES
from kneo.spec.policy import PolicyFlags
from kneo.spec.reading.normalize import SpecDefaults
from kneo.spec.reading.reader import read
from kneo.spec.reading.validate import parse_model
from kneo.spec.reading.yaml import write_yaml

FALLBACK_ENVIRONMENT = "dev"

SERVICE_TOKENS = ("KNEO_SERV_API_KEY", "KNEO_SERV_API_KEYS", "KNEO_SERV_ADMIN_API_KEY")


class ProjectAbout(SpecModel):
    """The name and owner of a project."""

    name: str
    owner: str | None = None
    description: str | None = None
    default_environment: str = FALLBACK_ENVIRONMENT
    tags: ListOf[str] = ()


class ServiceConnection(SpecModel):
    """The default service of commands."""

    default_url: str | None = None
    timeout_seconds: float = Field(default=120, gt=0)
    headers: dict[str, str] = Field(default_factory=dict)


class LocalPlaces(SpecModel):
    """The folders of local runs, below the project's root."""

    state_path: str = ".kneo/kneo_runs.sqlite"
    artifact_path: str = ".kneo/artifacts"
    log_path: str = ".kneo/logs"
    cache_path: str = ".kneo/cache"
    create_missing_dirs: bool = Field(
        default=True,
        description="Read from configs of kneo-serv, without effect: a folder is made when a file is written.",
    )


class SpecPlaces(SpecModel):
    """The default spec, and the overlays of each environment."""

    default_spec: str | None = None
    overlays: MapOf[ListOf[str]] = Field(
        default_factory=dict, description="Overlay files of each environment, in order."
    )
    include_paths: ListOf[str] = Field(default=(), description="Read from configs of kneo-serv, without effect.")
    validate_on_run: bool = Field(
        default=True,
        description="Read from configs of kneo-serv, without effect: a run of a spec with errors is always refused.",
    )


class RuntimeDefaults(SpecModel):
    """Fills the root agent's runtime_preferences."""

    preferred_mode: RuntimeMode | None = "bridge"
    allowed_modes: ListOf[RuntimeMode] | None = ("bridge",)
    fallback_mode: RuntimeMode | None = None
    native_provider: str | None = None
    adapter_ref: str | None = None
    bridge_provider: str | None = None


class ModelDefaults(SpecModel):
    """Fills the root agent's model in one environment."""

    provider: str | None = None
    name: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    timeout_seconds: int | None = Field(default=None, ge=1)
    extra: JsonObject = Field(default_factory=dict)


class Checkpointing(SpecModel):
    enabled: bool = True
    mode: Literal["none", "run", "step", "node"] = "step"


class Logging(SpecModel):
    level: Literal["debug", "info", "warning", "error"] = "info"


class TracingConfig(SpecModel):
    enabled: bool = True
    include_messages: bool = False
    include_tool_results: bool = True


class DefaultGuardrails(SpecModel):
    enable_default_input_filter: bool = False
    enable_default_output_review: bool = False


class PolicyDefaults(SpecModel):
    """Default policies of runs; kept in the spec as policies.project_defaults."""

    checkpointing: Checkpointing = Checkpointing()
    logging: Logging = Logging()
    tracing: TracingConfig = TracingConfig()
    guardrails: DefaultGuardrails = DefaultGuardrails()


class Secrets(SpecModel):
    """Names of the environment variables that hold secrets."""

    provider_env: dict[str, str] = Field(default_factory=dict, description="Variable of each provider's key.")
    extra_env: dict[str, str] = Field(default_factory=dict, description="Further variables, by a name for each.")


MIN_USAGE_DAYS = 31
"""A budget per month adds up the days of its month."""

_DAYS = Field(default=None, ge=0, description="Days to keep; left out: for ever.")


class Retention(SpecModel):
    """Retention periods."""

    runs_days: int | None = _DAYS
    checkpoints_days: int | None = _DAYS
    queue_days: int | None = Field(
        default=None,
        ge=0,
        description="Read from configs of kneo-serv. A job of the queue is deleted when its run is released: nothing is left to keep.",
    )
    continuations_days: int | None = _DAYS
    sessions_days: int | None = Field(
        default=None, ge=0, description="Days to keep what agents remember of a session after its last run."
    )
    artifacts_days: int | None = _DAYS
    logs_days: int | None = _DAYS
    audit_days: int | None = Field(
        default=None,
        ge=0,
        description="Read from configs of kneo-serv, without effect: audit events are never deleted.",
    )
    idempotency_days: int | None = _DAYS
    usage_days: int | None = Field(
        default=None,
        ge=MIN_USAGE_DAYS,
        description="Days to keep the usage of models, at least those of one month, which its budgets need; left out: for ever.",
    )


class ProjectEnvironment(SpecModel):
    """Settings of one environment; further keys are the project's own."""

    model_config = ConfigDict(extra="allow")

    policy_enforcement: PolicyFlags | None = None
    defaults: JsonObject = Field(default_factory=dict, description="The base of specs in this environment.")


class ProjectConfig(SpecModel):
    """A project's settings for the kneo command."""

    model_config = ConfigDict(title="Kneo project config")

    project: ProjectAbout
    service: ServiceConnection = ServiceConnection()
    local: LocalPlaces = LocalPlaces()
    specs: SpecPlaces = SpecPlaces()
    runtime_defaults: RuntimeDefaults = RuntimeDefaults()
    model_defaults: MapOf[ModelDefaults] = Field(default_factory=dict)
    policy_defaults: PolicyDefaults = PolicyDefaults()
    secrets: Secrets = Secrets()
    retention: Retention = Retention()
    environments: MapOf[ProjectEnvironment] = Field(default_factory=dict)

    def policy(self, environment: str) -> PolicyFlags | None:
        """Return the policy of an environment; None where the project has none."""
        found = self.environments.get(environment)
        return found.policy_enforcement if found is not None else None

    def spec_defaults(self, environment: str) -> SpecDefaults:
        """Return the defaults of specs in an environment."""
        found = self.environments.get(environment)
        model = self.model_defaults.get(environment)
        return SpecDefaults(
            base=found.defaults if found is not None else {},
            model=_stated(model) if model is not None else {},
            runtime=_stated(self.runtime_defaults),
            metadata={"project": self.project.name, "environment": environment},
            policies=self.policy_defaults.model_dump(mode="json"),
        )

    def provider_variables(self) -> dict[str, str]:
        """Return the environment variable of each provider's key; what the project lists replaces the usual list."""
        return dict(self.secrets.provider_env) or dict(PROVIDER_VARIABLES)


def parse_project(data: bytes, *, file: str) -> ProjectConfig:
    """Read a project config.

    Raises:
        Unreadable: the bytes are not a document.
        InvalidDeclaration: the document is not a project config; the findings carry file and line.
    """
    return parse_model(ProjectConfig, read(data, file=file))


def choose_environment(named: str | None, variable: str, config: ProjectConfig | None) -> str:
    """Return the environment of a command: the named one, ``KNEO_ENV``, the project's default, or ``dev``."""
    return named or variable or (config.project.default_environment if config is not None else FALLBACK_ENVIRONMENT)


def provider_variable(provider: str) -> str:
    """Return the environment variable of a provider's key."""
    name = "".join(letter if letter.isalnum() else "_" for letter in provider).upper()
    return PROVIDER_VARIABLES.get(provider, f"{name}_API_KEY")


def _stated(model: SpecModel) -> dict[str, object]:
    return {key: value for key, value in model.model_dump(mode="json").items() if value not in (None, {})}


_TEMPLATE = """\
project:
  name: {name}
  owner: ai-platform
  default_environment: dev

local:
  state_path: .kneo/kneo_runs.sqlite
  artifact_path: .kneo/artifacts
  log_path: .kneo/logs
  cache_path: .kneo/cache

# The service of commands; left out, commands run locally.
# service:
#   default_url: http://localhost:8000

# The default spec, and the overlays of each environment.
specs:
{specs}
  validate_on_run: true

runtime_defaults:
  preferred_mode: bridge
  allowed_modes: [bridge, native, adapter]
  fallback_mode: native

# Names of environment variables; a file never holds their values.
secrets:
  provider_env:
    openai: OPENAI_API_KEY
  extra_env:
    mcp_default: MCP_API_KEY

# Retention in days; null keeps data for ever.
retention:
  runs_days: null
  checkpoints_days: null
  queue_days: null
  continuations_days: null
  sessions_days: null
  artifacts_days: null
  logs_days: null

environments:
  dev:
    policy_enforcement:
      enabled: false
  staging:
    policy_enforcement:
      require_tool_permissions: true
      blocked_diagnostic_codes: [E_UNSAFE_TOOL_IMPORT, E_UNSAFE_FUNCTION_IMPORT]
  prod:
    policy_enforcement:
      require_tool_permissions: true
      deny_unrestricted_tools: true
      require_human_review: true
      require_guardrails: true
      blocked_diagnostic_codes: [E_UNSAFE_TOOL_IMPORT, E_UNSAFE_FUNCTION_IMPORT]
"""

_NO_SPECS = """\
  # default_spec: specs/agent.yaml
  # overlays:
  #   prod: [specs/agent.prod.yaml]"""


def render_project(
    name: str, default_spec: str | None = None, overlays: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Write a new project's config.

    Args:
        name: The project's name.
        default_spec: A spec that exists; a default that is not there would break every command.
        overlays: The overlay files of each environment that has any.
    """
    specs: dict[str, object] = {"default_spec": default_spec} if default_spec else {}
    if overlays:
        specs["overlays"] = {environment: list(files) for environment, files in overlays.items()}
    shown = indent(write_yaml(specs).rstrip("\n"), "  ") if specs else _NO_SPECS
    return _TEMPLATE.format(name=write_yaml(name).splitlines()[0], specs=shown)
