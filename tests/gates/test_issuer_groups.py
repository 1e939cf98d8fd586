"""Groups that the issuer of tokens states, and the tasks that ask them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from datetime import timedelta

import pytest
from builders import build_run
from gates.asking import answer, ask, declare
from installation_key import find_key
from sqlalchemy import text

from kneo.clock import ManualClock, isoformat
from kneo.errors import KneoError
from kneo.records.sign_in import KNOWN_FOR, OidcPerson
from kneo.records.task import TaskStatus
from kneo.store import oidc_people, project_metadata, receipts, runs, tasks
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.task_filter import TaskFilter
from kneo.tasks.inbox import assign
from kneo.tasks.people import identities_of, known_name
from kneo.trust.dsse import parse_envelope
from kneo.trust.keys import PrivateKey

ISSUER = "https://login.example.org"
EDITORS = {"candidates": {"groups": ["editors"]}}


def record(store: Store, name: str, groups: Iterable[str], *, seconds: int = 0, issuer: str = ISSUER) -> bool:
    with store.write() as tx:
        at = isoformat(tx.now + timedelta(seconds=seconds))
        person = OidcPerson(name=name, issuer=issuer, subject=f"id-{name}", groups=frozenset(groups), issued_at=at)
        return oidc_people.put(tx, person)


def refusal(store: Store, task: object, name: str) -> str:
    with pytest.raises(KneoError) as caught:
        answer(store, task, name)  # type: ignore[arg-type]
    return caught.value.code


def test_a_group_of_the_issuer_answers_where_the_file_does_not_name_the_person(store: Store) -> None:
    declare(store)
    record(store, "eve", ["editors"])
    record(store, "zed", ["painters"])
    task = ask(store, **EDITORS)
    assert refusal(store, task, "zed") == "not_a_candidate"
    assert answer(store, task, "EVE").status is TaskStatus.DECIDED


def test_the_file_wins_over_the_issuer(store: Store) -> None:
    """``dee`` has no groups in the file, whatever the issuer says; ``ann`` keeps hers."""
    declare(store)
    record(store, "dee", ["editors"])
    record(store, "ann", [])
    task = ask(store, **EDITORS)
    assert refusal(store, task, "dee") == "not_a_candidate"
    assert answer(store, task, "ann").status is TaskStatus.DECIDED


def test_a_group_of_the_issuer_is_no_role_of_an_environment(store: Store) -> None:
    declare(store)
    record(store, "eve", ["reviewer", "ops", "legal"])
    assert refusal(store, ask(store, candidates={"roles": ["reviewer"]}), "eve") == "not_a_candidate"


def test_votes_of_issued_groups_make_a_quorum(store: Store) -> None:
    """The first vote counts when the second one comes, unless its author has left the group."""
    declare(store)
    for name in ("eve", "fay", "gus"):
        record(store, name, ["editors"])
    human = {**EDITORS, "quorum": {"approvals": 2}}
    task = ask(store, **human)
    assert answer(store, task, "eve").status is TaskStatus.OPEN
    assert answer(store, task, "fay").status is TaskStatus.DECIDED
    other = ask(store, key="r.step", **human)
    answer(store, other, "eve")
    record(store, "eve", ["painters"], seconds=1)
    assert answer(store, other, "fay").status is TaskStatus.OPEN
    assert answer(store, other, "gus").status is TaskStatus.DECIDED


def test_a_receipt_names_the_group_that_the_task_asked(migrated_url: str, clock: ManualClock) -> None:
    with contextlib.closing(open_store(migrated_url, clock, PrivateKey.generate)) as store:
        declare(store)
        record(store, "eve", ["editors", "football"])
        task = ask(store, **EDITORS)
        answer(store, task, "eve")
        with store.read() as tx:
            (receipt,) = receipts.of_run(tx, task.run_id)
    assert b'"groups":["editors"]' in parse_envelope(receipt.envelope).payload


def waiting_for(store: Store, name: str) -> set[str]:
    with store.read() as tx:
        who = TaskFilter(who=identities_of(tx, name))
        return {task.id for task in tasks.list_tasks(tx, who, limit=50)}


def test_the_inbox_lists_what_asks_issued_groups_in_every_environment(store: Store) -> None:
    declare(store)
    record(store, "eve", ["editors"])
    record(store, "zed", ["painters"])
    declared = ask(store, **EDITORS)
    found = {declared.id}
    for environment in ("laptop", None):
        run = build_run(environment=environment, requester="rex")
        with store.write() as tx:
            runs.insert_run(tx, run)
        found.add(ask(store, run, **EDITORS).id)
    assert waiting_for(store, "eve") == found
    assert waiting_for(store, "zed") == set()


def test_people_of_the_issuer_are_known_and_others_are_not(store: Store) -> None:
    with store.write() as tx:
        project_metadata.put_key_names(tx, [], ISSUER)
    run = build_run(environment="laptop", requester="rex")
    with store.write() as tx:
        runs.insert_run(tx, run)
    task = ask(store, run)
    with pytest.raises(KneoError) as caught:
        assign(store, task.id, "eve", actor="ben")
    assert caught.value.code == "unknown_person"
    record(store, "Eve", ["editors"])
    assert assign(store, task.id, "eve", actor="ben").assignee == "Eve"


def test_a_person_without_a_token_for_a_month_is_not_known(store: Store, clock: ManualClock) -> None:
    declare(store)
    record(store, "eve", ["editors"])
    task = ask(store, **EDITORS)
    clock.advance(KNOWN_FOR)
    assert refusal(store, task, "eve") == "not_a_candidate"
    with store.read() as tx:
        assert known_name(tx, "prod", "eve") is None
    record(store, "fay", [])
    with store.read() as tx:
        assert oidc_people.names_in(tx, ["editors"], 10) == []
    record(store, "eve", ["editors"])
    assert answer(store, task, "eve").status is TaskStatus.DECIDED


def test_an_older_token_changes_nothing(store: Store) -> None:
    assert record(store, "eve", ["editors"], seconds=10)
    assert not record(store, "EVE", ["editors", "board"], seconds=9)
    with store.read() as tx:
        person = oidc_people.find(tx, "eve")
    assert person is not None
    assert (person.name, person.groups) == ("eve", {"editors"})
    with store.write() as tx:
        assert not oidc_people.remove(tx, "eve", isoformat(tx.now))
        assert oidc_people.remove(tx, "eve", isoformat(tx.now + timedelta(seconds=10)))
        assert oidc_people.names_in(tx, ["editors"], 10) == []


def remove(store: Store, name: str, *, seconds: int) -> bool:
    with store.write() as tx:
        return oidc_people.remove(tx, name, isoformat(tx.now + timedelta(seconds=seconds)))


def find_groups(store: Store, name: str) -> set[str]:
    with store.read() as tx:
        person = oidc_people.find(tx, name)
        listed = {group for group in ("editors", "board") if name in oidc_people.names_in(tx, [group], 100)}
    assert listed == (person.groups if person is not None else set())
    return listed


def test_a_token_that_is_older_than_a_removal_brings_nobody_back(store: Store, clock: ManualClock) -> None:
    declare(store)
    record(store, "eve", ["editors"])
    task = ask(store, **EDITORS)
    assert remove(store, "EVE", seconds=5)
    for seconds in (0, 4, 5):
        assert not record(store, "eve", ["editors", "board"], seconds=seconds), "the token is not newer"
        assert find_groups(store, "eve") == set()
    assert refusal(store, task, "eve") == "not_a_candidate"
    assert not remove(store, "eve", seconds=9), "there is no group left to take"
    assert not record(store, "eve", ["editors"], seconds=8), "the second token without a role counts too"
    assert record(store, "eve", ["board"], seconds=10)
    assert find_groups(store, "eve") == {"board"}
    assert remove(store, "eve", seconds=11)
    clock.advance(KNOWN_FOR)
    record(store, "fay", ["editors"])
    assert record(store, "eve", ["editors"]), "a removal is known as long as a person"


def test_a_removal_and_a_newer_token_at_the_same_time(store: Store) -> None:
    """Whichever comes first, the newer token counts, with its groups."""
    for turn in range(20):
        name = f"eve{turn}"
        record(store, name, ["editors"])
        together = threading.Barrier(2)

        def work(act: Callable[..., bool], *args: object, seconds: int, together: threading.Barrier = together) -> None:
            together.wait(120)
            act(store, *args, seconds=seconds)

        threads = [
            threading.Thread(target=work, args=(remove, name), kwargs={"seconds": 1}),
            threading.Thread(target=work, args=(record, name, ["editors"]), kwargs={"seconds": 2}),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert find_groups(store, name) == {"editors"}


def test_only_changes_are_reported(store: Store) -> None:
    assert record(store, "eve", ["editors"])
    assert not record(store, "eve", ["editors"], seconds=5)
    assert record(store, "eve", ["editors", "board"], seconds=6)
    assert record(store, "eve", [], seconds=7)


def test_people_of_another_issuer_are_forgotten(store: Store) -> None:
    record(store, "eve", ["editors"])
    record(store, "mal", ["editors"], issuer="https://other.example")
    with store.write() as tx:
        oidc_people.keep_issuer(tx, ISSUER)
        assert oidc_people.names_in(tx, ["editors"], 10) == ["eve"]
        oidc_people.keep_issuer(tx, "")
        assert oidc_people.names_in(tx, ["editors"], 10) == []


def test_a_row_that_is_copied_to_another_person_gives_neither_groups_nor_a_name(
    migrated_url: str, clock: ManualClock
) -> None:
    """A person who can write to the database copies the row of an editor, with its groups and its code."""
    with contextlib.closing(open_store(migrated_url, clock, find_key)) as store:
        declare(store)
        record(store, "eve", ["painters"])
        record(store, "fay", ["editors"])
        task = ask(store, **EDITORS)
        with store.write() as tx:
            copied = (
                "SELECT 'eve', name, issuer, subject, issued_at, seen_at, mac FROM oidc_people WHERE person_key = 'fay'"
            )
            for statement in (
                "DELETE FROM oidc_people WHERE person_key = 'eve'",
                "DELETE FROM oidc_groups WHERE person_key = 'eve'",
                f"INSERT INTO oidc_people {copied}",
                "INSERT INTO oidc_groups VALUES ('eve', 'editors')",
            ):
                assert tx.connection.execute(text(statement)).rowcount
        assert refusal(store, task, "eve") == "not_a_candidate"
        with store.read() as tx:
            assert known_name(tx, "prod", "eve") is None
        assert answer(store, task, "fay").status is TaskStatus.DECIDED
