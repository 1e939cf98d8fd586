"""The execution of tool calls that the guard let pass: their beginning, interruptions, questions of tools, and results."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from kneo.agents.agent_spans import note_call, tool_span
from kneo.agents.arguments import Arguments
from kneo.agents.calls import CallResult, RequestedCall
from kneo.agents.guardrails import Refused, TurnGuardrails
from kneo.agents.nested import NestedTurn
from kneo.agents.services import AgentServices
from kneo.agents.text_checks import text_of
from kneo.agents.texts import cut_text, marked_untrusted, sound_text, sound_value
from kneo.agents.tool_calls.journal import CallJournal, count
from kneo.agents.tool_calls.questions import answer_of, find_misfits, form_question, interrupted_question
from kneo.agents.tools.agent import call_agent
from kneo.agents.turn import AnswerRequired, PeopleRequired, Stopped, ToolCall, Turn
from kneo.digest import is_deeper
from kneo.errors import Invalid, KneoError
from kneo.records.conversation import ConversationEntry, EntryStatus
from kneo.redaction import redact_text
from kneo.spec.models.spec import Tool, Verify

MAX_ERROR_CHARS = 2_000
MAX_WHOLE_BYTES = 1_000_000
"""Bytes of a result that is kept whole."""

MAX_RESULT_DEPTH = 200
"""Lists and objects inside each other in a result, as in requests over HTTP."""

MAX_FORMS = 10
"""Questions of a tool during one call."""
MAX_RESTARTS = 2
"""Times that a call starts again because its server forgot the state of an earlier question."""

ANNOUNCED_AFTER = 1.0
"""Seconds after which a call that is not recorded at its beginning is in the trace."""

CODE_ERRORS = frozenset(
    {
        "implementation_elsewhere",
        "implementation_forbidden",
        "implementation_invalid",
        "implementation_not_pinned",
    }
)
"""Errors of code that this process may not call, which was checked when the step began: the step ends, and no model reads it."""


def tool_failed(call: RequestedCall) -> Invalid:
    """Return the error of a step whose strategy stops when a tool fails."""
    msg = f"A call of the tool {call.name} failed, and the agent's strategy stops there."
    return Invalid(msg, code="tool_failed", hint="kneo runs trace shows the error.")


def _is_tracked(tool: Tool) -> bool:
    """Tell whether the beginning of a call is recorded, so that an interruption is noticed."""
    return tool.has_effects or tool.on_interrupted not in {None, "repeat"}


@dataclass(frozen=True, kw_only=True)
class PermittedCall:
    """A call that the guard let pass.

    Attributes:
        call: The call as the model requested it.
        tool: The tool.
        arguments: Its arguments, as guardrails and people passed them on.
        started: When it began; ``None`` where nothing was called.
        facts: Further facts of its entry.
    """

    call: RequestedCall
    tool: Tool
    arguments: Arguments
    started: str | None = None
    facts: Mapping[str, object] = field(default_factory=dict)


class CallExecution:
    """The execution of the calls of one turn."""

    def __init__(
        self, turn: Turn, services: AgentServices, journal: CallJournal, guardrails: TurnGuardrails, nested: NestedTurn
    ) -> None:
        self._turn, self._services, self._journal, self._nested = turn, services, journal, nested
        self._guardrails = guardrails
        strategy = turn.agent.strategy
        self.stops_on_error = strategy is not None and bool(strategy.stop_on_tool_error)

    async def make(self, permitted: PermittedCall) -> CallResult:
        """Make a call and return its result.

        Raises:
            PeopleRequired: the tool asks a question, or a person has to find out whether an interrupted call took effect.
            Stopped: a person ends the run at an interrupted call.
            Invalid: ``tool_failed`` or ``tool_interrupted``: the step ends.
            GuardrailViolation: a guardrail blocks the result.
        """
        call, tool, arguments = permitted.call, permitted.tool, permitted.arguments
        held = self._guardrails.held(call)
        if held is not None:
            arguments, result, facts = held
            return await self._keep_held(replace(permitted, arguments=arguments), result, facts)
        if tool.agent is not None:
            return await self._call_agent(permitted)
        entry = self._journal.find(call)
        if entry is not None and entry.status is EntryStatus.BEGUN and "state" not in entry.body:
            resolved = await self._resolve_interrupted(permitted, entry)
            if resolved is not None:
                return resolved
        made = self._made(permitted, entry)
        started = self._journal.now()
        permitted = replace(permitted, started=started)
        if _is_tracked(tool):
            await self._journal.begin(call, arguments, started)
        try:
            with tool_span(self._turn, call.name, call.key, tool) as traced:
                returned = await self._watched(call, self._attempts(tool, made))
                if not self._guardrails.of("tool", call.name):
                    note_call(traced, self._turn, arguments, returned)
        except AnswerRequired as required:
            return await self._wait(replace(permitted, started=None), required)
        except Exception as error:
            if isinstance(error, KneoError) and error.code in CODE_ERRORS:
                raise
            return await self._fail(permitted, error)  # the model gets it as the call's result
        return await self.keep(permitted, returned)

    async def keep(self, permitted: PermittedCall, result: object) -> CallResult:
        """Check, bound and record a result, and return it as the model is shown it."""
        returns = permitted.tool.returns
        try:
            json.dumps(result, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            error = Invalid(f"The result is not JSON: {type(result).__name__}.", code="invalid_result")
            return await self._fail(permitted, error)
        if is_deeper(result, MAX_RESULT_DEPTH):
            msg = f"The result is nested more than {MAX_RESULT_DEPTH} deep."
            return await self._fail(permitted, Invalid(msg, code="invalid_result"))
        result = sound_value(result)
        misfit = find_misfits(returns, result) if returns is not None else None
        if misfit is not None:
            msg = f"The result does not fit the JSON Schema of the tool's results: {misfit}"
            return await self._fail(permitted, Invalid(msg, code="invalid_result"))
        return await self._keep_checked(permitted, CallResult(result))

    async def _keep_checked(self, permitted: PermittedCall, result: CallResult) -> CallResult:
        """Pass a result by the guardrails of tools, then record it."""
        if not self._guardrails.of("tool", permitted.call.name):
            return await self._finish(permitted, result)
        begun = {"started_at": permitted.started} if permitted.started is not None else {}
        held = {**permitted.facts, **begun}
        await self._guardrails.hold(permitted.call, permitted.arguments, result, held)
        return await self._keep_held(permitted, result, held)

    async def _keep_held(self, permitted: PermittedCall, result: CallResult, held: Mapping[str, object]) -> CallResult:
        started = held.get("started_at")
        permitted = replace(
            permitted,
            started=started if isinstance(started, str) else None,
            facts={name: value for name, value in held.items() if name != "started_at"},
        )
        passed = await self._guardrails.result(permitted.call, result.content)
        if isinstance(passed, Refused):
            refused = {"error": "guardrail_violation", "message": passed.message}
            return await self._finish(permitted, CallResult(refused, "failed"))
        return await self._finish(permitted, replace(result, content=passed))

    async def _finish(self, permitted: PermittedCall, result: CallResult) -> CallResult:
        """Bound and record a result, and return it as the model is shown it."""
        call, tool = permitted.call, permitted.tool
        if result.outcome == "success":
            await self._keep_whole(call, tool, result.content)
            result = replace(result, content=self._shown(call, tool, result.content))
        return await self._journal.finish(
            call,
            permitted.arguments,
            result,
            started=permitted.started,
            durable=_is_tracked(tool),
            facts=permitted.facts,
        )

    def _limit(self, tool: Tool) -> int:
        return tool.max_result_chars or self._services.limits.result_chars

    async def _keep_whole(self, call: RequestedCall, tool: Tool, result: object) -> None:
        """Record the whole of a result that the model is shown cut, where the tool says so."""
        text = text_of(result) if tool.keep == "whole" and not tool.transfer else ""
        if len(text) > self._limit(tool):
            kept = text.encode(errors="replace")[:MAX_WHOLE_BYTES].decode(errors="ignore")
            await self._journal.keep_whole(call, kept, characters=len(text))

    def _shown(self, call: RequestedCall, tool: Tool, result: object) -> object:
        if tool.transfer:
            return result
        text = text_of(result)
        shown = cut_text(text, self._limit(tool))
        if tool.output == "untrusted":
            return marked_untrusted(text, self._journal.idempotency_key(call), shown=shown)
        return result if shown == text else shown

    async def _fail(self, permitted: PermittedCall, error: Exception) -> CallResult:
        """Record an error as the call's result, or end the step where the agent's strategy says so."""
        call, name = permitted.call, error.code if isinstance(error, KneoError) else type(error).__name__
        if self.stops_on_error and not _is_tracked(permitted.tool):
            # There is no entry: a retry of the step makes the call again.
            await self._journal.note(self._journal.event(call, "tool_call_failed", error=name))
            raise tool_failed(call) from None
        message = redact_text(sound_text(str(error)[: 2 * MAX_ERROR_CHARS]))[:MAX_ERROR_CHARS]
        failed = CallResult({"error": name, "message": message}, "failed")
        kept = await self._keep_checked(permitted, failed)
        if self.stops_on_error:
            raise tool_failed(call) from None
        return kept

    # ---- the call --------------------------------------------------------------------------------------------------

    def _made(self, permitted: PermittedCall, entry: ConversationEntry | None) -> ToolCall:
        call, tool, arguments = permitted.call, permitted.tool, permitted.arguments
        made = ToolCall(
            name=call.name,
            tool=tool,
            arguments=arguments,
            idempotency_key=self._journal.idempotency_key(call),
            turn=self._turn,
            keep=partial(self._journal.keep_state, call, arguments),
        )
        body: Mapping[str, object] = entry.body if entry is not None else {}
        form, state = body.get("form"), body.get("state")
        if not isinstance(form, Mapping):
            return replace(made, state=state) if isinstance(state, Mapping) else made
        question = form_question(self._turn, call, arguments, count(entry, "forms"), form["prompt"], form["schema"])
        decision = self._turn.answers.get(question.key)
        if decision is None:
            raise PeopleRequired([question])
        return replace(made, state=form["state"], answer=decision)

    async def _watched(self, call: RequestedCall, attempts: Coroutine[None, None, object]) -> object:
        """Wait for a call, and announce one that takes its time. A quick one is announced together with its result."""
        calling = asyncio.ensure_future(attempts)
        reason: tuple[object, ...] = ()
        try:
            quick, _ = await asyncio.wait([calling], timeout=ANNOUNCED_AFTER)
            if not quick:
                await self._journal.announce(call)
            return await calling
        except asyncio.CancelledError as cancelled:
            reason = cancelled.args
            raise
        finally:
            if not calling.done():
                calling.cancel(*reason)
                await asyncio.wait([calling])

    async def _attempts(self, tool: Tool, made: ToolCall) -> object:
        kind = tool.kind
        backend = self._services.tools.get(tool.backend)
        if backend is None:
            msg = f"This process cannot call tools of the kind {tool.backend}."
            raise Invalid(msg, code="tool_not_found")
        limits = {
            "tool or process": tool.timeout_seconds or self._services.limits.tool_seconds,
            "tool": tool.timeout_seconds,
        }
        seconds = limits.get(kind.time_limit)
        repetitions = 0 if tool.has_effects else tool.retries
        while True:
            try:
                async with asyncio.timeout(seconds) as deadline:
                    return await backend.call(made)
            except AnswerRequired:
                raise
            except Exception as error:
                if repetitions == 0:
                    if deadline.expired():
                        msg = f"The call took longer than {seconds:g} s."
                        raise TimeoutError(msg) from error
                    raise
                repetitions -= 1

    async def _wait(self, permitted: PermittedCall, required: AnswerRequired) -> CallResult:
        """Keep a tool's own question with its state, and ask it."""
        call, arguments = permitted.call, permitted.arguments
        entry, prompt = self._journal.find(call), sound_text(str(required))
        forms, restarts = count(entry, "forms") + 1, count(entry, "restarts") + required.restarted
        if forms > MAX_FORMS or restarts > MAX_RESTARTS:
            msg = f"The tool asked {forms} questions during one call, and started again {restarts} times."
            return await self._fail(permitted, Invalid(msg, code="too_many_questions"))
        form = {"prompt": prompt, "schema": required.schema, "state": required.state}
        await self._journal.wait(call, arguments, form, {"forms": forms, "restarts": restarts})
        raise PeopleRequired([form_question(self._turn, call, arguments, forms, prompt, required.schema)])

    async def _call_agent(self, permitted: PermittedCall) -> CallResult:
        answer, tokens = await call_agent(
            self._turn,
            permitted.call,
            permitted.tool,
            permitted.arguments,
            take=self._nested,
            limit=self._services.limits.depth,
            announce=partial(self._journal.announce, permitted.call),
        )
        permitted = replace(permitted, facts={**permitted.facts, "total_tokens": tokens})
        return await (self._fail(permitted, answer) if isinstance(answer, KneoError) else self.keep(permitted, answer))

    # ---- interruptions ---------------------------------------------------------------------------------------------

    async def _resolve_interrupted(self, permitted: PermittedCall, entry: ConversationEntry) -> CallResult | None:
        """Find out whether a call took effect that was under way when its process ended; ``None``: it is made again."""
        call, arguments = permitted.call, permitted.arguments
        rule = permitted.tool.on_interrupted or "ask"
        if rule == "repeat":
            return None
        if rule == "fail":
            msg = f"The call of {call.name} that began at {entry.started_at} was interrupted; its effect is unknown."
            raise Invalid(msg, code="tool_interrupted", hint="on_interrupted: ask lets a person find out.")
        verified = await self._verify(call, rule, arguments) if isinstance(rule, Verify) else None
        if verified is not None:
            done, result = verified
            return await self.keep(permitted, result) if done else None
        facts = {"begun_at": entry.started_at, "idempotency_key": self._journal.idempotency_key(call)}
        question = interrupted_question(self._turn, call, arguments, count(entry, "begun"), facts)
        decision = self._turn.answers.get(question.key)
        if decision is None:
            await self._journal.interrupted(call, entry)
            raise PeopleRequired([question])
        match decision.selected_option:
            case "repeat":
                return None
            case "done":
                given = answer_of(replace(decision, selected_option=None, selected_options=()))
                text = "A person confirmed that this call took effect. Its result is not known."
                return await self._keep_checked(permitted, CallResult(given or text))
            case _:
                raise Stopped(question, decision)

    async def _verify(self, call: RequestedCall, rule: Verify, arguments: Arguments) -> tuple[bool, object] | None:
        """Ask the function that can tell whether a call took effect; ``None``: it does not, so a person has to."""
        verification = ToolCall(
            name=call.name,
            tool=Tool(description="Verification of an interrupted call.", implementation=rule.verify),
            arguments=arguments,
            idempotency_key=self._journal.idempotency_key(call),
            turn=self._turn,
        )
        try:
            answer = await self._attempts(verification.tool, verification)
        except Exception as error:  # noqa: BLE001 - a person is asked instead
            event = self._journal.event(call, "tool_verification_failed", error=type(error).__name__)
            await self._journal.note(event)
            return None
        if not isinstance(answer, Mapping) or not isinstance(answer.get("done"), bool):
            return None
        return answer["done"], answer.get("result")
