"""What stands for the outside in a trial: results of tool calls, outputs of functions, and replies of models."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace

from kneo.agents.texts import json_value
from kneo.agents.turn import ToolBackend, ToolCall
from kneo.digest import canonical_json
from kneo.errors import KneoError
from kneo.function_context import StepContext
from kneo.records.task import HumanTask
from kneo.runtime.interpreter.node import Activity
from kneo.runtime.interpreter.program import Program
from kneo.runtime.steps.agents import Conversation
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.executor import Call, Executor
from kneo.runtime.steps.functions import StepOutput
from kneo.runtime.steps.sandboxes import Sandboxes
from kneo.spec.code import RunCode
from kneo.spec.models.answers import ScriptedAnswer
from kneo.spec.models.spec import Spec
from kneo.spec.models.suite import Case, ScriptedReply


class TrialEnded(KneoError):
    """A trial has come to a call, function, reply or question that its source does not have."""

    default_code = "trial_ended"


class TrialState(ABC):
    """The state of one trial. What its source does not have ends it, and everything that would follow.

    Attributes:
        reason: Why the trial has ended early; None while it has not.
        asked: The keys of the questions so far.
        has_outputs: Whether function steps may have outputs of the source.
        source: What the source is, in messages.
    """

    has_outputs = True
    source = "recording"

    def __init__(self) -> None:
        self.reason: str | None = None
        self.asked: list[str] = []

    def end(self, reason: str) -> TrialEnded:
        """Note the first reason why the trial ends, and return the error to raise."""
        self.reason = self.reason or reason
        return TrialEnded(self.reason)

    def check(self) -> None:
        """Raise the error of a trial that has ended."""
        if self.reason is not None:
            raise TrialEnded(self.reason)

    @abstractmethod
    def next_reply(self) -> ScriptedReply:
        """Return the next reply of scripted models.

        Raises:
            TrialEnded: there is none.
        """

    @abstractmethod
    def result_of(self, call: ToolCall) -> object:
        """Return the result of a tool call.

        Raises:
            TrialEnded: there is none.
            KneoError: the call fails.
        """

    @abstractmethod
    def output_of(self, activity: Activity, location: str, text: str, capabilities: Collection[str]) -> str | None:
        """Return the output of a function step; None where there is none: a function with capabilities then ends the trial.

        Raises:
            TrialEnded: the function has capabilities, and there is no output.
        """

    def output_for_agent(self, name: str) -> str | None:  # noqa: ARG002 - a case has some
        """Return the output of a function that a guardrail or a memory calls."""
        return None

    @abstractmethod
    def answer_to(self, task: HumanTask) -> ScriptedAnswer | None:
        """Return the answer to a question; None where there is none, which ends the trial."""


class CaseState(TrialState):
    """The state of a trial of a case."""

    source = "case"

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case, self._replies, self.has_outputs = case, 0, bool(case.outputs)

    def next_reply(self) -> ScriptedReply:
        self.check()
        if self._replies >= len(self.case.replies):
            raise self.end(f"A model was asked for reply {self._replies + 1}, and the case has {self._replies}.")
        self._replies += 1
        return self.case.replies[self._replies - 1]

    def result_of(self, call: ToolCall) -> object:
        self.check()
        made = canonical_json(dict(call.arguments))
        for stub in self.case.tools:
            if stub.tool == call.name and (stub.arguments is None or canonical_json(stub.arguments) == made):
                return stub.returns
        raise self.end(f"{call.name} was called with {made.decode()[:500]}, and no stub fits.")

    def output_of(self, activity: Activity, location: str, text: str, capabilities: Collection[str]) -> str | None:  # noqa: ARG002
        for place in (location, activity.path):
            if place in self.case.outputs:
                return self.case.outputs[place]
        return None

    def output_for_agent(self, name: str) -> str | None:
        return self.case.outputs.get(name)

    def answer_to(self, task: HumanTask) -> ScriptedAnswer | None:
        key = plain_key(task.key)
        written = self.case.answers.get(task.key) or self.case.answers.get(key)
        if written is None:
            self.end(f"{key} was asked, and the case has no answer to it.")
        return written


class Stubs(Mapping[str, ToolBackend]):
    """The backend of every kind of tool. A call without a stub is never made.

    Args:
        state: Returns the state of the present trial.
    """

    def __init__(self, state: Callable[[], TrialState]) -> None:
        self._state = state

    def __getitem__(self, name: str) -> ToolBackend:
        return self

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    async def call(self, call: ToolCall) -> object:
        """Return the result that the trial has of a call."""
        return self._state().result_of(call)


class TrialExecutor(Executor):
    """An executor whose functions give the outputs of a case; one with capabilities and without an output is never called.

    Args:
        code: The modules that specs may name.
        sandboxes: The sandboxes of functions without an output.
        runs_code: Whether a function without capabilities and without an output is called.
    """

    state: Callable[[], TrialState]
    run_code: RunCode | None = None
    """The code of the bundle in place of the project's."""

    def __init__(self, code: CodeLoader, sandboxes: Sandboxes, *, runs_code: bool) -> None:
        super().__init__(code, sandboxes)
        self._runs_code = runs_code

    def plain(self, program: Program, activity: Activity, run_code: RunCode, environment: str | None) -> Call | None:
        declared = program.functions.get(activity.ref) if activity.kind == "function" else None
        state = self.state()
        is_stubbed = declared is None or declared.all_capabilities or state.has_outputs or state.reason is not None
        if is_stubbed or not self._runs_code:
            return None
        return super().plain(program, activity, self.run_code or run_code, environment)

    async def execute(
        self, program: Program, activity: Activity, text: str, context: StepContext, conversation: Conversation
    ) -> StepOutput:
        state = self.state()
        state.check()
        conversation = replace(conversation, code=self.run_code or conversation.code)
        if activity.kind == "function":
            capabilities = program.functions[activity.ref].all_capabilities
            output = state.output_of(activity, context.location, text, capabilities)
            if output is not None:
                return StepOutput(text=output)
            self._check_function(capabilities, activity.path)
        return await super().execute(program, activity, text, context, conversation)

    async def _check_levels(self, program: Program, environment: str | None) -> None:
        if self._runs_code:
            await super()._check_levels(program, environment)

    async def _call_for_agent(
        self, program: Program, context: StepContext, conversation: Conversation, name: str, text: str
    ) -> object:
        declared, output = program.spec.components.functions.get(name), self.state().output_for_agent(name)
        if declared is not None and output is not None:
            return json_value(output)
        if declared is not None:
            self._check_function(declared.all_capabilities, name)
        return await super()._call_for_agent(program, context, conversation, name, text)

    async def _load_code(self, spec: Spec, run_code: RunCode, implementations: Collection[str]) -> None:
        """Load no code: what stands behind tools is not called."""

    def _check_function(self, capabilities: Collection[str], what: str) -> None:
        """Raise the end of the trial at a function that is not called without an output."""
        if capabilities:
            has = ", ".join(capabilities)
            source = self.state().source
            msg = f"The function at {what} has the capability {has}, and the {source} has no output of it."
            raise self.state().end(msg)
        if not self._runs_code:
            raise self.state().end(f"The case has no output of the function at {what}, and no code is executed.")


_ARGUMENTS = re.compile(r":[0-9a-f]{8}(?=>|\+|$)")
"""The digests of arguments in the key of a question about a call."""


def plain_key(key: str) -> str:
    """Return the key of a question without digests of arguments."""
    return _ARGUMENTS.sub("", key)
