"""The guard: every tool call passes it, whatever is behind the tool.

In this order: a known result, the arguments, denials, guardrails, the agent's own question, gates, the call. Denials are checked
at each entry of the turn, so also after an approval; guardrails check arguments before any question to a person, and again where a person
edited them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace

from kneo.agents.addresses import HostRules
from kneo.agents.arguments import Arguments, find_flaw
from kneo.agents.calls import CallResult, RequestedCall
from kneo.agents.guardrails import Refused, TurnGuardrails
from kneo.agents.services import AgentServices
from kneo.agents.skills import AgentSkills
from kneo.agents.tool_calls.execution import CallExecution, PermittedCall, tool_failed
from kneo.agents.tool_calls.journal import FINISHED, CallJournal, known_result
from kneo.agents.tool_calls.questions import (
    ASK_QUESTION_SCHEMA,
    REFUSING,
    answer_of,
    argument_misfits,
    asked_question,
    edited_arguments,
    gate_question,
    reason_of,
    schema_misfit,
)
from kneo.agents.tools.kinds import schema_of
from kneo.agents.turn import CallQuestion, PeopleRequired, Postponed, Stopped, ToolGate, Turn
from kneo.digest import Digest, digest_of_json
from kneo.errors import Forbidden, Invalid
from kneo.records.conversation import DECISIONS, EDITED_BY, EntryStatus
from kneo.records.task import Decision, DecisionKind
from kneo.spec.call_title import call_title
from kneo.spec.coverage.exposure import PERMISSIONS, permissions_of
from kneo.spec.models.agent import Agent, ToolPermissions
from kneo.spec.models.spec import Tool
from kneo.spec.policy import ToolNames, ToolRules
from kneo.spec.tool_kinds import ASK_QUESTION, READ_SKILL

MAX_REVIEWS = 20
"""Answers of gates about one call; edits that undo each other end there."""

ASK_TOOL = Tool(description="Ask a person a question.")
"""The built-in tool with which an agent asks a person."""


def builtin_tools(*, asks: bool, skills: AgentSkills) -> Mapping[str, Arguments]:
    """Return the JSON Schemas of the arguments of the built-in tools that an agent is offered, by name."""
    offered = {ASK_QUESTION: ASK_QUESTION_SCHEMA} if asks else {}
    return {**offered, READ_SKILL: skills.schema} if skills.readable else offered


def find_denial(name: str, tool: Tool | None, agent: Agent, rules: ToolRules, environment: str | None) -> str | None:
    """Return why a tool may not be called: by the agent's permissions, or by the rules of the environment as they are now.

    ``tool`` is ``None`` for the built-in tools, which lists of allowed tools need not name: they ask a person or read what the
    spec has, and do nothing else.
    """
    permissions = permissions_of(agent) or ToolPermissions()
    names = tool.names(name) if tool is not None else ToolNames(name)
    denied = rules.denied(names)
    if denied is not None:
        return f"The environment {environment} denies {_what(name, denied)}."
    if name in permissions.denied_tools:
        return f"The agent's permissions deny the tool {name}."
    if tool is None:
        return None
    unlisted = rules.not_allowed(names)
    if unlisted is not None:
        return f"The environment {environment} does not allow {_what(name, unlisted)}."
    if permissions.allowed_tools is not None and name not in permissions.allowed_tools:
        return f"The agent's permissions do not allow the tool {name}."
    needed = [PERMISSIONS[capability] for capability in tool.all_capabilities if capability in PERMISSIONS]
    refused = [f"{permission}: false" for permission in needed if getattr(permissions, permission) is False]
    return f"The agent's permissions ({', '.join(refused)}) do not allow the tool {name}." if refused else None


def _what(name: str, matched: str) -> str:
    """Return a tool in words; what is behind it is not named, because the model reads this."""
    return f"the tool {name}" if matched == name else f"what the tool {name} calls"


def find_host_denial(tool: Tool, arguments: Arguments, agent: Agent) -> str | None:
    """Return why the hosts in a call's arguments are denied, for kinds of tools that do not check hosts themselves."""
    if tool.kind.checks_hosts:
        return None
    try:
        HostRules.of(agent).check_arguments(arguments)
    except Forbidden as error:
        return error.message
    return None


class Guard:
    """The guard of one turn.

    Args:
        tools: The tools that the agent is offered, by name, without ``ask_question``.
        asks: Whether the agent is offered ``ask_question``.
        skills: The agent's skills, which ``read_skill`` returns.
    """

    def __init__(
        self,
        turn: Turn,
        services: AgentServices,
        journal: CallJournal,
        execution: CallExecution,
        guardrails: TurnGuardrails,
        *,
        tools: Mapping[str, Tool],
        asks: bool,
        skills: AgentSkills,
    ) -> None:
        self._turn, self._services, self._journal, self._execution = turn, services, journal, execution
        self._guardrails = guardrails
        self._tools, self._skills = tools, skills
        self._builtin = builtin_tools(asks=asks, skills=skills)
        strategy = turn.agent.strategy
        one_by_one = strategy is not None and strategy.parallel_tool_calls is False
        self._turnstile: AbstractAsyncContextManager[object] = asyncio.Lock() if one_by_one else nullcontext()

    async def results(self, calls: Sequence[RequestedCall]) -> list[CallResult]:
        """Return the results of the calls of one reply.

        Calls that are under way are finished, and recorded, before this raises.

        Raises:
            PeopleRequired: calls wait for answers; those that do not were made.
            Postponed: an agent behind a tool continues later.
            Stopped: an answer ends the run.
            Exception: a call ends the step.
        """
        ended = await asyncio.gather(*(self._result(call) for call in calls), return_exceptions=True)
        raised = [result for result in ended if isinstance(result, BaseException)]
        questions: list[CallQuestion] = []
        for error in raised:
            if isinstance(error, PeopleRequired):
                questions += error.questions
            elif not isinstance(error, Postponed | Stopped):
                raise error
        stopped = next((error for error in raised if isinstance(error, Stopped)), None)
        if stopped is not None:
            raise stopped
        if questions:
            raise PeopleRequired(questions)
        if raised:
            raise raised[0]
        return [result for result in ended if isinstance(result, CallResult)]

    async def _result(self, call: RequestedCall) -> CallResult:
        async with self._turnstile:
            known = self._journal.find(call)
            if known is not None and known.status in FINISHED:
                if known.status is EntryStatus.FAILED and self._execution.stops_on_error:
                    raise tool_failed(call)
                return known_result(known)
            tool = self._tools.get(call.name)
            misfit = call.misfit or self._misfit(call, tool)
            if misfit is not None:
                return await self._misfits(call, misfit)
            denial = await self._denial(call, tool)
            if denial is not None:
                begun = known is not None and known.status is EntryStatus.BEGUN
                note = " The call was interrupted before; it may have taken effect." if begun else ""
                return await self._journal.refuse(call, "policy", {"denied": denial + note})
            checked = await self._checked(call, tool, call.arguments)
            if isinstance(checked, CallResult):
                return checked
            call = replace(call, arguments=checked)
            if tool is None:
                return await (self._read_skill(call) if call.name == READ_SKILL else self._ask(call))
            return await self._review(call, tool)

    async def _checked(
        self, call: RequestedCall, tool: Tool | None, arguments: Arguments, *, edited: bool = False
    ) -> Arguments | CallResult:
        """Return arguments as the guardrails pass them on, or the result of a call that is not made with them."""
        passed = await self._guardrails.arguments(call, arguments, edited=edited)
        if isinstance(passed, Refused):
            return await self._journal.refuse(
                call, "guardrail", {"error": "guardrail_violation", "message": passed.message}
            )
        flaw = find_flaw(passed)
        if flaw is None and not edited and digest_of_json(passed) == digest_of_json(arguments):
            return passed
        changed = replace(call, arguments=passed if flaw is None else {})
        misfit = flaw or self._misfit(changed, tool)
        if misfit is not None:
            return await self._misfits(changed, f"A guardrail changed the arguments, and they do not fit: {misfit}")
        denial = find_host_denial(tool, passed, self._turn.agent) if tool is not None else None
        return passed if denial is None else await self._journal.refuse(changed, "policy", {"denied": denial})

    async def _denial(self, call: RequestedCall, tool: Tool | None) -> str | None:
        turn = self._turn
        rules = await self._services.rules(turn.environment)
        denial = find_denial(call.name, tool, turn.agent, rules, turn.environment)
        return denial or (find_host_denial(tool, call.arguments, turn.agent) if tool is not None else None)

    def _misfit(self, call: RequestedCall, tool: Tool | None) -> str | None:
        if tool is not None:
            return argument_misfits(schema_of(tool), call.arguments)
        if call.name in self._builtin:
            return argument_misfits(self._builtin[call.name], call.arguments) or schema_misfit(call)
        offered = ", ".join((*self._tools, *self._builtin))
        return f"There is no tool {call.name[:100]!r}. Tools: {offered[:1_000] or 'none'}."

    async def _misfits(self, call: RequestedCall, message: str) -> CallResult:
        return await self._journal.refuse(call, "arguments", {"error": "invalid_arguments", "message": message})

    def _answer(self, question: CallQuestion) -> Decision:
        decision = self._turn.answers.get(question.key)
        if decision is None:
            raise PeopleRequired([question])
        return decision

    async def _ask(self, call: RequestedCall) -> CallResult:
        decision = self._answer(asked_question(self._turn, call))
        if decision.kind is DecisionKind.REJECTED:
            result: object = f"A person declined to answer: {reason_of(decision)}."
        else:
            result = answer_of(decision)
        permitted = PermittedCall(call=call, tool=ASK_TOOL, arguments=call.arguments, facts=_decided([decision]))
        return await self._execution.keep(permitted, result)

    async def _read_skill(self, call: RequestedCall) -> CallResult:
        result = self._skills.read(call.arguments, self._services.limits.result_chars)
        return await self._journal.finish(call, call.arguments, result)

    async def _review(self, call: RequestedCall, tool: Tool) -> CallResult:
        """Ask the gates of a call, one after the other, until all agree to the same arguments."""
        arguments, agreed = call.arguments, dict[str, Digest]()
        edited: dict[str, object] = {}
        decisions: list[Decision] = []
        for _ in range(MAX_REVIEWS):
            gate = self._next_gate(call, arguments, agreed)
            if gate is None:
                facts = {**edited, **_decided(decisions)}
                permitted = PermittedCall(call=call, tool=tool, arguments=arguments, facts=facts)
                return await self._execution.make(permitted)
            schema = tool.returns or {} if gate.position == "external" else schema_of(tool)
            title = call_title(call.name, tool.title, arguments) if tool.title is not None else None
            question = gate_question(self._turn, call, gate, arguments, schema, title)
            decision = self._answer(question)
            decisions.append(decision)
            if decision.kind is DecisionKind.REJECTED:
                return await self._rejected(call, gate, question, decisions)
            if gate.position == "external":
                permitted = PermittedCall(call=call, tool=tool, arguments=arguments, facts=_decided(decisions))
                return await self._execution.keep(permitted, answer_of(decision))
            try:
                arguments = edited_arguments(arguments, decision)
                misfit = argument_misfits(schema_of(tool), arguments)
            except Invalid as error:
                misfit = error.message
            if misfit is not None:
                return await self._misfits(call, f"A person edited the arguments, and they do not fit: {misfit}")
            agreed[gate.id] = digest_of_json(arguments)
            is_changed = agreed[gate.id] != digest_of_json(call.arguments)
            if decision.kind is DecisionKind.EDITED:
                edited = {EDITED_BY: decision.actor} if is_changed else {}
            if is_changed:
                checked = await self._checked(call, tool, arguments, edited=True)
                if isinstance(checked, CallResult):
                    return checked
                arguments = checked
        message = "The people who were asked did not agree to the same arguments. This is final."
        return await self._journal.refuse(call, "rejected", {"rejected": message}, facts=_decided(decisions))

    def _next_gate(self, call: RequestedCall, arguments: Arguments, agreed: Mapping[str, Digest]) -> ToolGate | None:
        shown = digest_of_json(arguments)
        return next((gate for gate in self._gates(call, arguments) if agreed.get(gate.id) != shown), None)

    def _gates(self, call: RequestedCall, arguments: Arguments) -> Sequence[ToolGate]:
        return self._turn.gates(self._turn.agent_name, call.name, arguments)

    async def _rejected(
        self,
        call: RequestedCall,
        gate: ToolGate,
        question: CallQuestion,
        decisions: Sequence[Decision],
    ) -> CallResult:
        decision = decisions[-1]
        if (decision.effect or gate.on_reject) in REFUSING:
            raise Stopped(question, decision)
        message = f"A person rejected this call: {reason_of(decision)}. This is final."
        return await self._journal.refuse(call, "rejected", {"rejected": message}, facts=_decided(decisions))


def _decided(decisions: Sequence[Decision]) -> dict[str, object]:
    """Return the fact of who decided what about a call, of several people each; none where no person was asked."""
    named = [
        {"by": person, "decision": decision.kind.value}
        for decision in decisions
        for person in decision.voters or (decision.actor,)
    ]
    return {DECISIONS: named} if named else {}
