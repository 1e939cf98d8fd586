"""Guardrails of one turn: their checks, their verdicts in the journal, and the effects of their actions.

A guardrail that cannot check blocks. A verdict is a journal row, so that a turn that is entered again neither asks an agent nor
calls a function a second time; it counts for the same text only. A check that could not be carried out ended its run; a run that is
continued checks again.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Literal, TypeAlias

from kneo.agents.text_checks import finds_in, redacted_value, text_check, text_of
from kneo.agents.texts import Arguments, json_value, sound_value
from kneo.agents.tools.agent import NestedTurn, nested_turn, take_nested
from kneo.agents.turn import CallQuestion, GuardrailViolation, ToolCall, Turn
from kneo.clock import Clock, isoformat
from kneo.digest import Digest, DigestLabel, digest_of_json
from kneo.errors import KneoError
from kneo.records.conversation import ConversationEntry, EntryKind, EntryStatus
from kneo.records.run import NewTrace
from kneo.records.task import DecisionKind
from kneo.settings import AgentSettings
from kneo.spec.models.agent import Guardrail

Stage: TypeAlias = Literal["input", "tool", "output", "workflow"]

MAX_RETRIES = 2
"""Times that a model gets a refused text back at one stage of a conversation."""

MAX_EDITS = 10
"""Times that a person may edit one text; each edited text is checked again."""

INPUT = "input:0"
"""The name of the row with an agent's input as its guardrails passed it on."""

PASS = re.compile(r"\s*PASS\b")
"""The beginning of an agent's reply that lets a text pass."""

_REVISE = re.compile(r"\s*REVISE:\s*(?P<text>.*)", re.DOTALL)

FAILED = "failed"
"""The outcome of a check that could not be carried out."""

_TEXT_CHECKS = frozenset({"keyword", "regex"})
_REVIEWS = frozenset({"human_review", "escalate"})
_ACTIONS: Mapping[str, str] = {"warn": "warned", "redact": "redacted", "revise": "revised", "retry": "retried"}


@dataclass(frozen=True)
class Refused:
    """A text that its author, the model, is to write again. ``message`` is for the model."""

    guardrail: Guardrail
    message: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of one check.

    Attributes:
        passed: Whether the text passes.
        reason: Why it does not, in the words of the check.
        revised: The text or value that the check puts in its place.
        error: The code of the error where the check could not be carried out.
    """

    passed: bool
    reason: str | None = None
    revised: object = None
    error: str | None = None
    tokens: int = 0
    """Tokens of an agent that checked."""


@dataclass(frozen=True)
class _Edited:
    value: object


@dataclass(frozen=True, kw_only=True)
class CheckedText:
    """What is checked, and where.

    Attributes:
        stage: The stage.
        what: The thing in words, for messages.
        n: The place in the conversation; part of the names of rows.
        task_key: The name of a question in recorded answers.
        tool: The tool whose call or result it is.
    """

    stage: Stage
    what: str
    n: str
    task_key: str
    tool: str | None = None

    def edited(self, times: int) -> CheckedText:
        """Return the place of a text that a person edited."""
        return replace(self, n=f"{self.n}.{times}", task_key=f"{self.task_key}.{times}") if times else self


class TurnGuardrails:
    """The guardrails of one turn.

    Args:
        turn: The turn.
        entries: The entries of its journal.
        clock: Times the rows.
        limits: The time of a check, and the depth of agents.
        take: Takes the turn of an agent that checks.
    """

    def __init__(
        self, turn: Turn, entries: Sequence[ConversationEntry], *, clock: Clock, limits: AgentSettings, take: NestedTurn
    ) -> None:
        self._turn, self._clock, self._limits, self._take = turn, clock, limits, take
        rows = (entry for entry in entries if entry.kind is EntryKind.GUARD)
        self._rows = {entry.name: entry for entry in rows if entry.facts.get("outcome") != FAILED}
        guardrails = turn.agent.guardrails
        self._stages = guardrails.stages() if guardrails is not None else {}

    @property
    def retries(self) -> int:
        """The number of answers that the model had to write again."""
        return self._retried("output") + self._retried("workflow")

    def of(self, stage: Stage, tool: str | None = None) -> Sequence[tuple[int, Guardrail]]:
        """Return the guardrails of a stage with their positions; at ``tool`` those of one tool."""
        if stage == "workflow" and self._turn.depth:
            # What an agent behind another one answers is not passed on between steps.
            return ()
        found = enumerate(self._stages.get(stage, ()))
        if tool is None:
            return tuple(found)
        return tuple((at, each) for at, each in found if each.target is None or fnmatchcase(tool, each.target))

    # ---- the stages ------------------------------------------------------------------------------------------------

    async def input(self, text: str) -> str:
        """Return the agent's input as its guardrails pass it on. It is checked once in a conversation.

        Raises:
            GuardrailViolation: it is blocked.
            PeopleRequired: a person has to review it, or a question of a check waits.
        """
        if not self.of("input"):
            return text
        known = self._rows.get(INPUT)
        if known is None:
            at = CheckedText(stage="input", what="its input", n="0", task_key="input")
            passed = text_of(await self._checked(at, text))
            known = await self._record(INPUT, 0, {"text": passed, "changed": passed != text}, {"outcome": "passed"})
        return str(known.body["text"])

    async def output(self, value: object, number: int) -> object | Refused:
        """Return an answer as the guardrails of the output, and those between steps, pass it on.

        Args:
            value: The text, or the JSON value of a structured output.
            number: The number of the reply.

        Raises:
            GuardrailViolation: it is blocked.
            PeopleRequired: a person has to review it, or a question of a check waits.
        """
        stages: tuple[Stage, ...] = ("output", "workflow")
        for stage in stages:
            what = "its answer" if stage == "output" else "what it passes on"
            at = CheckedText(stage=stage, what=what, n=str(number), task_key=f"{stage}:{number}")
            passed = await self._checked(at, value)
            if isinstance(passed, Refused):
                return passed
            value = passed
        return value

    def passed_output(self, number: int) -> str | None:
        """Return the text of a reply that passed already."""
        known = self._rows.get(f"output:{number}")
        return str(known.body["text"]) if known is not None else None

    async def keep_output(self, number: int, text: str) -> None:
        """Record the text of a reply that passed, for views and for a turn that is entered again."""
        if self.of("output") or self.of("workflow"):
            await self._record(f"output:{number}", number, {"text": text}, {"outcome": "passed"})

    async def arguments(self, call: ToolCall) -> Arguments | Refused:
        """Return the arguments of a call as the guardrails of tools pass them on.

        Raises:
            GuardrailViolation: they are blocked, or are no map any more.
            PeopleRequired: a person has to review them, or a question of a check waits.
        """
        if not self.of("tool", call.name):
            return call.arguments
        edited = digest_of_json(call.arguments) if call.is_edited else None
        at = _at_call(call, "arguments", f"a call of {call.name}", edited)
        passed = await self._checked(at, dict(call.arguments))
        if isinstance(passed, Refused):
            return passed
        if isinstance(passed, str):
            passed = json_value(passed)
        if not isinstance(passed, Mapping):
            raise self.violation(at, self.of("tool", call.name)[0][1], "the arguments that it passes on are not a map")
        return passed

    async def result(self, call: ToolCall) -> object | Refused:
        """Return the result of a call as the guardrails of tools pass it on.

        Raises:
            GuardrailViolation: it is blocked.
            PeopleRequired: a person has to review it, or a question of a check waits.
        """
        return await self._checked(_at_call(call, "result", f"the result of {call.name}"), call.result)

    async def hold(self, call: ToolCall) -> None:
        """Record durably the result of a call that was made, before it is checked: a call is not made twice for a check."""
        begun = {"started_at": call.started_at} if call.started_at is not None else {}
        body = {
            "arguments": dict(call.arguments),
            "result": call.result,
            "outcome": call.outcome,
            "facts": {**call.facts, **begun},
        }
        await self._record(f"held:{call.key}", call.number, body, {"tool": call.name}, durable=True)

    def held(self, call: ToolCall) -> ToolCall | None:
        """Return a call that was made, with its result, which is not checked yet."""
        entry = self._rows.get(f"held:{call.key}")
        if entry is None:
            return None
        body = entry.body
        arguments, facts = body["arguments"], body["facts"]
        assert isinstance(arguments, Mapping)
        assert isinstance(facts, Mapping)
        return replace(
            call,
            arguments=arguments,
            original=call.asked,
            status=EntryStatus.FAILED if body["outcome"] == "failed" else EntryStatus.DONE,
            result=body["result"],
            facts={name: value for name, value in facts.items() if name != "started_at"},
            started_at=facts.get("started_at"),
        )

    # ---- checks ----------------------------------------------------------------------------------------------------

    async def _checked(self, at: CheckedText, value: object) -> object | Refused:
        for times in range(MAX_EDITS + 1):
            result = await self._pass(at.edited(times), value)
            if not isinstance(result, _Edited):
                return result
            value = result.value
        msg = f"{at.what.capitalize()} was edited {MAX_EDITS} times, and a guardrail of {self._turn.agent_name} holds it still."
        raise GuardrailViolation(msg)

    async def _pass(self, at: CheckedText, value: object) -> object | Refused | _Edited:
        for position, guardrail in self.of(at.stage, at.tool):
            name = f"guard:{at.stage}:{position}.{guardrail.id}:{at.n}"
            digest = _digest(text_of(value))
            entry = self._rows.get(name)
            if entry is None or entry.body.get("digest") != digest:
                entry = await self._judge(at, name, position, guardrail, value, digest)
            if entry is None:
                continue
            match entry.facts["outcome"]:
                case "passed" | "warned":
                    continue
                case "redacted" if guardrail.type in _TEXT_CHECKS:
                    value = redacted_value(text_check(guardrail), value)
                case "redacted" | "revised":
                    value = entry.body["value"]
                case "retried":
                    return Refused(guardrail, _refusal(at, guardrail, entry.body.get("reason")))
                case "asked":
                    edited = self._reviewed(at, position, guardrail, value)
                    if edited is not None:
                        return edited
                case _:
                    violation = self.violation(at, guardrail, entry.facts.get("error"))
                    violation.is_check_failure = entry.facts["outcome"] == FAILED
                    raise violation
        return value

    async def _judge(
        self, at: CheckedText, name: str, position: int, guardrail: Guardrail, value: object, digest: str
    ) -> ConversationEntry | None:
        """Check a value and record the verdict; ``None`` where it passes a check that is cheap to repeat."""
        is_text_check = guardrail.type in _TEXT_CHECKS
        try:
            if is_text_check:
                check = text_check(guardrail)
                found = finds_in(check, value)
                redacted = redacted_value(check, value) if found and guardrail.action == "redact" else None
                is_clean = redacted is not None and not finds_in(check, redacted)
                verdict = Verdict(passed=not found, revised=redacted if is_clean else None)
            elif guardrail.type == "function":
                verdict = await self._ask_function(guardrail, value)
            elif guardrail.type == "agent":
                verdict = await self._ask_agent(at, position, guardrail, value)
            else:
                verdict = Verdict(passed=False, error="unknown_type")
        except Exception as error:  # noqa: BLE001 - a check that fails to run blocks
            code = error.code if isinstance(error, KneoError) else type(error).__name__
            verdict = Verdict(passed=False, error=code)
        if verdict.passed and is_text_check:
            return None
        outcome = self._outcome(at, guardrail, verdict)
        body: dict[str, object] = {"digest": digest, "reason": verdict.reason}
        if outcome in {"redacted", "revised"} and not is_text_check:
            body["value"] = verdict.revised
        facts: dict[str, object] = {"outcome": outcome, "action": guardrail.action, "type": guardrail.type}
        if verdict.error is not None:
            facts["error"] = verdict.error
        if verdict.tokens:
            facts["total_tokens"] = verdict.tokens
        return await self._record(name, int(at.n.partition(".")[0]), body, facts, self._event(at, guardrail, facts))

    def _outcome(self, at: CheckedText, guardrail: Guardrail, verdict: Verdict) -> str:
        if verdict.passed:
            return "passed"
        if verdict.error is not None:
            return FAILED
        if guardrail.action in _REVIEWS:
            return "asked"
        outcome = _ACTIONS.get(guardrail.action, "blocked")
        has_author = at.stage != "input" and self._retried(at.stage) < MAX_RETRIES
        has_text = verdict.revised is not None
        possible = {"warned": True, "retried": has_author, "redacted": has_text, "revised": has_text}
        return outcome if possible.get(outcome) else "blocked"

    def _retried(self, stage: str) -> int:
        begin = f"guard:{stage}:"
        return sum(
            entry.facts.get("outcome") == "retried" for name, entry in self._rows.items() if name.startswith(begin)
        )

    async def _ask_function(self, guardrail: Guardrail, value: object) -> Verdict:
        async with asyncio.timeout(self._limits.tool_seconds):
            answer = sound_value(await self._turn.functions(str(guardrail.ref), text_of(value)))
        if isinstance(answer, bool):
            return Verdict(passed=answer)
        if not isinstance(answer, Mapping) or not isinstance(answer.get("passed"), bool):
            return Verdict(passed=False, error="no_verdict")
        reason, revised = answer.get("reason"), answer.get("text")
        return Verdict(
            passed=answer["passed"],
            reason=str(reason) if reason is not None else None,
            revised=revised if isinstance(value, str) or not isinstance(revised, str) else json_value(revised),
        )

    async def _ask_agent(self, at: CheckedText, position: int, guardrail: Guardrail, value: object) -> Verdict:
        key, limit = f"guard.{at.stage}.{position}.{at.n}", self._limits.depth
        turn = nested_turn(self._turn, str(guardrail.ref), text_of(value), key=key, limit=limit, is_hidden=True)
        task_key = f"guardrail.{at.task_key}.{guardrail.id}"
        result = await take_nested(self._take, turn, key=key, task_key=task_key)
        reply, counted = result.text, result.facts.get("total_tokens")
        tokens = counted if isinstance(counted, int) else 0
        if PASS.match(reply):
            return Verdict(passed=True, tokens=tokens)
        revised = _REVISE.match(reply)
        if revised is None:
            return Verdict(passed=False, reason=reply, tokens=tokens)
        text = revised["text"]
        return Verdict(passed=False, revised=text if isinstance(value, str) else json_value(text), tokens=tokens)

    def _reviewed(self, at: CheckedText, position: int, guardrail: Guardrail, value: object) -> _Edited | None:
        """Ask a person about a text; ``None`` where it passes.

        Raises:
            PeopleRequired: there is no answer yet.
            GuardrailViolation: the person rejected it.
        """
        human, text = guardrail.config.get("human"), text_of(value)
        question = CallQuestion(
            key=f"{at.stage}.{position}.{at.n}:guardrail",
            task_key=f"guardrail.{at.task_key}.{guardrail.id}:{DigestLabel(_digest(text))}",
            kind="guardrail",
            agent=self._turn.agent_name,
            tool=str(guardrail.id),
            arguments={"text": text},
            human=human if isinstance(human, str) else None,
            facts={"stage": at.stage, **({"tool": at.tool} if at.tool is not None else {})},
        )
        decision = self._turn.answer_to(question)
        match decision.kind:
            case DecisionKind.APPROVED:
                return None
            case DecisionKind.EDITED:
                edited = decision.content or ""
                return _Edited(edited if isinstance(value, str) else json_value(edited))
            case _:
                raise self.violation(at, guardrail, "a person rejected it")

    # ---- rows and messages -----------------------------------------------------------------------------------------

    def violation(self, at: CheckedText, guardrail: Guardrail, error: object = None) -> GuardrailViolation:
        """Return the error of a run whose text is blocked; it names no part of the text."""
        why = f": {error}" if error is not None else ""
        return GuardrailViolation(
            f"The {at.stage} guardrail {str(guardrail.id)[:100]} of the agent {self._turn.agent_name} blocks {at.what}{why}.",
            violation_type=guardrail.type,
        )

    def _event(self, at: CheckedText, guardrail: Guardrail, facts: Mapping[str, object]) -> NewTrace:
        known = {"agent_name": self._turn.agent_name, "guardrail_id": str(guardrail.id)[:100], "stage": at.stage}
        tool = {"tool_name": at.tool[:100]} if at.tool is not None else {}
        return NewTrace(
            type=f"guardrail_{facts['outcome']}", step_id=self._turn.step_id, data={**known, **tool, **facts}
        )

    async def _record(
        self,
        name: str,
        number: int,
        body: Mapping[str, object],
        facts: Mapping[str, object],
        *trace: NewTrace,
        durable: bool = False,
    ) -> ConversationEntry:
        now = isoformat(self._clock.now())
        entry = ConversationEntry(
            conversation=self._turn.conversation,
            name=name,
            number=number,
            kind=EntryKind.GUARD,
            status=EntryStatus.DONE,
            body=body,
            facts={**facts, "agent": self._turn.agent_name},
            started_at=now,
            completed_at=now,
        )
        await self._turn.journal.append(entry, trace=trace, durable=durable)
        self._rows[name] = entry
        return entry


@dataclass(frozen=True)
class PassedInput:
    """An agent's input as its guardrails passed it on; ``changed`` where it is not the one that they were given."""

    text: str
    changed: bool


def passed_input(entries: Sequence[ConversationEntry]) -> PassedInput | None:
    """Return the input that the guardrails of a conversation passed on; ``None`` where they have not."""
    entry = next((entry for entry in entries if entry.name == INPUT), None)
    return PassedInput(str(entry.body["text"]), bool(entry.body["changed"])) if entry is not None else None


def _at_call(call: ToolCall, side: str, what: str, edited: Digest | None = None) -> CheckedText:
    """Return a side of a call; arguments that a person edited are found by their whole digest."""
    return CheckedText(
        stage="tool",
        what=what,
        n=f"{call.key}.{side}" if edited is None else f"{call.key}.{side}.{edited}",
        task_key=f"{call.task_key}.{side}" if edited is None else f"{call.task_key}.{side}.{DigestLabel(edited)}",
        tool=call.name,
    )


def _digest(text: str) -> str:
    return sha256(text.encode(errors="surrogatepass")).hexdigest()


def _refusal(at: CheckedText, guardrail: Guardrail, reason: object) -> str:
    why = f" {reason}" if isinstance(reason, str) and reason else ""
    if at.stage == "tool":
        return f"The guardrail {guardrail.id} refuses {at.what}.{why}"
    return f"The guardrail {guardrail.id} refuses your answer.{why} Answer again, without what it refuses."
