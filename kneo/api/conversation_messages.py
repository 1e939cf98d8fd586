"""The messages between an agent and its model, each tool call as one row with its outcome, its result and the people who decided."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

from pydantic import Field

from kneo.agents.texts import json_value, sound_text
from kneo.api.run_steps import StepModelView
from kneo.api.run_views import UsageView
from kneo.records.conversation import DECISIONS, EDITED_BY, ConversationEntry, EntryKind, EntryStatus
from kneo.records.run import AgentUsage
from kneo.redaction import redact, redact_text
from kneo.spec.call_title import call_title
from kneo.spec.diff.texts import shorten, text_rows
from kneo.spec.models.agent import OUTPUT_TOOL
from kneo.spec.models.spec import Tool

MAX_TEXT_CHARS = 20_000
"""Characters of one text."""

MAX_CHARS = 4_000_000
"""Characters of all texts of a response."""


class ContentTexts:
    """Redacts and bounds the texts of one response.

    Args:
        personal: Whether personal data is removed too.
        text_chars: Characters of one text.
    """

    def __init__(self, *, personal: bool, text_chars: int = MAX_TEXT_CHARS) -> None:
        self.personal, self.text_chars = personal, text_chars
        self.left = MAX_CHARS

    @property
    def truncated(self) -> bool:
        """Whether the texts are longer than a response may be."""
        return self.left <= 0

    def shown(self, value: object) -> str:
        """Return a text, or data as JSON, without secrets and cut where it is too long."""
        # Redacted as a whole: half a secret is not recognized.
        text = sound_text(self._redacted(value))
        most = max(min(self.text_chars, self.left), 0)
        self.left -= min(len(text), self.text_chars)
        return text if len(text) <= most else f"{text[:most]}[cut: {len(text)} characters in all]"

    def data(self, value: object) -> object:
        """Return data without secrets, whole: for titles and comparisons, which have bounds of their own."""
        return redact(value, personal=self.personal)

    def _redacted(self, value: object) -> str:
        if isinstance(value, str):
            return redact_text(value, personal=self.personal)
        return json.dumps(redact(value, personal=self.personal), ensure_ascii=False, default=str)


@dataclass(frozen=True, kw_only=True)
class CallDecisionView:
    """The decision of a person about a tool call."""

    by: str
    decision: str


@dataclass(frozen=True, kw_only=True)
class ArgumentEditView:
    """An argument that a person changed; long values are shortened around their first difference."""

    argument: str
    requested: str
    made: str


@dataclass(frozen=True, kw_only=True)
class MessageCallView:
    """A tool call in a reply of a model, with the arguments with which it was made."""

    id: str
    key: Annotated[str, Field(description="The key of the call in the trace.")]
    name: str
    title: Annotated[str, Field(description="The call in one line; without `runs:content` the name of its tool.")]
    arguments: str | None
    outcome: Annotated[
        str | None,
        Field(description="succeeded, failed, not made, waiting or under way; null for an answer with a schema."),
    ] = None
    result: Annotated[str | None, Field(description="The result as the model is shown it.")] = None
    decisions: Annotated[list[CallDecisionView], Field(description="Of the people who were asked, in order.")] = field(
        default_factory=list
    )
    edited_by: Annotated[str | None, Field(description="The person who changed the arguments.")] = None
    requested: Annotated[
        str | None, Field(description="The arguments that the model asked for, where a person changed them.")
    ] = None
    edits: Annotated[list[ArgumentEditView], Field(description="What the person changed.")] = field(
        default_factory=list
    )
    at: Annotated[str | None, Field(description="When the call ended, or else began.")] = None

    @property
    def decided(self) -> str:
        """Who decided what about the call, in words: ``edited by ann: euros 20 → 15, approved by bob``."""
        edits = ", ".join(f"{each.argument} {each.requested} → {each.made}" for each in self.edits)
        words = []
        for each in self.decisions:
            changes = f": {edits}" if edits and (each.decision, each.by) == ("edited", self.edited_by) else ""
            words.append(f"{each.decision} by {each.by}{changes}")
        return ", ".join(words)

    def without_texts(self) -> MessageCallView:
        """Return what callers without ``runs:content`` see. Names each field: a new one is not shown unasked."""
        return MessageCallView(
            id=self.id,
            key=self.key,
            name=self.name,
            title=self.name,
            arguments=None,
            outcome=self.outcome,
            decisions=self.decisions,
            edited_by=self.edited_by,
            at=self.at,
        )


@dataclass(frozen=True, kw_only=True)
class GuardrailHitView:
    """A guardrail that did not let a text pass unchanged."""

    id: str
    type: str
    stage: str
    outcome: str


@dataclass(frozen=True, kw_only=True)
class MessageView:
    """One message, or a guardrail's hit.

    The result of a tool call is with the call. ``tool_call_id`` and ``tool_name`` are there where no call belongs to a result.
    """

    role: Annotated[str, Field(description="system, user, assistant, tool or guardrail.")]
    text: Annotated[str | None, Field(description="Null without `runs:content`.")]
    tool_calls: list[MessageCallView]
    tool_call_id: str | None = None
    tool_name: str | None = None
    guardrail: GuardrailHitView | None = None
    model: Annotated[StepModelView | None, Field(description="The model that wrote a reply.")] = None
    usage: Annotated[UsageView | None, Field(description="The tokens and the cost of a reply.")] = None
    at: str | None

    def without_texts(self) -> MessageView:
        """Return what callers without ``runs:content`` see. Names each field: a new one is not shown unasked."""
        return MessageView(
            role=self.role,
            text=None,
            tool_calls=[call.without_texts() for call in self.tool_calls],
            tool_call_id=self.tool_call_id,
            tool_name=self.tool_name,
            guardrail=self.guardrail,
            model=self.model,
            usage=self.usage,
            at=self.at,
        )


WITHHELD_ALL = "all"
"""The fact ``withheld`` of the replies of a conversation that no view shows."""

WITHHELD = "[withheld: a guardrail checks it]"
"""Stands for a text that a guardrail has not passed on."""

OUTCOMES: Mapping[EntryStatus, str] = {
    EntryStatus.DONE: "succeeded",
    EntryStatus.FAILED: "failed",
    EntryStatus.DENIED: "not made",
}
"""The outcomes of calls that have ended."""


class ConversationReader:
    """Reads the messages of one conversation from its journal.

    Args:
        entries: The entries of the conversation, in their order.
        tools: The tools of the run's spec; empty where it is no longer kept.
        is_under_way: Whether the run continues, so that calls without a result wait for one.
        texts: Redacts and bounds the texts.
    """

    def __init__(
        self,
        entries: Sequence[ConversationEntry],
        tools: Mapping[str, Tool],
        texts: ContentTexts,
        *,
        is_under_way: bool,
    ) -> None:
        self._entries, self._tools, self._texts = entries, tools, texts
        self._is_under_way = is_under_way
        self._made = {entry.name: entry for entry in entries if entry.kind is EntryKind.TOOL}

    def messages(self) -> list[MessageView]:
        """Return the messages that may be shown, each result with its call."""
        rows: list[MessageView] = []
        asked: dict[str, int] = {}
        for message in (message for entry in self._entries for message in self._shown(entry)):
            # Some servers use the same id in every reply: a result belongs to the latest call of its id.
            row = asked.pop(message.tool_call_id, None) if message.tool_call_id is not None else None
            if row is not None:
                rows[row] = _with_result(rows[row], message)
                continue
            asked |= {call.id: len(rows) for call in message.tool_calls}
            rows.append(message)
        return [replace(row, tool_calls=[self._recorded(call) for call in row.tool_calls]) for row in rows]

    def _recorded(self, call: MessageCallView) -> MessageCallView:
        """Return a call with its result, also where the model has not been shown it yet."""
        entry = self._made.get(f"tool:{call.key}")
        if call.result is not None or entry is None or entry.status not in OUTCOMES or "result" not in entry.body:
            return call
        hides = call.arguments == WITHHELD
        return replace(call, result=WITHHELD if hides else self._texts.shown(entry.body["result"]))

    def _shown(self, entry: ConversationEntry) -> Iterator[MessageView]:
        """Yield the messages of a journal entry that may be shown.

        What a guardrail has not passed on yet, or has changed, is not among them; the text that it passed on is an entry of its own.
        """
        if entry.kind is EntryKind.GUARD:
            yield from self._guarded(entry)
            return
        withheld = entry.facts.get("withheld")
        found = list(self._messages(entry, withheld))
        last = max((at for at, each in enumerate(found) if each.role == "assistant"), default=None)
        for at, each in enumerate(found):
            hides = withheld is not None and each.text and _hides(each, withheld, is_first=entry.name == "model:1")
            message = replace(each, text=WITHHELD) if hides else each
            yield _with_usage(message, entry) if at == last and entry.kind is EntryKind.MODEL else message

    def _guarded(self, entry: ConversationEntry) -> Iterator[MessageView]:
        if entry.name.startswith("output:"):
            yield _message("assistant", self._texts.shown(entry.body.get("text", "")), entry.completed_at)
        elif entry.name.startswith("guard:") and entry.facts.get("outcome") != "passed":
            _, stage, place, *_ = entry.name.split(":")
            hit = GuardrailHitView(
                id=place.partition(".")[2],
                type=str(entry.facts.get("type")),
                stage=stage,
                outcome=str(entry.facts.get("outcome")),
            )
            yield replace(_message("guardrail", "", entry.completed_at), guardrail=hit)

    def _messages(self, entry: ConversationEntry, withheld: object) -> Iterator[MessageView]:
        """Yield the messages in the body of a journal entry."""
        for message in _listed(entry.body, "messages"):
            at = message.get("timestamp")
            if message.get("kind") == "response":
                yield self._reply(message, entry, withheld)
                continue
            if message.get("instructions"):
                yield _message("system", self._texts.shown(message["instructions"]), at)
            for part in _listed(message, "parts"):
                yield self._sent(part, at)

    def _reply(self, message: Mapping[str, object], entry: ConversationEntry, withheld: object) -> MessageView:
        parts = _listed(message, "parts")
        calls = [self._call(part, entry, withheld) for part in parts if part.get("part_kind") == "tool-call"]
        said = "".join(str(part.get("content")) for part in parts if part.get("part_kind") == "text")
        return replace(_message("assistant", self._texts.shown(said), message.get("timestamp")), tool_calls=calls)

    def _call(self, part: Mapping[str, object], entry: ConversationEntry, withheld: object) -> MessageCallView:
        id_, name = sound_text(str(part.get("tool_call_id"))), sound_text(str(part.get("tool_name")))
        requested = _arguments(part.get("args"))
        key = f"{entry.number}.{id_}"
        made = self._made.get(f"tool:{key}") if entry.kind is EntryKind.MODEL else None
        known = made.facts if made is not None else {}
        call = MessageCallView(
            id=id_,
            key=key,
            name=name,
            title=name,
            arguments=WITHHELD,
            outcome=self._outcome(made) if entry.kind is EntryKind.MODEL and name != OUTPUT_TOOL else None,
            decisions=_decisions(known.get(DECISIONS)),
            at=(made.completed_at or made.started_at) if made is not None else None,
        )
        if withheld == WITHHELD_ALL or (withheld is not None and name == OUTPUT_TOOL):
            return call
        edited = made.edited_arguments if made is not None else None
        arguments = requested if edited is None else edited
        tool = str(known.get("tool", name))
        call = replace(call, arguments=self._texts.shown(arguments), title=self._title(tool, arguments))
        if edited is None:
            return call
        return replace(
            call,
            edited_by=str(known[EDITED_BY]),
            requested=self._texts.shown(requested),
            edits=_edits(self._texts.data(requested), self._texts.data(edited)),
        )

    def _outcome(self, made: ConversationEntry | None) -> str:
        if made is not None and made.status in OUTCOMES:
            return OUTCOMES[made.status]
        if made is not None and made.status is EntryStatus.BEGUN:
            return "under way" if self._is_under_way else "interrupted"
        return "waiting" if self._is_under_way else "not made"

    def _title(self, tool: str, arguments: object) -> str:
        shown = self._texts.data(arguments)
        if not isinstance(shown, Mapping):
            return tool
        template = self._tools[tool].title if tool in self._tools else None
        return call_title(tool, template, shown)

    def _sent(self, part: Mapping[str, object], at: object) -> MessageView:
        """Build the view of a part of a request: a prompt, or the result of a call."""
        role = _ROLES.get(str(part.get("part_kind")), "user")
        call_id, name = part.get("tool_call_id"), part.get("tool_name")
        message = _message(role, self._texts.shown(part.get("content", "")), part.get("timestamp") or at)
        if name is None:
            return message
        return replace(message, role="tool", tool_call_id=sound_text(str(call_id)), tool_name=sound_text(str(name)))


def _hides(message: MessageView, withheld: object, *, is_first: bool) -> bool:
    """Return whether a message repeats what a guardrail checks; prompts after the first reply can quote it."""
    match message.role:
        case "system":
            return False
        case "tool":
            return withheld == WITHHELD_ALL or message.tool_name == OUTPUT_TOOL
        case "user":
            return withheld == WITHHELD_ALL or not is_first
        case _:
            return True


_ROLES: Mapping[str, str] = {"system-prompt": "system", "user-prompt": "user", "tool-return": "tool"}


def _message(role: str, text: str, at: object) -> MessageView:
    return MessageView(role=role, text=text, tool_calls=[], at=str(at) if at is not None else None)


def _with_usage(message: MessageView, entry: ConversationEntry) -> MessageView:
    usage = AgentUsage.of(entry)
    return replace(
        message,
        model=StepModelView.of({}, [entry]),
        usage=UsageView.of(usage) if usage != AgentUsage() else None,
        at=message.at or entry.completed_at,
    )


def _with_result(message: MessageView, result: MessageView) -> MessageView:
    calls = [
        replace(call, result=result.text) if call.id == result.tool_call_id else call for call in message.tool_calls
    ]
    return replace(message, tool_calls=calls)


def _decisions(value: object) -> list[CallDecisionView]:
    listed = value if isinstance(value, list) else []
    return [
        CallDecisionView(by=str(each.get("by")), decision=str(each.get("decision")))
        for each in listed
        if isinstance(each, Mapping)
    ]


def _edits(requested: object, made: object) -> list[ArgumentEditView]:
    """Return the arguments that differ, in the order of the made call."""
    if not (isinstance(requested, Mapping) and isinstance(made, Mapping)):
        return []
    names = dict.fromkeys((*made, *requested))
    changed = [name for name in names if requested.get(name) != made.get(name)]
    return [ArgumentEditView(argument=str(name), **_pair(requested.get(name), made.get(name))) for name in changed]


def _pair(requested: object, made: object) -> dict[str, str]:
    """Return two different values in one line each, shortened so that their difference is seen."""
    rows = shorten(text_rows(_line(requested), _line(made))).rows
    return {
        name: next((row[1:] for row in rows if row.startswith(sign)), "–")
        for name, sign in (("requested", "-"), ("made", "+"))
    }


def _line(value: object) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) and "\n" not in value else json.dumps(value, ensure_ascii=False, default=str)


def _arguments(value: object) -> object:
    """Return the arguments of a call as data, so that secrets are found by their names; text that is no JSON stays text."""
    if isinstance(value, str):
        return json_value(value)
    return value if value is not None else {}


def _listed(value: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    items = value.get(name)
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []
