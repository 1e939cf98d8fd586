"""Telling people of a question, through the channels it names, in the transaction of what happened to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kneo import registry
from kneo.notify.outbox import TaskNotice, post_task
from kneo.records.task import HumanTask
from kneo.store import releases
from kneo.store.engine import Tx
from kneo.tasks.people import known_name, may_still_answer

MAX_PEOPLE = 50
"""People of one question that are told by name; a larger group has a channel of its own."""


def tell(tx: Tx, task: HumanTask, what: str, number: int = 0, more: Iterable[str] = ()) -> None:
    """Tell of a question.

    Args:
        tx: The transaction of what happened.
        task: The question, as it is now.
        what: ``requested``, ``reminded`` or ``escalated``.
        number: Which reminder or escalation this is.
        more: Channels beside those that the question names.
    """
    channels = [*task.plan.notify, *more]
    if channels:
        post_task(tx, channels, TaskNotice(task=task, what=what, number=number, people=tuple(_asked(tx, task))))


def _asked(tx: Tx, task: HumanTask) -> list[str]:
    """Return who is asked, known and may answer: the assignee alone where there is one, else all whom the task names."""
    found: dict[str, None] = {}
    for name in [task.assignee] if task.assignee else _named(tx, task):
        if len(found) == MAX_PEOPLE:
            break
        known = known_name(tx, task.environment, name)
        if known is not None and may_still_answer(tx, task, known):
            found[known] = None
    return list(found)


def _named(tx: Tx, task: HumanTask) -> Iterator[str]:
    yield from task.candidates.users
    if task.candidates.is_open or task.environment is None or releases.environment(tx, task.environment) is None:
        return
    groups, roles = set(task.candidates.groups), set(task.candidates.roles)
    for name, person in registry.declared(tx, task.environment).spec.people.items():
        if groups.intersection(person.groups) or roles.intersection(person.roles):
            yield name
