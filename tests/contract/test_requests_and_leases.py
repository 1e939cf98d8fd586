from __future__ import annotations

from datetime import timedelta
from threading import Event

from processes import at_once

from kneo.clock import ManualClock
from kneo.store import requests
from kneo.store.engine import Store

MINUTE = timedelta(minutes=1)


def take(store: Store, owner: str, name: str = "controller") -> int | None:
    with store.write() as tx:
        return requests.take_lease(tx, name, owner, MINUTE)


def holds(store: Store, owner: str, fence: int) -> bool:
    with store.write() as tx:
        return requests.holds_lease(tx, requests.Lease("controller", owner, fence))


def holder(store: Store) -> str | None:
    with store.read() as tx:
        return requests.lease_holder(tx, "controller")


# ---- leases ------------------------------------------------------------------------------------------------------


def test_a_free_lease_is_taken(store: Store) -> None:
    assert holder(store) is None
    fence = take(store, "a")
    assert fence == 1
    assert holder(store) == "a"
    assert holds(store, "a", fence)


def test_a_held_lease_is_not_taken(store: Store) -> None:
    take(store, "a")
    assert take(store, "b") is None
    assert take(store, "b", "another lease") == 1
    assert holder(store) == "a"


def test_renewing_keeps_the_fence_and_moves_the_end(store: Store, clock: ManualClock) -> None:
    fence = take(store, "a")
    clock.advance(MINUTE * 0.9)
    assert take(store, "a") == fence
    clock.advance(MINUTE * 0.9)
    assert holds(store, "a", fence)


def test_an_expired_lease_is_not_held_and_goes_to_the_next_with_a_higher_fence(
    store: Store, clock: ManualClock
) -> None:
    fence = take(store, "a")
    clock.advance(MINUTE)
    assert holder(store) is None
    assert not holds(store, "a", fence)
    assert take(store, "b") == fence + 1
    assert not holds(store, "a", fence)
    assert take(store, "a") is None


def test_a_holder_that_comes_back_later_gets_another_fence(store: Store, clock: ManualClock) -> None:
    first = take(store, "a")
    clock.advance(MINUTE)
    take(store, "b")
    clock.advance(MINUTE)
    again = take(store, "a")
    assert again == first + 2
    assert not holds(store, "a", first)
    assert holds(store, "a", again)


def test_a_dropped_lease_is_free_at_once(store: Store) -> None:
    fence = take(store, "a")
    with store.write() as tx:
        requests.drop_lease(tx, "controller", "b")
    assert holder(store) == "a"
    with store.write() as tx:
        requests.drop_lease(tx, "controller", "a")
    assert holder(store) is None
    assert not holds(store, "a", fence)
    assert take(store, "b") == fence + 1


def test_of_many_takers_one_gets_the_lease(store: Store) -> None:
    fences = at_once(10, lambda number: take(store, f"owner-{number}"))
    assert [fence for fence in fences if fence is not None] == [1]
    assert holder(store) == f"owner-{fences.index(1)}"


def test_nobody_takes_a_lease_from_a_transaction_that_checked_it(store: Store, clock: ManualClock) -> None:
    """What a holder writes behind the check is committed before the next holder begins."""
    fence = take(store, "a")
    checked, taken = Event(), Event()

    def work(number: int) -> None:
        if number == 0:
            with store.write() as tx:
                assert requests.holds_lease(tx, requests.Lease("controller", "a", fence))
                clock.advance(MINUTE)
                checked.set()
                assert not taken.wait(0.3)
            return
        assert checked.wait(240)
        assert take(store, "b") == fence + 1
        taken.set()

    at_once(2, work)
    assert taken.is_set()


# ---- requests ----------------------------------------------------------------------------------------------------


def test_a_request_is_open_until_it_is_answered_once(store: Store) -> None:
    with store.write() as tx:
        first = requests.insert_request(tx, "reconcile", {"environment": "prod"}, "ann")
        second = requests.insert_request(tx, "plan", {"ref": "main"}, "ben")
        assert {request.id for request in requests.open_requests(tx)} == {first, second}
        requests.finish(tx, first, "done", {"revision": "main@sha1:abc"})
        requests.finish(tx, first, "failed", {})
        (still_open,) = requests.open_requests(tx)
        answered = requests.get(tx, first)
        assert requests.get(tx, "ask_none") is None
    assert (still_open.id, still_open.kind, still_open.payload) == (second, "plan", {"ref": "main"})
    assert (answered.status, answered.result, answered.actor) == ("done", {"revision": "main@sha1:abc"}, "ann")
