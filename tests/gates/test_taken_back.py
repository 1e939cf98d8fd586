"""Links that are taken back, on both databases."""

from __future__ import annotations

import pytest
from gates.asking import ask, declare
from processes import at_once

from kneo.errors import Conflict, KneoError, NotFound
from kneo.records.task import DecisionKind, HumanTask, TaskStatus
from kneo.store import tasks
from kneo.store.engine import Store
from kneo.tasks import links
from kneo.tasks.decisions import DecisionRequest
from kneo.tasks.inbox import find


@pytest.fixture(autouse=True)
def _people(store: Store) -> None:
    declare(store)


def make(store: Store, task: HumanTask) -> tuple[str, str]:
    """Make a link for ann; return its name and its token."""
    with store.write() as tx:
        link, token = links.make_link(tx, task.id, "ann", actor="ben")
    return link.id, token


def revoke(store: Store, task: HumanTask, link: str) -> None:
    with store.write() as tx:
        links.revoke_link(tx, task.id, link, actor="ben")


def use(store: Store, task: HumanTask, token: str) -> HumanTask:
    return links.answer(store, token, DecisionRequest(request_id=task.request_id, decision=DecisionKind.APPROVED))


def test_a_link_that_was_taken_back_opens_nothing_and_others_do(store: Store) -> None:
    task = ask(store)
    (one, first), (_, second) = make(store, task), make(store, task)
    revoke(store, task, one)
    revoke(store, task, one)
    with pytest.raises(Conflict, match="expired"):
        use(store, task, first)
    assert use(store, task, second).status is TaskStatus.DECIDED
    with store.read() as tx:
        told = [event.type for event in tasks.events_of(tx, task.id)]
        assert [link.used_at is not None for link in tasks.list_links(tx, task.id)] == [False, True]
    assert told.count("link_revoked") == 1


def test_only_the_links_of_a_question_are_found_at_it(store: Store) -> None:
    one, other = ask(store), ask(store)
    link, token = make(store, one)
    with pytest.raises(NotFound) as caught:
        revoke(store, other, link)
    assert caught.value.code == "link_not_found"
    assert use(store, one, token).status is TaskStatus.DECIDED


def test_of_using_and_taking_back_at_once_one_wins(store: Store) -> None:
    for _ in range(3):
        task = ask(store)
        link, token = make(store, task)

        def work(number: int, task: HumanTask = task, link: str = link, token: str = token) -> str | None:
            try:
                if number:
                    use(store, task, token)
                else:
                    revoke(store, task, link)
            except KneoError as error:
                return error.code
            return None

        refused = [code for code in at_once(2, work) if code is not None]
        with store.read() as tx:
            answered = find(tx, task.id).status is TaskStatus.DECIDED
        assert refused == (["link_used"] if answered else ["link_expired"])
