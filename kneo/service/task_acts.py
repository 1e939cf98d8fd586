"""What can be done to a task beside answering it, in the words of requests and commands; and answering many at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kneo.api.task_views import event, human_task
from kneo.digest import Digest
from kneo.errors import InvalidValue, KneoError, Usage
from kneo.records.task import DecisionKind, HumanTask
from kneo.service.wire import Json
from kneo.store import tasks
from kneo.store.engine import Store
from kneo.store.idempotency import AlreadyExecuted
from kneo.tasks import inbox
from kneo.tasks.decisions import DecisionRequest

MAX_BATCH = 100
"""Answers that one request may bring."""

Body = Mapping[str, object]


def read_answer(body: Body, limit: int) -> DecisionRequest:
    """Read an answer from the body of a request.

    Args:
        body: What ``POST …/resume`` takes.
        limit: Characters that anything a person writes may have.

    Raises:
        Invalid: ``input_too_large``.
    """
    for name in ("content", "values", "feedback", "comment"):
        length = len(str(body.get(name) or ""))
        if length > limit:
            msg = f"{name} is {length} characters long; at most {limit} are accepted."
            raise InvalidValue(msg, code="input_too_large", field=name, limit=limit)
    options, values, statement = (body.get(name) for name in ("selected_options", "values", "statement"))
    return DecisionRequest(
        request_id=str(body["request_id"]),
        decision=DecisionKind(str(body["decision"])),
        content=body.get("content"),
        selected_option=_text(body, "selected_option"),
        selected_options=tuple(map(str, options)) if isinstance(options, list | tuple) else None,
        values=values if isinstance(values, Mapping) else None,
        feedback=_text(body, "feedback"),
        comment=_text(body, "comment"),
        expect_digest=_text(body, "expect_digest"),
        statement=statement if isinstance(statement, Mapping) else None,
    )


def act(store: Store, task_id: str, verb: str, body: Body, *, actor: str) -> Json:
    """Claim, release, assign, delegate, snooze or comment on a task; answer with it as it then is.

    Raises:
        KneoError: as ``kneo.tasks.inbox`` says; Usage where something is missing.
    """
    return human_task(_VERBS[verb](store, task_id, body, actor))


def _needed(body: Body, name: str) -> str:
    value = _text(body, name)
    if not value:
        msg = f"{name} is missing."
        raise Usage(msg, field=name)
    return value


def _text(body: Body, name: str) -> str | None:
    value = body.get(name)
    return str(value) if value is not None else None


_VERBS: Mapping[str, Callable[[Store, str, Body, str], HumanTask]] = {
    "claim": lambda store, task, _body, actor: inbox.claim(store, task, actor=actor),
    "unclaim": lambda store, task, _body, actor: inbox.unclaim(store, task, actor=actor),
    "assign": lambda store, task, body, actor: inbox.assign(store, task, _needed(body, "to"), actor=actor),
    "delegate": lambda store, task, body, actor: inbox.delegate(
        store, task, _needed(body, "to"), actor=actor, comment=_text(body, "comment")
    ),
    "snooze": lambda store, task, body, actor: inbox.snooze(store, task, _needed(body, "until"), actor=actor),
    "comments": lambda store, task, body, actor: inbox.comment(store, task, _needed(body, "text"), actor=actor),
}


def history(store: Store, task_id: str) -> Json:
    """Tell everything that happened to a task.

    Raises:
        NotFound: there is no such task.
    """
    with store.read() as tx:
        inbox.find(tx, task_id)
        return {"continuation_id": task_id, "events": [event(item) for item in tasks.events_of(tx, task_id)]}


def decide_all(store: Store, items: Sequence[Body], *, actor: str, limit: int, pin: Digest | None = None) -> Json:
    """Answer many tasks, each for itself: what is refused does not keep the others from being taken.

    Args:
        store: The database.
        items: What ``POST /v1/human-tasks/batch`` takes.
        actor: Who says it.
        limit: Characters that anything a person writes may have.
        pin: See ``registry.trust_root``.

    Raises:
        Invalid: there are too many.
    """
    if len(items) > MAX_BATCH:
        msg = f"{len(items)} answers are too many at once; the limit is {MAX_BATCH}."
        raise InvalidValue(msg, code="too_many_items", limit=MAX_BATCH)
    results = [_one(store, item, actor, limit, pin) for item in items]
    done = sum(result["error"] is None for result in results)
    return {"results": results, "decided": done, "refused": len(results) - done}


def _one(store: Store, item: Body, actor: str, limit: int, pin: Digest | None) -> Json:
    task_id = str(item["continuation_id"])
    try:
        task = inbox.decide(store, task_id, read_answer(item, limit), actor=actor, pin=pin)
    except AlreadyExecuted:
        raise
    except KneoError as error:
        return {"continuation_id": task_id, "run_id": None, "status": None, "error": error.code, "message": str(error)}
    return {
        "continuation_id": task_id,
        "run_id": task.run_id,
        "status": task.status.value,
        "error": None,
        "message": None,
    }
