"""The participants of a workflow: functions, agents, people and other workflows, and the conversation they share."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Protocol, TypeAlias

from kneo.errors import Usage
from kneo.runtime.interpreter.node import below
from kneo.runtime.steps.context import StepContext, StepOutput
from kneo.sdk import Message, Prompt, Resolver, Response, RunConfig, as_text
from kneo.sdk.builder import Json, SpecBuilder, call, identifier
from kneo.sdk.host import RunSnapshot
from kneo.spec.models.agent import Agent

Function: TypeAlias = Callable[[Sequence[Message], RunConfig], Response | Awaitable[Response]]


class Runnable(Protocol):
    """An agent object of this process: it has a name and answers messages."""

    name: str

    def run(self, messages: Sequence[Message], config: RunConfig) -> Response | Awaitable[Response]: ...


class ConversationBuilder(SpecBuilder):
    """The spec of a workflow of participants, and the conversation of its runs, read from their records.

    Attributes:
        configs: The configuration of this process's runs, by run.
        humans: Human steps by path.
        concurrent: Paths of concurrent workflows, whose participants do not read each other's messages.
        hidden: Paths of steps whose outputs are not messages.
    """

    def __init__(self, configs: Mapping[str, RunConfig]) -> None:
        super().__init__()
        self.configs = configs
        self.humans: dict[str, HumanInTheLoopStep] = {}
        self.concurrent: set[str] = set()
        self.hidden: set[str] = set()

    def config(self, run_id: str) -> RunConfig:
        return self.configs.get(run_id) or RunConfig()

    async def ask(self, function: Callable[..., object], text: str, context: StepContext) -> object:
        """Call the function of a step with the conversation that the step reads."""
        snapshot = await asyncio.to_thread(self.host.snapshot, context.run_id)
        messages = self.conversation(snapshot, context.step_id, text)
        if context.previous_output is not None:
            feedback = context.feedback or "It was rejected without a reason."
            messages = (*messages, Message("assistant", context.previous_output), Message("user", feedback))
        return await call(function, messages, self.config(context.run_id))

    async def last_input(self, step_path: str, context: StepContext) -> str:
        """Return the last input of a step."""
        snapshot = await asyncio.to_thread(self.host.snapshot, context.run_id)
        return next(step.input_text for step in reversed(snapshot.steps) if step.step_id == step_path)

    def conversation(self, snapshot: RunSnapshot, path: str, text: str) -> Sequence[Message]:
        """Return the messages that a step reads, the last of them with ``text``."""
        metadata, run = snapshot.caller_metadata, snapshot.run
        earlier, name = metadata.get("messages"), metadata.get("name")
        messages = [Message(*each) for each in earlier] if isinstance(earlier, list) else []
        author = name if isinstance(name, str) else None
        messages.append(Message(str(metadata.get("role") or "user"), run.input_text, author))
        for step in snapshot.steps:
            if step.status != "completed" or step.step_id in self.hidden or not self._reads(path, step.step_id):
                continue
            human = self.humans.get(step.step_id)
            output = snapshot.output(step)
            content = step.input_text if output is None else output
            role = human.response_role if human is not None else "assistant"
            messages.append(Message(role, content, step.step_id.rpartition("/")[2]))
        last = messages[-1]
        return (*messages[:-1], Message(last.role, text, last.name))

    def visible(self, snapshot: RunSnapshot) -> list[str]:
        """List the finished steps whose outputs are messages."""
        return [step.step_id for step in snapshot.steps if step.step_id not in self.hidden]

    def _reads(self, path: str, other: str) -> bool:
        """Decide whether a step reads another step's output: not when both are in a concurrent workflow."""
        reader, writer = path.split("/"), other.split("/")
        shared = 0
        while shared < min(len(reader), len(writer)) and reader[shared] == writer[shared]:
            shared += 1
        concurrent = path != "" and "/".join(writer[:shared]) in self.concurrent and shared < len(reader)
        return not concurrent


@dataclass(frozen=True)
class FunctionStep:
    """A step that calls ``function(messages, config)``, sync or async."""

    name: str
    function: Function
    _: KW_ONLY
    description: str = ""

    def to_spec(self, builder: ConversationBuilder, path: str) -> Sequence[Json]:
        async def work(text: str, context: StepContext) -> StepOutput:
            return StepOutput(text=as_text(await builder.ask(self.function, text, context), self.name))

        return [_step(self.name, "function", builder.function(below(path, self.name), work), self.description)]


@dataclass(frozen=True)
class AgentStep:
    """A step that an agent of the spec language answers: a model with instructions."""

    name: str
    agent: Agent | Mapping[str, object]
    _: KW_ONLY
    description: str = ""

    def to_spec(self, builder: ConversationBuilder, path: str) -> Sequence[Json]:
        ref = builder.agent(below(path, self.name), self.name, self.agent)
        return [_step(self.name, "agent", ref, self.description)]


@dataclass(frozen=True)
class HumanInTheLoopStep:
    """A step that asks a person: first the resolver, if there is one, then a human task.

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

    def to_spec(self, builder: ConversationBuilder, path: str) -> Sequence[Json]:
        ref = below(path, self.name)
        builder.components["workflows"][ref] = self.workflow(builder, ref)
        return [_step(self.name, "workflow", ref, "")]

    def workflow(self, builder: ConversationBuilder, path: str) -> Json:
        """Return the workflow with its members at ``path``.

        Raises:
            Usage: a human step with a function as its prompt is not in a sequential workflow.
        """
        head: Json = {"type": self.family, "name": self.name, **self.settings}
        if self.family == "concurrent":
            builder.concurrent.add(path)
        members = [member.to_spec(builder, path) for member in self.members]
        steps = [step for member_steps in members for step in member_steps]
        if self.family == "sequential":
            return head | {"steps": steps}
        for member, member_steps in zip(self.members, members, strict=True):
            if len(member_steps) > 1:
                msg = f"{member.name} of the {self.family} workflow {self.name} has a prompt that is a function."
                raise Usage(msg, hint="Put it into a sequential workflow of its own, and that workflow here.")
        if self.family == "graph":
            return head | {"nodes": {str(step["id"]): step for step in steps}}
        return head | {"participants": steps}


Participant: TypeAlias = FunctionStep | AgentStep | HumanInTheLoopStep | WorkflowPart


def as_participant(member: object) -> Participant:
    """Convert a member of a workflow to a participant.

    Raises:
        Usage: the member is not a function, an agent, a human step or a workflow.
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
    run, name = getattr(member, "run", None), getattr(member, "name", None)
    if callable(run) and isinstance(name, str):
        return FunctionStep(name=name, function=run)
    if callable(member) and not inspect.isclass(member):
        return FunctionStep(name=getattr(member, "__name__", "step"), function=member)
    msg = f"{type(member).__name__} cannot take part in a workflow."
    raise Usage(msg, hint="Pass a function, an agent, WorkflowBuilder.human_step(...) or another workflow.")


def _step(name: str, kind: str, ref: str, description: str) -> Json:
    return {"id": name, "kind": kind, "ref": ref, **({"description": description} if description else {})}
