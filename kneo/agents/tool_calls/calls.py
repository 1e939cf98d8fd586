"""The tool calls of a turn: the one way to what is behind a tool, for models and for other callers.

In this order: a known result, the arguments, denials, guardrails, gates or the agent's own question, the call, its result. Denials
are checked at each entry of the turn, so also after an approval; guardrails check arguments before any question to a person, and again
where a person edited them. Arguments that a guardrail or a person changed are checked for denials again. A privileged call about
which an expression does not ask needs a rule of the environment that accepts it, read at the call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace

from kneo.agents.addresses import HostRules
from kneo.agents.guardrails import Refused, TurnGuardrails
from kneo.agents.services import AgentServices
from kneo.agents.skills import AgentSkills
from kneo.agents.texts import Arguments, find_flaw
from kneo.agents.tool_calls.denials import find_call_denial
from kneo.agents.tool_calls.execution import CallExecution, tool_failed
from kneo.agents.tool_calls.journal import CallJournal
from kneo.agents.tool_calls.questions import (
    ASK_TOOL,
    REFUSING,
    answer_of,
    argument_misfits,
    asked_question,
    edited_arguments,
    gate_question,
    gates_of,
    schema_misfit,
)
from kneo.agents.tools.agent import NestedTurn
from kneo.agents.tools.kinds import schema_of
from kneo.agents.turn import CallQuestion, PeopleRequired, Postponed, Stopped, ToolCall, ToolGate, Turn
from kneo.digest import Digest, digest_of_json
from kneo.errors import Forbidden, Invalid
from kneo.records.conversation import DECISIONS, EDITED_BY, ConversationEntry, EntryStatus
from kneo.records.task import GRANTED, REPORTED, CallDecision, Decision, DecisionKind
from kneo.spec.coverage.exposure import privileged_capabilities
from kneo.spec.coverage.sandboxes import called_part
from kneo.spec.models.spec import Tool
from kneo.spec.policy import SANDBOX_LEVELS, SandboxLevel

NO_REASON = "no reason was given"

MAX_REVIEWS = 20
"""Answers of gates about one call; edits that undo each other end there."""


class ToolCalls:
    """The tool calls of one turn: each is opened, checked, asked about, made and recorded.

    A caller that is no model opens a call and takes it as well; whatever is behind a tool, no other way leads there.

    Args:
        turn: The turn.
        services: The services of the process.
        tools: The tools that can be called, by name, the built-in ones included.
        nested: Takes the turn of an agent behind a tool or a guardrail.
        entries: The journal of the turn's conversation.
        guardrails: The guardrails of the turn, where the caller has them.
        skills: The agent's skills, which ``read_skill`` returns.
        stops_on_error: Whether a call that fails ends the step; left out: as the strategy of the agent says.
    """

    def __init__(
        self,
        turn: Turn,
        services: AgentServices,
        tools: Mapping[str, Tool],
        *,
        nested: NestedTurn,
        entries: Sequence[ConversationEntry],
        guardrails: TurnGuardrails | None = None,
        skills: AgentSkills | None = None,
        stops_on_error: bool | None = None,
    ) -> None:
        self._turn, self._services, self._tools, self._skills = turn, services, tools, skills or AgentSkills()
        clock, limits, strategy = services.clock, services.limits, turn.agent.strategy
        self._guardrails = guardrails or TurnGuardrails(turn, entries, clock=clock, limits=limits, take=nested)
        if stops_on_error is None:
            stops_on_error = strategy is not None and bool(strategy.stop_on_tool_error)
        self._stops_on_error = stops_on_error
        self.journal = CallJournal(turn, clock, entries)
        self._execution = CallExecution(
            turn, services, self.journal, self._guardrails, nested, stops_on_error=stops_on_error
        )
        one_by_one = strategy is not None and strategy.parallel_tool_calls is False
        self._turnstile: AbstractAsyncContextManager[object] = asyncio.Lock() if one_by_one else nullcontext()

    def open(
        self, name: str, arguments: Arguments, *, key: str, number: int = 0, nth: int = 1, misfit: str | None = None
    ) -> ToolCall:
        """Return a call, with the result that its journal has; see ``ToolCall``."""
        tool = self._tools.get(name, _NO_TOOL)
        if misfit is None and tool is _NO_TOOL:
            misfit = f"There is no tool {name[:100]!r}. Tools: {', '.join(self._tools)[:1_000] or 'none'}."
        call = ToolCall(
            key=key,
            number=number,
            nth=nth,
            name=name,
            tool=tool,
            arguments=arguments,
            turn=self._turn,
            misfit=misfit,
        )
        return self.journal.recorded(call)

    async def take_all(self, calls: Sequence[ToolCall]) -> list[ToolCall]:
        """Take the calls of one reply.

        Calls that are under way are finished, and recorded, before this raises.

        Raises:
            PeopleRequired: calls wait for answers; those that do not were made.
            Postponed: an agent behind a tool continues later.
            Stopped: an answer ends the run.
            Exception: a call ends the step.
        """
        ended = await asyncio.gather(*(self.take(call) for call in calls), return_exceptions=True)
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
        return [result for result in ended if isinstance(result, ToolCall)]

    async def take(self, call: ToolCall) -> ToolCall:
        """Check a call, ask people about it, make it and record its result; each unless the call is finished before.

        Raises:
            PeopleRequired, Postponed, Stopped, Exception: see ``take_all``.
        """
        async with self._turnstile:
            if call.status is EntryStatus.FAILED and self._stops_on_error:
                raise tool_failed(call)
            for stage in (self.check, self.ask, self.make):
                if not call.is_finished:
                    call = await stage(call)
            return call

    # ---- check -----------------------------------------------------------------------------------------------------

    async def check(self, call: ToolCall) -> ToolCall:
        """Return a call that schema, denials and guardrails let pass, or one that is refused."""
        misfit = call.misfit or self._find_misfit(call)
        if misfit is not None:
            return await self._misfits(call, misfit)
        denial = await self._find_denial(call)
        if denial is not None:
            begun = call.status is EntryStatus.BEGUN
            note = " The call was interrupted before; it may have taken effect." if begun else ""
            return await self.journal.refuse(call, "policy", {"denied": denial + note})
        return await self._guarded(call)

    async def _guarded(self, call: ToolCall) -> ToolCall:
        """Return a call with the arguments as the guardrails pass them on, or one that is refused."""
        passed = await self._guardrails.arguments(call)
        if isinstance(passed, Refused):
            result = {"error": "guardrail_violation", "message": passed.message}
            return await self.journal.refuse(call, "guardrail", result)
        flaw = find_flaw(passed)
        if flaw is None and not call.is_edited and digest_of_json(passed) == digest_of_json(call.arguments):
            return replace(call, arguments=passed)
        changed = replace(call, arguments=passed if flaw is None else {})
        refused = replace(changed, original=None)
        misfit = flaw or self._find_misfit(changed)
        if misfit is not None:
            return await self._misfits(refused, f"A guardrail changed the arguments, and they do not fit: {misfit}")
        denial = await self._find_denial(changed)
        return changed if denial is None else await self.journal.refuse(refused, "policy", {"denied": denial})

    async def _find_denial(self, call: ToolCall) -> str | None:
        turn = self._turn
        rules = await self._services.rules(turn.environment)
        declared = None if self._is_builtin(call) else call.tool
        denial = find_call_denial(call.name, declared, turn.agent, rules, turn.environment, call.compared)
        return denial or self._find_host_denial(call)

    def _find_misfit(self, call: ToolCall) -> str | None:
        misfit = argument_misfits(schema_of(call.tool), call.arguments)
        return misfit or (schema_misfit(call) if call.tool is ASK_TOOL else None)

    def _find_host_denial(self, call: ToolCall) -> str | None:
        """Return why the hosts in a call's arguments are denied, for kinds of tools that do not check hosts themselves."""
        if call.tool.kind.checks_hosts or self._is_builtin(call):
            return None
        try:
            HostRules.of(self._turn.agent).check_arguments(call.arguments)
        except Forbidden as error:
            return error.message
        return None

    def _is_builtin(self, call: ToolCall) -> bool:
        return call.tool is ASK_TOOL or call.tool is self._skills.tool

    async def _misfits(self, call: ToolCall, message: str) -> ToolCall:
        return await self.journal.refuse(call, "arguments", {"error": "invalid_arguments", "message": message})

    # ---- ask -------------------------------------------------------------------------------------------------------

    async def ask(self, call: ToolCall) -> ToolCall:
        """Ask the gates of a call, one after the other, until all agree to the same arguments.

        Returns:
            The call with these arguments; or one that is finished: a person rejected it or provided its result.

        Raises:
            PeopleRequired: a gate asks.
            Stopped: an answer ends the run.
        """
        if self._is_builtin(call):
            return call
        agreed, edited = dict[str, Digest](), dict[str, object]()
        decisions: list[Decision] = []
        sandbox: Mapping[str, object] | None = None
        for _ in range(MAX_REVIEWS):
            gate = await self._next_gate(call, agreed)
            if gate is None:
                return replace(call, facts={**edited, **_decided(decisions)}, floor=_floor(decisions))
            sandbox = sandbox or await self._sandbox(call)
            question = gate_question(call, gate, sandbox)
            decision = self._turn.answer_to(question)
            decisions.append(decision)
            if decision.kind is DecisionKind.REJECTED and (decision.effect or gate.on_reject) in REFUSING:
                raise Stopped(question, decision)
            if decision.kind is DecisionKind.REJECTED:
                return await self._rejected(
                    call, f"A person rejected this call: {decision.reason or NO_REASON}.", decisions
                )
            if gate.position == "external":
                return await self._carried_out(replace(call, facts=_decided(decisions)), decision)
            call = await self._edited(call, decision)
            agreed[gate.id] = digest_of_json(call.arguments)
            if decision.kind is DecisionKind.EDITED:
                edited = {EDITED_BY: decision.actor} if call.is_edited else {}
            call = await self._guarded(call) if call.is_edited and not call.is_finished else call
            if call.is_finished:
                return call
        return await self._rejected(call, "The people who were asked did not agree to the same arguments.", decisions)

    async def _next_gate(self, call: ToolCall, agreed: Mapping[str, Digest]) -> ToolGate | None:
        shown = digest_of_json(call.arguments)
        for gate in gates_of(call):
            if agreed.get(gate.id) != shown and not (gate.unless_unattended and await self._is_accepted(call)):
                return gate
        return None

    async def _sandbox(self, call: ToolCall) -> Mapping[str, object] | None:
        """Return the level and the profile of the sandbox that a call would have now."""
        part = called_part(self._turn.spec, call.name, call.tool)
        if part is None or part.outside is not None:
            return None
        rules = await self._services.rules(self._turn.environment)
        return {"level": part.level(rules.sandbox), "profile": part.profile.digest}

    async def _is_accepted(self, call: ToolCall) -> bool:
        """Return whether a call may happen about which no gate asks: it is not privileged, or the environment accepts it now."""
        if not privileged_capabilities(self._turn.agent, call.tool):
            return True
        rules = await self._services.rules(self._turn.environment)
        return rules.accepts_unattended(call.tool.names(call.name), call.compared)

    async def _edited(self, call: ToolCall, decision: Decision) -> ToolCall:
        """Return a call with the arguments that a person approved, or one that is refused because they do not fit."""
        try:
            arguments = edited_arguments(call.arguments, decision)
            misfit = argument_misfits(schema_of(call.tool), arguments)
        except Invalid as error:
            misfit = error.message
        if misfit is not None:
            return await self._misfits(call, f"A person edited the arguments, and they do not fit: {misfit}")
        return replace(call, arguments=arguments, original=call.asked)

    async def _carried_out(self, call: ToolCall, decision: Decision) -> ToolCall:
        """Record the result that a person provides, or what the program reports that made the call itself."""
        if decision.effect != REPORTED:
            return await self.record(call, answer_of(decision))
        report = decision.data
        assert isinstance(report, Mapping)
        if "error" in report:
            return await self._execution.fail(call, Invalid(str(report["error"]), code="call_failed"))
        return await self.record(call, report["result"])

    async def _rejected(self, call: ToolCall, reason: str, decisions: Sequence[Decision]) -> ToolCall:
        call = replace(call, facts=_decided(decisions))
        return await self.journal.refuse(call, "rejected", {"rejected": f"{reason} This is final."})

    # ---- make and record -------------------------------------------------------------------------------------------

    async def begin(self, call: ToolCall) -> ToolCall:
        """Return a call that begins now; the beginning of one that must not be repeated unseen is recorded first."""
        return await self._execution.begin(call)

    async def make(self, call: ToolCall) -> ToolCall:
        """Make a call that was checked and approved, and record its result.

        Raises:
            PeopleRequired, Stopped, Invalid, GuardrailViolation: see ``CallExecution.make``.
        """
        if not self._is_builtin(call):
            return await self._execution.make(call)
        if call.tool is not ASK_TOOL:
            return await self.journal.finish(self._skills.read(call, self._services.limits.result_chars))
        decision = self._turn.answer_to(asked_question(call))
        is_rejected = decision.kind is DecisionKind.REJECTED
        declined = f"A person declined to answer: {decision.reason or NO_REASON}."
        answered = replace(call, facts=_decided([decision]))
        return await self.record(answered, declined if is_rejected else answer_of(decision))

    async def record(self, call: ToolCall, result: object) -> ToolCall:
        """Check, bound and record the result of a call, which a caller or a person made."""
        return await self._execution.record(call, result)


_NO_TOOL = Tool(description="No tool.")


def _floor(decisions: Sequence[Decision]) -> SandboxLevel | None:
    """Return the strongest level of a sandbox that decisions about a call approved."""
    levels = [each.level for each in decisions if isinstance(each, CallDecision) and each.level is not None]
    return max(levels, key=SANDBOX_LEVELS.index, default=None)


def _decided(decisions: Sequence[Decision]) -> dict[str, object]:
    """Return the fact of who decided what about a call, of several people each, or which grant; none where no gate asked."""
    named = [{"by": name, "decision": each.kind.value} for each in decisions for name in _authors(each)]
    return {DECISIONS: named} if named else {}


def _authors(decision: Decision) -> Sequence[str]:
    return (f"grant {decision.source}",) if decision.by == GRANTED else decision.voters or (decision.actor,)
