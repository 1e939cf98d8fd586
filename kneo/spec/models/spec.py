"""The root of a spec."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from kneo.spec.base import Declared, FreeMap, Many, Named, Text
from kneo.spec.models.agent import Agent
from kneo.spec.models.human import AnyHuman
from kneo.spec.models.tools import Capability, McpServer, Skill, Tool
from kneo.spec.models.workflow import AnyWorkflow


class FunctionComponent(Declared):
    """A Python function that a step runs."""

    implementation: str = Field(description="Dotted path of a Python callable: package.module.name.")
    description: Text | None = None
    input_schema: FreeMap | None = Field(default=None, description="JSON Schema of what it is given.")
    output_schema: FreeMap | None = Field(default=None, description="JSON Schema of what it returns.")
    capabilities: Many[Capability] = Field(default=(), description="What a call may do beyond computing its result.")


class Components(Declared):
    """Named parts that steps and agents refer to."""

    agents: Named[Agent] = Field(default_factory=dict)
    workflows: Named[AnyWorkflow] = Field(default_factory=dict)
    functions: Named[FunctionComponent] = Field(default_factory=dict)
    humans: Named[AnyHuman] = Field(default_factory=dict)


class Spec(Declared):
    """One agent or workflow with everything it needs."""

    model_config = ConfigDict(title="Kneo spec v1")

    version: Literal["v1"] = "v1"
    metadata: FreeMap | None = Field(default=None, description="Anything worth noting.")
    agent: Agent = Field(description="The root agent.")
    workflow: AnyWorkflow | None = Field(default=None, description="Left out: the root agent answers by itself.")
    targets: Many[Literal["workflow", "agent"]] = Field(
        default=(),
        description="What a run of a released bundle may execute; left out: its workflow, where it has one, alone.",
    )
    components: Components = Components()
    tools: Named[Tool] = Field(default_factory=dict)
    skills: Named[Skill] = Field(default_factory=dict)
    policies: FreeMap = Field(default_factory=dict, description="Project defaults are kept here.")
    mcp_servers: Named[McpServer] = Field(default_factory=dict)

    def allows(self, target: str) -> bool:
        """Tell whether a released bundle of this spec may be run with a target."""
        return self.workflow is None or target in (self.targets or ("workflow",))
