"""Decisions as people submit them, the check that one fits its task, and the votes that decide it.

Pure; a refused decision is not kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kneo.clock import parse_time
from kneo.digest import Digest, canonical_json
from kneo.errors import Conflict, Invalid, KneoError
from kneo.names import person_key
from kneo.records.task import UNRESOLVED, Decision, DecisionKind, HumanTask, Quorum, TaskStatus, Vote
from kneo.spec.documents import ReadLimits, Unreadable
from kneo.spec.reading.reader import build_json
from kneo.tasks.forms import filled, problems
from kneo.tasks.schedule import TIMEOUT_POLICY
from kneo.trust.answer import answer_digest


@dataclass(frozen=True, kw_only=True)
class DecisionRequest:
    """A decision as a person submits it. Without ``request_id`` it is for the present question of the task."""

    request_id: str | None = None
    decision: DecisionKind
    content: object = None
    """The text, or for ``provided`` any JSON value."""
    selected_option: str | None = None
    selected_options: tuple[str, ...] | None = None
    values: Mapping[str, object] | None = None
    """The values of a form, by field."""
    arguments: Mapping[str, object] | None = None
    """The edited arguments of a tool call, instead of their JSON text in ``content``."""
    feedback: str | None = None
    comment: str | None = None
    expect_digest: str | None = None
    statement: Mapping[str, object] | None = None
    """A DSSE envelope of the decision, signed with a key of the person."""


class DecisionNotAllowed(Invalid):
    """The task does not allow this decision."""

    http_status = 422
    default_code = "decision_not_allowed"


def check_decision(task: HumanTask, answer: DecisionRequest, *, actor: str, at: str) -> Decision:
    """Return the decision that a request makes on a task.

    Args:
        task: The task.
        answer: The decision that was submitted.
        actor: The person who decides.
        at: The time.

    Raises:
        Conflict: ``human_task_decided``, ``human_task_expired``, ``human_task_cancelled``, ``request_mismatch`` or
            ``subject_changed``.
        DecisionNotAllowed: ``decision_not_allowed``, ``content_required``, ``unknown_option`` or ``human_input_invalid``.
    """
    check_unresolved(task)
    if answer.request_id not in {None, task.request_id}:
        msg = f"The request {str(answer.request_id)[:80]} is not what {task.id} asks now."
        raise Conflict(msg, code="request_mismatch", hint="Read the task again and answer what it shows.")
    if answer.expect_digest is not None and answer.expect_digest != task.subject_digest:
        msg = f"What {task.id} asks about is not what you saw."
        raise Conflict(msg, code="subject_changed", hint="Read the task again.", subject_digest=task.subject_digest)
    if answer.decision not in task.decisions:
        allowed = ", ".join(task.decisions)
        msg = f"{task.id} cannot be {answer.decision}; it takes: {allowed}."
        raise DecisionNotAllowed(msg, allowed=list(task.decisions))
    answer = _with_arguments(task, answer)
    values = _values(task, answer)
    options = _options(task, answer)
    content = _content(answer, values)
    if task.position == CALL:
        _check_arguments(task, answer.decision, content, values)
    return Decision(
        kind=answer.decision,
        content=content,
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


ANSWER_LIMITS = ReadLimits(max_integer=2**64 - 1)

CALL = "tool"
"""The position of a question before a tool call; its task has the tool, the arguments and their schema among its facts."""


def _with_arguments(task: HumanTask, answer: DecisionRequest) -> DecisionRequest:
    """Return a request with its edited arguments as content."""
    if answer.arguments is None:
        return answer
    if task.position != CALL or answer.decision is not DecisionKind.EDITED or answer.content is not None:
        msg = f"arguments are for {task.id} only where a tool call is edited, and instead of content."
        raise _unfit(msg, [{"field": "arguments", "rule": "additionalProperties", "message": "is not expected"}])
    return replace(answer, arguments=None, content=json.dumps(answer.arguments, ensure_ascii=False, sort_keys=True))


def _check_arguments(
    task: HumanTask, kind: DecisionKind, content: str | None, values: Mapping[str, object] | None
) -> None:
    """Check the arguments with which a call would be made; those of an unchanged call were checked before."""
    facts = task.metadata.get("facts")
    facts = facts if isinstance(facts, Mapping) else {}
    given = facts.get("arguments")
    match kind:
        case DecisionKind.EDITED:
            arguments = _object(task, content)
        case DecisionKind.APPROVED if values:
            arguments = {**(given if isinstance(given, Mapping) else {}), **values}
        case _:
            return
    schema = facts.get("parameters")
    found = problems(schema, arguments) if isinstance(schema, Mapping) else []
    if found:
        named = "; ".join(f"{item['field'] or 'the arguments'} {item['message']}" for item in found[:5])
        msg = f"The edited arguments of {str(facts.get('tool'))[:200]} do not fit its parameters: {named}."
        raise _unfit(msg, found)


def _object(task: HumanTask, content: str | None) -> Mapping[str, object]:
    try:
        arguments = _read_json(content or "")
    except Unreadable:
        arguments = None
    if not isinstance(arguments, dict):
        msg = f"The edited arguments of {task.id} are not a JSON object."
        raise _unfit(msg, [{"field": "content", "rule": "type", "message": "must be a JSON object"}])
    return arguments


def _read_json(text: str) -> object:
    """Read JSON that can be stored: without NaN and infinite numbers, and of bounded depth. Ids of 64 bits are kept exactly.

    Raises:
        Unreadable: the text is something else.
    """
    return build_json(text, file="the answer", limits=ANSWER_LIMITS)


def _values(task: HumanTask, answer: DecisionRequest) -> Mapping[str, object] | None:
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
    errors = problems(task.answer_schema, value)
    if errors:
        named = "; ".join(f"{item['field'] or 'the answer'} {item['message']}" for item in errors[:5])
        msg = f"What was filled in for {task.id} does not fit: {named}."
        raise _unfit(msg, errors)


def _unfit(message: str, fields: list[dict[str, object]]) -> DecisionNotAllowed:
    return DecisionNotAllowed(message, code="human_input_invalid", fields=fields)


def _parsed(content: object, schema: Mapping[str, object]) -> object:
    """Parse a text as JSON where the schema asks for another type than text."""
    if not isinstance(content, str) or schema.get("type") in {"string", None}:
        return content
    try:
        return _read_json(content)
    except Unreadable:
        return content


def _data(task: HumanTask, answer: DecisionRequest) -> object:
    """Return the provided JSON value; ``None`` for a text."""
    schema = task.answer_schema
    value = _parsed(answer.content, schema) if schema is not None else answer.content
    return None if isinstance(value, str) else value


def _content(answer: DecisionRequest, values: Mapping[str, object] | None) -> str | None:
    content = answer.content
    if content is not None and not isinstance(content, str):
        if answer.decision is not DecisionKind.PROVIDED:
            msg = f"content of {answer.decision} is a text."
            raise DecisionNotAllowed(msg, code="human_input_invalid", fields=[{"field": "content", "rule": "type"}])
        content = json.dumps(content, ensure_ascii=False)
    if answer.decision in {DecisionKind.EDITED, DecisionKind.PROVIDED} and not (content or "").strip():
        if answer.decision is DecisionKind.PROVIDED and values is not None:
            return json.dumps(values, ensure_ascii=False, sort_keys=True)
        msg = f"{answer.decision} needs content; an empty one would silently approve what was shown."
        raise DecisionNotAllowed(msg, code="content_required", hint="Approve it, or send the text.")
    return content


def _options(task: HumanTask, answer: DecisionRequest) -> tuple[str, ...]:
    if answer.decision is not DecisionKind.SELECTED:
        return ()
    chosen = answer.selected_options or ((answer.selected_option,) if answer.selected_option else ())
    if not chosen:
        msg = "selected needs selected_option."
        raise DecisionNotAllowed(msg, code="content_required")
    listed = ", ".join(task.options or ())
    for option in chosen:
        if task.options is not None and option not in task.options:
            msg = f"{option[:200]!r} is none of the options: {listed}."
            raise DecisionNotAllowed(msg, code="unknown_option", options=list(task.options))
    if len(chosen) > 1 and not task.multiple:
        msg = f"{task.id} takes one option."
        raise DecisionNotAllowed(msg, code="unknown_option", options=list(task.options or ()))
    if len(set(chosen)) < len(chosen):
        msg = "An option is chosen twice."
        raise DecisionNotAllowed(msg, code="unknown_option", options=list(task.options or ()))
    return tuple(chosen)


def decision_digest(decision: Decision) -> Digest:
    """Return the digest of the content of a decision, without its author and reason: equal for votes that agree."""
    return answer_digest(decision.kind.value, decision.content, decision.selected_options, decision.values)


def check_storable(answer: DecisionRequest) -> None:
    """Refuse values that have no canonical form and so cannot be signed.

    Raises:
        DecisionNotAllowed: ``human_input_invalid``.
    """
    try:
        parts = {"values": dict(answer.values or {}), "arguments": dict(answer.arguments or {})}
        canonical_json({"content": answer.content, **parts})
    except Invalid as error:
        msg = f"The answer cannot be kept: {error.message}"
        raise DecisionNotAllowed(msg, code="human_input_invalid", fields=[]) from error


def check_unresolved(task: HumanTask) -> None:
    """Check that a task is open.

    Raises:
        Conflict: ``human_task_decided``, ``human_task_expired`` or ``human_task_cancelled``.
    """
    if task.status in UNRESOLVED:
        return
    codes = {TaskStatus.EXPIRED: "human_task_expired", TaskStatus.CANCELLED: "human_task_cancelled"}
    code = codes.get(task.status, "human_task_decided")
    if task.decision is not None and task.decision.by == TIMEOUT_POLICY:
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


def find_pending(run_id: str, waiting: Sequence[HumanTask], key: str | None) -> HumanTask:
    """Return the open task of a run with a key.

    Args:
        run_id: The run, for messages.
        waiting: Its unresolved tasks.
        key: A question's key, the id of its task or of its request; ``None`` where there is only one.

    Raises:
        Conflict: ``run_state_conflict``: no task is open; ``several_pending``: a key is required.
    """
    matches = [task for task in waiting if key in {None, task.key, task.id, task.request_id}]
    keys = [task.key for task in waiting]
    if not matches:
        what = f"asks nothing called {key[:200]!r}" if key is not None else "asks nothing"
        msg = f"The run {run_id} {what}."
        raise Conflict(msg, code="run_state_conflict", hint=f"It asks: {', '.join(keys) or 'nothing'}.", pending=keys)
    if len(matches) > 1:
        msg = f"The run {run_id} asks {len(matches)} things: {', '.join(keys)}."
        raise Conflict(msg, code="several_pending", hint="Say which one with key.", pending=keys)
    return matches[0]


def check_unnamed(task: HumanTask, resolved: int) -> None:
    """Check that an answer that names no question can be for no other one, as that of a request that was sent twice.

    Args:
        task: The open task that the answer would decide.
        resolved: The number of questions of the run, or of the named step, that were open before.

    Raises:
        Conflict: ``question_not_named``.
    """
    if resolved:
        msg = f"The run {task.run_id} has asked before, so an answer has to name its question; {task.key} is open."
        hint = f"Read the open question, then name it: key {task.key}, its request_id or its digest."
        raise Conflict(msg, code="question_not_named", hint=hint, pending=[task.key])


def decision_from_value(task: HumanTask, value: object) -> DecisionRequest:
    """Return the decision that a value makes on a task.

    A text or any JSON value for a task that asks for content, the values of a form, an option to select, true or false
    for an approval.

    Raises:
        DecisionNotAllowed: ``decision_not_allowed``: the task does not take such a value.
    """
    request = task.request_id
    allowed = frozenset(task.decisions)
    is_form = task.answer_schema is not None and task.answer_schema.get("type") == "object"
    if is_form and isinstance(value, Mapping):
        kind = DecisionKind.PROVIDED if DecisionKind.PROVIDED in allowed else DecisionKind.APPROVED
        return DecisionRequest(request_id=request, decision=kind, values=value)
    if DecisionKind.SELECTED in allowed and task.options:
        if isinstance(value, str):
            return DecisionRequest(request_id=request, decision=DecisionKind.SELECTED, selected_option=value)
        if isinstance(value, list | tuple) and value and all(isinstance(one, str) for one in value):
            return DecisionRequest(request_id=request, decision=DecisionKind.SELECTED, selected_options=tuple(value))
    if isinstance(value, bool) and (DecisionKind.PROVIDED not in allowed or task.kind in {"approval", "review"}):
        return DecisionRequest(request_id=request, decision=DecisionKind.APPROVED if value else DecisionKind.REJECTED)
    if DecisionKind.PROVIDED in allowed:
        return DecisionRequest(request_id=request, decision=DecisionKind.PROVIDED, content=value)
    if DecisionKind.EDITED in allowed and isinstance(value, Mapping if task.position == CALL else str):
        arguments = value if isinstance(value, Mapping) else None
        content = None if arguments is not None else value
        return DecisionRequest(request_id=request, decision=DecisionKind.EDITED, content=content, arguments=arguments)
    msg = f"{task.id} takes no such value; it is answered with {', '.join(task.decisions)}."
    raise DecisionNotAllowed(msg, allowed=list(task.decisions))


def rejection(task: HumanTask, why: str | None = None) -> DecisionRequest:
    """Return a rejection."""
    return DecisionRequest(request_id=task.request_id, decision=DecisionKind.REJECTED, feedback=why)


Roles = Mapping[str, frozenset[str]]
"""The roles of each voter, by person key."""


def add_vote(votes: Sequence[Vote], vote: Vote) -> tuple[Vote, ...]:
    """Add a vote; it replaces an earlier vote of the same person."""
    others = [one for one in votes if person_key(one.actor) != person_key(vote.actor)]
    return (*others, vote)


def decisive_votes(quorum: Quorum, votes: Sequence[Vote], roles: Roles) -> tuple[Vote, ...] | None:
    """Return the deciding votes, the last of which is the decision; ``None`` without a quorum.

    A person counts once among those who agree and for each role of theirs, so that rules which share people can always
    be met. Votes agree when their content is equal: an approval differs from an edit, and two different edits differ.
    """
    objections = tuple(vote for vote in votes if vote.decision is DecisionKind.REJECTED)
    if len(objections) >= _objections_needed(quorum):
        return objections
    for answer in dict.fromkeys(vote.answer for vote in votes):
        agreeing = tuple(vote for vote in votes if vote.answer == answer and vote.decision is not DecisionKind.REJECTED)
        if len(agreeing) >= quorum.approvals and not missing_roles(quorum, agreeing, roles):
            return agreeing
    return None


def missing_roles(quorum: Quorum, agreeing: Sequence[Vote], roles: Roles) -> dict[str, int]:
    """Return the missing votes of each role."""
    missing = {
        role: needed - sum(role in roles.get(person_key(vote.actor), frozenset()) for vote in agreeing)
        for role, needed in quorum.each
    }
    return {role: count for role, count in missing.items() if count > 0}


def next_role(quorum: Quorum, votes: Sequence[Vote], roles: Roles) -> str | None:
    """Return the next role where roles answer in order; ``None`` where any may answer."""
    if quorum.order != "sequence":
        return None
    agreeing = [vote for vote in votes if vote.decision is not DecisionKind.REJECTED]
    return next(iter(missing_roles(quorum, agreeing, roles)), None)


def _objections_needed(quorum: Quorum) -> int:
    if quorum.reject == "any":
        return 1
    people = max(quorum.approvals, sum(number for _, number in quorum.each))
    return people // 2 + 1
