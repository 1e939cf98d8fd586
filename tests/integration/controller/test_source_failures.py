"""A host of the repository that does not answer is remembered, until it does; what was accepted or refused stays."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from controller_bench import Bench

from kneo.clock import ManualClock
from kneo.errors import Invalid, Transient
from kneo.records.release import SourceRecord
from kneo.store import requests
from kneo.store.engine import Store


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    return Bench(store, tmp_path)


def recorded(bench: Bench) -> SourceRecord:
    with bench.store.read() as tx:
        found = requests.source(tx)
    assert found is not None
    return found


def test_a_first_fetch_that_fails_is_recorded(bench: Bench) -> None:
    reconciler, lease = bench.reconciler(), bench.lease()
    bench.repo.folder.rename(bench.folder / "away")
    with pytest.raises(Transient):
        reconciler.reconcile(lease)
    found = recorded(bench)
    assert (found.url, found.ref, found.accepted_commit) == (str(bench.repo.folder), "main", None)
    assert found.failed_code == "FetchFailed"
    assert str(bench.repo.folder) in str(found.failed_message)


def test_a_failure_keeps_its_beginning_and_goes_when_the_host_answers(bench: Bench) -> None:
    reconciler, lease = bench.reconciler(), bench.lease()
    commit = bench.repo.release("prod", "mail", "1.0.0")
    reconciler.reconcile(lease)
    commit = bench.repo.head()
    bench.repo.folder.rename(bench.folder / "away")
    since = bench.store.clock.now()
    for _ in range(2):
        with pytest.raises(Transient):
            reconciler.is_current()
        assert isinstance(bench.store.clock, ManualClock)
        bench.store.clock.advance(timedelta(minutes=1))
    found = recorded(bench)
    assert (found.accepted_commit, found.refused_code, found.failed_code) == (commit, None, "FetchFailed")
    assert found.failed_at is not None
    assert found.failed_at[:19] == since.isoformat()[:19]
    (bench.folder / "away").rename(bench.repo.folder)
    assert reconciler.is_current()
    assert recorded(bench).failed_code is None


def test_a_pass_that_succeeds_forgets_an_earlier_failure(bench: Bench) -> None:
    bench.reconcile()
    with bench.store.write() as tx:
        requests.record_failure(tx, str(bench.repo.folder), "main", "FetchFailed", "It did not answer.")
    bench.reconcile()
    assert recorded(bench).failed_code is None


def test_a_pass_that_succeeds_forgets_a_refusal_that_named_no_commit(bench: Bench) -> None:
    bench.reconcile()
    accepted = recorded(bench)
    with bench.store.write() as tx:
        requests.refuse_commit(tx, accepted.url, accepted.ref, None, "LimitExceeded", "The ref names too much.")
    bench.reconcile()
    assert (recorded(bench).refused_code, recorded(bench).refused_message) == (None, None)


def test_another_process_that_polls_forgets_it_too(bench: Bench) -> None:
    reconciler = bench.reconciler()
    reconciler.reconcile(bench.lease())
    with bench.store.write() as tx:
        requests.record_failure(tx, str(bench.repo.folder), "main", "FetchFailed", "It did not answer.")
    later = bench.reconciler()
    later.commit = reconciler.commit
    assert later.is_current()
    assert recorded(bench).failed_code is None


def test_a_failure_leaves_a_refused_commit_as_it_was(bench: Bench) -> None:
    bench.reconcile()
    bench.repo.git("commit", "-q", "--amend", "-m", "Another past")
    with pytest.raises(Invalid):
        bench.reconcile()
    reconciler, lease = bench.reconciler(), bench.lease()
    bench.repo.folder.rename(bench.folder / "away")
    with pytest.raises(Transient):
        reconciler.reconcile(lease)
    found = recorded(bench)
    assert (found.refused_code, found.failed_code) == ("HistoryRewritten", "FetchFailed")
    (bench.folder / "away").rename(bench.repo.folder)
    with pytest.raises(Invalid):
        bench.reconcile()
    found = recorded(bench)
    assert (found.refused_code, found.failed_code) == ("HistoryRewritten", None)
