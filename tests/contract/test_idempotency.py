from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from processes import at_once
from sqlalchemy import select

from kneo.clock import ManualClock
from kneo.errors import Conflict
from kneo.store import idempotency, project_metadata, tables
from kneo.store.engine import Store, Tx
from kneo.store.idempotency import AlreadyExecuted, KeyedRequest, KeyOf, Known

KEY = KeyOf(principal="ann", scope="runs:create", key="k1")
DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64


def request(attempt: str, key: KeyOf = KEY, digest: str = DIGEST, subject: str | None = None) -> KeyedRequest:
    return KeyedRequest(key=key, request_digest=digest, attempt=attempt, subject=subject)


@contextlib.contextmanager
def executing(one: KeyedRequest) -> Iterator[None]:
    token = idempotency.current.set(one)
    try:
        yield
    finally:
        idempotency.current.reset(token)


def make(store: Store, one: KeyedRequest, subject: str) -> None:
    """Change something for a request, as everything does that a request can ask for."""

    def work(tx: Tx) -> None:
        idempotency.bind(tx, subject)
        project_metadata.write(tx, subject, {"made": True})

    with executing(one):
        store.transact(work)


def made(store: Store) -> list[str]:
    with store.read() as tx:
        return sorted(tx.connection.execute(select(tables.project_metadata.c.key)).scalars())


def look(store: Store, one: KeyedRequest) -> Known | None:
    with store.read() as tx:
        return idempotency.look(tx, one)


def test_a_key_is_bound_with_what_is_made_and_to_nothing_else(store: Store) -> None:
    make(store, request("req_1"), "run_1")
    known = look(store, request("req_2"))
    assert known is not None
    assert (known.subject, known.attempt, known.status) == ("run_1", "req_1", None)
    with pytest.raises(AlreadyExecuted):
        make(store, request("req_2"), "run_2")
    with pytest.raises(AlreadyExecuted):
        make(store, request("req_2", subject="run_1"), "run_2")
    assert made(store) == ["run_1"]


def test_what_is_undone_leaves_the_key_free(store: Store) -> None:
    def work(tx: Tx) -> None:
        idempotency.bind(tx, "run_1")
        raise ValueError("refused")

    with executing(request("req_1")), pytest.raises(ValueError, match="refused"):
        store.transact(work)
    assert look(store, request("req_2")) is None
    make(store, request("req_2"), "run_2")
    assert made(store) == ["run_2"]


def test_one_execution_may_make_several_things(store: Store) -> None:
    make(store, request("req_1"), "task_1")
    make(store, request("req_1"), "task_2")
    known = look(store, request("req_2"))
    assert known is not None
    assert known.subject == "task_1"
    assert made(store) == ["task_1", "task_2"]


def test_an_answer_is_given_again_and_the_first_one_stays(store: Store) -> None:
    make(store, request("req_1"), "run_1")
    for attempt, status in (("req_1", 202), ("req_2", 200)):
        with store.write() as tx:
            idempotency.keep(tx, request(attempt, subject="run_1"), status, {"run_id": "run_1"})
    known = look(store, request("req_3"))
    assert known is not None
    assert (known.status, known.response, known.subject) == (202, {"run_id": "run_1"}, "run_1")


def test_an_answer_to_what_makes_nothing_is_kept_too(store: Store) -> None:
    with store.write() as tx:
        idempotency.keep(tx, request("req_1"), 200, {"valid": True})
    known = look(store, request("req_2"))
    assert known is not None
    assert (known.status, known.response, known.subject) == (200, {"valid": True}, None)


def test_another_request_under_the_key_is_refused(store: Store) -> None:
    make(store, request("req_1"), "run_1")
    with pytest.raises(Conflict) as refused:
        look(store, request("req_2", digest=OTHER))
    assert refused.value.code == "idempotency_key_conflict"
    with pytest.raises(Conflict) as refused:
        make(store, request("req_2", digest=OTHER), "run_2")
    assert refused.value.code == "idempotency_key_conflict"
    assert made(store) == ["run_1"]


def test_a_key_belongs_to_whoever_sent_it_and_to_one_kind_of_request(store: Store) -> None:
    make(store, request("req_1"), "run_1")
    make(store, request("req_2", KeyOf(principal="bob", scope="runs:create", key="k1")), "run_2")
    make(store, request("req_3", KeyOf(principal="ann", scope="specs:run", key="k1")), "run_3")
    assert made(store) == ["run_1", "run_2", "run_3"]


def test_of_many_at_once_one_makes_something(store: Store) -> None:
    def attempt(number: int) -> bool:
        try:
            make(store, request(f"req_{number}"), f"run_{number}")
        except AlreadyExecuted:
            return False
        return True

    assert at_once(8, attempt).count(True) == 1
    assert len(made(store)) == 1


def test_a_thread_that_writes_for_others_binds_each_to_its_own_request(store: Store) -> None:
    def attempt(number: int) -> None:
        make(store, request(f"req_{number}", KeyOf(principal="ann", scope="s", key=str(number))), f"run_{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(attempt, range(40)))
    for number in range(40):
        known = look(store, request("req_x", KeyOf(principal="ann", scope="s", key=str(number))))
        assert known is not None
        assert known.subject == f"run_{number}"


def test_what_carries_no_key_is_bound_to_nothing(store: Store) -> None:
    with store.write() as tx:
        idempotency.bind(tx, "run_1")
    assert idempotency.made() is None
    assert look(store, request("req_1")) is None


def test_old_keys_are_forgotten(store: Store, clock: ManualClock) -> None:
    make(store, request("req_1"), "run_1")
    clock.advance(timedelta(days=2))
    make(store, request("req_2", KeyOf(principal="bob", scope="runs:create", key="k2")), "run_2")
    with store.write() as tx:
        assert idempotency.forget(tx, timedelta(days=1)) == 1
        assert idempotency.forget(tx, timedelta(days=1)) == 0
    assert look(store, request("req_3")) is None
