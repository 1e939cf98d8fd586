"""Whether an answer fits a task. Pure; nothing of a refused answer is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from kneo.clock import parse_time
from kneo.digest import Digest, canonical_json
from kneo.errors import Conflict, Invalid, KneoError
from kneo.records.task import UNRESOLVED, Decision, DecisionKind, HumanTask, TaskStatus
from kneo.tasks.deadline import POLICY
from kneo.tasks.forms import filled, problems
from kneo.trust.answer import answer_digest


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a person sends. ``request_id`` says which question is meant."""

    request_id: str
    decision: DecisionKind
    content: object = None
    """The text, or for ``provided`` any JSON value."""
    selected_option: str | None = None
    selected_options: tuple[str, ...] | None = None
    values: Mapping[str, object] | None = None
    """What was filled in, by field."""
    feedback: str | None = None
    comment: str | None = None
    expect_digest: str | None = None
    statement: Mapping[str, object] | None = None
    """A DSSE envelope of what they signed about this answer with a key of their own."""


class NotAllowed(Invalid):
    """The answer makes no sense for this task."""

    http_status = 422
    default_code = "decision_not_allowed"


def check_answer(task: HumanTask, answer: Answer, *, actor: str, at: str) -> Decision:
    """Turn an answer into a decision.

    Args:
        task: What is asked.
        answer: What somebody says.
        actor: Who says it.
        at: When.

    Raises:
        Conflict: ``human_task_decided``, ``human_task_expired``, ``human_task_cancelled``, ``request_mismatch`` or
            ``subject_changed``.
        NotAllowed: ``decision_not_allowed``, ``content_required``, ``unknown_option`` or ``human_input_invalid``.
    """
    check_unresolved(task)
    if answer.request_id != task.request_id:
        msg = f"The request {answer.request_id[:80]} is not what {task.id} asks now."
        raise Conflict(msg, code="request_mismatch", hint="Read the task again and answer what it shows.")
    if answer.expect_digest is not None and answer.expect_digest != task.subject_digest:
        msg = f"What {task.id} asks about is not what you saw."
        raise Conflict(msg, code="subject_changed", hint="Read the task again.", subject_digest=task.subject_digest)
    if answer.decision not in task.decisions:
        allowed = ", ".join(task.decisions)
        msg = f"{task.id} cannot be {answer.decision}; it takes: {allowed}."
        raise NotAllowed(msg, allowed=list(task.decisions))
    values = _values(task, answer)
    options = _options(task, answer)
    return Decision(
        kind=answer.decision,
        content=_content(answer, values),
        selected_option=options[0] if options else None,
        selected_options=options,
        values=values,
        data=_data(task, answer),
        feedback=answer.feedback,
        comment=answer.comment,
        actor=actor,
        by="person",
        at=at,
    )


def _values(task: HumanTask, answer: Answer) -> Mapping[str, object] | None:
    schema = task.answer_schema
    if schema is None or answer.decision is DecisionKind.REJECTED:
        if answer.values:
            msg = f"{task.id} asks for no values{' where it is rejected' if schema else ''}."
            raise _unfit(msg, [{"field": "", "rule": "additionalProperties", "message": "nothing is to be filled in"}])
        return None
    if answer.values is None and answer.decision is DecisionKind.PROVIDED and answer.content is not None:
        _check_form(task, _parsed(answer.content, schema))
        return None
    if schema.get("type") != "object":
        if answer.values:
            raise _unfit(f"{task.id} asks for content, not for values.", [])
        if answer.decision is DecisionKind.PROVIDED:
            _check_form(task, None)
        return None
    values = filled(schema, answer.values or {})
    _check_form(task, values)
    return values


def _check_form(task: HumanTask, value: object) -> None:
    assert task.answer_schema is not None
    found = problems(task.answer_schema, value)
    if found:
        named = "; ".join(f"{item['field'] or 'the answer'} {item['message']}" for item in found[:5])
        msg = f"What was filled in for {task.id} does not fit: {named}."
        raise _unfit(msg, found)


def _unfit(message: str, fields: list[dict[str, object]]) -> NotAllowed:
    return NotAllowed(message, code="human_input_invalid", fields=fields)


def _parsed(content: object, schema: Mapping[str, object]) -> object:
    """Read a text as JSON where the schema asks for something else than a text."""
    if not isinstance(content, str) or schema.get("type") in {"string", None}:
        return content
    try:
        return json.loads(content)
    except ValueError:
        return content


def _data(task: HumanTask, answer: Answer) -> object:
    """Return what was provided as the JSON it is; ``None`` for a text."""
    schema = task.answer_schema
    meant = _parsed(answer.content, schema) if schema is not None else answer.content
    return None if isinstance(meant, str) else meant


def _content(answer: Answer, values: Mapping[str, object] | None) -> str | None:
    content = answer.content
    if content is not None and not isinstance(content, str):
        if answer.decision is not DecisionKind.PROVIDED:
            msg = f"content of {answer.decision} is a text."
            raise NotAllowed(msg, code="human_input_invalid", fields=[{"field": "content", "rule": "type"}])
        content = json.dumps(content, ensure_ascii=False)
    if answer.decision in {DecisionKind.EDITED, DecisionKind.PROVIDED} and not (content or "").strip():
        if answer.decision is DecisionKind.PROVIDED and values is not None:
            return json.dumps(values, ensure_ascii=False, sort_keys=True)
        msg = f"{answer.decision} needs content; an empty one would silently approve what was shown."
        raise NotAllowed(msg, code="content_required", hint="Approve it, or send the text.")
    return content


def _options(task: HumanTask, answer: Answer) -> tuple[str, ...]:
    if answer.decision is not DecisionKind.SELECTED:
        return ()
    chosen = answer.selected_options or ((answer.selected_option,) if answer.selected_option else ())
    if not chosen:
        msg = "selected needs selected_option."
        raise NotAllowed(msg, code="content_required")
    listed = ", ".join(task.options or ())
    for option in chosen:
        if task.options is not None and option not in task.options:
            msg = f"{option[:200]!r} is none of the options: {listed}."
            raise NotAllowed(msg, code="unknown_option", options=list(task.options))
    if len(chosen) > 1 and not task.multiple:
        msg = f"{task.id} takes one option."
        raise NotAllowed(msg, code="unknown_option", options=list(task.options or ()))
    if len(set(chosen)) < len(chosen):
        msg = "An option is chosen twice."
        raise NotAllowed(msg, code="unknown_option", options=list(task.options or ()))
    return tuple(chosen)


def said_digest(decision: Decision) -> Digest:
    """Name what a decision says, whoever says it and why: equal for votes that agree."""
    return answer_digest(decision.kind.value, decision.content, decision.selected_options, decision.values)


def check_storable(answer: Answer) -> None:
    """Refuse values that have no canonical form and so could never be vouched for.

    Raises:
        NotAllowed: ``human_input_invalid``.
    """
    try:
        canonical_json({"content": answer.content, "values": dict(answer.values or {})})
    except Invalid as error:
        msg = f"The answer cannot be kept: {error.message}"
        raise NotAllowed(msg, code="human_input_invalid", fields=[]) from error


def check_unresolved(task: HumanTask) -> None:
    """Refuse whatever comes too late.

    Raises:
        Conflict: ``human_task_decided``, ``human_task_expired`` or ``human_task_cancelled``.
    """
    if task.status in UNRESOLVED:
        return
    codes = {TaskStatus.EXPIRED: "human_task_expired", TaskStatus.CANCELLED: "human_task_cancelled"}
    code = codes.get(task.status, "human_task_decided")
    if task.decision is not None and task.decision.by == POLICY:
        code = "human_task_expired"
    if task.status is TaskStatus.EXPIRED:
        raise _late(task, code, f"expired at {task.deadline_at}")
    if task.decision is not None:
        raise _late(task, code, f"was {task.decision.kind} by {task.decision.actor} at {task.decision.at}")
    raise _late(task, code, f"is {task.status}")


def _late(task: HumanTask, code: str, what: str) -> KneoError:
    refused = Conflict(f"{task.id} {what}.", code=code, continuation_id=task.id)
    if code == "human_task_expired":
        # In seconds since 1970, as tasks are shown.
        at = parse_time(task.deadline_at).timestamp() if task.deadline_at is not None else None
        refused.details["expires_at"] = at
    return refused
