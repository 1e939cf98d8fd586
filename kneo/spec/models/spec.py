"""Specs: the root, its components, tools, skills and MCP servers."""

from __future__ import annotations

from typing import Literal, Self, TypeAlias

from pydantic import ConfigDict, Field, model_validator

from kneo.spec.base import JsonObject, ListOf, MapOf, SpecModel, Text, refused
from kneo.spec.models.agent import Agent
from kneo.spec.models.human import AnyHuman, Review, check_review
from kneo.spec.models.workflow import AnyWorkflow

Capability: TypeAlias = Literal["network", "filesystem_read", "filesystem_write", "shell", "privileged"]
"""What a call may do beyond computing its result; ``privileged`` is anything that should not happen unseen."""


class McpToolRef(SpecModel):
    """A tool of an MCP server."""

    server: str | None = Field(default=None, description="A name in mcp_servers.")
    name: str | None = Field(default=None, description="The tool's name there, where it differs.")


class Tool(SpecModel):
    """Something an agent can call, backed by exactly one of implementation, mcp and agent."""

    description: Text = Field(description="The purpose of the tool, for the model.")
    parameters: JsonObject = Field(default_factory=dict, description="JSON Schema of its arguments.")
    implementation: str | None = Field(
        default=None, description="Dotted path of a Python callable: package.module.name."
    )
    mcp: McpToolRef | None = None
    agent: str | None = Field(default=None, description="A name in components.agents: the agent is the tool.")
    capabilities: ListOf[Capability] = Field(default=(), description="What a call may do beyond computing its result.")
    always_ask: bool = Field(default=False, description="Whether standing grants never apply to it.")
    review: Review | None = Field(default=None, description="Where people are asked about its calls: before, external.")

    @model_validator(mode="after")
    def _gates_are_in_place(self) -> Self:
        check_review(self.review, "a tool", ("before", "external"))
        return self


class Skill(SpecModel):
    """Instructions in a file or folder that agents can be given."""

    source: str | None = Field(default=None, description="Path of a file or folder.")
    description: Text | None = None
    content: Text | None = Field(default=None, description="The instructions themselves, in place of a source.")
    tools: ListOf[str] = Field(default=(), description="Tools the instructions speak of.")
    resources: MapOf[Text] = Field(default_factory=dict, description="Further texts that came with the instructions.")

    @model_validator(mode="after")
    def _has_one_origin(self) -> Self:
        if (self.source is None) == (self.content is None):
            message = "A skill has a source or its content."
            raise refused("E_SCHEMA", message, "source")
        return self


class McpServer(SpecModel):
    """A server that offers tools over the Model Context Protocol."""

    transport: Literal["stdio", "http", "sse"]
    command: str | None = Field(default=None, description="stdio: the program to start.")
    args: ListOf[str] = ()
    env: dict[str, str] | None = Field(default=None, description="stdio: variables for the program.")
    cwd: str | None = None
    url: str | None = Field(default=None, description="http: where the server is.")
    sse_url: str | None = Field(default=None, description="sse: where events come from.")
    message_url: str | None = Field(default=None, description="sse: where messages go.")
    headers: dict[str, str] | None = None
    timeout: float | None = Field(default=None, gt=0, description="Seconds for one call.")
    max_response_bytes: int | None = Field(default=None, gt=0)
    sse_read_timeout: float | None = Field(default=None, gt=0, description="Seconds without an event.")
    verify: bool | None = Field(default=None, description="Whether the server's certificate is checked; left out: yes.")
    ca_bundle: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    client_key_ref: str | None = Field(default=None, description="Environment variable that holds the client key.")


class FunctionComponent(SpecModel):
    """A Python function that a step runs."""

    implementation: str = Field(description="Dotted path of a Python callable: package.module.name.")
    description: Text | None = None
    input_schema: JsonObject | None = Field(default=None, description="JSON Schema of what it is given.")
    output_schema: JsonObject | None = Field(default=None, description="JSON Schema of what it returns.")
    capabilities: ListOf[Capability] = Field(default=(), description="What a call may do beyond computing its result.")


class Components(SpecModel):
    """Named parts that steps and agents refer to."""

    agents: MapOf[Agent] = Field(default_factory=dict)
    workflows: MapOf[AnyWorkflow] = Field(default_factory=dict)
    functions: MapOf[FunctionComponent] = Field(default_factory=dict)
    humans: MapOf[AnyHuman] = Field(default_factory=dict)


class Spec(SpecModel):
    """One agent or workflow with everything it needs."""

    model_config = ConfigDict(title="Kneo spec v1")

    version: Literal["v1"] = "v1"
    metadata: JsonObject | None = Field(default=None, description="Anything worth noting.")
    agent: Agent = Field(description="The root agent.")
    workflow: AnyWorkflow | None = Field(default=None, description="Left out: the root agent answers by itself.")
    targets: ListOf[Literal["workflow", "agent"]] = Field(
        default=(),
        description="What a run of a released bundle may execute; left out: its workflow, where it has one, alone.",
    )
    components: Components = Components()
    tools: MapOf[Tool] = Field(default_factory=dict)
    skills: MapOf[Skill] = Field(default_factory=dict)
    policies: JsonObject = Field(default_factory=dict, description="Project defaults are kept here.")
    mcp_servers: MapOf[McpServer] = Field(default_factory=dict)

    def allows(self, target: str) -> bool:
        """Tell whether a released bundle of this spec may be run with a target."""
        return self.workflow is None or target in (self.targets or ("workflow",))
