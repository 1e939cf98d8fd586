"""The entries of tool calls in the journal of their conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from kneo.agents.texts import Arguments
from kneo.agents.turn import ToolCall, Turn
from kneo.clock import Clock, isoformat
from kneo.records.conversation import EDITED_BY, ConversationEntry, EntryKind, EntryStatus
from kneo.records.run import NewTrace

Refusal: TypeAlias = Literal["arguments", "policy", "rejected", "guardrail"]
"""Why a call was not made."""

_EVENTS: Mapping[Refusal, str] = {
    "arguments": "tool_call_failed",
    "policy": "tool_policy_denied",
    "rejected": "tool_call_rejected",
    "guardrail": "tool_call_rejected",
}


ARTIFACTS = "artifacts"
"""The name of the conversation with the whole results, below the one of their calls."""


class CallJournal:
    """The entries of a conversation's tool calls: known ones, and the way to add to them."""

    def __init__(self, turn: Turn, clock: Clock, entries: Sequence[ConversationEntry]) -> None:
        self._turn, self._clock = turn, clock
        self._entries = {entry.name: entry for entry in entries if entry.kind is EntryKind.TOOL}
        self._announced: set[str] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, call: ToolCall) -> ConversationEntry | None:
        """Return the entry of a call."""
        return self._entries.get(f"tool:{call.key}")

    def recorded(self, call: ToolCall) -> ToolCall:
        """Return a call with the status of its entry, and with its result if it is finished."""
        entry = self.find(call)
        if entry is None:
            return call
        call = replace(call, status=entry.status)
        return replace(call, result=entry.body["result"], facts=entry.facts) if call.is_finished else call

    def made_arguments(self, key: str) -> Arguments | None:
        """Return the arguments with which a call was made, where a person changed them."""
        entry = self._entries.get(f"tool:{key}")
        return entry.edited_arguments if entry is not None else None

    def now(self) -> str:
        """Return the time for an entry."""
        return isoformat(self._clock.now())

    async def begin(self, call: ToolCall) -> ToolCall:
        """Record durably that a call begins: what reads this later knows that it may have taken effect."""
        before = self.find(call)
        body: dict[str, object] = {"arguments": call.arguments}
        if before is not None:
            body |= {name: before.body[name] for name in ("form", "state") if name in before.body}
        facts = {**(before.facts if before is not None else {}), "tool": call.name, "begun": count(before, "begun") + 1}
        facts.pop("interrupted", None)
        entry = self._entry(call, EntryStatus.BEGUN, body, facts, call.started_at or self.now())
        self._announced.add(call.key)
        await self._append(entry, self.event(call, "tool_call_started"), durable=True)
        return self.recorded(call)

    async def keep_state(self, call: ToolCall, state: Arguments) -> None:
        """Record durably the state with which a call is made again after an interruption."""
        before = self.find(call)
        body = {**(before.body if before is not None else {"arguments": call.arguments}), "state": state}
        facts = before.facts if before is not None else {"tool": call.name}
        began = before.started_at if before is not None else None
        await self._append(self._entry(call, EntryStatus.BEGUN, body, facts, began or self.now()), durable=True)

    async def announce(self, call: ToolCall) -> None:
        """Record once, in the trace alone, that a call is under way: for people who watch."""
        if call.key in self._announced:
            return
        self._announced.add(call.key)
        await self.note(self.event(call, "tool_call_started"))

    async def interrupted(self, call: ToolCall, begun: ConversationEntry) -> None:
        """Record once that a call was under way when its process ended."""
        if not begun.facts.get("interrupted"):
            event = self.event(call, "tool_call_interrupted", begun_at=begun.started_at)
            await self._append(replace(begun, facts={**begun.facts, "interrupted": True}), event)

    async def wait(self, call: ToolCall, form: Arguments, facts: Mapping[str, int]) -> None:
        """Record durably that a tool asked a question of its own, with the state that it is called again with."""
        before = self.find(call)
        body: dict[str, object] = {"arguments": call.arguments, "form": form}
        if before is not None and "state" in before.body:
            body["state"] = before.body["state"]
        kept = {"tool": call.name, "begun": count(before, "begun"), **facts}
        await self._append(self._entry(call, EntryStatus.WAITING, body, kept, self.now()), durable=True)

    async def finish(self, call: ToolCall, *, durable: bool = False) -> ToolCall:
        """Record the result of a call, before the model is shown it."""
        now, started = self.now(), call.started_at
        status = EntryStatus.DONE if call.outcome == "success" else EntryStatus.FAILED
        body = {"arguments": call.arguments, "result": call.result}
        entry = self._entry(call, status, body, {"tool": call.name, **call.facts}, started or now, now)
        ended = "tool_call_completed" if status is EntryStatus.DONE else "tool_call_failed"
        edited = {name: value for name, value in call.facts.items() if name == EDITED_BY}
        events = [self.event(call, ended, **edited)]
        if started is not None and call.key not in self._announced:
            events.insert(0, self.event(call, "tool_call_started", started_at=started))
        await self._append(entry, *events, durable=durable)
        return self.recorded(call)

    async def keep_whole(self, call: ToolCall, text: str, *, characters: int) -> None:
        """Record the whole of a result in a conversation of its own, which no turn loads.

        Args:
            call: The call.
            text: The result.
            characters: The characters of the result, also of a part that is not kept.
        """
        if self._turn.withheld == "all":
            return  # no view shows what the agent was given
        now = self.now()
        entry = ConversationEntry(
            conversation="",
            name=artifact_name(call.key),
            number=call.number,
            kind=EntryKind.ARTIFACT,
            status=EntryStatus.DONE,
            body={"text": text},
            facts={"tool": call.name, "characters": characters},
            started_at=now,
            completed_at=now,
        )
        await self._turn.journal.below(ARTIFACTS).append(entry, durable=False)

    async def refuse(self, call: ToolCall, reason: Refusal, result: Arguments) -> ToolCall:
        """Record that a call is not made, and what the model gets as its result."""
        now = self.now()
        body = {"arguments": call.asked, "result": dict(result)}
        facts = {"tool": call.name, "reason": reason, **call.facts}
        await self._append(
            self._entry(call, EntryStatus.DENIED, body, facts, now, now), self.event(call, _EVENTS[reason])
        )
        return self.recorded(call)

    async def note(self, event: NewTrace) -> None:
        """Record a trace event alone."""
        await self._turn.journal.append(trace=[event], durable=False)

    def event(self, call: ToolCall, kind: str, **data: object) -> NewTrace:
        """Return a trace event of a call, without content."""
        known: dict[str, object] = {
            "agent_name": self._turn.agent_name,
            "tool_name": call.name[:100],
            "call": call.key,
        }
        known |= {"sandbox": call.facts["sandbox"]} if "sandbox" in call.facts else {}
        return NewTrace(type=kind, step_id=self._turn.step_id, data={**known, **data})

    def _entry(
        self,
        call: ToolCall,
        status: EntryStatus,
        body: Mapping[str, object],
        facts: Mapping[str, object],
        started: str,
        completed: str | None = None,
    ) -> ConversationEntry:
        return ConversationEntry(
            conversation=self._turn.conversation,
            name=f"tool:{call.key}",
            number=call.number,
            kind=EntryKind.TOOL,
            status=status,
            body=body,
            facts=facts,
            started_at=started,
            completed_at=completed,
        )

    async def _append(self, entry: ConversationEntry, *events: NewTrace, durable: bool = False) -> None:
        await self._turn.journal.append(entry, trace=events, durable=durable)
        self._entries[entry.name] = entry


def artifact_name(call_key: str) -> str:
    """Return the name of the entry with the whole result of a call."""
    return f"artifact:{call_key}"


def count(entry: ConversationEntry | None, fact: str) -> int:
    """Return a counter in an entry's facts; 0 where it has none."""
    value = None if entry is None else entry.facts.get(fact)
    return value if isinstance(value, int) else 0
