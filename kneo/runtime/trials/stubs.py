"""What stands for the outside in a trial: results of tool calls, outputs of functions, and replies of models."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from kneo.agents.turn import ToolBackend, ToolCall
from kneo.digest import canonical_json
from kneo.errors import KneoError
from kneo.function_context import StepContext
from kneo.runtime.interpreter.node import Activity
from kneo.runtime.interpreter.program import Program
from kneo.runtime.steps.agents import Conversation
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.executor import Call, Executor
from kneo.runtime.steps.functions import StepOutput
from kneo.runtime.steps.sandboxes import Sandboxes
from kneo.spec.code import RunCode
from kneo.spec.models.spec import Spec
from kneo.spec.models.suite import Case, ScriptedReply


class TrialEnded(KneoError):
    """A trial has come to a call, function, reply or question that its case does not have."""

    default_code = "trial_ended"


@dataclass
class TrialState:
    """The state of one trial. What its case does not have ends it, and everything that would follow.

    Attributes:
        case: The case.
        reason: Why the trial has ended early; None while it has not.
        asked: The keys of the questions so far.
    """

    case: Case
    reason: str | None = None
    asked: list[str] = field(default_factory=list)
    _replies: int = 0

    def end(self, reason: str) -> TrialEnded:
        """Note the first reason why the trial ends, and return the error to raise."""
        self.reason = self.reason or reason
        return TrialEnded(self.reason)

    def check(self) -> None:
        """Raise the error of a trial that has ended."""
        if self.reason is not None:
            raise TrialEnded(self.reason)

    def next_reply(self) -> ScriptedReply:
        """Return the next reply of the models."""
        self.check()
        if self._replies >= len(self.case.replies):
            raise self.end(f"A model was asked for reply {self._replies + 1}, and the case has {self._replies}.")
        self._replies += 1
        return self.case.replies[self._replies - 1]


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
        """Return the result of the first stub that fits a call."""
        state = self._state()
        state.check()
        made = canonical_json(dict(call.arguments))
        for stub in state.case.tools:
            if stub.tool == call.name and (stub.arguments is None or canonical_json(stub.arguments) == made):
                return stub.returns
        raise state.end(f"{call.name} was called with {made.decode()[:500]}, and no stub fits.")


class TrialExecutor(Executor):
    """An executor whose functions give the outputs of a case; one with capabilities and without an output is never called.

    Args:
        code: The modules that specs may name.
        sandboxes: The sandboxes of functions without an output.
        runs_code: Whether a function without capabilities and without an output is called.
    """

    state: Callable[[], TrialState]

    def __init__(self, code: CodeLoader, sandboxes: Sandboxes, *, runs_code: bool) -> None:
        super().__init__(code, sandboxes)
        self._runs_code = runs_code

    def plain(self, program: Program, activity: Activity, run_code: RunCode, environment: str | None) -> Call | None:
        declared = program.functions.get(activity.ref) if activity.kind == "function" else None
        state = self.state()
        is_stubbed = declared is None or declared.all_capabilities or state.case.outputs or state.reason is not None
        return super().plain(program, activity, run_code, environment) if self._runs_code and not is_stubbed else None

    async def execute(
        self, program: Program, activity: Activity, text: str, context: StepContext, conversation: Conversation
    ) -> StepOutput:
        state = self.state()
        state.check()
        if activity.kind == "function":
            for place in (context.location, activity.path):
                if place in state.case.outputs:
                    return StepOutput(text=state.case.outputs[place])
            self._check_function(program.functions[activity.ref].all_capabilities, activity.path)
        return await super().execute(program, activity, text, context, conversation)

    async def _check_levels(self, program: Program, environment: str | None) -> None:
        if self._runs_code:
            await super()._check_levels(program, environment)

    async def _call_for_agent(
        self, program: Program, context: StepContext, conversation: Conversation, name: str, text: str
    ) -> object:
        declared, outputs = program.spec.components.functions.get(name), self.state().case.outputs
        if declared is not None and name in outputs:
            return _value(outputs[name])
        if declared is not None:
            self._check_function(declared.all_capabilities, name)
        return await super()._call_for_agent(program, context, conversation, name, text)

    async def _load_code(self, spec: Spec, run_code: RunCode, implementations: Collection[str]) -> None:
        """Load no code: what stands behind tools is not called."""

    def _check_function(self, capabilities: Collection[str], what: str) -> None:
        """Raise the end of the trial at a function that is not called without an output."""
        if capabilities:
            has = ", ".join(capabilities)
            raise self.state().end(
                f"The function at {what} has the capability {has}, and the case has no output of it."
            )
        if not self._runs_code:
            raise self.state().end(f"The case has no output of the function at {what}, and no code is executed.")


def _value(output: str) -> object:
    """Return the output of a function of a guardrail or memory: JSON, or a text."""
    try:
        value: object = json.loads(output)
    except (ValueError, RecursionError):
        return output
    return value
