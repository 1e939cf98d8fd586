"""What a workflow is made of, and how each part is written down as a spec."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Protocol, TypeAlias

from kneo.errors import Usage
from kneo.runtime.interpreter.node import below
from kneo.runtime.steps.code import INPROCESS
from kneo.runtime.steps.context import StepContext, StepOutput
from kneo.sdk.code import Work, call
from kneo.sdk.messages import Message, Prompt, Resolver, RunConfig, Said, as_text
from kneo.spec.models import Agent

Json: TypeAlias = dict[str, object]
Function: TypeAlias = Callable[[Sequence[Message], RunConfig], Said | Awaitable[Said]]


class Runnable(Protocol):
    """An agent object of this process: it has a name and answers messages."""

    name: str

    def run(self, messages: Sequence[Message], config: RunConfig) -> Said | Awaitable[Said]: ...


class Conversation(Protocol):
    """What has been said so far, as far as a step may hear it."""

    async def heard(self, text: str, context: StepContext) -> Sequence[Message]: ...

    async def given(self, step_path: str, context: StepContext) -> str: ...

    def config(self, run_id: str) -> RunConfig: ...


@dataclass
class Draft:
    """A spec on its way, with the code and the resolvers of its steps by path."""

    conversation: Conversation
    components: dict[str, Json] = field(
        default_factory=lambda: {"agents": {}, "functions": {}, "humans": {}, "workflows": {}}
    )
    work: dict[str, Work] = field(default_factory=dict)
    humans: dict[str, HumanInTheLoopStep] = field(default_factory=dict)
    aside: set[str] = field(default_factory=set)
    """Paths of what runs its parts at the same time: they do not hear each other."""
    hidden: set[str] = field(default_factory=set)
    """Paths of steps that say nothing of their own."""

    def function(self, path: str, work: Work) -> str:
        """Note what a step does; return the name of its component."""
        # By its place and not by number: a run that waits must find its own steps when others were added meanwhile.
        implementation = INPROCESS + identifier(path)
        self.components["functions"][path] = {"implementation": implementation}
        self.work[implementation] = work
        return path


@dataclass(frozen=True, kw_only=True)
class FunctionStep:
    """A step that calls ``function(messages, config)``, sync or async."""

    name: str
    function: Function
    description: str = ""

    def write(self, draft: Draft, path: str) -> Sequence[Json]:
        async def work(text: str, context: StepContext) -> StepOutput:
            heard = await draft.conversation.heard(text, context)
            said = await call(self.function, heard, draft.conversation.config(context.run_id))
            return StepOutput(text=as_text(said, self.name))

        ref = draft.function(below(path, self.name), work)
        return [_step(self.name, "function", ref, self.description)]


@dataclass(frozen=True, kw_only=True)
class AgentStep:
    """A step that an agent of the spec language answers: a model, with instructions."""

    name: str
    agent: Agent | Mapping[str, object]
    description: str = ""

    def write(self, draft: Draft, path: str) -> Sequence[Json]:
        ref = below(path, self.name)
        agent = self.agent
        tree = agent.model_dump(by_alias=True, exclude_unset=True) if isinstance(agent, Agent) else dict(agent)
        draft.components["agents"][ref] = {"name": self.name, **tree}
        return [_step(self.name, "agent", ref, self.description)]


@dataclass(frozen=True, kw_only=True)
class HumanInTheLoopStep:
    """A step that asks a person: the resolver first, where there is one, and then whoever finds the open task."""

    name: str
    prompt: Prompt
    resolver: Resolver | None = None
    description: str = ""
    response_role: str = "user"
    metadata: Mapping[str, object] = field(default_factory=dict)

    def write(self, draft: Draft, path: str) -> Sequence[Json]:
        here = below(path, self.name)
        draft.humans[here] = self
        prompt, before = self.prompt, []
        if not isinstance(prompt, str):
            # The words depend on what was said, and belong into the task: whoever answers may sit elsewhere.
            prompt, before = f"{{{{ variables.{_variable(here)} }}}}", self._words(draft, path, here)
        draft.components["humans"][here] = {
            "description": self.description or self.name,
            "prompt": prompt,
            "response_role": self.response_role,
            "request_type": "freeform",
            **({"context": dict(self.metadata)} if self.metadata else {}),
        }
        return [*before, _step(self.name, "human", here, self.description)]

    def _words(self, draft: Draft, path: str, here: str) -> list[Json]:
        """Two steps in front of the question: one makes its words, one hands on what came before them."""
        words, subject = f"{self.name}.words", f"{self.name}.subject"
        function = self.prompt
        assert not isinstance(function, str)

        async def make(text: str, context: StepContext) -> StepOutput:
            heard = await draft.conversation.heard(text, context)
            said = await call(function, heard, draft.conversation.config(context.run_id))
            if not isinstance(said, str):
                msg = f"The prompt of {self.name} returned {type(said).__name__}, not a str."
                raise TypeError(msg)
            return StepOutput(text=said)

        async def restore(_text: str, context: StepContext) -> StepOutput:
            return StepOutput(text=await draft.conversation.given(below(path, words), context))

        draft.hidden |= {below(path, words), below(path, subject)}
        made = _step(words, "function", draft.function(below(path, words), make), "") | {"save_as": _variable(here)}
        return [made, _step(subject, "function", draft.function(below(path, subject), restore), "")]


@dataclass(frozen=True, kw_only=True)
class JournalEntry:
    """A workflow inside another one, or the whole."""

    name: str
    family: str
    members: Sequence[Participant]
    settings: Mapping[str, object] = field(default_factory=dict)
    description: str = ""

    def write(self, draft: Draft, path: str) -> Sequence[Json]:
        here = below(path, self.name)
        draft.components["workflows"][here] = self.declared(draft, here)
        return [_step(self.name, "workflow", here, self.description)]

    def declared(self, draft: Draft, path: str) -> Json:
        """Write the workflow itself down."""
        head: Json = {"type": self.family, "name": self.name, **self.settings}
        if self.family == "concurrent":
            draft.aside.add(path)
        written = [(each, each.write(draft, path)) for each in self.members]
        if self.family == "sequential":
            return head | {"steps": [step for _, steps in written for step in steps]}
        single = [self._as_one(steps) for _, steps in written]
        if self.family == "graph":
            return head | {"nodes": {str(step["id"]): step for step in single}}
        return head | {"participants": single}

    def _as_one(self, steps: Sequence[Json]) -> Json:
        """Return one step: a question with steps in front of it cannot be a participant by itself."""
        if len(steps) == 1:
            return steps[0]
        name = steps[-1]["id"]
        msg = f"{name} of the {self.family} workflow {self.name} has a prompt that is a function."
        raise Usage(msg, hint="Put it into a sequential workflow of its own, and that one here.")


Participant: TypeAlias = FunctionStep | AgentStep | HumanInTheLoopStep | JournalEntry


def participant(given: object) -> Participant:
    """Make a step of what stands in a list of participants.

    Raises:
        Usage: it is nothing that can take part.
    """
    if isinstance(given, FunctionStep | AgentStep | HumanInTheLoopStep | JournalEntry):
        return given
    part = getattr(given, "part", None)
    if isinstance(part, JournalEntry):
        return part
    if isinstance(given, Agent):
        return AgentStep(name=given.name, agent=given)
    if hasattr(given, "as_step"):
        msg = f"{type(given).__name__} of kneo.sdk.workflow cannot take part in a workflow of WorkflowBuilder."
        raise Usage(msg, hint="Build both with kneo.sdk.workflow, or both with WorkflowBuilder.")
    run, name = getattr(given, "run", None), getattr(given, "name", None)
    if callable(run) and isinstance(name, str):
        return FunctionStep(name=name, function=run)
    if callable(given) and not inspect.isclass(given):
        return FunctionStep(name=getattr(given, "__name__", "step"), function=given)
    msg = f"{type(given).__name__} cannot take part in a workflow."
    raise Usage(msg, hint="Take a function, an agent, WorkflowBuilder.human_step(...) or another workflow.")


def _step(name: str, kind: str, ref: str, description: str) -> Json:
    return {"id": name, "kind": kind, "ref": ref, **({"description": description} if description else {})}


def _variable(path: str) -> str:
    return f"prompt_{identifier(path)}"


def identifier(path: str) -> str:
    """Spell a path as a Python name; different paths stay different."""
    plain = "".join(sign if sign.isascii() and sign.isalnum() else "_" for sign in path)
    return f"{plain}_{sha256(path.encode()).hexdigest()[:8]}"
