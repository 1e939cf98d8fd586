"""A paused run in the words of workflow libraries: what it requires of people, and what a caller says about that.

What a caller sends back says something about stored questions and never takes their place: who is asked, what is shown and
which answers count is the task's to say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from kneo.errors import Conflict, Usage
from kneo.records.task import DecisionKind, HumanTask
from kneo.service.wire import Json
from kneo.tasks.decisions import find_pending

Body = Mapping[str, object]


def requirement(task: HumanTask) -> Json:
    """Say what a question requires."""
    asks_first = task.position in {"before", "step"}
    return {
        "continuation_id": task.id,
        "request_id": task.request_id,
        "key": task.key,
        "step_id": task.step_path,
        "step_name": task.step_id,
        "requires_confirmation": asks_first and DecisionKind.APPROVED in task.decisions,
        "requires_user_input": task.answer_schema is not None,
        "requires_output_review": task.position == "after",
        "requires_iteration_review": task.position == "each",
        "requires_route_selection": task.position == "route",
        "requires_executor_resolution": task.position == "wait",
        "requires_error_decision": task.position == "error",
        "message": task.prompt,
        "user_input_schema": task.answer_schema,
        "available_choices": list(task.options) if task.options is not None else None,
        "allow_multiple_selections": task.multiple,
        "retry_count": task.attempt,
        "timeout_at": task.deadline_at,
        "on_timeout": task.on_timeout,
        "subject": task.subject,
        "subject_digest": task.subject_digest,
    }


def answered(run_id: str, waiting: Sequence[HumanTask], said: Sequence[Body]) -> list[tuple[HumanTask, Body]]:
    """Find what a caller's requirements say about the open questions of a run.

    Args:
        run_id: The run, for messages.
        waiting: Its open questions.
        said: The requirements as the caller left them; those that say nothing are passed over, and stay open.

    Returns:
        Each question that is answered, with what ``POST …/resume`` takes.

    Raises:
        Conflict: ``run_state_conflict``: the run asks nothing, or nothing of the kind, or nothing is answered;
            ``several_pending``: one of them fits several questions.
        Usage: one of them says two things at once.
    """
    found = [(_find(run_id, waiting, one), decision) for one in said if (decision := _decision(one)) is not None]
    if not found:
        keys = [task.key for task in waiting]
        msg = f"Nothing is said about what the run {run_id} asks."
        hint = f"It asks: {', '.join(keys) or 'nothing'}. Set confirmed, user_input, edited_output, selected_choices or value."
        raise Conflict(msg, code="run_state_conflict", hint=hint, pending=keys)
    if len({task.id for task, _ in found}) < len(found):
        msg = "Two requirements are about one question."
        raise Usage(msg)
    return [(task, _bound(task, body)) for task, body in found]


def _find(run_id: str, waiting: Sequence[HumanTask], one: Body) -> HumanTask:
    named = one.get("continuation_id") or one.get("key")
    if named is not None:
        return find_pending(run_id, waiting, str(named))
    step = one.get("step_id") or one.get("step_name")
    fitting = [task for task in waiting if step in {None, task.step_path, task.step_id}]
    if not fitting:
        return find_pending(run_id, waiting, str(step))  # which says what it asks instead
    return find_pending(run_id, fitting, None)


def _bound(task: HumanTask, body: Body) -> Body:
    return {"request_id": task.request_id, **body}


def _decision(one: Body) -> Body | None:
    """Turn what was set on a requirement into a decision; None where nothing was."""
    if one.get("confirmed") is False:
        if any(one.get(name) is not None for name in ("edited_output", "selected_choices", "value", "user_input")):
            msg = "A requirement that is rejected gives nothing."
            raise Usage(msg)
        return {"decision": "rejected", "feedback": one.get("rejection_feedback"), **_seen(one)}
    parts = [_SAID[name](value) for name in _SAID if (value := one.get(name)) is not None]
    if len(parts) > 1:
        msg = f"A requirement says one of {', '.join(_SAID)}."
        raise Usage(msg)
    if not parts and one.get("confirmed") is True:
        parts = [{"decision": "approved"}]
    return {**parts[0], **_seen(one)} if parts else None


def _seen(one: Body) -> Body:
    digest = one.get("subject_digest")
    return {"expect_digest": digest} if digest is not None else {}


def _selected(value: object) -> Body:
    names = [str(name) for name in value] if isinstance(value, list | tuple) else [str(value)]
    return {"decision": "selected", "selected_options": names}


_SAID: Mapping[str, Callable[[object], Body]] = {
    "user_input": lambda value: {"decision": "approved", "values": value},
    "edited_output": lambda value: {
        "decision": "edited",
        "content": value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
    },
    "selected_choices": _selected,
    "decision": lambda value: {"decision": "selected", "selected_option": str(value)},
    "value": lambda value: {"decision": "provided", "content": value},
}
"""What may be set on a requirement, and what that decides; ``decision`` is retry, skip or stop after an error."""
