"""The primitives of a workflow, the builder that translates them to a spec, the simplest primitive (the step), and session state.

The state of a session is a map that steps read and change, kept with the run of each change. A step that is repeated after an
answer or a crash begins with the state that it began with before. Steps at the same time keep each other's changes of other keys.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, TypeAlias

from kneo.embed.database import encode_value
from kneo.embed.runs import JournalEntry, RunHost, RunSnapshot, Work
from kneo.embed.steps import FunctionSchemas, StepContext, as_text, below
from kneo.embed.steps import StepOutput as ActivityOutput
from kneo.sdk.builder import Json, SpecBuilder, call
from kneo.sdk.workflow import types
from kneo.spec.models.agent import Agent

OutputMetadata: TypeAlias = Callable[[str, StepContext], Awaitable[dict[str, str]]]
"""A function that returns the metadata of an output."""


class Primitive(ABC):
    """An element of a workflow.

    Args:
        name: The name of the primitive.
        human_review: The questions to people around it.
        parameters: The parameters of HumanReview, instead of ``human_review``.
        description: The description shown where people choose.

    Raises:
        ValueError, TypeError: the primitive does not support such a review.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        name: str,
        human_review: types.HumanReview | None,
        parameters: Mapping[str, object],
        description: str | None = None,
    ) -> None:
        self.name = name
        self.description = description
        self.human_review = types.review_of(self.kind, name, human_review, parameters)

    @abstractmethod
    def to_spec(self, builder: StepBuilder, path: str) -> Json:
        """Return the primitive as a step of the spec."""

    def join_steps(self, _builder: StepBuilder, _path: str) -> list[Json]:
        """Return the steps of the spec that follow the primitive."""
        return []

    def branch_names(self) -> Sequence[str]:
        """Return the names of the steps that run at the same time."""
        return ()

    def head(self) -> Json:
        """Return the keys that steps of every kind have."""
        return {"id": self.name, **types.gates(self.kind, self.name, self.human_review)}


@dataclass(frozen=True)
class PrimitiveLocation:
    """A primitive at its position in a workflow."""

    name: str
    kind: str
    index: int
    review: types.HumanReview | None = None
    branches: Sequence[str] = ()
    """The names of the steps in a Parallel."""


class StepBuilder(SpecBuilder):
    """The spec of a workflow of primitives, and the inputs and outputs of its steps, read from the records of runs.

    Attributes:
        locations: Primitives by path.
    """

    def __init__(self) -> None:
        super().__init__()
        self.locations: dict[str, PrimitiveLocation] = {}

    def sequence(self, members: Sequence[Primitive], path: str) -> list[Json]:
        """Translate primitives that run one after the other; raises what ``branches`` raises."""
        steps = []
        for member, step in zip(members, self.branches(members, path), strict=True):
            steps += [step, *member.join_steps(self, below(path, member.name))]
        return steps

    def branches(self, members: Sequence[Primitive], path: str) -> list[Json]:
        """Translate primitives that do not follow each other, each to one step.

        Raises:
            ValueError: two primitives have the same name.
        """
        names = [member.name for member in members]
        for name in names:
            if names.count(name) > 1:
                msg = f"Two primitives of one parent are called {name}."
                raise ValueError(msg)
        steps = []
        for index, member in enumerate(members):
            member_path = below(path, member.name)
            self.locations[member_path] = PrimitiveLocation(
                member.name, member.kind, index, member.human_review, member.branch_names()
            )
            steps.append(member.to_spec(self, member_path))
        return steps

    def metadata_step(self, path: str, name: str, metadata: OutputMetadata) -> Json:
        """Return a step that passes its input on and adds metadata to it."""

        async def work(text: str, context: StepContext) -> ActivityOutput:
            return ActivityOutput(text=text, metadata=await metadata(text, context))

        return {"id": name, "kind": "function", "ref": self.function(below(path, name), work)}

    async def ask(self, function: Callable[..., object], text: str, context: StepContext) -> object:
        """Call the function of a primitive with its input, and with the session's state if it has a parameter for it."""
        snapshot = await self.read(context)
        step_input = self.step_input(snapshot, text, context)
        if not takes(function, STATE):
            return await call(function, step_input)
        before = read_state(snapshot, without=context.location)
        state = copy.deepcopy(before)
        result = await call(partial(function, session_state=state), step_input)
        if state != before or any(is_change(entry, context.location) for entry in snapshot.journal):
            await asyncio.to_thread(record_change, self.host, context, before, state)
        return result

    def step_input(self, snapshot: RunSnapshot, text: str, context: StepContext) -> types.StepInput:
        """Return the input of a step."""
        data = snapshot.caller_metadata.get("additional_data")
        additional: Json = dict(data) if isinstance(data, Mapping) else {}
        if context.values:
            additional["user_input"] = dict(context.values)
        if context.previous_output is not None:
            additional |= {"rejection_feedback": context.feedback, "previous_output": context.previous_output}
        return types.StepInput(
            input=snapshot.run.input_text,
            previous_step_content=text,
            previous_step_outputs=self.outputs_by_name(snapshot),
            additional_data=additional,
            run_id=context.run_id,
            idempotency_key=context.idempotency_key,
            session_id=snapshot.session_id,
        )

    def outputs(self, snapshot: RunSnapshot) -> list[types.StepOutput]:
        """List the outputs of a run's finished steps in order, as reviewed."""
        return [
            types.StepOutput(
                snapshot.output(step),
                self.locations[step.step_id].name,
                step.status == "completed",
                step.error.message if step.error else None,
            )
            for step in snapshot.steps
            if step.step_id in self.locations and self.locations[step.step_id].kind == Step.kind
        ]

    def outputs_by_name(self, snapshot: RunSnapshot) -> Mapping[str, types.StepOutput]:
        """Return the outputs of steps and of containers by name; a step's counts before a container's of the same name."""
        found = {output.step_name or "": output for output in self.outputs(snapshot)}
        for path, location in self.locations.items():
            content = self.content(snapshot, path)
            if content is not None:
                found.setdefault(location.name, types.StepOutput(content, location.name))
        return found

    def content(self, snapshot: RunSnapshot, path: str) -> object:
        """Return what the steps in a primitive passed on last; None where none has ended."""
        location = self.locations[path]
        if location.branches:
            contents = {name: self.content(snapshot, below(path, name)) for name in location.branches}
            return {name: content for name, content in contents.items() if content is not None} or None
        steps = [step for step in snapshot.steps if step.step_id == path or step.step_id.startswith(f"{path}/")]
        steps = [step for step in steps if location.kind == Step.kind or step.step_id != path]
        if not steps:
            return None
        edited = snapshot.edited(path, steps[-1])
        return snapshot.output(steps[-1]) if edited is None else edited


def takes(function: Callable[..., object], name: str) -> bool:
    """Return whether a function has a parameter of this name."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some callables of C have no signature
        return False


class Step(Primitive):
    """A step that an agent, a team or a function executes.

    Args:
        name: The name of the step; the default is the name of its executor or agent.
        agent: An agent of the spec language, or an object with ``run(text)`` or ``arun(text)``. Its result is passed on, of
            an object with ``content``, ``output`` or ``output_text`` that. Parameters ``session_id`` and ``session_state``
            receive the session.
        team: A team of agents: the same as an agent.
        executor: ``f(step_input)``, sync or async. A parameter ``session_state`` receives the state of the session, which the
            function may change.
        description: The description shown where people choose.
        human_review: The questions to people around it; ``@pause`` at the executor is the same.
        timeout_seconds: The time limit of one attempt.
        parameters: The parameters of HumanReview, instead of ``human_review``.

    Raises:
        ValueError: the step has none or several of agent, team and executor, or does not support the review.
    """

    kind = "Step"

    def __init__(
        self,
        name: str | None = None,
        *,
        agent: object = None,
        team: object = None,
        executor: types.Executor | None = None,
        description: str | None = None,
        human_review: types.HumanReview | None = None,
        timeout_seconds: int | None = None,
        **parameters: object,
    ) -> None:
        runners = [each for each in (executor, agent, team) if each is not None]
        subject = runners[0] if runners else None
        name = name or str(getattr(subject, "__name__", None) or getattr(subject, "name", None) or "step")
        problem = None
        if len(runners) != 1:
            problem = f"Step {name} takes one of agent, team and executor."
        elif hasattr(subject, "as_step"):
            problem = f"{name} is a workflow: pass it among the steps itself, without a Step around it."
        elif hasattr(subject, "part"):
            problem = f"{name} is a workflow of WorkflowBuilder, which cannot be a step here: build it of steps."
        elif executor is not None and not callable(executor):
            problem = f"The executor of Step {name} is {type(executor).__name__}, which cannot be called."
        elif executor is None and not isinstance(subject, Agent | Mapping) and runner_of(subject) is None:
            problem = f"The agent of Step {name} is {type(subject).__name__}, which has neither run nor arun."
        if problem is not None:
            raise ValueError(problem)
        self.agent = agent if agent is not None else team
        self.executor = executor
        self.timeout_seconds = timeout_seconds
        if human_review is None and not parameters:
            human_review = getattr(executor, "human_review", None)
        super().__init__(name, human_review, parameters, description)

    def to_spec(self, builder: StepBuilder, path: str) -> Json:
        step = self.head()
        if self.description:
            step["description"] = self.description
        if self.timeout_seconds is not None:
            step["timeout_seconds"] = self.timeout_seconds
        if isinstance(self.agent, Agent | Mapping):
            return step | {"kind": "agent", "ref": builder.agent(path, self.name, self.agent)}
        return step | {"kind": "function", "ref": builder.function(path, self._work(builder))}

    def _work(self, builder: StepBuilder) -> Work:
        review = self.human_review
        predicate = review.requires_output_review if review is not None else False

        async def work(text: str, context: StepContext) -> ActivityOutput:
            content = await builder.ask(self.executor or self._run_agent, text, context)
            output = content if isinstance(content, types.StepOutput) else types.StepOutput(content)
            metadata = await review_metadata(predicate, output) if callable(predicate) else {}
            return ActivityOutput(text=as_text(output.text, FunctionSchemas()), metadata=metadata)

        return work

    async def _run_agent(self, step_input: types.StepInput, session_state: Json) -> object:
        """Run an agent object of this process."""
        run = runner_of(self.agent)
        assert run is not None
        session = {"session_id": step_input.session_id, STATE: session_state}
        response = await call(
            partial(run, **{name: value for name, value in session.items() if takes(run, name)}),
            message_for_agent(step_input),
        )
        return next((getattr(response, each) for each in RESULTS if hasattr(response, each)), response)


RESULTS = ("content", "output", "output_text")
"""The attributes that hold the result of an agent's run."""


def runner_of(agent: object) -> Callable[..., object] | None:
    """Return the method that runs an agent: ``arun``, else ``run``."""
    run = getattr(agent, "arun", None) or getattr(agent, "run", None)
    return run if callable(run) else None


def message_for_agent(step_input: types.StepInput) -> str:
    """Return the message to an agent: the content so far, the values that people filled in, and review feedback."""
    sections = [step_input.previous_step_content or step_input.input]
    data = step_input.additional_data
    values = data.get("user_input")
    if isinstance(values, Mapping) and values:
        lines = [f"- {name}: {types.encode_content(value)}" for name, value in values.items()]
        sections.append("\n".join(["User preferences:", *lines]))
    previous = data.get("previous_output")
    if previous is not None:
        feedback = data.get("rejection_feedback") or "It was rejected without a reason."
        sections.append(f"Previous output:\n{previous}\n\nReviewer feedback:\n{feedback}")
    return "\n\n".join(sections)


async def review_metadata(predicate: types.Predicate, output: types.StepOutput) -> dict[str, str]:
    """Return the metadata that requests a review of an output; a predicate that raises requests one."""
    try:
        needed = bool(await call(predicate, output))
    except Exception:  # noqa: BLE001 - fail closed: the output is reviewed
        needed = True
    return {types.NEEDS_REVIEW: "true" if needed else "false"}


STATE = "session_state"
"""The key of the state at the start of a run, and the name of the journal entries with the changes of its steps."""


def encode_state(state: object) -> str:
    """Encode a state, or a change of it; raises what ``encode_value`` raises."""
    return encode_value(state, "The session_state")


def read_state(snapshot: RunSnapshot, without: str | None = None) -> Json:
    """Return the state of a run: that of its start with the changes of its steps.

    Args:
        snapshot: The run.
        without: The location of a step whose own changes are left out.
    """
    begun = snapshot.caller_metadata.get(STATE)
    state: Json = copy.deepcopy(dict(begun)) if isinstance(begun, Mapping) else {}
    for entry in snapshot.journal:
        if entry.name == STATE and not (without is not None and is_change(entry, without)):
            change = json.loads(entry.value)
            state |= change["set"]
            for key in change["deleted"]:
                state.pop(key, None)
    return state


def is_change(entry: JournalEntry, location: str) -> bool:
    """Return whether a journal entry is the change of the step at a location."""
    return entry.name == STATE and entry.location == location


def record_change(host: RunHost, context: StepContext, before: Json, after: Json) -> None:
    """Record what a step changed; a repeated step replaces its earlier change. Raises what ``encode_state`` raises."""
    after = json.loads(encode_state(after))
    changed = {key: value for key, value in after.items() if key not in before or before[key] != value}
    deleted = sorted(before.keys() - after.keys())
    host.record(context.run_id, context.location, STATE, encode_state({"set": changed, "deleted": deleted}))
