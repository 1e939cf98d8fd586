"""What parts of a step have done, on both databases."""

from __future__ import annotations

from datetime import timedelta

from builders import build_run

from kneo.clock import ManualClock
from kneo.digest import digest_of
from kneo.records.run import RunStatus
from kneo.store import history, runs
from kneo.store.engine import Store
from kneo.store.prune import prune_runs

GIVEN, OTHER = digest_of(b"given"), digest_of(b"other")


def keep(store: Store, name: str, value: str, run: str = "run_1", place: str = "flow") -> None:
    with store.write() as tx:
        history.record_entry(tx, run, place, name, input_digest=GIVEN, value=value)


def test_a_part_is_found_by_its_place_and_name(store: Store) -> None:
    keep(store, "draft:1", '"a"')
    keep(store, "draft:1", '"b"', place="other")
    with store.read() as tx:
        found = history.find_entry(tx, "run_1", "flow", "draft:1")
        assert found is not None
        assert (found.value, found.input_digest, found.sequence) == ('"a"', GIVEN, 1)
        assert history.find_entry(tx, "run_2", "flow", "draft:1") is None
        assert history.find_entry(tx, "run_1", "flow", "draft:2") is None


def test_what_was_done_for_another_input_is_replaced(store: Store) -> None:
    keep(store, "draft:1", '"a"')
    keep(store, "send:1", '"s"')
    with store.write() as tx:
        history.record_entry(tx, "run_1", "flow", "draft:1", input_digest=OTHER, value='"b"')
    with store.read() as tx:
        assert [(part.name, part.value) for part in history.list_entries(tx, "run_1")] == [
            ("send:1", '"s"'),
            ("draft:1", '"b"'),
        ]


def test_a_run_is_given_what_another_one_did_and_both_go_when_they_are_old(store: Store, clock: ManualClock) -> None:
    done = build_run(status=RunStatus.SUCCEEDED)
    again = build_run(status=RunStatus.SUCCEEDED)
    with store.write() as tx:
        runs.insert_run(tx, done)
        runs.insert_run(tx, again)
    keep(store, "draft:1", '"a"', done.id)
    with store.write() as tx:
        history.copy_entries(tx, history.list_entries(tx, done.id), again.id)
    with store.read() as tx:
        [copied] = history.list_entries(tx, again.id)
    assert (copied.run_id, copied.value) == (again.id, '"a"')
    clock.advance(timedelta(days=2))
    assert prune_runs(store, timedelta(days=1)) == 2
    with store.read() as tx:
        assert [history.list_entries(tx, run.id) for run in (done, again)] == [(), ()]
