"""The participants of a workflow: functions, agents, people and other workflows, and the conversation they share."""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from importlib import import_module
from typing import Protocol, TypeAlias

from kneo.embed.runs import RunSnapshot
from kneo.embed.steps import StepContext, StepOutput, below, check_output
from kneo.errors import Usage
from kneo.records.run import StepRecord
from kneo.sdk.builder import Json, SpecBuilder, call, check_parameters, identifier
from kneo.sdk.messages import Message, Prompt, Resolver, Response, RunConfig, as_text
from kneo.sdk.people import QuestionPeople
from kneo.spec.models.agent import Agent

Function: TypeAlias = Callable[[Sequence[Message], RunConfig], Response | Awaitable[Response]]


class Runnable(Protocol):
    """An agent object of this process: it has a name and answers messages."""

    name: str

    def run(self, messages: Sequence[Message], config: RunConfig) -> Response | Awaitable[Response]: ...


CALLED_WITH = ("messages", "config")
"""The arguments of a participant, and of a prompt that is a function."""

CONFIG = "config"
"""The name of the journal entry with the configuration that a resume replaced."""


class ConversationBuilder(SpecBuilder):
    """The spec of a workflow of participants, and the conversation of its runs, read from their records.

    Attributes:
        config: The configuration that the spec is built for.
        humans: Human steps by path.
        concurrent: The names of participants that run at the same time, by the path around them; they do not read each
            other's messages.
        supersteps: Paths of graphs' supersteps, with the path of the step that ends each.
        hidden: Paths of steps whose outputs are not messages.
        groups: Paths of groups of steps that the program did not write.
    """

    def __init__(self, config: RunConfig | None = None) -> None:
        super().__init__()
        self.config = config or RunConfig()
        self.humans: dict[str, HumanInTheLoopStep] = {}
        self.concurrent: dict[str, Sequence[str]] = {}
        self.supersteps: dict[str, str] = {}
        self.hidden: set[str] = set()
        self.groups: set[str] = set()

    def agent(self, path: str, name: str, agent: Agent | Mapping[str, object]) -> str:
        """Add an agent with the settings of the run's configuration; return the name of its component."""
        super().agent(path, name, agent)
        config = self.config
        settings: Json = {"system_prompt": config.system_prompt} if config.system_prompt is not None else {}
        if config.temperature is None and config.max_iterations is None:
            self.components["agents"][path] = {**self._agent(path), **settings}
            return path
        tree = Agent.model_validate(self._agent(path)).model_dump(by_alias=True, exclude_unset=True)
        if config.temperature is not None and "model" in tree:
            settings["model"] = {**tree["model"], "temperature": config.temperature}
        if config.max_iterations is not None:
            strategy = tree.get("strategy") or {"type": "simple"}
            settings["strategy"] = {**strategy, "max_iterations": config.max_iterations}
        self.components["agents"][path] = tree | settings
        return path

    def _agent(self, path: str) -> Json:
        agent = self.components["agents"][path]
        assert isinstance(agent, dict)
        return agent

    def config_of(self, snapshot: RunSnapshot) -> RunConfig:
        """Return the configuration of a run: that of its last resume with one, else that of its start."""
        replaced = next((entry for entry in snapshot.journal if not entry.location and entry.name == CONFIG), None)
        return RunConfig.decode(json.loads(replaced.value) if replaced else snapshot.caller_metadata.get(CONFIG))

    async def ask(self, function: Callable[..., object], text: str, context: StepContext) -> object:
        """Call the function of a step with the conversation that the step reads."""
        snapshot = await self.read(context)
        messages = self.conversation(snapshot, context.step_id, text)
        if context.previous_output is not None:
            feedback = context.feedback or "It was rejected without a reason."
            messages = (*messages, Message("assistant", context.previous_output), Message("user", feedback))
        return await call(function, messages, self.config_of(snapshot))

    async def last_input(self, step_path: str, context: StepContext) -> str:
        """Return the last input of a step."""
        snapshot = await self.read(context)
        return next(step.input_text for step in reversed(snapshot.steps) if step.step_id == step_path)

    def conversation(self, snapshot: RunSnapshot, path: str, text: str) -> Sequence[Message]:
        """Return the messages that a step reads, the last of them with ``text``."""
        metadata, run = snapshot.caller_metadata, snapshot.run
        earlier, name = metadata.get("messages"), metadata.get("name")
        messages = [Message(*each) for each in earlier] if isinstance(earlier, list) else []
        author = name if isinstance(name, str) else None
        messages.append(Message(str(metadata.get("role") or "user"), run.input_text, author))
        for step in in_order(snapshot.steps, self.concurrent):
            if step.status != "completed" or step.step_id in self.hidden or not self._reads(path, step, snapshot):
                continue
            human = self.humans.get(step.step_id)
            role = human.response_role if human is not None else "assistant"
            messages.append(Message(role, output_of(snapshot, step), step.step_id.rpartition("/")[2]))
        last = messages[-1]
        return (*messages[:-1], Message(last.role, text, last.name))

    def visible(self, snapshot: RunSnapshot) -> list[str]:
        """List the finished steps whose outputs are messages, by their paths through nested workflows."""
        steps = in_order(snapshot.steps, self.concurrent)
        return [self._shown(step.step_id) for step in steps if step.step_id not in self.hidden]

    def _shown(self, path: str) -> str:
        names = path.split("/")
        return "/".join(name for end, name in enumerate(names, 1) if "/".join(names[:end]) not in self.groups)

    def _reads(self, path: str, step: StepRecord, snapshot: RunSnapshot) -> bool:
        """Decide whether a step reads the output of another one: not where both run at the same time."""
        reader, writer = path.split("/"), step.step_id.split("/")
        shared = 0
        while shared < min(len(reader), len(writer)) and reader[shared] == writer[shared]:
            shared += 1
        common = "/".join(writer[:shared])
        if path == "" or shared == len(reader):
            return True
        if common in self.supersteps:
            ends = (each.sequence for each in snapshot.steps if each.step_id == self.supersteps[common])
            return step.sequence < max(ends, default=0)
        return common not in self.concurrent


def in_order(steps: Sequence[StepRecord], concurrent: Mapping[str, Sequence[str]]) -> Sequence[StepRecord]:
    """Return finished steps in an order that does not depend on which one of several at the same time was quicker."""
    ordered: list[StepRecord] = []
    for path, group in itertools.groupby(steps, lambda step: _around(step.step_id, concurrent)):
        members = list(group)
        if path is not None:
            inner = {each: names for each, names in concurrent.items() if each != path}
            names = concurrent[path]
            members.sort(key=lambda step: names.index(_member(step.step_id, path)))
            members = list(in_order(members, inner))
        ordered += members
    return ordered


def _around(step_id: str, concurrent: Mapping[str, Sequence[str]]) -> str | None:
    """Return the outermost path around a step in which steps run at the same time."""
    paths = [path for path, names in concurrent.items() if _member(step_id, path) in names]
    return min(paths, key=len, default=None)


def _member(step_id: str, path: str) -> str:
    """Return the name of the member of ``path`` that a step is, or is in; empty where it is in none."""
    if path and not step_id.startswith(f"{path}/"):
        return ""
    return step_id[len(path) + 1 if path else 0 :].partition("/")[0]


def output_of(snapshot: RunSnapshot, step: StepRecord) -> str:
    """Return the output of a step as reviewed; a step without one passes its input on."""
    output = snapshot.output(step)
    return step.input_text if output is None else output


@dataclass(frozen=True)
class FunctionStep:
    """A step that calls ``function(messages, config)``, sync or async."""

    name: str
    function: Function
    _: KW_ONLY
    description: str = ""

    def __post_init__(self) -> None:
        check_parameters(self.function, CALLED_WITH, f"The participant {self.name}")

    def to_spec(self, builder: ConversationBuilder, path: str) -> Sequence[Json]:
        async def work(text: str, context: StepContext) -> StepOutput:
            output = as_text(await builder.ask(self.function, text, context), self.name)
            return StepOutput(text=check_output(output))

        return [_step(self.name, "function", builder.function(below(path, self.name), work), self.description)]


@dataclass(frozen=True)
class AgentStep:
    """A step that an agent of the spec language answers: a model with instructions."""

    name: str
    agent: Agent | Mapping[str, object]
    _: KW_ONLY
    description: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.agent, Agent | Mapping):
            msg = f"The agent {self.name} is {type(self.agent).__name__}, and no agent of the spec language."
            raise Usage(msg, hint="Pass a map such as {'model': …}, or add the object itself to the workflow.")

    def to_spec(self, builder: ConversationBuilder, path: str) -> Sequence[Json]:
        ref = builder.agent(below(path, self.name), self.name, self.agent)
        return [_step(self.name, "agent", ref, self.description)]


@dataclass(frozen=True)
class HumanInTheLoopStep(QuestionPeople):
    """A step that asks a person: first the resolver, if there is one, then a human task. With the attributes of ``QuestionPeople``.

    Attributes:
        name: The name of the step in the workflow.
        prompt: The question, or ``f(messages, config)`` that returns the question.
        resolver: Called during the run; its result is the answer, ``None`` leaves the question open.
        description: The description in lists of tasks.
        response_role: The role of the message that holds the answer.
        metadata: Facts shown with the question.
    """

    name: str
    prompt: Prompt
    _: KW_ONLY
    resolver: Resolver | None = None
    description: str = ""
    response_role: str = "user"
    metadata: Mapping[str, object] | None = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.prompt, str):
            check_parameters(self.prompt, CALLED_WITH, f"The prompt of {self.name}")
        if self.resolver is not None:
            check_parameters(self.resolver, ("request",), f"The resolver of {self.name}")

    def to_spec(self, builder: ConversationBuilder, path: str) -> Sequence[Json]:
        step_path = below(path, self.name)
        builder.humans[step_path] = self
        prompt, before = self.prompt, []
        if not isinstance(prompt, str):
            # The task holds the text of the prompt: the process that answers may not have the function.
            variable = f"prompt_{identifier(step_path)}"
            before = self._prompt_steps(builder, path, variable, prompt)
            prompt = f"{{{{ variables.{variable} }}}}"
        builder.components["humans"][step_path] = {
            "description": self.description or self.name,
            "prompt": prompt,
            "response_role": self.response_role,
            "request_type": "freeform",
            **({"context": dict(self.metadata)} if self.metadata else {}),
            **self.people,
        }
        return [*before, _step(self.name, "human", step_path, self.description)]

    def _prompt_steps(
        self, builder: ConversationBuilder, path: str, variable: str, prompt: Callable[..., object]
    ) -> list[Json]:
        """Return two steps before the question: one makes its text, one restores the input of the question."""
        words, subject = f"{self.name}.words", f"{self.name}.subject"
        words_path, subject_path = below(path, words), below(path, subject)

        async def make(text: str, context: StepContext) -> StepOutput:
            question = await builder.ask(prompt, text, context)
            if not isinstance(question, str):
                msg = f"The prompt of {self.name} returned {type(question).__name__}; expected a str."
                raise TypeError(msg)
            return StepOutput(text=question)

        async def restore(_text: str, context: StepContext) -> StepOutput:
            return StepOutput(text=await builder.last_input(words_path, context))

        builder.hidden |= {words_path, subject_path}
        return [
            _step(words, "function", builder.function(words_path, make), "") | {"save_as": variable},
            _step(subject, "function", builder.function(subject_path, restore), ""),
        ]


@dataclass(frozen=True, kw_only=True)
class WorkflowPart:
    """A workflow in a workflow, or the outermost one."""

    name: str
    family: str
    members: Sequence[Participant]
    settings: Mapping[str, object] = field(default_factory=dict)
    description: str = ""

    def to_spec(self, builder: ConversationBuilder, path: str) -> Sequence[Json]:
        ref = below(path, self.name)
        builder.components["workflows"][ref] = self.workflow(builder, ref)
        return [_step(self.name, "workflow", ref, "")]

    def workflow(self, builder: ConversationBuilder, path: str) -> Json:
        """Return the workflow with its members at ``path``."""
        head: Json = {**self.head(), "type": self.family, **self.settings}
        limit = {"graph": "max_steps", "handoff": "max_iterations"}.get(self.family)
        if limit and builder.config.max_iterations is not None:
            head[limit] = builder.config.max_iterations
        if self.family == "sequential":
            return head | {"steps": [step for member in self.members for step in member.to_spec(builder, path)]}
        if self.family == "concurrent":
            builder.concurrent[path] = [member.name for member in self.members]
        steps = [as_one_step(builder, member, path) for member in self.members]
        if self.family == "graph":
            return head | {"nodes": {str(step["id"]): step for step in steps}}
        return head | {"participants": steps}

    def head(self) -> Json:
        """Return the keys that workflows of every family have."""
        return {"name": self.name, **({"description": self.description} if self.description else {})}


Participant: TypeAlias = FunctionStep | AgentStep | HumanInTheLoopStep | WorkflowPart


def as_participant(member: object) -> Participant:
    """Convert a member of a workflow to a participant.

    Raises:
        Usage: the member is not a function, an agent, a human step or a workflow, or cannot be called as one.
    """
    if isinstance(member, FunctionStep | AgentStep | HumanInTheLoopStep | WorkflowPart):
        return member
    part = getattr(member, "part", None)
    if isinstance(part, WorkflowPart):
        return part
    if isinstance(member, Agent):
        return AgentStep(name=member.name, agent=member)
    if hasattr(member, "as_step"):
        msg = f"{type(member).__name__} of kneo.sdk.workflow cannot take part in a workflow of WorkflowBuilder."
        raise Usage(msg, hint="Build both with kneo.sdk.workflow, or both with WorkflowBuilder.")
    if _is_of_pydantic_ai(member):
        return _pydantic_agent(member)
    run, name = getattr(member, "run", None), getattr(member, "name", None)
    if callable(run) and isinstance(name, str):
        check_parameters(run, CALLED_WITH, f"The method run of the agent {name}")
        return FunctionStep(name=name, function=run)
    if callable(member) and not inspect.isclass(member):
        return FunctionStep(name=getattr(member, "__name__", "step"), function=member)
    msg = f"{type(member).__name__} cannot take part in a workflow."
    raise Usage(msg, hint="Pass a function, an agent, WorkflowBuilder.human_step(...) or another workflow.")


def _is_of_pydantic_ai(member: object) -> bool:
    return any(each.__module__.partition(".")[0] == "pydantic_ai" for each in type(member).__mro__)


def _pydantic_agent(agent: object) -> FunctionStep:
    """Return an agent of pydantic-ai as a participant. The library is imported by the program that has the agent.

    Raises:
        Usage: the object is no agent, or has no name.
    """
    adapter = import_module("kneo.sdk.durable.adapters.pydantic_ai")
    if not isinstance(agent, adapter.AbstractAgent):
        msg = f"{type(agent).__name__} of pydantic-ai cannot take part in a workflow."
        raise Usage(msg, hint="Pass an Agent.")
    name = getattr(agent, "name", None)
    if not isinstance(name, str):
        msg = "The agent of pydantic-ai has no name, so a workflow cannot find its step again."
        raise Usage(msg, hint="Name it: Agent(…, name='writer').")
    return FunctionStep(name=name, function=partial(adapter.answer_messages, agent))


def as_one_step(builder: ConversationBuilder, member: Participant, path: str) -> Json:
    """Return a participant as one step: a prompt that is a function needs a group of steps around its question."""
    if not isinstance(member, HumanInTheLoopStep) or isinstance(member.prompt, str):
        (step,) = member.to_spec(builder, path)
        return step
    group = below(path, member.name)
    builder.groups.add(group)
    return {"id": member.name, "kind": "steps", "steps": list(member.to_spec(builder, group))}


def _step(name: str, kind: str, ref: str, description: str) -> Json:
    return {"id": name, "kind": kind, "ref": ref, **({"description": description} if description else {})}
