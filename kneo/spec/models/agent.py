"""Agents: their model, strategy, tools, memory and guardrails; and the names of tools as models accept them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from kneo.spec.base import FindingCode, JsonObject, ListOf, Shorthand, SpecModel, Text, refused
from kneo.spec.models import shorthand
from kneo.spec.tool_kinds import BUILTIN_TOOLS

UNNAMED = "default"
"""What the short form of a model (``model: NAME``) has for its provider."""


MAX_FALLBACKS = 5

RuntimeMode: TypeAlias = Literal["bridge", "native", "adapter"]


class ModelChoice(SpecModel):
    """A model of a provider, and the settings of its requests."""

    provider: str = Field(description="Who serves the model: openai, anthropic, google, dummy, …", examples=["dummy"])
    name: str
    temperature: float | None = None
    max_tokens: int | None = Field(default=None, description="Upper bound of one reply.")
    timeout_seconds: int | None = Field(default=None, ge=1, description="Time for one reply.")
    extra: JsonObject = Field(
        default_factory=dict, description="What the provider needs beyond that: base_url, api_key_ref, …"
    )


class Model(ModelChoice):
    """Which model answers, and how it is asked."""

    token_budget: int | None = Field(default=None, gt=0, description="Upper bound of tokens for a whole run.")
    fallbacks: ListOf[ModelChoice] = Field(
        default=(),
        max_length=MAX_FALLBACKS,
        description="Models that are asked, in this order, while the one before cannot be reached or is overloaded. Never "
        "after a refusal; the next request begins with the first model again.",
    )


class Strategy(SpecModel):
    """How an agent gets from a task to an answer."""

    type: Literal["simple", "react", "plan-act"] = Field(
        description="simple answers once; react calls tools until it can answer; plan-act plans first."
    )
    max_iterations: int | None = Field(default=None, description="Rounds of tool calls; 10 where left out.")
    stop_on_tool_error: bool | None = Field(default=None, description="Whether a failing tool ends the step.")
    parallel_tool_calls: bool | None = Field(default=None, description="Whether calls of one round run at once.")


class RuntimePreferences(SpecModel):
    """Which runtimes may run the agent; the loop of this version is bridge and native, and it has no adapters."""

    preferred_mode: RuntimeMode | None = None
    fallback_mode: RuntimeMode | None = None
    allowed_modes: ListOf[RuntimeMode] | None = None
    native_provider: str | None = None
    adapter_ref: str | None = Field(
        default=None,
        description="The adapter of preferred_mode: adapter, for runtimes that have one. Without a fallback_mode the run is "
        "refused with its name.",
    )
    bridge_provider: str | None = None


class ToolPermissions(SpecModel):
    """What the agent's tools may do. Left out means not stated, which is not the same as forbidden."""

    allow_network: bool | None = None
    allow_filesystem_read: bool | None = None
    allow_filesystem_write: bool | None = None
    allow_shell: bool | None = None
    allowed_domains: ListOf[str] = Field(default=(), description="The only hosts that tools may reach.")
    denied_domains: ListOf[str] = Field(default=(), description="Hosts that tools may not reach.")
    allowed_tools: ListOf[str] | None = Field(
        default=None, description="The only tools that may be called, of those included; left out: all of them."
    )
    denied_tools: ListOf[str] = Field(default=(), description="Tools that may not be called, even if included.")


class ToolSelection(SpecModel):
    """Which tools the agent is given."""

    include: ListOf[str] = Field(default=(), description="Names in tools, or tools that the platform registers.")
    exclude: ListOf[str] = ()
    permissions: ToolPermissions | None = None


class AgentToolPolicy(SpecModel):
    """Another way to write tool permissions; see :class:`ToolPermissions`."""

    allow: ListOf[str] | None = Field(default=None, description="The only tools that may be called.")
    deny: ListOf[str] = Field(default=(), description="Tools that may not be called.")
    network: bool | None = None
    filesystem: bool | None = Field(default=None, description="Reading and writing files.")
    shell: bool | None = None


class AgentPolicies(SpecModel):
    """Another way to write tool permissions."""

    tool: AgentToolPolicy | None = None


class MemoryRef(SpecModel):
    """What summarises or retrieves: a name in components.functions or components.agents; a retriever also one in tools."""

    ref: str


class Memory(SpecModel):
    """What the agent sees of earlier runs that have the same session_id, requester and environment."""

    policy: Annotated[str | None, FindingCode("E_MEMORY_POLICY_REQUIRED")] = Field(
        default=None,
        description="full, sliding_window, summary or retrieval.",
        json_schema_extra={"enum": ["full", "sliding_window", "summary", "retrieval"]},
    )
    max_messages: int | None = Field(
        default=None,
        ge=1,
        le=200,
        description="How many earlier messages the agent sees, 20 if left out; with summary: how many, before they are "
        "summarized. No effect with full, which has at most 200.",
    )
    preserve_system_messages: bool | None = Field(
        default=None, description="true, as every request has the system prompt; false is refused."
    )
    summarizer: MemoryRef | None = Field(default=None, description="summary: what writes it.")
    retriever: MemoryRef | None = Field(
        default=None, description="retrieval: what is given {query, top_k} and returns texts."
    )
    top_k: int | None = Field(default=None, ge=1, le=50, description="retrieval: how many texts; 5 if left out.")


class Guardrail(SpecModel):
    """One check of what goes in, comes out, or is called."""

    id: Annotated[str | None, FindingCode("E_GUARDRAIL_FIELDS")] = None
    type: Annotated[str | None, FindingCode("E_GUARDRAIL_FIELDS")] = Field(
        default=None,
        json_schema_extra={"enum": ["keyword", "regex", "function", "agent"]},
        description="keyword and regex match; a function returns whether the text passes; an agent's reply begins with PASS.",
    )
    mode: Annotated[str, FindingCode("E_GUARDRAIL_MODE_UNSUPPORTED")] = Field(
        default="middleware", json_schema_extra={"enum": ["middleware"]}
    )
    action: Annotated[str, FindingCode("E_GUARDRAIL_ACTION_UNSUPPORTED")] = Field(
        default="block",
        json_schema_extra={"enum": ["warn", "block", "retry", "escalate", "human_review", "revise", "redact"]},
        description="What happens with a text that does not pass. A check that cannot be carried out blocks.",
    )
    ref: str | None = Field(default=None, description="function, agent: a name in components.")
    target: str | None = Field(
        default=None, description="tool: the only tool whose calls are checked; * stands for any characters."
    )
    config: JsonObject = Field(
        default_factory=dict,
        description="keyword: keywords; regex: patterns; human_review, escalate: human, a name in components.humans.",
    )


MATCHED_BY: Mapping[str | None, str] = {"keyword": "keywords", "regex": "patterns"}
"""The key of the config of a guardrail that matches texts itself, by its type."""


def _map_only(value: object) -> object:
    if not isinstance(value, dict | Guardrail):
        message = "A guardrail is a map with id and type."
        raise refused("E_GUARDRAIL_FIELDS", message)
    return value


GuardrailList: TypeAlias = Annotated[
    ListOf[Annotated[Guardrail, BeforeValidator(_map_only)]], FindingCode("E_GUARDRAIL_FIELDS")
]


class Guardrails(SpecModel):
    """Checks by the stage at which they run."""

    input: GuardrailList = Field(default=(), description="On what the agent is given.")
    output: GuardrailList = Field(default=(), description="On what the agent answers.")
    tool: GuardrailList = Field(default=(), description="On arguments and results of tool calls.")
    workflow: GuardrailList = Field(default=(), description="On what passes from step to step.")

    def stages(self) -> dict[str, tuple[Guardrail, ...]]:
        """Return the checks of every stage."""
        return {"input": self.input, "output": self.output, "tool": self.tool, "workflow": self.workflow}


class Agent(SpecModel):
    """One agent."""

    name: str
    description: Text | None = None
    system_prompt: Text | None = Field(
        default=None,
        description="The instructions of the model. {{ variables.NAME }}, {{ skills.NAME }} and {{ tools.NAME }} stand for texts "
        "of the spec.",
    )
    model: (
        Annotated[
            Model, BeforeValidator(shorthand.model), Shorthand({"type": "string", "description": "A model's name."})
        ]
        | None
    ) = None
    strategy: (
        Annotated[Strategy, BeforeValidator(shorthand.strategy), Shorthand({"enum": ["simple", "react", "plan-act"]})]
        | None
    ) = Field(default=None, description="How it works; left out: simple.")
    runtime_preferences: RuntimePreferences | None = None
    history: JsonObject | None = Field(
        default=None, description="Accepted empty for older specs; an agent's history is its memory."
    )
    memory: Memory | None = None
    guardrails: Guardrails | None = None
    tools: (
        Annotated[
            ToolSelection,
            BeforeValidator(shorthand.tool_selection),
            Shorthand({"type": "array", "items": {"type": "string"}}),
        ]
        | None
    ) = None
    skills: ListOf[str] = Field(default=(), description="Names in skills.")
    middleware: ListOf[str] = Field(
        default=(),
        description="Names of middleware that the program registers, around the turns or the tool calls of the agent; the first "
        "is outermost.",
    )
    defaults: JsonObject = Field(
        default_factory=dict,
        description="append_mode: the messages that a run adds to the session: auto (both), never, user_only or assistant_only. "
        "Only with a memory.",
    )
    output_schema: JsonObject | None = Field(
        default=None,
        description="JSON Schema of the answer. The model is asked for JSON, an answer that does not fit is asked for again, "
        "and the output is the JSON text.",
    )
    ask_question: str | None = Field(
        default=None,
        description="Whom the built-in tool ask_question asks: a name in components.humans. Left out: "
        "components.humans.default, or the people with the role reviewer.",
    )
    as_agent: str | None = Field(default=None, description="A name in components.workflows that answers as this agent.")
    policies: AgentPolicies | None = Field(default=None, description="Another way to write tools.permissions.")


MAX_NAME = 64

OUTPUT_TOOL = "final_result"
"""The tool with which a model gives a structured answer."""

RESERVED = BUILTIN_TOOLS | {OUTPUT_TOOL}

_OTHER = re.compile(r"[^A-Za-z0-9_-]")


def model_name(name: str) -> str:
    """Return the name of a tool for models: letters, digits, ``_`` and ``-``; other characters become ``_``."""
    return _OTHER.sub("_", name)[:MAX_NAME]
