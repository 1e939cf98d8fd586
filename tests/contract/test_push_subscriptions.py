"""Subscriptions of browsers on both databases: one for each browser and address, a bounded number for each person."""

from __future__ import annotations

from contextlib import closing

import pytest
from processes import at_once
from sqlalchemy import select, update

from kneo.clock import ManualClock, new_id
from kneo.errors import Untrusted
from kneo.records.sign_in import MAX_FAILURES, MAX_PER_PERSON, PushSubscription
from kneo.store import push_subscriptions
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.tables import push_subscriptions as table
from kneo.trust.sealing import SEALED, DataKeys, JournalSealed


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
        return list(push_subscriptions.of_person(tx, person))


def test_a_subscription_is_read_as_it_was_stored(store: Store) -> None:
    made = put(store, "one", key_hash="k")
    with store.read() as tx:
        assert push_subscriptions.find(tx, made.id) == made
        assert push_subscriptions.of_person(tx, "ANN") == {"one": made.id}
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


OLD, NEW = b"o" * 32, b"n" * 32


def test_addresses_and_keys_are_sealed_with_the_operators_keys(migrated_url: str, clock: ManualClock) -> None:
    def opened(*keys: bytes) -> closing[Store]:
        return closing(open_store(migrated_url, clock, data_keys=DataKeys(keys)))

    with opened() as store:
        plain = put(store, "plain")
    with opened(OLD) as store:
        made = put(store, "sealed", p256dh="Browserkey", auth="Browsersecret")
        other = put(store, "other")
        with store.read() as tx:
            row = tx.connection.execute(select(table).where(table.c.id == made.id)).one()
            assert push_subscriptions.find(tx, made.id) == made
            assert push_subscriptions.find(tx, plain.id) == plain, "one from before the keys"
        assert (row.endpoint, row.p256dh, row.auth, row.sealed[:1]) == ("", "", "", SEALED)
        assert not any(secret.encode() in row.sealed for secret in (made.endpoint, made.p256dh, made.auth))
        put(store, "again", endpoint=made.endpoint)
        assert browsers(store) == ["plain", "other", "again"], "an address has one subscription"
    with opened(NEW, OLD) as store, store.read() as tx:
        assert push_subscriptions.find(tx, other.id) == other
    with opened(NEW) as store, store.read() as tx:
        assert len(push_subscriptions.of_person(tx, "ann")) == 3
        with pytest.raises(JournalSealed):
            push_subscriptions.find(tx, other.id)
    with opened(OLD) as store:
        with store.write() as tx:
            tx.connection.execute(update(table).where(table.c.id == other.id).values(sealed=row.sealed))
        with store.read() as tx, pytest.raises(Untrusted):
            push_subscriptions.find(tx, other.id)
