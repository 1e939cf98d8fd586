"""Specs: the root, its components, tools, skills and MCP servers; and what telemetry may carry of its runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from kneo.spec.base import DigestText, FindingCode, JsonObject, ListOf, MapOf, Seconds, SpecModel, Text, refused
from kneo.spec.call_title import MAX_TEMPLATE_CHARS
from kneo.spec.models.agent import Agent
from kneo.spec.models.human import TOOL, AnyHuman, Review, check_review
from kneo.spec.models.sandbox import Sandbox
from kneo.spec.models.workflow import AnyWorkflow
from kneo.spec.policy import ToolNames
from kneo.spec.tool_kinds import CALL_TARGET, KIND_NAMES, REGISTERED, TOOL_KINDS, Backing, Capability, ToolKind


class McpPin(SpecModel):
    """A tool of an MCP server, as the server described it when the bundle was signed."""

    description: Text = Field(default="", description="The server's description, word by word.")
    schema_digest: DigestText = Field(
        description="SHA-256 of the canonical JSON of {input, output}: the server's schemas of arguments and results."
    )


class McpToolRef(SpecModel):
    """A tool of an MCP server."""

    server: Annotated[str | None, FindingCode("E_MCP_UNKNOWN_SERVER", aliases=("E_MCP_TOOL_NO_SERVER",))] = Field(
        default=None, description="A name in mcp_servers."
    )
    name: str | None = Field(default=None, description="The tool's name there, where it differs.")
    pin: McpPin | None = Field(
        default=None,
        description="What the server must still say about the tool at each call; kneo spec bundle sign --pin-tools writes it.",
    )


HttpMethod: TypeAlias = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]

READING_METHODS: frozenset[HttpMethod] = frozenset({"GET", "HEAD"})


class HttpTool(SpecModel):
    """An HTTP request. ``{name}`` in a value stands for an argument of the call."""

    method: HttpMethod = "GET"
    url: str = Field(
        max_length=2_000,
        description="Arguments are percent-encoded, and cannot stand in the scheme or the host.",
        examples=["https://crm.example/customers/{id}"],
    )
    headers: dict[str, str] = Field(default_factory=dict)
    query: dict[str, str] = Field(
        default_factory=dict, description="Parameters; one whose argument is left out is not sent."
    )
    body: object = Field(
        default=None,
        description="A JSON value; a text that is only {name} becomes the argument's own value. Left out: the arguments that "
        "stand nowhere else, for POST, PUT and PATCH.",
    )
    secret_headers: dict[str, str] = Field(
        default_factory=dict,
        description="Headers with ${NAME} for a secret of the process that runs steps; no argument can stand here.",
        examples=[{"Authorization": "Bearer ${CRM_TOKEN}"}],
    )


class RemoteAgent(SpecModel):
    """An agent of another service, which is called over Agent2Agent."""

    url: str = Field(
        max_length=2_000,
        description="The address of the agent, whose card is at URL/.well-known/agent-card.json.",
        examples=["https://agents.example/v1/a2a/prod/translator"],
    )
    secret_headers: dict[str, str] = Field(
        default_factory=dict,
        description="Headers with ${NAME} for a secret of the process that runs steps; sent to the host of url alone.",
        examples=[{"Authorization": "Bearer ${AGENT_KEY}"}],
    )
    keys: ListOf[JsonObject] = Field(
        default=(),
        max_length=20,
        description="Public keys as JSON Web Keys. One of them has to have signed the agent's card; left out: the card needs no "
        "signature.",
    )


class ExtensionTool(SpecModel):
    """A tool of a kind that an installed package adds."""

    kind: str = Field(
        max_length=60,
        pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$",
        description="The name of the kind. A run is refused where no installed package adds it.",
        examples=["sqlite"],
    )
    url: str | None = Field(
        default=None, max_length=2_000, description="The address that calls reach, for kinds that have one."
    )
    secrets: dict[str, str] = Field(
        default_factory=dict,
        description="Texts with ${NAME} for a secret of the process that runs steps; the kind names them.",
        examples=[{"password": "${DATABASE_PASSWORD}"}],
    )
    config: JsonObject = Field(default_factory=dict, description="What else the kind needs.")

    @model_validator(mode="after")
    def _is_no_kind_of_kneo(self) -> Self:
        if self.kind in KIND_NAMES:
            message = f"{self.kind} is a kind of Kneo, which no package adds."
            raise refused("E_SCHEMA", message, "kind")
        return self


class SkillScript(SpecModel):
    """A program in the folder of a skill. Its input is the arguments as JSON, its output the result."""

    skill: str = Field(description="A name in skills.")
    file: Annotated[str, FindingCode("E_SCRIPT")] = Field(
        max_length=500,
        description="A file in the folder of the skill: .py runs with the Python of the worker, .sh with /bin/sh.",
        examples=["scripts/total.py"],
    )
    args: ListOf[str] = Field(
        default=(),
        max_length=100,
        description="Arguments of its command line; {name} stands for an argument of the call.",
        examples=[["--order", "{id}"]],
    )

    @model_validator(mode="after")
    def _names_a_program(self) -> Self:
        parts = self.file.split("/")
        if {"", ".", ".."} & {*parts} or not self.file.endswith(SCRIPT_SUFFIXES):
            message = f"{self.file[:200]!r} is no {' or '.join(SCRIPT_SUFFIXES)} file by its path below the folder of the skill."
            raise refused("E_SCRIPT", message, "file")
        return self

    @property
    def path(self) -> str:
        """The path of the file in the code of a bundle."""
        return f"skills/{self.skill}/{self.file}"


class Verify(SpecModel):
    """A function that finds out whether an interrupted call took effect."""

    verify: str = Field(
        description="Dotted path of a Python callable. It receives the idempotency key and the arguments of the call, and "
        "returns {done: true, result: …} or {done: false}."
    )


def _verify_tag(value: object) -> str:
    return "interrupted=word" if isinstance(value, str) else "interrupted=map"


OnInterrupted: TypeAlias = Annotated[
    Annotated[Literal["ask", "repeat", "fail"], Tag("interrupted=word")] | Annotated[Verify, Tag("interrupted=map")],
    Discriminator(_verify_tag),
]

SCRIPT_SUFFIXES = (".py", ".sh")

_WITH_EFFECTS: frozenset[Capability] = frozenset({"filesystem_write", "shell", "privileged"})


class Tool(SpecModel):
    """Something an agent can call, backed by exactly one of implementation, http, mcp, agent, a2a, extension and script."""

    description: Text = Field(description="The purpose of the tool, for the model.")
    parameters: JsonObject = Field(default_factory=dict, description="JSON Schema of its arguments.")
    sandbox: Sandbox | None = Field(
        default=None,
        description="With implementation or script: what the processes of its calls may do. Left out: nothing, at level kernel.",
    )
    title: Text | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_TEMPLATE_CHARS,
        description="The title of a call for the people who decide about it, with arguments in braces. Left out: the call itself, "
        "as in refund(order: 7, euros: 20).",
        examples=["Refund {euros} EUR for order {order}"],
    )
    shows: ListOf[str] | None = Field(
        default=None,
        max_length=20,
        description="Tools whose earlier calls in the step, with their results, belong to a question about a call of this one. "
        "Left out: all tools; [] for none.",
    )
    implementation: str | None = Field(
        default=None, description="Dotted path of a Python callable: package.module.name."
    )
    http: HttpTool | None = None
    mcp: McpToolRef | None = None
    agent: str | None = Field(default=None, description="A name in components.agents: the agent is the tool.")
    a2a: RemoteAgent | None = Field(
        default=None,
        description="An agent of another service. Without parameters it is given a text, else the arguments as data.",
    )
    extension: ExtensionTool | None = None
    script: SkillScript | None = None
    transfer: bool = Field(
        default=False,
        description="With agent: the call hands the task over. The agent's answer is the answer of the step, and the caller is "
        "not asked again.",
    )
    capabilities: ListOf[Capability] = Field(default=(), description="What a call may do beyond computing its result.")
    always_ask: bool = Field(default=False, description="Whether standing grants never apply to it.")
    review: Review | None = Field(default=None, description="Where people are asked about its calls: before, external.")
    returns: JsonObject | None = Field(
        default=None, description="JSON Schema of the result; a call whose result does not fit has failed."
    )
    timeout_seconds: Seconds | None = Field(
        default=None, description="Time for one call. Left out: the setting of the process."
    )
    max_result_chars: int | None = Field(
        default=None, ge=100, le=1_000_000, description="Characters of a result that the model is shown."
    )
    retries: int = Field(default=0, ge=0, le=10, description="Repetitions of a failed call; only without effects.")
    on_interrupted: OnInterrupted | None = Field(
        default=None,
        description="What happens with a call that was under way when its process ended: ask a person whether it took effect, "
        "repeat it, fail, or verify with a function. Left out: ask with effects, repeat without.",
    )
    effects: bool | None = Field(
        default=None,
        description="Whether a call changes something outside. Left out: derived from capabilities and the HTTP method; false "
        "only counts for calls over the network.",
    )
    keep: Literal["shown", "whole"] = Field(
        default="shown",
        description="whole: a result that is cut for the model is kept whole for people, up to 1 MB: kneo runs result.",
    )
    output: Literal["trusted", "untrusted"] = Field(
        default="trusted", description="untrusted: the result is marked as data, which no instruction may come from."
    )

    @model_validator(mode="after")
    def _gates_are_in_place(self) -> Self:
        check_review(self.review, TOOL, ("before", "external"))
        return self

    @model_validator(mode="after")
    def _only_an_agent_takes_over(self) -> Self:
        if self.transfer and self.agent is None:
            message = "transfer hands a task over to an agent; the tool has none."
            raise refused("E_SCHEMA", message, "transfer")
        return self

    @model_validator(mode="after")
    def _only_code_has_a_sandbox(self) -> Self:
        if self.sandbox is not None and self.implementation is None and self.script is None:
            raise refused("E_SANDBOX_BACKING", "sandbox is for tools with implementation or script.", "sandbox")
        return self

    @property
    def backings(self) -> tuple[Backing, ...]:
        """The backings that the tool names; more or fewer than one is a finding of the linter. An empty one names nothing."""
        return tuple(name for name in TOOL_KINDS if getattr(self, name) not in (None, "", McpToolRef()))

    @property
    def kinds(self) -> tuple[ToolKind, ...]:
        """The kinds whose fields the tool has."""
        return tuple(kind for name, kind in TOOL_KINDS.items() if getattr(self, name) is not None)

    @property
    def kind(self) -> ToolKind:
        """The kind of the tool; one without a backing is a Python function that the process registered."""
        return next(iter(self.kinds), REGISTERED)

    @property
    def runs_code(self) -> bool:
        """Whether calls run code of a spec or of the process that registered it."""
        return self.kind in (REGISTERED, TOOL_KINDS["script"])

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses that calls reach."""
        parts = (self.http, self.a2a, self.extension)
        return tuple(part.url for part in parts if part is not None and part.url is not None)

    @property
    def backend(self) -> str:
        """The name of the kind that calls the tool, also of one that a package adds."""
        return self.extension.kind if self.extension is not None else self.kind.name

    def names(self, own: str) -> ToolNames:
        """Return the names by which rules of an environment know the tool.

        Args:
            own: Its name in the spec.
        """
        called: list[str] = []
        if self.mcp is not None:
            name = self.mcp.name or own
            called += [name, *([f"{self.mcp.server}.{name}"] if self.mcp.server is not None else [])]
        if self.implementation is not None:
            parts = self.implementation.split(".")
            called += [".".join(parts[start:]) for start in range(len(parts))]
        if self.extension is not None:
            called.append(self.extension.kind)
        if self.script is not None:
            called.append(f"{self.script.skill}/{self.script.file}")
        return ToolNames(own, tuple(called), (*self.addresses, *([self.agent] if self.agent is not None else [])))

    def implementations(self) -> Iterator[str]:
        """Yield the Python function of the tool, and the one that verifies its interrupted calls."""
        if self.implementation is not None:
            yield self.implementation
        if isinstance(self.on_interrupted, Verify):
            yield self.on_interrupted.verify

    @property
    def all_capabilities(self) -> tuple[Capability, ...]:
        """The declared capabilities, and those of the kind."""
        added = self.sandbox.capabilities if self.sandbox is not None else ()
        of_kinds = (each for kind in self.kinds for each in kind.capabilities)
        return tuple(dict.fromkeys((*self.capabilities, *of_kinds, *added)))

    @property
    def has_effects(self) -> bool:
        """Whether a call may change something outside, so that it must not be repeated unseen."""
        capabilities = frozenset(self.all_capabilities)
        if self.effects or capabilities & _WITH_EFFECTS:
            return True
        reads = self.http is not None and self.http.method in READING_METHODS
        return "network" in capabilities and not reads and self.effects is None


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


SECRET_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]{0,200})\}")
"""``${NAME}``: a secret of the process that runs steps."""

_LOADER = re.compile(r"(?:LD|DYLD|GLIBC|MALLOC)_")
"""Variables by which an allowed program would load another."""


class McpOAuth(SpecModel):
    """The OAuth client credentials with which a server over HTTP is called."""

    issuer: str = Field(
        description="The authorization server, by its issuer URL; the secret is sent to its token endpoint alone."
    )
    client_id: str
    client_secret_ref: str = Field(description="The secret of the process that holds the client secret, by its name.")


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
    oauth: McpOAuth | None = Field(
        default=None, description="http: the client credentials for access tokens, in place of a header Authorization."
    )
    sandbox: Sandbox | None = Field(
        default=None,
        description="stdio: what the processes of the program may do, without env. Left out: nothing, at level kernel.",
    )

    @model_validator(mode="after")
    def _only_a_program_has_a_sandbox(self) -> Self:
        if self.sandbox is not None and self.transport != "stdio":
            raise refused("E_SANDBOX_BACKING", "sandbox is for servers with the transport stdio.", "sandbox")
        if self.sandbox is not None and self.sandbox.env:
            raise refused("E_SANDBOX_BACKING", "The variables of a server are its own env.", "sandbox", "env")
        return self

    @model_validator(mode="after")
    def _authorizes_once(self) -> Self:
        if self.oauth is not None and self.transport != "http":
            message = f"oauth is for servers with the transport http; this one has {self.transport}."
            raise refused("E_SCHEMA", message, "oauth")
        if self.oauth is not None and any(name.lower() == "authorization" for name in self.headers or {}):
            message = "A server has oauth or a header Authorization."
            raise refused("E_SCHEMA", message, "headers")
        return self

    def unsafe_start(self) -> tuple[tuple[str | int, ...], str] | None:
        """Return where and why a program is not started, whichever commands are allowed."""
        for number, text in enumerate(self.args):
            if SECRET_REFERENCE.search(text):
                return ("args", number), "has a secret in args, which every user of the machine can read"
        for name in sorted(self.env or {}):
            if _LOADER.match(name):
                return ("env", name), f"sets {name}, which decides what a program loads"
        return None


class FunctionComponent(SpecModel):
    """A Python function that a step runs."""

    implementation: str = Field(description="Dotted path of a Python callable: package.module.name.")
    sandbox: Sandbox | None = Field(
        default=None, description="What the processes of its calls may do. Left out: nothing, at level kernel."
    )
    description: Text | None = None
    input_schema: JsonObject | None = Field(default=None, description="JSON Schema of what it is given.")
    output_schema: JsonObject | None = Field(default=None, description="JSON Schema of what it returns.")
    capabilities: ListOf[Capability] = Field(default=(), description="What a call may do beyond computing its result.")

    @property
    def all_capabilities(self) -> tuple[Capability, ...]:
        """The declared capabilities, and those of the sandbox."""
        added = self.sandbox.capabilities if self.sandbox is not None else ()
        return tuple(dict.fromkeys((*self.capabilities, *added)))


class CodeFiles(SpecModel):
    """The project files that a bundle carries, in addition to the modules that its functions import, or without some of them."""

    include: ListOf[str] = Field(
        default=(),
        description="Patterns below the project's root of files beside the modules: data, or modules imported by computed names.",
        examples=[["acme/templates/*.html"]],
    )
    exclude: ListOf[str] = Field(
        default=(), description="Patterns of files that are left out.", examples=[["acme/debug.py"]]
    )


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
    targets: ListOf[Literal["workflow", "agent", "call"]] = Field(
        default=(),
        description="What a run of a released bundle may execute; left out: its workflow, or its agent where it has none. call "
        "lets other programs call the tools of the root agent, which then needs no model.",
    )
    variables: MapOf[Text] = Field(
        default_factory=dict, description="Texts that system prompts name as {{ variables.NAME }}."
    )
    components: Components = Components()
    tools: MapOf[Tool] = Field(default_factory=dict)
    skills: MapOf[Skill] = Field(default_factory=dict)
    policies: JsonObject = Field(
        default_factory=dict,
        description="tracing: {include_messages, include_tool_results}, whether spans may carry content where the operator "
        "records it; project_defaults is what the project fills in. Other fields state what every run does.",
    )
    mcp_servers: MapOf[McpServer] = Field(default_factory=dict)
    code: CodeFiles = CodeFiles()

    def implementations(self) -> Iterator[str]:
        """Yield every Python function that the spec names."""
        for tool in self.tools.values():
            yield from tool.implementations()
        for function in self.components.functions.values():
            yield function.implementation

    def scripts(self) -> Iterator[SkillScript]:
        """Yield the script of each tool that has one."""
        yield from (tool.script for tool in self.tools.values() if tool.script is not None)

    def script_files(self, script: SkillScript) -> dict[str, bytes]:
        """Return a script and the files below its folder, by their paths in the code of a bundle; none where its skill has no such file."""
        skill = self.skills.get(script.skill)
        if skill is None or script.file not in skill.resources:
            return {}
        folder = script.file.rpartition("/")[0]
        files = (name for name in skill.resources if not folder or name.startswith(f"{folder}/"))
        return {f"skills/{script.skill}/{name}": skill.resources[name].encode() for name in files}

    def unpinned_tools(self) -> tuple[str, ...]:
        """Return the names of the tools of MCP servers that have no pin."""
        return tuple(name for name, tool in self.tools.items() if tool.mcp is not None and tool.mcp.pin is None)

    def allows(self, target: str) -> bool:
        """Tell whether a released bundle of this spec may be run with a target."""
        if target == CALL_TARGET:
            return target in self.targets
        named = self.targets or ("workflow",)
        # Without a workflow both targets are the root agent.
        return target in named or (self.workflow is None and named != (CALL_TARGET,))

    @property
    def runs_root_agent(self) -> bool:
        """Whether a run of a released bundle may begin at the root agent: without a workflow, with its own target, or with a call."""
        return self.workflow is None or bool({"agent", CALL_TARGET} & set(self.targets))


PROJECT_DEFAULTS = "project_defaults"


@dataclass(frozen=True, kw_only=True)
class TracingPolicy:
    """The content that spans may carry where the operator's settings allow it; a spec only withholds.

    Attributes:
        messages: Inputs, outputs and the messages of models.
        tool_results: Results of tool calls.
    """

    messages: bool = True
    tool_results: bool = True


def tracing_policy(spec: Spec) -> TracingPolicy:
    """Return the tracing policy of a spec. A value that is neither true nor false withholds, as lint refuses it."""
    stated = {**_tracing(spec.policies.get(PROJECT_DEFAULTS)), **_tracing(spec.policies)}
    return TracingPolicy(
        messages=stated.get("include_messages", True) is True,
        tool_results=stated.get("include_tool_results", True) is True,
    )


def _tracing(policies: object) -> Mapping[str, object]:
    found = policies.get("tracing") if isinstance(policies, Mapping) else None
    return found if isinstance(found, Mapping) else {}
