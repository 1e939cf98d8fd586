"""The operation that returns recordings of runs, which leave an environment only with its consent, redacted and audited."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Annotated

from pydantic import Field
from pydantic_core import to_json

from kneo import registry
from kneo.api.operation import Context, operation
from kneo.api.page import Limit, Moment, Word, stored_time
from kneo.api.run_steps import path_of
from kneo.api.subjects import ENVIRONMENT
from kneo.clock import isoformat
from kneo.errors import Forbidden, KneoError
from kneo.records.conversation import DECISIONS, ConversationEntry, EntryKind, EntryStatus
from kneo.records.recording import (
    Json,
    RecordedCall,
    RecordedQuestion,
    Recording,
    Redaction,
    recorded_key,
    redacted_json,
    subject_digest,
)
from kneo.records.run import Run, RunStatus, StepRecord
from kneo.records.task import DecisionKind, HumanTask, TaskStatus
from kneo.redaction import redact, redact_text
from kneo.runtime.engine.questions import spec_of
from kneo.spec.tool_kinds import CALL_TARGET
from kneo.store import agent_journal, audit, history, runs, tasks
from kneo.store.engine import Tx
from kneo.store.run_filter import RunFilter
from kneo.tasks.schedule import TIMEOUT_POLICY
from kneo.trust.result import decimal_text
from kneo.trust.sealing import JournalSealed

READ = "recordings.read"

MAX_BYTES = 8_000_000
"""Bytes of all recordings of a response; the first one may be as long as ``MAX_RECORDING_BYTES``."""

MAX_RECORDING_BYTES = 1_000_000

ENDED = tuple(status for status in RunStatus if status.is_final)

PAGE = 100
"""Runs that are read at once."""


@dataclass(frozen=True, kw_only=True)
class RecordingsView:
    """Ended runs, newest first. ``next_after`` is the ``after`` of the next page, null on the last one."""

    recordings: list[Recording]
    redact: Annotated[Redaction, Field(description="What was redacted: secrets, and with `personal` personal data.")]
    next_after: str | None


@operation("GET", "/environments/{name}/recordings", scope="runs:content", errors=(403,), about=ENVIRONMENT)
def list_recordings(
    context: Context,
    name: str,
    *,
    since: Moment | None = None,
    limit: Limit = 100,
    bundle: Annotated[Word | None, Field(description="Only runs of this bundle.")] = None,
    after: Annotated[str | None, Field(max_length=40, description="`next_after` of the previous page.")] = None,
) -> RecordingsView:
    """List ended runs of releases with their calls, questions and decisions, redacted, to rehearse another version on them.

    The environment has to allow it with `recordings`. A run whose content cannot be read has `unavailable`. The reading is recorded.
    """
    begin = stored_time(since)
    with context.store.read() as tx:
        rules = registry.declared(tx, name).spec.recordings
        if rules is None:
            msg = f"{name} does not allow its recordings to be rehearsed."
            hint = "Add recordings: {use: [rehearsal]} to the environment's file; that weakens its rules and needs an approval."
            raise Forbidden(msg, code="recordings_not_allowed", hint=hint)
        first = max(begin or "", isoformat(tx.now - rules.max_age))
        where = RunFilter(environment=name, bundle=bundle, statuses=ENDED, created_after=first)
        found, next_after, size = list[Recording](), None, 0
        for run in _runs(tx, where, after):
            recording = _recording(tx, run, rules.redact)
            size += len(to_json(recording))
            if len(found) == limit or (found and size > MAX_BYTES):
                next_after = found[-1].run_id
                break
            found.append(recording)
    facts: dict[str, object] = {"since": first, "bundle": bundle, "runs": len(found), "redact": rules.redact}
    if found:
        facts |= {"newest": found[0].run_id, "oldest": found[-1].run_id}
    context.store.transact(lambda tx: audit.record(tx, READ, actor=context.actor, environment=name, metadata=facts))
    return RecordingsView(recordings=found, redact=rules.redact, next_after=next_after)


def _runs(tx: Tx, where: RunFilter, after: str | None) -> Iterator[Run]:
    """Yield the runs of releases that a rehearsal can start again."""
    while True:
        page = runs.list_runs(tx, where, sort_by="created_at", limit=PAGE, after=after)
        yield from (
            run for run in page if run.release is not None and not run.is_imported and run.target != CALL_TARGET
        )
        if len(page) < PAGE:
            return
        after = page[-1].id


class _Unavailable(Exception):
    """A run cannot be rehearsed."""


def _recording(tx: Tx, run: Run, redaction: Redaction) -> Recording:
    assert run.release is not None
    bare = Recording(
        run_id=run.id,
        bundle=run.release.bundle,
        version=run.release.version,
        target=run.target,
        status=run.status.value,
        started_at=run.started_at or run.created_at,
    )
    try:
        whole = runs.get(tx, run.id)  # a list has runs without their state, which cannot be checked
        recording = _with_content(tx, runs.check(tx, whole or run), bare, redaction)
        return recording if len(to_json(recording)) <= MAX_RECORDING_BYTES else replace(bare, unavailable="too_large")
    except JournalSealed:
        return replace(bare, unavailable="sealed")
    except _Unavailable as error:
        return replace(bare, unavailable=str(error))
    except KneoError:
        return replace(bare, unavailable="unreadable")


def _with_content(tx: Tx, run: Run, bare: Recording, redaction: Redaction) -> Recording:
    spec = spec_of(tx, run)
    if spec is None:
        raise _Unavailable("unreadable")
    personal = redaction == "personal"
    entries = [entry for entry in agent_journal.list_entries(tx, run.id) if entry.kind is not EntryKind.ARTIFACT]
    if any(entry.facts.get("withheld") == "all" for entry in entries):
        raise _Unavailable("withheld")
    made = [
        (entry.started_at, _call(entry, redaction))
        for entry in entries
        if _is_made(entry)
        and entry.facts.get("tool") in spec.tools
        and spec.tools[str(entry.facts["tool"])].agent is None
    ]
    steps = [
        (step.started_at, _step(step, personal=personal))
        for step in history.list_steps(tx, run.id)
        if step.kind == "function" and step.output_text is not None
    ]
    ordered = sorted([*made, *steps], key=lambda item: item[0])
    begun = [at for at, _ in ordered]
    asked = [task for task in tasks.of_run(tx, run.id, TaskStatus) if _is_repeated(task)]
    return replace(
        bare,
        input=redact_text(run.input_text, personal=personal),
        output=redact_text(run.output_text or "", personal=personal),
        calls=[call for _, call in ordered],
        questions=[_question(task, redaction, after=sum(at < task.created_at for at in begun)) for task in asked],
        cost=decimal_text(Decimal(run.usage.cost_micros) / 1_000_000) if not run.usage.unpriced_requests else None,
    )


PROVIDED = frozenset({DecisionKind.PROVIDED.value, DecisionKind.SELECTED.value})


def _is_made(entry: ConversationEntry) -> bool:
    """Return whether an entry is a call of what is behind a tool, and no person provided its result."""
    if entry.kind is not EntryKind.TOOL or entry.status is EntryStatus.DENIED:
        return False
    decisions = entry.facts.get(DECISIONS)
    listed = decisions if isinstance(decisions, list) else []
    return not any(isinstance(each, Mapping) and each.get("decision") in PROVIDED for each in listed)


def _call(entry: ConversationEntry, redaction: Redaction) -> RecordedCall:
    if entry.status not in {EntryStatus.DONE, EntryStatus.FAILED}:
        raise _Unavailable("interrupted")
    arguments = entry.body.get("arguments")
    return RecordedCall(
        path=path_of(entry.location),
        tool=str(entry.facts["tool"]),
        arguments=redacted_json(arguments if isinstance(arguments, Mapping) else {}, redaction),
        result=redact(entry.body.get("result"), personal=redaction == "personal"),
        failed=entry.status is EntryStatus.FAILED,
    )


def _step(step: StepRecord, *, personal: bool) -> RecordedCall:
    return RecordedCall(
        path=step.step_id,
        tool=None,
        arguments={"text": redact_text(step.input_text, personal=personal)},
        result=redact_text(step.output_text or "", personal=personal),
    )


def _is_repeated(task: HumanTask) -> bool:
    """Return whether a trial asks the question of a task again: it has budgets and tools of its own."""
    key = recorded_key(task.key)
    return not any(f"{kind}" in key for kind in (":interrupted.", ":elicitation.", ".budget:"))


def _question(task: HumanTask, redaction: Redaction, *, after: int) -> RecordedQuestion:
    decision = task.decision
    question = {
        "key": recorded_key(task.key),
        "subject_digest": subject_digest(task.subject, redaction),
        "about_call": task.is_about_a_call,
        "after": after,
    }
    by_deadline = task.status is TaskStatus.EXPIRED or (decision is not None and decision.by == TIMEOUT_POLICY)
    if decision is None or by_deadline:
        return RecordedQuestion(**question, timeout=by_deadline)  # type: ignore[arg-type]  # by name, as above
    content: object = decision.data if decision.data is not None else decision.content
    arguments = _object(decision.content) if task.position == "tool" and decision.kind is DecisionKind.EDITED else None
    answer: Json = {
        "content": content if arguments is None and decision.kind.value in {"edited", "provided"} else None,
        "selected_option": decision.selected_option,
        "selected_options": list(decision.selected_options) or None,
        "values": dict(decision.values) if decision.values is not None else None,
        "arguments": arguments,
        "feedback": decision.reason or None if decision.kind is DecisionKind.REJECTED else decision.feedback,
    }
    redacted = redacted_json(answer, redaction)
    return RecordedQuestion(**question, decision=decision.kind.value, **redacted)  # type: ignore[arg-type]  # as above


def _object(text: str | None) -> Json | None:
    try:
        found = json.loads(text or "")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
