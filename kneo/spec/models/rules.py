"""Rules of an environment for models, tools and protocols.

They are read when a model is asked and when a tool is called, from the file that is then in force: a rule that is tightened
reaches runs that wait. Keys are written as in specs.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import ConfigDict, Field, model_validator

from kneo.spec.base import FullPath, Host, HostAndPort, ListOf, MapOf, Pattern, SecretName, SpecModel, refused

MAX_RULES = 1_000

Money: TypeAlias = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class AllowedModel(SpecModel):
    """Models of a provider."""

    provider: str = Field(examples=["openai"])
    names: ListOf[Pattern] = Field(
        default=("*",), min_length=1, description="Patterns of names.", examples=[["gpt-5*"]]
    )


class ModelConnection(SpecModel):
    """The connection to a provider; it replaces what specs and the project state."""

    api_key_ref: SecretName | None = Field(default=None, description="The secret that holds the key.")
    base_url: str | None = Field(default=None, max_length=2_000, examples=["https://gateway.example/v1"])


class ModelLimit(SpecModel):
    """Limits of the requests to a provider, over all runs of the environment; at least one is required."""

    provider: str
    concurrency: int | None = Field(default=None, ge=1, le=100_000, description="Requests at a time, per worker.")
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.concurrency is None and self.requests_per_minute is None and self.tokens_per_minute is None:
            message = "A limit has concurrency, requests_per_minute or tokens_per_minute."
            raise refused("E_ENVIRONMENT", message)
        return self


class ModelBudget(SpecModel):
    """Tokens and cost that runs may use; checked before each request. At least one of tokens and cost is required."""

    per: Literal["run", "day", "month"] = Field(
        description="A run, or all runs of the environment in a day or month (UTC)."
    )
    tokens: int | None = Field(default=None, ge=1)
    cost: Money | None = Field(default=None, description="In the currency of the prices.")
    on_exceeded: Literal["fail", "ask"] = Field(
        default="fail", description="fail ends the run; ask asks a person, whose approval grants the budget once more."
    )

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if self.tokens is None and self.cost is None:
            message = "A budget has tokens or cost."
            raise refused("E_ENVIRONMENT", message)
        return self


class ModelPrice(SpecModel):
    """The price of a model per million tokens."""

    input: Money
    output: Money


class ModelRules(SpecModel):
    """Rules for models: which ones, through which connection, how often, and for how much."""

    model_config = ConfigDict(title="Models")

    allow: ListOf[AllowedModel] | None = Field(
        default=None, max_length=MAX_RULES, description="The only models that may be asked. Left out: every one."
    )
    connections: MapOf[ModelConnection] = Field(default_factory=dict, description="Connections by provider.")
    hosts: ListOf[Host] = Field(
        default=(),
        max_length=MAX_RULES,
        description="Hosts that the base_url of a spec may name, each in full. Left out: none.",
    )
    limits: ListOf[ModelLimit] = Field(default=(), max_length=MAX_RULES)
    budgets: ListOf[ModelBudget] = Field(default=(), max_length=MAX_RULES)
    prices: MapOf[ModelPrice] = Field(
        default_factory=dict, description="Prices by the model's name; known prices are built in."
    )

    def permits(self, provider: str, name: str) -> bool:
        """Tell whether a model may be asked."""
        return self.allow is None or any(
            each.provider == provider and any(fnmatchcase(name, pattern) for pattern in each.names)
            for each in self.allow
        )


class McpRules(SpecModel):
    """Rules for MCP servers."""

    commands: ListOf[FullPath] = Field(
        default=(),
        max_length=MAX_RULES,
        description="Full paths of the programs that servers over stdio may be. Left out: none.",
        examples=[["/usr/local/bin/crm-mcp"]],
    )
    hosts: ListOf[Host] | None = Field(
        default=None,
        max_length=MAX_RULES,
        description="The only hosts that servers over HTTP may have. Left out: every public one.",
    )
    pinned: bool = Field(
        default=False, description="Whether bundles must pin the tools of MCP servers; a changed tool is refused."
    )


class ProtocolRules(SpecModel):
    """Bundles that other programs may call by a protocol, with the API keys of the service."""

    a2a: ListOf[Pattern] = Field(
        default=(),
        max_length=MAX_RULES,
        description="Patterns of bundles that are served over Agent2Agent. Left out: none.",
        examples=[["research-agent"]],
    )
    mcp: ListOf[Pattern] = Field(
        default=(),
        max_length=MAX_RULES,
        description="Patterns of bundles that are tools of the service's MCP server. Left out: none.",
        examples=[["*"]],
    )

    def serving(self, bundle: str) -> tuple[str, ...]:
        """Return the protocols that serve a bundle."""
        served = {"a2a": self.a2a, "mcp": self.mcp}
        return tuple(name for name, patterns in served.items() if any(fnmatchcase(bundle, each) for each in patterns))


class ToolRules(SpecModel):
    """Rules for tools, in addition to the permissions that specs state."""

    deny: ListOf[Pattern] = Field(
        default=(),
        max_length=MAX_RULES,
        description="Patterns of tools that are refused.",
        examples=[["shell", "*.delete_*"]],
    )
    allow: ListOf[Pattern] | None = Field(
        default=None,
        max_length=MAX_RULES,
        description="Patterns of the only tools that may be called. Left out: every one.",
    )
    inside: ListOf[HostAndPort] = Field(
        default=(),
        max_length=MAX_RULES,
        description="Addresses inside the network that tools may reach, also without TLS. A spec cannot name any.",
        examples=[["crm.internal:8443"]],
    )
    mcp: McpRules = McpRules()

    def permits(self, name: str) -> bool:
        """Tell whether a tool may be called, by its name in the spec."""
        if any(fnmatchcase(name, pattern) for pattern in self.deny):
            return False
        return self.allow is None or any(fnmatchcase(name, pattern) for pattern in self.allow)
