"""The conversations of a run's agents: what was written to their models, and what the models replied."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from kneo.api.operation import Context, operation
from kneo.api.run_steps import path_of
from kneo.errors import InvalidValue, NotFound
from kneo.records.conversation import EDITED_BY, ConversationEntry, EntryKind
from kneo.redaction import redact, redact_text
from kneo.runtime.engine.wait import find_run
from kneo.spec.models.agent import OUTPUT_TOOL
from kneo.store import agent_journal

MAX_TEXT_CHARS = 20_000
"""Characters of one text."""

MAX_CHARS = 4_000_000
"""Characters of all texts of a response."""


class ContentTexts:
    """Redacts and bounds the texts of one response.

    Args:
        personal: Whether personal data is removed too.
    """

    def __init__(self, *, personal: bool) -> None:
        self.personal = personal
        self.left = MAX_CHARS

    @property
    def truncated(self) -> bool:
        """Whether the texts are longer than a response may be."""
        return self.left <= 0

    def shown(self, value: object) -> str:
        """Return a text, or data as JSON, without secrets and cut where it is too long."""
        # Redacted as a whole: half a secret is not recognized.
        text = self._redacted(value)
        most = max(min(MAX_TEXT_CHARS, self.left), 0)
        self.left -= len(text)
        return text if len(text) <= most else f"{text[:most]}[cut: {len(text)} characters in all]"

    def _redacted(self, value: object) -> str:
        if isinstance(value, str):
            return redact_text(value, personal=self.personal)
        return json.dumps(redact(value, personal=self.personal), ensure_ascii=False, default=str)


@dataclass(frozen=True, kw_only=True)
class MessageCallView:
    """A tool call in a reply of a model, with the arguments with which it was made."""

    id: str
    name: str
    arguments: str
    edited_by: Annotated[str | None, Field(description="The person who changed the arguments.")] = None
    requested: Annotated[
        str | None, Field(description="The arguments that the model asked for, where a person changed them.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class MessageView:
    """One message. ``tool_call_id`` and ``tool_name`` are those of the call whose result it is."""

    role: str
    text: str
    tool_calls: list[MessageCallView]
    tool_call_id: str | None = None
    tool_name: str | None = None
    at: str | None


@dataclass(frozen=True, kw_only=True)
class ConversationView:
    """The messages between an agent and its model at one step."""

    step: str
    conversation: str
    agent: str | None
    messages: list[MessageView]


@dataclass(frozen=True, kw_only=True)
class ConversationsView:
    """The conversations of a run; ``truncated`` where they are longer than a response may be."""

    run_id: str
    conversations: list[ConversationView]
    count: int
    truncated: bool


@operation("GET", "/runs/{run_id}/conversation", scope="runs:content")
def get_run_conversation(
    context: Context,
    run_id: str,
    step: Annotated[str | None, Field(max_length=2_000, description="Only this step, by its path.")] = None,
    whole: Annotated[bool, Field(description="Show personal data too. Secrets are never shown.")] = False,
) -> ConversationsView:
    """Read what the agents of a run and their models wrote."""
    find_run(context.store, run_id)
    with context.store.read() as tx:
        entries = [entry for entry in agent_journal.list_entries(tx, run_id) if entry.kind is not EntryKind.ARTIFACT]
    by_conversation: dict[str, list[ConversationEntry]] = defaultdict(list)
    for entry in entries:
        if step is None or path_of(entry.location) == step:
            by_conversation[entry.conversation].append(entry)
    texts = ContentTexts(personal=not whole)
    views = [
        ConversationView(
            step=path_of(own[0].location),
            conversation=name,
            agent=next((str(entry.facts["agent"]) for entry in own if "agent" in entry.facts), None),
            messages=[message for entry in own for message in _with_edits(entry, own, texts)],
        )
        for name, own in sorted(by_conversation.items(), key=lambda item: item[1][0].started_at)
    ]
    return ConversationsView(run_id=run_id, conversations=views, count=len(views), truncated=texts.truncated)


@dataclass(frozen=True, kw_only=True)
class ToolResultView:
    """The whole result of a tool call; ``characters`` counts also a part that was too long to keep."""

    run_id: str
    conversation: str
    call: str
    tool: str
    text: str
    characters: int
    at: str | None


@operation("GET", "/runs/{run_id}/results/{call}", scope="runs:content", errors=(404,))
def get_tool_result(
    context: Context,
    run_id: str,
    call: str,
    conversation: Annotated[
        str | None, Field(max_length=2_000, description="The conversation, where several have a call of this name.")
    ] = None,
    whole: Annotated[bool, Field(description="Show personal data too. Secrets are never shown.")] = False,
) -> ToolResultView:
    """Read the whole of a tool's result that its model was shown cut, of a tool with `keep: whole`.

    `call` is the key of the call in the trace, or its id in the conversation.
    """
    find_run(context.store, run_id)
    with context.store.read() as tx:
        found = [
            entry
            for entry in agent_journal.list_facts(tx, run_id)
            if entry.kind is EntryKind.ARTIFACT
            and call in {entry.name.partition(":")[2], entry.name.partition(".")[2]}
            and conversation in {None, _of_calls(entry)}
        ]
        if not found:
            msg = f"The run {run_id} has no whole result of the call {call[:100]!r}."
            hint = "Results are kept whole where they are cut, and the tool has keep: whole."
            raise NotFound(msg, code="result_not_found", hint=hint)
        if len(found) > 1:
            names = ", ".join(_of_calls(entry) for entry in found[:10])
            msg = f"{len(found)} calls have the name {call[:100]!r}, in the conversations {names}."
            raise InvalidValue(msg, hint="Name one of them as conversation.", field="conversation")
        [facts] = found
        [entry] = [each for each in agent_journal.load(tx, run_id, facts.conversation) if each.name == facts.name]
    characters = entry.facts.get("characters")
    return ToolResultView(
        run_id=run_id,
        conversation=_of_calls(entry),
        call=entry.name.partition(":")[2],
        tool=str(entry.facts.get("tool")),
        text=redact_text(str(entry.body.get("text", "")), personal=not whole),
        characters=characters if isinstance(characters, int) else 0,
        at=entry.completed_at,
    )


def _of_calls(entry: ConversationEntry) -> str:
    """Return the conversation of the call whose result an entry has."""
    return entry.conversation.rpartition(">")[0]


def _with_edits(
    entry: ConversationEntry, conversation: list[ConversationEntry], texts: ContentTexts
) -> Iterator[MessageView]:
    """Yield the messages of an entry, with the calls as they were made."""
    edited = {each.name: each for each in conversation if each.edited_arguments is not None}
    for message in _shown(entry, texts):
        calls = [
            _as_made(call, edited.get(f"tool:{entry.number}.{call.id}"), texts) if edited else call
            for call in message.tool_calls
        ]
        yield replace(message, tool_calls=calls)


def _as_made(call: MessageCallView, entry: ConversationEntry | None, texts: ContentTexts) -> MessageCallView:
    if entry is None or call.arguments == WITHHELD:
        return call
    made = texts.shown(entry.edited_arguments)
    return replace(call, arguments=made, requested=call.arguments, edited_by=str(entry.facts[EDITED_BY]))


WITHHELD_ALL = "all"
"""The fact ``withheld`` of the replies of a conversation that no view shows."""

WITHHELD = "[withheld: a guardrail checks it]"
"""Stands for a text that a guardrail has not passed on."""


def _shown(entry: ConversationEntry, texts: ContentTexts) -> Iterator[MessageView]:
    """Yield the messages of a journal entry that may be shown.

    What a guardrail has not passed on yet, or has changed, is not among them; the text that it passed on is an entry of its own.
    """
    if entry.kind is EntryKind.GUARD:
        if entry.name.startswith("output:"):
            yield _message("assistant", entry.body.get("text", ""), entry.completed_at, texts)
        return
    withheld = entry.facts.get("withheld")
    if withheld is None:
        yield from _messages(entry.body, texts)
        return
    for message in _messages(entry.body, texts):
        hides = message.text and _hides(message, withheld, is_first=entry.name == "model:1")
        calls = [
            replace(call, arguments=WITHHELD) if withheld == WITHHELD_ALL or call.name == OUTPUT_TOOL else call
            for call in message.tool_calls
        ]
        yield replace(message, text=WITHHELD if hides else message.text, tool_calls=calls)


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


def _messages(body: Mapping[str, object], texts: ContentTexts) -> Iterator[MessageView]:
    """Yield the messages in the body of a journal entry."""
    for message in _listed(body, "messages"):
        at = message.get("timestamp")
        if message.get("kind") == "response":
            yield _reply(message, texts)
            continue
        if message.get("instructions"):
            yield _message("system", message["instructions"], at, texts)
        for part in _listed(message, "parts"):
            yield _sent(part, at, texts)


def _reply(message: Mapping[str, object], texts: ContentTexts) -> MessageView:
    parts = _listed(message, "parts")
    calls = [
        MessageCallView(
            id=str(part.get("tool_call_id")),
            name=str(part.get("tool_name")),
            arguments=texts.shown(_arguments(part.get("args"))),
        )
        for part in parts
        if part.get("part_kind") == "tool-call"
    ]
    said = "".join(str(part.get("content")) for part in parts if part.get("part_kind") == "text")
    return _message("assistant", said, message.get("timestamp"), texts, calls=calls)


def _sent(part: Mapping[str, object], at: object, texts: ContentTexts) -> MessageView:
    """Build the view of a part of a request: a prompt, or the result of a call."""
    role = _ROLES.get(str(part.get("part_kind")), "user")
    call_id, name = part.get("tool_call_id"), part.get("tool_name")
    if name is not None:
        role = "tool"
    return _message(role, part.get("content", ""), part.get("timestamp") or at, texts, call_id=call_id, name=name)


_ROLES: Mapping[str, str] = {"system-prompt": "system", "user-prompt": "user", "tool-return": "tool"}


def _message(
    role: str,
    value: object,
    at: object,
    texts: ContentTexts,
    *,
    calls: list[MessageCallView] | None = None,
    call_id: object = None,
    name: object = None,
) -> MessageView:
    return MessageView(
        role=role,
        text=texts.shown(value),
        tool_calls=calls or [],
        tool_call_id=str(call_id) if name is not None else None,
        tool_name=str(name) if name is not None else None,
        at=str(at) if at is not None else None,
    )


def _arguments(value: object) -> object:
    """Return the arguments of a call as data, so that secrets are found by their names; text that is no JSON stays text."""
    if not isinstance(value, str):
        return value if value is not None else {}
    try:
        return json.loads(value)
    except ValueError:
        return value


def _listed(value: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    items = value.get(name)
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []
