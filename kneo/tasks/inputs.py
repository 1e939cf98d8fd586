"""A value for whatever a run waits for: which of its questions it answers, and as what. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kneo.errors import Conflict
from kneo.records.task import DecisionKind, HumanTask
from kneo.tasks.answers import Answer, NotAllowed


def pending(run_id: str, waiting: Sequence[HumanTask], key: str | None) -> HumanTask:
    """Find the one question that is meant.

    Args:
        run_id: The run, for messages.
        waiting: Its unresolved tasks.
        key: A question's key, or the id of its task; ``None`` where there is only one.

    Raises:
        Conflict: ``run_state_conflict``: nothing is asked; ``several_pending``: it takes a key.
    """
    found = [task for task in waiting if key in {None, task.key, task.id}]
    keys = [task.key for task in waiting]
    if not found:
        what = f"asks nothing called {key[:200]!r}" if key is not None else "asks nothing"
        msg = f"The run {run_id} {what}."
        raise Conflict(msg, code="run_state_conflict", hint=f"It asks: {', '.join(keys) or 'nothing'}.", pending=keys)
    if len(found) > 1:
        msg = f"The run {run_id} asks {len(found)} things: {', '.join(keys)}."
        raise Conflict(msg, code="several_pending", hint="Say which one with key.", pending=keys)
    return found[0]


def given(task: HumanTask, value: object) -> Answer:
    """Turn a value into the answer that a task takes.

    Text or any JSON where something is to be provided, the values of a form, an option where one is to be chosen,
    true or false where somebody only agrees or does not.

    Raises:
        NotAllowed: ``decision_not_allowed``: such a value is no answer to it.
    """
    request = task.request_id
    allowed = frozenset(task.decisions)
    is_form = task.answer_schema is not None and task.answer_schema.get("type") == "object"
    if is_form and isinstance(value, Mapping):
        kind = DecisionKind.PROVIDED if DecisionKind.PROVIDED in allowed else DecisionKind.APPROVED
        return Answer(request_id=request, decision=kind, values=value)
    if DecisionKind.SELECTED in allowed and task.options:
        if isinstance(value, str):
            return Answer(request_id=request, decision=DecisionKind.SELECTED, selected_option=value)
        if isinstance(value, list | tuple) and value and all(isinstance(one, str) for one in value):
            return Answer(request_id=request, decision=DecisionKind.SELECTED, selected_options=tuple(value))
    if isinstance(value, bool) and (DecisionKind.PROVIDED not in allowed or task.kind in {"approval", "review"}):
        return Answer(request_id=request, decision=DecisionKind.APPROVED if value else DecisionKind.REJECTED)
    if DecisionKind.PROVIDED in allowed:
        return Answer(request_id=request, decision=DecisionKind.PROVIDED, content=value)
    if DecisionKind.EDITED in allowed and isinstance(value, str):
        return Answer(request_id=request, decision=DecisionKind.EDITED, content=value)
    msg = f"{task.id} takes no such value; it is answered with {', '.join(task.decisions)}."
    raise NotAllowed(msg, allowed=list(task.decisions))


def refusal(task: HumanTask, why: str | None = None) -> Answer:
    """Make the answer that gives nothing."""
    return Answer(request_id=task.request_id, decision=DecisionKind.REJECTED, feedback=why)
