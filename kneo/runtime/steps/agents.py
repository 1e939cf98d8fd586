"""Agent steps: where the runtime meets the model layer."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

from kneo.agents import dummy
from kneo.agents.guardrails import PASS, TurnGuardrails
from kneo.agents.providers import provider_name
from kneo.agents.start_check import check_libraries
from kneo.agents.step_tools import code_of_helpers
from kneo.agents.turn import (
    CallFunction,
    DeltaStream,
    GuardrailViolation,
    Journal,
    LoadCode,
    SessionHistory,
    Turn,
    TurnResult,
    load_nothing,
    no_functions,
)
from kneo.clock import Clock, SystemClock
from kneo.distribution import install_extra
from kneo.errors import Invalid
from kneo.function_context import StepContext
from kneo.records.task import Decision
from kneo.runtime.interpreter.node import Activity
from kneo.runtime.interpreter.program import Program
from kneo.runtime.interpreter.values import text_of_outputs, titled
from kneo.runtime.steps.functions import StepOutput
from kneo.runtime.steps.threads import in_thread
from kneo.settings import AgentSettings
from kneo.spec.code import RunCode
from kneo.spec.models.agent import Agent, Strategy
from kneo.spec.models.providers import DUMMY


def choosing(agent: Agent, choices: Mapping[str, str | None]) -> Agent:
    """Return an agent that answers with one of the choices; it is asked once, without tools and memory."""
    schema = {
        "type": "object",
        "properties": {"choice": {"type": "string", "enum": list(choices)}},
        "required": ["choice"],
        "additionalProperties": False,
    }
    changes = {"strategy": Strategy(type="simple"), "tools": None, "memory": None, "output_schema": schema}
    return agent.model_copy(update=changes)


def choice_message(text: str, choices: Mapping[str, str | None]) -> str:
    """Return the input of an agent that chooses: the text, then the choices with their descriptions."""
    listed = "\n".join(f"- {name}: {about}" if about else f"- {name}" for name, about in choices.items())
    return f"{text}\n\nChoose what comes next. Answer with one of these names:\n{listed}"


LOOP, CLIENTS, SINGLE_CALL = "kneo.agents.loop", "kneo.agents.clients", "kneo.agents.single_call"
"""The modules of the agents' loop, of the clients of providers and of single calls, imported by name: they need libraries that only agents with a
model need."""


async def served_to_all(_tool: str) -> str | None:
    """Return no refusal, where no environment restricts callers."""
    return None


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """The part of a run that an agent step continues: its journal, and the answers to its earlier questions."""

    journal: Journal
    name: str
    answers: Mapping[str, Decision] = field(default_factory=dict)
    environment: str | None = None
    code: RunCode = field(default_factory=RunCode)
    sampling_seed: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)
    """What expressions at calls compare besides the call: ``values`` and ``run``."""
    deltas: DeltaStream | None = None
    session: SessionHistory | None = None
    functions: CallFunction = no_functions
    load_code: LoadCode = load_nothing
    check_caller: Callable[[str], Awaitable[str | None]] = served_to_all
    """Returns why the environment does not serve a tool to the caller now; for runs with the target call."""
    clock: Clock = field(default_factory=SystemClock)


@dataclass(frozen=True, kw_only=True)
class OpenServices:
    """The services of agents in this process, and the way to close them."""

    services: object
    close: Callable[[], Awaitable[None]]


MakeServices: TypeAlias = Callable[[], OpenServices]
"""Makes the services of agents; called in a thread, at the first step that needs them."""


class _Loop(Protocol):
    async def take_turn(self, turn: Turn, services: object) -> TurnResult: ...


class Agents:
    """Runs agent steps. The loop and the services of agents are loaded once, by the first step that needs them.

    Args:
        make_services: Makes the services; without it only the provider ``dummy`` is available.
    """

    def __init__(self, make_services: MakeServices | None) -> None:
        self._make = make_services
        self._loaded: tuple[_Loop, OpenServices] | None = None
        self._loading = asyncio.Lock()
        self._imported: frozenset[str] = frozenset()
        """Providers whose libraries are imported."""

    async def run(
        self, program: Program, activity: Activity, text: str, context: StepContext, conversation: Conversation
    ) -> StepOutput:
        """Take a turn of the step's agent. A step of kind guardrail passes its input on where the agent's reply says so.

        Raises:
            GuardrailViolation: a guardrail blocks, or the agent of a step of kind guardrail does not let the text pass.
            PeopleRequired, Postponed, Stopped: see ``kneo.agents.turn``.
            KneoError: the turn failed.
        """
        name = activity.ref or program.agent_name
        agent = program.agents[activity.ref]
        if program.is_call:
            return await self._call(program, activity, text, context, conversation)
        provider = provider_name(name, agent)
        assert agent.model is not None
        facts = {"agent_name": name, "model_provider": provider, "model_name": agent.model.name}
        message = input_of(text if provider == DUMMY else with_earlier(text, context), context)
        if activity.choices:
            agent, message = choosing(agent, activity.choices), choice_message(message, activity.choices)
        turn = replace(
            _turn(program, activity, context, conversation),
            agent=agent,
            text=message,
            feedback=feedback_of(context),
            own_text=input_of(text, context),
            # A choice among steps is no message of a conversation.
            session=None if activity.choices else conversation.session,
            is_hidden=activity.kind == "guardrail",
            deltas=conversation.deltas,
        )
        result = await self._take(turn, provider, program, conversation.clock)
        given = text if result.input is None or result.input == message else result.input
        passed, metadata = result.text, result.metadata
        if activity.choices:
            passed = str(metadata.get("choice", passed))  # the provider dummy makes no choice
        if activity.kind == "guardrail":
            if not PASS.match(result.text):
                msg = f"The guardrail step {activity.path} blocks: the reply of the agent {name} does not begin with PASS."
                raise GuardrailViolation(msg, violation_type="agent")
            passed, metadata = given, {}
        return StepOutput(text=passed, facts={**facts, **result.facts}, metadata=metadata, input_text=given)

    async def _call(
        self, program: Program, activity: Activity, text: str, context: StepContext, conversation: Conversation
    ) -> StepOutput:
        """Make the call that a step's input states."""
        turn = replace(_turn(program, activity, context, conversation), text=text)
        _, opened = await self._load(turn.agent_name, providers_of(program))
        result = await importlib.import_module(SINGLE_CALL).take_call(turn, opened.services, conversation.check_caller)
        facts = {"agent_name": turn.agent_name, **result.facts}
        return StepOutput(text=result.text, facts=facts, metadata=result.metadata, input_text=text)

    async def _take(self, turn: Turn, provider: str, program: Program, clock: Clock) -> TurnResult:
        """Take a turn; an agent of the provider dummy needs no library, unless an agent of another provider checks for it."""
        checks = turn.agent.guardrails.stages().values() if turn.agent.guardrails is not None else ()
        if provider == DUMMY and not any(each.type == "agent" for stage in checks for each in stage):
            await turn.load_code(tuple(code_of_helpers(turn.spec, turn.agent)))
            entries = turn.journal.load() if any(checks) else ()
            guardrails = TurnGuardrails(turn, entries, clock=clock, limits=AgentSettings(), take=_no_agents)
            return await dummy.take_turn(turn, guardrails)
        check_libraries(turn.agent_name, turn.agent, program.spec)
        loop, opened = await self._load(turn.agent_name, providers_of(program))
        return await loop.take_turn(turn, opened.services)

    async def close(self) -> None:
        """Close the connections of the services."""
        if self._loaded is not None:
            (_, opened), self._loaded = self._loaded, None
            await opened.close()

    async def _load(self, agent: str, providers: frozenset[str]) -> tuple[_Loop, OpenServices]:
        async with self._loading:
            if self._loaded is None or not providers <= self._imported:
                # Imports take seconds on a busy machine, in which the event loop serves other steps.
                loaded = self._loaded
                self._loaded = await in_thread(lambda: loaded or self._import(agent))
                await in_thread(lambda: importlib.import_module(CLIENTS).warm_up(providers))
                self._imported |= providers
            return self._loaded

    def _import(self, agent: str) -> tuple[_Loop, OpenServices]:
        if self._make is None:
            msg = f"The agent {agent} needs a model, and this process executes agents of the provider dummy only."
            raise Invalid(msg, code="provider_not_configured", hint="Run it with kneo run or kneo worker.")
        try:
            loop: _Loop = importlib.import_module(LOOP)
            return loop, self._make()
        except ImportError as error:
            msg = f"The agent {agent} needs the library of agents, which is not installed: {error}."
            raise Invalid(msg, code="provider_not_configured", hint=install_extra("agents")) from error


def _turn(program: Program, activity: Activity, context: StepContext, conversation: Conversation) -> Turn:
    """Return a turn of a step's agent, without its text."""
    return Turn(
        run_id=context.run_id,
        step_id=context.step_id,
        agent_name=activity.ref or program.agent_name,
        agent=program.agents[activity.ref],
        spec=program.spec,
        text="",
        conversation=conversation.name,
        journal=conversation.journal,
        answers=conversation.answers,
        gates=program.tool_gates.of_step(activity.call_gates, conversation.sampling_seed, conversation.facts),
        facts=conversation.facts,
        environment=conversation.environment,
        code=conversation.code,
        functions=conversation.functions,
        load_code=conversation.load_code,
    )


async def _no_agents(turn: Turn) -> TurnResult:
    raise AssertionError(turn.agent_name)


def checks_input(program: Program, activity: Activity) -> bool:
    """Return whether guardrails check the input of a step."""
    agent = program.agents.get(activity.ref) if activity.kind != "function" else None
    return agent is not None and agent.guardrails is not None and bool(agent.guardrails.input)


def providers_of(program: Program) -> frozenset[str]:
    """Return the providers that a program's agents can ask, also those behind tools and those of fallbacks."""
    models = [agent.model for agent in program.agents.values() if agent.model is not None]
    return frozenset(choice.provider for model in models for choice in (model, *model.fallbacks))


def with_earlier(text: str, context: StepContext) -> str:
    """Return an agent's input with the outputs of the parallel steps before it, or with the messages before its turn.

    A text that people decided about stands for the outputs, and is the newest message.
    """
    if text in context.outputs.values():
        return text_of_outputs(context.outputs)
    messages = context.messages
    if not any(each.participant for each in messages):
        return text
    if messages[0].participant:
        return "\n\n".join((text, "Your earlier answers:", *(titled(each.participant, each.text) for each in messages)))
    task, *others = messages
    newest = () if text == others[-1].text else (text,)
    return "\n\n".join(
        (task.text, "The conversation so far:", *(titled(each.participant, each.text) for each in others), *newest)
    )


def input_of(text: str, context: StepContext) -> str:
    """Return an agent's input with the form values of the step."""
    if context.values:
        listed = "\n".join(f"- {name}: {value}" for name, value in context.values.items())
        text = f"{text}\n\nUser input:\n{listed}"
    return text


def feedback_of(context: StepContext) -> str:
    """Return the result that a reviewer sent back, with the reviewer's feedback; empty where there is none."""
    if context.previous_output is None:
        return ""
    feedback = context.feedback or "It was rejected without a reason."
    return f"Previous output:\n{context.previous_output}\n\nReviewer feedback:\n{feedback}"
