"""The execution of tool calls that were checked and approved: their beginning, interruptions, questions of tools, and results."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from kneo.agents.agent_spans import note_call, tool_span
from kneo.agents.guardrails import Refused, TurnGuardrails
from kneo.agents.services import AgentServices
from kneo.agents.text_checks import text_of
from kneo.agents.texts import cut_text, marked_untrusted, sound_text, sound_value
from kneo.agents.tool_calls.journal import CallJournal, count
from kneo.agents.tool_calls.questions import answer_of, find_misfits, form_question, interrupted_question
from kneo.agents.tools.agent import NestedTurn, call_agent
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
        "BundleTampered",
        "code_tampered",
        "implementation_elsewhere",
        "implementation_forbidden",
        "implementation_invalid",
        "implementation_not_pinned",
        "package_differs",
    }
)
"""Errors of code that this process may not call, which was checked when the step began: the step ends, and no model reads it."""


def tool_failed(call: ToolCall) -> Invalid:
    """Return the error of a step whose strategy stops when a tool fails."""
    msg = f"A call of the tool {call.name} failed, and the agent's strategy stops there."
    return Invalid(msg, code="tool_failed", hint="kneo runs trace shows the error.")


def _is_tracked(tool: Tool) -> bool:
    """Tell whether the beginning of a call is recorded, so that an interruption is noticed."""
    return tool.has_effects or tool.on_interrupted not in {None, "repeat"}


class CallExecution:
    """The execution of the calls of one turn."""

    def __init__(
        self,
        turn: Turn,
        services: AgentServices,
        journal: CallJournal,
        guardrails: TurnGuardrails,
        nested: NestedTurn,
        *,
        stops_on_error: bool,
    ) -> None:
        self._turn, self._services, self._journal, self._nested = turn, services, journal, nested
        self._guardrails, self._stops_on_error = guardrails, stops_on_error

    async def make(self, call: ToolCall) -> ToolCall:
        """Make a call and record its result.

        Raises:
            PeopleRequired: the tool asks a question, or a person has to find out whether an interrupted call took effect.
            Stopped: a person ends the run at an interrupted call.
            Invalid: ``tool_failed`` or ``tool_interrupted``: the step ends.
            GuardrailViolation: a guardrail blocks the result.
        """
        held = self._guardrails.held(call)
        if held is not None:
            return await self._finish_held(held)
        if call.tool.agent is not None:
            return await self._call_agent(call)
        entry = self._journal.find(call)
        if entry is not None and entry.status is EntryStatus.BEGUN and "state" not in entry.body:
            resolved = await self._resolve_interrupted(call, entry)
            if resolved is not None:
                return resolved
        call = await self.begin(self._continued(call, entry))
        try:
            with tool_span(self._turn, call.name, call.key, call.tool) as traced:
                returned = await self._watched(call)
                if not self._guardrails.of("tool", call.name):
                    note_call(traced, self._turn, call.arguments, returned)
        except AnswerRequired as required:
            return await self._wait(replace(call, started_at=None), required)
        except Exception as error:
            if isinstance(error, KneoError) and error.code in CODE_ERRORS:
                raise
            # The model gets it as the call's result.
            return await self.fail(replace(call, facts={**call.facts, **call.observed}), error)
        return await self.record(replace(call, facts={**call.facts, **call.observed}), returned)

    async def begin(self, call: ToolCall) -> ToolCall:
        """Return a call that begins now; the beginning of one that must not be repeated unseen is recorded first."""
        call = replace(call, started_at=self._journal.now())
        return await self._journal.begin(call) if _is_tracked(call.tool) else call

    async def record(self, call: ToolCall, result: object) -> ToolCall:
        """Check, bound and record the result of a call."""
        returns = call.tool.returns
        try:
            json.dumps(result, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            error = Invalid(f"The result is not JSON: {type(result).__name__}.", code="invalid_result")
            return await self.fail(call, error)
        if is_deeper(result, MAX_RESULT_DEPTH):
            msg = f"The result is nested more than {MAX_RESULT_DEPTH} deep."
            return await self.fail(call, Invalid(msg, code="invalid_result"))
        result = sound_value(result)
        misfit = find_misfits(returns, result) if returns is not None else None
        if misfit is not None:
            msg = f"The result does not fit the JSON Schema of the tool's results: {misfit}"
            return await self.fail(call, Invalid(msg, code="invalid_result"))
        return await self._finish_checked(replace(call, status=EntryStatus.DONE, result=result))

    async def _finish_checked(self, call: ToolCall) -> ToolCall:
        """Pass a result by the guardrails of tools, then record it."""
        if not self._guardrails.of("tool", call.name):
            return await self._finish(call)
        await self._guardrails.hold(call)
        return await self._finish_held(call)

    async def _finish_held(self, call: ToolCall) -> ToolCall:
        passed = await self._guardrails.result(call)
        if isinstance(passed, Refused):
            refused = {"error": "guardrail_violation", "message": passed.message}
            return await self._finish(replace(call, status=EntryStatus.FAILED, result=refused))
        return await self._finish(replace(call, result=passed))

    async def _finish(self, call: ToolCall) -> ToolCall:
        """Record a result, as the model is shown it."""
        if call.outcome == "success" and not call.tool.transfer:
            call = replace(call, result=await self._bounded(call))
        return await self._journal.finish(call, durable=_is_tracked(call.tool))

    async def _bounded(self, call: ToolCall) -> object:
        """Return a result as the model is shown it; the whole of one that is cut is recorded where the tool says so."""
        tool, text = call.tool, text_of(call.result)
        shown = cut_text(text, tool.max_result_chars or self._services.limits.result_chars)
        if shown != text and tool.keep == "whole":
            kept = text.encode(errors="replace")[:MAX_WHOLE_BYTES].decode(errors="ignore")
            await self._journal.keep_whole(call, kept, characters=len(text))
        if tool.output == "untrusted":
            return marked_untrusted(text, call.idempotency_key, shown=shown)
        return call.result if shown == text else shown

    async def fail(self, call: ToolCall, error: Exception) -> ToolCall:
        """Record an error as the call's result, or end the step where the agent's strategy says so."""
        name = error.code if isinstance(error, KneoError) else type(error).__name__
        if self._stops_on_error and not _is_tracked(call.tool):
            # There is no entry: a retry of the step makes the call again.
            await self._journal.note(self._journal.event(call, "tool_call_failed", error=name))
            raise tool_failed(call) from None
        message = redact_text(sound_text(str(error)[: 2 * MAX_ERROR_CHARS]))[:MAX_ERROR_CHARS]
        failed = replace(call, status=EntryStatus.FAILED, result={"error": name, "message": message})
        finished = await self._finish_checked(failed)
        if self._stops_on_error:
            raise tool_failed(call) from None
        return finished

    # ---- the call --------------------------------------------------------------------------------------------------

    def _continued(self, call: ToolCall, entry: ConversationEntry | None) -> ToolCall:
        """Return a call with the state that its last attempt left, and the answer to the tool's own question."""
        call = replace(call, keep=partial(self._journal.keep_state, call))
        body: Mapping[str, object] = entry.body if entry is not None else {}
        form, state = body.get("form"), body.get("state")
        if not isinstance(form, Mapping):
            return replace(call, state=state) if isinstance(state, Mapping) else call
        question = form_question(call, count(entry, "forms"), form["prompt"], form["schema"])
        return replace(call, state=form["state"], answer=self._turn.answer_to(question))

    async def _watched(self, call: ToolCall) -> object:
        """Wait for a call, and announce one that takes its time. A quick one is announced together with its result."""
        calling = asyncio.ensure_future(self._attempts(call))
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

    async def _attempts(self, call: ToolCall) -> object:
        tool, kind = call.tool, call.tool.kind
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
                    return await backend.call(call)
            except AnswerRequired:
                raise
            except Exception as error:
                if repetitions == 0:
                    if deadline.expired():
                        msg = f"The call took longer than {seconds:g} s."
                        raise TimeoutError(msg) from error
                    raise
                repetitions -= 1

    async def _wait(self, call: ToolCall, required: AnswerRequired) -> ToolCall:
        """Keep a tool's own question with its state, and ask it."""
        entry, prompt = self._journal.find(call), sound_text(str(required))
        forms, restarts = count(entry, "forms") + 1, count(entry, "restarts") + required.restarted
        if forms > MAX_FORMS or restarts > MAX_RESTARTS:
            msg = f"The tool asked {forms} questions during one call, and started again {restarts} times."
            return await self.fail(call, Invalid(msg, code="too_many_questions"))
        form = {"prompt": prompt, "schema": required.schema, "state": required.state}
        await self._journal.wait(call, form, {"forms": forms, "restarts": restarts})
        raise PeopleRequired([form_question(call, forms, prompt, required.schema)])

    async def _call_agent(self, call: ToolCall) -> ToolCall:
        announce = partial(self._journal.announce, call)
        limit = self._services.limits.depth
        answer, tokens = await call_agent(call, take=self._nested, limit=limit, announce=announce)
        call = replace(call, facts={**call.facts, "total_tokens": tokens})
        return await (self.fail(call, answer) if isinstance(answer, KneoError) else self.record(call, answer))

    # ---- interruptions ---------------------------------------------------------------------------------------------

    async def _resolve_interrupted(self, call: ToolCall, entry: ConversationEntry) -> ToolCall | None:
        """Find out whether a call took effect that was under way when its process ended; ``None``: it is made again."""
        rule = call.tool.on_interrupted or "ask"
        if rule == "repeat":
            return None
        if rule == "fail":
            msg = f"The call of {call.name} that began at {entry.started_at} was interrupted; its effect is unknown."
            raise Invalid(msg, code="tool_interrupted", hint="on_interrupted: ask lets a person find out.")
        verified = await self._verify(call, rule) if isinstance(rule, Verify) else None
        if verified is not None:
            done, result = verified
            return await self.record(call, result) if done else None
        facts = {"begun_at": entry.started_at, "idempotency_key": call.idempotency_key}
        question = interrupted_question(call, count(entry, "begun"), facts)
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
                return await self._finish_checked(replace(call, status=EntryStatus.DONE, result=given or text))
            case _:
                raise Stopped(question, decision)

    async def _verify(self, call: ToolCall, rule: Verify) -> tuple[bool, object] | None:
        """Ask the function that can tell whether a call took effect; ``None``: it does not, so a person has to."""
        verification = "Verification of an interrupted call."
        tool = Tool(description=verification, implementation=rule.verify, sandbox=call.tool.sandbox)
        try:
            answer = await self._attempts(replace(call, tool=tool))
        except Exception as error:  # noqa: BLE001 - a person is asked instead
            event = self._journal.event(call, "tool_verification_failed", error=type(error).__name__)
            await self._journal.note(event)
            return None
        if not isinstance(answer, Mapping) or not isinstance(answer.get("done"), bool):
            return None
        return answer["done"], answer.get("result")
