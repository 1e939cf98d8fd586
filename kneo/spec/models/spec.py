"""The root of a spec."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from kneo.spec.base import JsonObject, ListOf, MapOf, SpecModel, Text
from kneo.spec.models.agent import Agent
from kneo.spec.models.human import AnyHuman
from kneo.spec.models.tools import Capability, McpServer, Skill, Tool
from kneo.spec.models.workflow import AnyWorkflow


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
