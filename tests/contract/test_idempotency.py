from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from kneo.clock import ManualClock
from kneo.store import idempotency
from kneo.store.engine import Store
from kneo.store.idempotency import KeyOf

KEY = KeyOf(principal="ann", scope="runs:create", key="k1")
LOCK = timedelta(seconds=300)
DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64


def claim(store: Store, key: KeyOf = KEY, digest: str = DIGEST) -> idempotency.Known | None:
    with store.write() as tx:
        return idempotency.claim(tx, key, digest, lock=LOCK)


def test_a_key_is_taken_once_and_answers_again(store: Store) -> None:
    assert claim(store) is None
    waiting = claim(store)
    assert waiting is not None
    assert waiting.status is None
    with store.write() as tx:
        idempotency.keep(tx, KEY, 202, {"run_id": "run_1"})
    again = claim(store, digest=OTHER)
    assert again is not None
    assert (again.status, again.response, again.request_digest) == (202, {"run_id": "run_1"}, DIGEST)


def test_a_key_belongs_to_whoever_sent_it_and_to_one_kind_of_request(store: Store) -> None:
    assert claim(store) is None
    assert claim(store, KeyOf(principal="bob", scope="runs:create", key="k1")) is None
    assert claim(store, KeyOf(principal="ann", scope="specs:run", key="k1")) is None


def test_a_refused_request_gives_its_key_back_and_an_answered_one_does_not(store: Store) -> None:
    assert claim(store) is None
    with store.write() as tx:
        idempotency.release(tx, KEY)
    assert claim(store) is None
    with store.write() as tx:
        idempotency.keep(tx, KEY, 200, {})
        idempotency.release(tx, KEY)
    assert claim(store) is not None


def test_a_request_that_never_ended_may_be_done_again_after_a_while(store: Store, clock: ManualClock) -> None:
    assert claim(store) is None
    clock.advance(LOCK - timedelta(seconds=1))
    assert claim(store) is not None
    clock.advance(timedelta(seconds=1))
    assert claim(store, digest=OTHER) is not None
    assert claim(store) is None
    assert claim(store) is not None


def test_of_many_at_once_one_gets_the_key(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda _: claim(store) is None, range(16)))
    assert got.count(True) == 1


def test_old_keys_are_forgotten(store: Store, clock: ManualClock) -> None:
    claim(store)
    clock.advance(timedelta(days=2))
    claim(store, KeyOf(principal="bob", scope="runs:create", key="k2"))
    with store.write() as tx:
        assert idempotency.forget(tx, timedelta(days=1)) == 1
        assert idempotency.forget(tx, timedelta(days=1)) == 0
    assert claim(store) is None
