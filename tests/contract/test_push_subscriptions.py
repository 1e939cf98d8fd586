"""Subscriptions of browsers on both databases: one for each browser and address, a bounded number for each person."""

from __future__ import annotations

from processes import at_once

from kneo.clock import new_id
from kneo.records.sign_in import MAX_FAILURES, MAX_PER_PERSON, PushSubscription
from kneo.store import push_subscriptions
from kneo.store.engine import Store


def put(store: Store, browser: str, *, person: str = "ann", replaced: str = "", **values: object) -> PushSubscription:
    made = PushSubscription(
        **{
            "id": new_id("psh", store.clock.now()),
            "browser_hash": browser,
            "session_hash": f"session of {browser}",
            "person": person,
            "key_hash": None,
            "endpoint": f"https://push.example/{browser}",
            "p256dh": "B",
            "auth": "A",
            "created_at": "2026-01-31",
            **values,
        }
    )
    with store.write() as tx:
        push_subscriptions.lock(tx)
        push_subscriptions.put(tx, made, replaced)
    return made


def browsers(store: Store, person: str = "ann") -> list[str]:
    with store.read() as tx:
        return [each.browser_hash for each in push_subscriptions.of_person(tx, person)]


def test_a_subscription_is_read_as_it_was_stored(store: Store) -> None:
    made = put(store, "one", key_hash="k")
    with store.read() as tx:
        assert push_subscriptions.find(tx, made.id) == made
        assert push_subscriptions.of_person(tx, "ANN") == (made,)
        assert push_subscriptions.list_people(tx, 10) == ["ann"]
        assert push_subscriptions.exist(tx)


def test_a_browser_and_an_address_have_one_subscription(store: Store) -> None:
    put(store, "one")
    put(store, "two", replaced="one")
    assert browsers(store) == ["two"]
    # Another person in the same browser, whose cookie is gone.
    put(store, "three", person="bob", endpoint="https://push.example/two")
    assert (browsers(store), browsers(store, "bob")) == ([], ["three"])


def test_another_browser_of_many_ends_the_oldest(store: Store) -> None:
    put(store, "b", person="bob")
    for number in range(MAX_PER_PERSON + 2):
        put(store, str(number))
    assert browsers(store) == [str(number) for number in range(2, MAX_PER_PERSON + 2)]
    assert browsers(store, "bob") == ["b"]


def test_one_address_that_is_stored_at_the_same_time_is_stored_once(store: Store) -> None:
    at_once(4, lambda number: put(store, str(number), person=f"p{number}", endpoint="https://push.example/x"))
    with store.read() as tx:
        assert len(push_subscriptions.list_people(tx, 10)) == 1


def test_failures_in_a_row_end_a_subscription(store: Store) -> None:
    made = put(store, "one")

    def fail() -> bool:
        with store.write() as tx:
            return push_subscriptions.record_failure(tx, made.id)

    assert [fail() for _ in range(MAX_FAILURES - 1)] == [False] * (MAX_FAILURES - 1)
    with store.write() as tx:
        push_subscriptions.record_success(tx, made.id)
    assert [fail() for _ in range(MAX_FAILURES)] == [False] * (MAX_FAILURES - 1) + [True]
    assert browsers(store) == []
    assert not fail()


def test_a_subscription_ends_with_its_key_its_session_and_its_browser(store: Store) -> None:
    for name, key in (("one", "k1"), ("two", "k2"), ("three", None), ("four", None)):
        put(store, name, key_hash=key)
    with store.write() as tx:
        assert push_subscriptions.keep_keys(tx, {"k2", "k3"}) == 1
    assert browsers(store) == ["two", "three", "four"]
    with store.write() as tx:
        assert push_subscriptions.end_of_session(tx, "session of two", "") == 1
        assert push_subscriptions.end_of_session(tx, "another", "three") == 1
        assert push_subscriptions.end_of_others(tx, "four", "Ann") == 0
        assert push_subscriptions.end_of_others(tx, "four", "bob") == 1
        assert not push_subscriptions.exist(tx)
    put(store, "five")
    with store.write() as tx:
        assert push_subscriptions.end_all(tx) == 1


def test_people_are_listed_up_to_a_number(store: Store) -> None:
    for name in ("ann", "bob", "Ann", "eve"):
        put(store, f"browser of {name}", person=name)
    with store.read() as tx:
        assert [name.lower() for name in push_subscriptions.list_people(tx, 2)] == ["ann", "bob"]
