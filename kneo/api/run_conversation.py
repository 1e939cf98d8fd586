"""The conversations of a run's agents: what was written to their models, what the models replied, and the calls that were made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from kneo.api.conversation_messages import MAX_TEXT_CHARS, ContentTexts, ConversationReader, MessageView
from kneo.api.operation import Context, operation
from kneo.api.run_steps import path_of
from kneo.api.subjects import RUN
from kneo.errors import InvalidValue, KneoError, NotFound
from kneo.records.conversation import ConversationEntry, EntryKind
from kneo.records.run import Run, RunStatus
from kneo.redaction import redact_text
from kneo.runtime.engine.questions import spec_of
from kneo.runtime.engine.wait import find_run
from kneo.spec.models.spec import Tool
from kneo.store import agent_journal
from kneo.store.engine import Tx


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
    may_read_content: Annotated[bool, Field(description="Whether texts, arguments and results are shown.")]


@operation("GET", "/runs/{run_id}/conversation", scope="runs:read", about=RUN)
def get_run_conversation(
    context: Context,
    run_id: str,
    step: Annotated[str | None, Field(max_length=2_000, description="Only this step, by its path.")] = None,
    whole: Annotated[bool, Field(description="Show personal data too. Secrets are never shown.")] = False,
    text_chars: Annotated[
        int, Field(ge=1, le=MAX_TEXT_CHARS, description="Cut each text after this many characters.")
    ] = MAX_TEXT_CHARS,
) -> ConversationsView:
    """Read what the agents of a run and their models wrote, and the calls that were made.

    Without `runs:content` texts, arguments and results are left out: the rows have tools, outcomes, times, people and tokens.
    """
    run = find_run(context.store, run_id)
    with context.store.read() as tx:
        entries = [entry for entry in agent_journal.list_entries(tx, run_id) if entry.kind is not EntryKind.ARTIFACT]
        tools = _tools_of(tx, run) if entries else {}
    by_conversation: dict[str, list[ConversationEntry]] = defaultdict(list)
    for entry in entries:
        if step is None or path_of(entry.location) == step:
            by_conversation[entry.conversation].append(entry)
    texts = ContentTexts(personal=not whole, text_chars=text_chars)
    may_read_content = context.principal.may("runs:content")
    is_under_way = run.status in {RunStatus.RUNNING, RunStatus.PAUSED}
    views = []
    for name, own in sorted(by_conversation.items(), key=lambda item: item[1][0].started_at):
        messages = ConversationReader(own, tools, texts, is_under_way=is_under_way).messages()
        view = ConversationView(
            step=path_of(own[0].location),
            conversation=name,
            agent=next((str(entry.facts["agent"]) for entry in own if "agent" in entry.facts), None),
            messages=messages if may_read_content else [message.without_texts() for message in messages],
        )
        views.append(view)
    return ConversationsView(
        run_id=run_id,
        conversations=views,
        count=len(views),
        truncated=texts.truncated,
        may_read_content=may_read_content,
    )


def _tools_of(tx: Tx, run: Run) -> Mapping[str, Tool]:
    """Return the tools of a run's spec, whose titles name its calls; none where this version cannot read it."""
    try:
        spec = spec_of(tx, run)
    except KneoError:
        return {}
    return spec.tools if spec is not None else {}


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


@operation("GET", "/runs/{run_id}/results/{call}", scope="runs:content", errors=(404,), about=RUN)
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
