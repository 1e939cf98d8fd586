"""Names that one person gives for another: only people who are declared are assigned, delegated to, or sent a link."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from builders import build_run
from gates.asking import PEOPLE, answer, ask, declare
from sqlalchemy import text

from kneo.errors import KneoError
from kneo.records.run import Run
from kneo.records.task import DecisionKind, HumanTask, TaskStatus
from kneo.store import project_metadata, runs, tasks
from kneo.store.engine import Store
from kneo.tasks import links
from kneo.tasks.decisions import DecisionRequest
from kneo.tasks.inbox import assign, delegate, find

EXCLUDED = {"candidates": {"exclude": ["requester"]}}


def make_link(store: Store, task: HumanTask, person: str, actor: str) -> str:
    with store.write() as tx:
        _, token = links.make_link(tx, task.id, person, actor=actor)
    return token


def use_link(store: Store, task: HumanTask, token: str) -> HumanTask:
    return links.answer(store, token, DecisionRequest(request_id=task.request_id, decision=DecisionKind.APPROVED))


HAND_OVER: dict[str, Callable[[Store, HumanTask, str, str], object]] = {
    "assign": lambda store, task, to, actor: assign(store, task.id, to, actor=actor),
    "delegate": lambda store, task, to, actor: delegate(store, task.id, to, actor=actor),
    "link": make_link,
}


def code_of(work: Callable[[], object]) -> str:
    with pytest.raises(KneoError) as caught:
        work()
    return caught.value.code


def state(store: Store, task: HumanTask) -> tuple[object, ...]:
    with store.read() as tx:
        events = [event.type for event in tasks.events_of(tx, task.id)]
        made = tx.connection.execute(text("SELECT count(*) FROM task_links")).scalar()
        return find(tx, task.id), events, made


def elsewhere(store: Store) -> Run:
    """A run of an environment that nothing declares."""
    run = build_run(environment="laptop", requester="rex")
    with store.write() as tx:
        runs.insert_run(tx, run)
    return run


@pytest.mark.parametrize("way", HAND_OVER)
def test_only_declared_people_are_handed_a_task(store: Store, way: str) -> None:
    declare(store)
    with store.write() as tx:
        project_metadata.put_key_names(tx, ["ora"])
    task = ask(store)
    before = state(store, task)
    for invented in ("mallory@evil.test", "mallory", "an", "requester", "editors"):
        assert code_of(lambda name=invented: HAND_OVER[way](store, task, name, "ben")) == "unknown_person"
    assert state(store, task) == before
    HAND_OVER[way](store, task, "cy", "ben")
    HAND_OVER[way](store, task, "ora", "ben")


@pytest.mark.parametrize("way", HAND_OVER)
@pytest.mark.parametrize(
    "name", ["", " ", "ann\r\nBcc: all@corp.test", "ann\u202e", "\u0430nn", "ann\x00", "a" * 201, "\u2028"]
)
def test_a_name_that_hides_something_is_refused(store: Store, way: str, name: str) -> None:
    """Also where nothing declares people, so that it is never kept."""
    for task in (ask(store, elsewhere(store)),):
        before = state(store, task)
        assert code_of(lambda task=task: HAND_OVER[way](store, task, name, "ben")) == "invalid_name"
        assert state(store, task) == before


@pytest.mark.parametrize("spelled", ["ANN", " ann ", "\uff21\uff2e\uff2e"])
def test_each_spelling_of_a_name_is_kept_as_it_is_declared(store: Store, spelled: str) -> None:
    declare(store)
    task = ask(store)
    assert assign(store, task.id, spelled, actor="ben").assignee == "ann"
    excluded = ask(store, candidates={"exclude": ["ann"]})
    for way in HAND_OVER.values():
        assert code_of(lambda way=way: way(store, excluded, spelled, "ben")) == "separation_of_duties"
    assert code_of(lambda: answer(store, excluded, spelled)) == "separation_of_duties"


@pytest.mark.parametrize("way", HAND_OVER)
def test_who_is_excluded_does_not_choose_who_answers(store: Store, way: str) -> None:
    declare(store, {**PEOPLE, "rex": {}})
    task = ask(store, **EXCLUDED)
    before = state(store, task)
    for name in ("rex", "REX ", "r\u00adex"):
        assert code_of(lambda name=name: HAND_OVER[way](store, task, "ann", name)) == "separation_of_duties"
    assert state(store, task) == before
    HAND_OVER[way](store, task, "ann", "ben")


@pytest.mark.parametrize("way", HAND_OVER)
def test_without_declaration_and_keys_a_task_is_handed_to_anybody(store: Store, way: str) -> None:
    task = ask(store, elsewhere(store))
    HAND_OVER[way](store, task, "reviewer@example.com", "ben")


def test_with_keys_and_without_declaration_the_names_of_keys_are_known(store: Store) -> None:
    task = ask(store, elsewhere(store))
    with store.write() as tx:
        project_metadata.put_key_names(tx, ["ann", "ben"])
    assert assign(store, task.id, "Ann", actor="ben").assignee == "ann"
    assert code_of(lambda: assign(store, task.id, "reviewer@example.com", actor="ben")) == "unknown_person"
    with store.write() as tx:
        project_metadata.put_key_names(tx, [])
    assert assign(store, task.id, "reviewer@example.com", actor="ben").assignee == "reviewer@example.com"


def test_a_link_of_a_person_who_was_removed_answers_nothing(store: Store) -> None:
    declare(store)
    task = ask(store)
    token = make_link(store, task, "ann", "ben")
    declare(store, {name: person for name, person in PEOPLE.items() if name != "ann"})
    assert code_of(lambda: use_link(store, task, token)) == "unknown_person"
    with store.read() as tx:
        assert code_of(lambda: links.look(tx, token)) == "unknown_person"
    declare(store)
    assert use_link(store, task, token).status is TaskStatus.DECIDED


def test_a_link_of_a_person_whose_key_was_removed_answers_nothing(store: Store) -> None:
    with store.write() as tx:
        project_metadata.put_key_names(tx, ["ann", "ben"])
    task = ask(store, elsewhere(store))
    token = make_link(store, task, "ann", "ben")
    with store.write() as tx:
        project_metadata.put_key_names(tx, ["ben"])
    assert code_of(lambda: use_link(store, task, token)) == "unknown_person"


def test_a_link_of_a_person_who_left_the_group_answers_nothing(store: Store) -> None:
    declare(store)
    task = ask(store, candidates={"groups": ["editors"]})
    token = make_link(store, task, "ann", "ben")
    declare(store, {**PEOPLE, "ann": {}})
    assert code_of(lambda: use_link(store, task, token)) == "not_a_candidate"


def test_a_link_counts_no_more_once_its_maker_is_excluded(store: Store) -> None:
    declare(store)
    with store.write() as tx:
        runs.insert_run(tx, run := build_run(environment="prod", requester="rex"))
    task = ask(store, run, candidates={"exclude": ["previous_reviewers"]})
    token = make_link(store, task, "ann", "ben")
    answer(store, ask(store, run, key="other.step"), "ben")
    assert code_of(lambda: use_link(store, task, token)) == "separation_of_duties"


def test_invented_names_fill_no_quorum(store: Store) -> None:
    declare(store)
    task = ask(store, quorum={"approvals": 2})
    for name in ("one@evil.test", "two@evil.test"):
        assert code_of(lambda name=name: make_link(store, task, name, "ben")) == "unknown_person"
    for name in ("ann", "ANN", "\uff21nn"):
        now = use_link(store, task, make_link(store, task, name, "ben"))
        assert (now.status, len(now.votes)) == (TaskStatus.OPEN, 1)
    assert use_link(store, task, make_link(store, task, "cy", "ben")).status is TaskStatus.DECIDED


@pytest.mark.parametrize("people", [{"ann": {}}, {}], ids=["left the group", "removed"])
def test_the_vote_of_a_person_who_may_answer_no_more_does_not_count(store: Store, people: dict[str, object]) -> None:
    declare(store)
    task = ask(store, quorum={"approvals": 2}, candidates={"groups": ["editors", "legal"]})
    answer(store, task, "ann")
    others = {name: person for name, person in PEOPLE.items() if name != "ann"}
    declare(store, {**others, **people})
    waiting = answer(store, task, "ben")
    assert (waiting.status, [vote.actor for vote in waiting.votes]) == (TaskStatus.OPEN, ["ben"])
    decided = answer(store, task, "cy")
    assert decided.decision.voters == ("ben", "cy")
