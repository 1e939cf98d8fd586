"""The earlier calls that a question about a tool call shows: what the agent had looked up when it asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from kneo import registry
from kneo.api.conversation_messages import WITHHELD_ALL, ContentTexts
from kneo.api.operation import Json
from kneo.api.run_steps import path_of
from kneo.errors import KneoError
from kneo.records.conversation import EDITED_BY, ConversationEntry, EntryKind, EntryStatus
from kneo.records.run import Run
from kneo.records.task import UNRESOLVED, HumanTask
from kneo.redaction import redact
from kneo.runtime.engine.questions import spec_of
from kneo.spec.call_title import call_title
from kneo.spec.models.spec import Tool
from kneo.store import agent_journal
from kneo.store.engine import Tx

MAX_CALLS = 10
"""Calls of a question, the latest before it."""

PREVIEW_CHARS = 2_000
"""Characters of one result."""

OUTCOMES: Mapping[EntryStatus, str] = {
    EntryStatus.DONE: "succeeded",
    EntryStatus.FAILED: "failed",
    EntryStatus.DENIED: "not made",
}


def with_calls(tx: Tx, task: HumanTask, run: Run | None, *, may_read_content: bool, is_candidate: bool) -> HumanTask:
    """Return a task with the earlier calls of its step among its facts, as ``calls``.

    The candidates of an open task read them, and every caller who may read the content of runs, unless the environment shows no
    context (``questions.context: none``).

    Args:
        tx: An open transaction.
        task: The task.
        run: Its run.
        may_read_content: Whether the caller may read the content of runs.
        is_candidate: Whether the caller may decide the task.
    """
    if run is None or not task.is_about_a_call:
        return task
    if not (may_read_content or (is_candidate and task.status in UNRESOLVED)):
        return task
    declared = registry.find_declared(tx, task.environment)
    if declared is not None and declared.spec.questions.context == "none":
        return task
    facts = task.metadata["facts"]
    assert isinstance(facts, Mapping)
    try:
        calls = _calls_before(tx, task, run, str(facts.get("tool")))
    except KneoError:
        # The journal is sealed with a key that this process does not have, or the spec is no longer kept.
        return task
    return replace(task, metadata={**task.metadata, "facts": {**facts, "calls": calls}})


def _calls_before(tx: Tx, task: HumanTask, run: Run, asking: str) -> list[Json]:
    spec = spec_of(tx, run)
    tools = spec.tools if spec is not None else {}
    shows = tools[asking].shows if asking in tools else None
    entries = _entries_before(tx, task, run.id)
    shown = [each for each in entries if shows is None or each.facts.get("tool") in shows][-MAX_CALLS:]
    texts = ContentTexts(personal=True)
    bodies = _bodies(tx, run.id, shown)
    return [_view(entry, bodies[entry.conversation, entry.name], tools, texts) for entry in shown]


def _entries_before(tx: Tx, task: HumanTask, run_id: str) -> list[ConversationEntry]:
    """Return the finished calls of a task's step, in the round that asks, without those that no view shows."""
    of_step = [
        entry
        for entry in agent_journal.list_facts(tx, run_id)
        if path_of(entry.location) == task.step_path and entry.started_at <= task.created_at
    ]
    replies = [entry for entry in of_step if entry.kind is EntryKind.MODEL]
    location = replies[-1].location if replies else None
    hidden = {entry.conversation for entry in replies if entry.facts.get("withheld") == WITHHELD_ALL}
    return [
        entry
        for entry in of_step
        if entry.kind is EntryKind.TOOL
        and entry.status in OUTCOMES
        and entry.location == location
        and entry.conversation not in hidden
    ]


def _bodies(
    tx: Tx, run_id: str, entries: Sequence[ConversationEntry]
) -> Mapping[tuple[str, str], Mapping[str, object]]:
    conversations = {entry.conversation for entry in entries}
    loaded = (each for name in sorted(conversations) for each in agent_journal.load(tx, run_id, name))
    return {(each.conversation, each.name): each.body for each in loaded}


def _view(entry: ConversationEntry, body: Mapping[str, object], tools: Mapping[str, Tool], texts: ContentTexts) -> Json:
    name = str(entry.facts.get("tool"))
    arguments = redact(body.get("arguments", {}), personal=True)
    assert isinstance(arguments, Mapping)
    result = texts.shown(body.get("result", ""))
    return {
        "tool": name,
        "title": call_title(name, tools[name].title if name in tools else None, arguments),
        "arguments": dict(arguments),
        "outcome": OUTCOMES[entry.status],
        "result_preview": result[:PREVIEW_CHARS],
        "characters": len(result),
        "edited_by": entry.facts.get(EDITED_BY),
        "at": entry.completed_at or entry.started_at,
    }
