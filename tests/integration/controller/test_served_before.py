"""What an environment served before it may serve again; and a registry that is lost is rebuilt from the commits."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from controller_bench import Bench

from kneo import registry
from kneo.clock import ManualClock
from kneo.controller.stages.report import Ready
from kneo.errors import Invalid, Transient
from kneo.store import outbox, requests
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.trust.keys import PrivateKey

SOAK = timedelta(hours=24)
EVERY = {"environments": ("dev", "prod", "staging")}


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    return Bench(store, tmp_path)


@pytest.fixture
def emptied(tmp_path: Path, migrated_file: Callable[[str], Path], bench: Bench) -> Bench:
    """The same repository, and a registry and a mirror that are empty."""
    other = Bench.__new__(Bench)
    other.__dict__ |= bench.__dict__
    other.store = open_store(f"sqlite:///{migrated_file('again.sqlite')}", bench.store.clock)
    other.folder = tmp_path / "again"
    return other


def _commit(bench: Bench, message: str) -> None:
    """Commit at the time of the bench's clock."""
    bench.repo.git("add", "-A")
    at = bench.store.clock.now().isoformat()
    bench.repo.git("commit", "-q", "--allow-empty", "-m", message, dated=at)


def _later(bench: Bench, by: timedelta) -> None:
    assert isinstance(bench.store.clock, ManualClock)
    bench.store.clock.advance(by)


def _staging(bench: Bench, version: str) -> None:
    bench.repo.environment("staging", {"mail": version})


def _prod(bench: Bench, version: str, **rules: object) -> None:
    bench.repo.environment("prod", {"mail": version}, promoteFrom="staging", **rules)


def _chain(bench: Bench, **rules: object) -> None:
    """Mail 1.0.0 goes to staging and on to prod, and 1.1.0 to staging only."""
    for version in ("1.0.0", "1.1.0"):
        bench.repo.bundle("mail", version, **EVERY)
    for step in (("1.0.0", None), ("1.0.0", "1.0.0"), ("1.1.0", "1.0.0")):
        _staging(bench, step[0])
        if step[1] is not None:
            _prod(bench, step[1], **rules)
        _commit(bench, f"staging {step[0]}, prod {step[1]}")
        bench.reconcile()
        _later(bench, SOAK + timedelta(minutes=1))
        bench.reconcile()


def test_a_reverted_prod_does_not_wait_for_staging(bench: Bench) -> None:
    _chain(bench, soak="24h")
    assert (bench.served("staging"), bench.served()) == ({"mail": "1.1.0"}, {"mail": "1.0.0"})
    _prod(bench, "1.1.0", soak="24h")
    _commit(bench, "Release 1.1.0 to prod")
    bench.reconcile()
    assert bench.served() == {"mail": "1.1.0"}
    bench.repo.git("revert", "--no-edit", "HEAD")
    assert bench.reconcile().outcomes["prod"] == Ready(1)
    assert bench.served() == {"mail": "1.0.0"}


def test_naming_a_version_in_passing_is_not_having_served_it(bench: Bench) -> None:
    _chain(bench, soak="24h")
    bench.repo.bundle("mail", "1.2.0", **EVERY)
    for staging, prod in (("1.2.0", "1.2.0"), ("1.2.0", "1.0.0"), ("1.1.0", "1.2.0")):
        _staging(bench, staging)
        _prod(bench, prod, soak="24h")
        _commit(bench, f"staging {staging}, prod {prod}")
        bench.reconcile()
        assert bench.served() == {"mail": "1.0.0"}
    assert bench.pending()[0].reason == "DependencyNotReady"


def test_approvals_and_windows_hold_for_what_was_served_before(bench: Bench) -> None:
    _chain(bench)
    approvals = {"required": 1, "roles": ["approver"]}
    people = {"bob": {"roles": ["approver"]}}
    _prod(bench, "1.1.0", approvals=approvals, people=people)
    _commit(bench, "Ask bob from now on")
    bench.reconcile()
    bench.decide("bob")
    bench.reconcile()
    assert bench.served() == {"mail": "1.1.0"}
    _prod(bench, "1.0.0", approvals=approvals, people=people)
    _commit(bench, "Back")
    assert bench.reconcile().outcomes["prod"].state == "AwaitingApproval"
    bench.decide("bob")
    assert bench.reconcile().outcomes["prod"] == Ready(1)
    _prod(bench, "1.1.0", approvals=approvals, people=people, windows=[{"deny": "Mon 00:00 - Sun 24:00"}])
    _commit(bench, "Never, from now on")
    assert bench.reconcile().outcomes["prod"].state == "WindowClosed"


# ---- rebuilding --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("soak", ["0s", "24h"])
def test_an_empty_registry_ends_where_the_lost_one_was(bench: Bench, emptied: Bench, soak: str) -> None:
    _chain(bench, soak=soak)
    assert emptied.reconcile().outcomes["prod"] == Ready(0)
    for environment in ("staging", "prod"):
        assert emptied.served(environment) == bench.served(environment)
    assert emptied.reconcile().outcomes["prod"] == Ready(0)
    # What prod served before the loss counts as before it.
    _prod(bench, "1.1.0", soak=soak)
    _commit(bench, "Release 1.1.0 to prod")
    _later(emptied, SOAK)
    emptied.reconcile()
    bench.repo.git("revert", "--no-edit", "HEAD")
    emptied.reconcile()
    assert emptied.served() == {"mail": "1.0.0"}


def test_commits_in_quick_succession_are_no_soak(bench: Bench, emptied: Bench) -> None:
    _chain(bench, soak="24h")
    bench.repo.bundle("mail", "1.2.0", **EVERY)
    for staging, prod in (("1.2.0", "1.0.0"), ("1.2.0", "1.2.0"), ("1.1.0", "1.2.0")):
        _staging(bench, staging)
        _prod(bench, prod, soak="24h")
        _commit(bench, f"staging {staging}, prod {prod}")
    emptied.reconcile()
    assert emptied.served() == {"mail": "1.0.0"}
    assert emptied.pending()[0].reason == "DependencyNotReady"


def test_dates_of_commits_make_no_bundle_older_than_its_signature(bench: Bench, emptied: Bench) -> None:
    _chain(bench, soak="24h")
    bench.repo.now = bench.store.clock.now()
    bench.repo.bundle("mail", "1.2.0", **EVERY)
    long_ago = bench.store.clock.now() - timedelta(days=30)
    for days, (staging, prod) in enumerate((("1.2.0", "1.0.0"), ("1.2.0", "1.2.0"), ("1.1.0", "1.2.0"))):
        _staging(bench, staging)
        _prod(bench, prod, soak="24h")
        bench.repo.git("add", "-A")
        dated = (long_ago + timedelta(days=days * 2)).isoformat()
        bench.repo.git("commit", "-q", "-m", "A date that is not true", dated=dated)
    emptied.reconcile()
    assert emptied.served() == {"mail": "1.0.0"}


def test_what_history_allowed_waits_for_its_window_and_its_approval(bench: Bench, emptied: Bench) -> None:
    now: datetime = bench.store.clock.now()
    closed = [{"deny": f"{now + timedelta(hours=1):%a %H:%M} - {now + timedelta(hours=4):%a %H:%M}"}]
    approvals = {"approvals": {"required": 1, "roles": ["approver"]}, "people": {"bob": {"roles": ["approver"]}}}
    for version in ("1.0.0", "1.1.0"):
        bench.repo.bundle("mail", version, **EVERY)
    for staging, prod in (("1.0.0", "1.0.0"), ("1.1.0", "1.0.0")):
        _staging(bench, staging)
        _prod(bench, prod, windows=closed, **approvals)
        _commit(bench, f"staging {staging}, prod {prod}")
    _later(emptied, timedelta(hours=2))
    assert emptied.reconcile().outcomes["prod"].state == "WindowClosed"
    assert emptied.served("staging") == {"mail": "1.1.0"}
    assert emptied.reconcile().outcomes["prod"].state == "WindowClosed"
    _later(emptied, timedelta(hours=3))
    assert emptied.reconcile().outcomes["prod"].state == "AwaitingApproval"
    emptied.decide("bob")
    assert emptied.reconcile().outcomes["prod"] == Ready(1)
    assert emptied.served() == {"mail": "1.0.0"}


def test_an_older_version_that_waits_is_not_a_rollback_in_the_next_pass(bench: Bench) -> None:
    approvals = {"approvals": {"required": 1, "roles": ["approver"]}, "people": {"bob": {"roles": ["approver"]}}}
    bench.reconcile()
    for version in ("1.0.0", "1.1.0"):
        bench.repo.bundle("mail", version)
    bench.repo.environment("dev", {"mail": "1.1.0"})
    bench.repo.environment("prod", {"mail": "1.0.0"}, **approvals)
    bench.repo.commit("dev is ahead")
    assert [bench.reconcile().outcomes["prod"].state for _ in range(2)] == ["AwaitingApproval"] * 2
    bench.decide("bob")
    assert bench.reconcile().outcomes["prod"] == Ready(1)


def test_an_old_version_that_nobody_named_stays_refused_after_a_rebuild(bench: Bench, emptied: Bench) -> None:
    for version in ("1.0.0", "1.1.0"):
        bench.repo.bundle("mail", version)
    bench.repo.environment("prod", {"mail": "1.1.0"})
    bench.repo.commit("Release 1.1.0")
    bench.repo.environment("prod", {"mail": "1.0.0"})
    bench.repo.commit("Bring an old one that was never accepted")
    assert emptied.reconcile().outcomes["prod"].state == "RollbackDetected"
    assert emptied.served() == {"mail": "1.1.0"}


def test_a_broken_file_and_a_touched_bundle_do_not_lose_what_was_served(bench: Bench, emptied: Bench) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    bench.repo.release("dev", "bank", "1.0.0")
    bench.repo.bundle("bank", "1.1.0")
    bench.repo.tamper("bank", "1.1.0")
    bench.repo.environment("dev", {"bank": "1.1.0"})
    bench.repo.write("environments/prod.yaml", b"x: [\n")
    bench.repo.commit("Break both")
    outcomes = emptied.reconcile().outcomes
    assert (outcomes["prod"].state, outcomes["dev"].state) == ("PolicyInvalid", "SignatureInvalid")
    assert (emptied.served(), emptied.served("dev")) == ({"mail": "1.0.0"}, {"bank": "1.0.0"})


def test_people_are_told_of_the_newest_commit_only(bench: Bench, emptied: Bench) -> None:
    _chain(bench)
    emptied.channels = ("webhook",)
    emptied.reconcile()
    with emptied.store.read() as tx:
        (message,) = outbox.due(tx, ["webhook"], 10)
    assert (message.payload["phase"], message.payload["environment"]) == ("promoted", "staging")


def test_nothing_runs_while_a_registry_is_rebuilt(bench: Bench) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    bench.reconcile()
    with bench.store.write() as tx:
        requests.begin_rebuild(tx, str(bench.repo.folder), "main")
    with bench.store.read() as tx, pytest.raises(Transient, match="rebuilt"):
        registry.resolve(tx, "mail", "prod", pin=bench.repo.pin)
    # A controller that was killed meanwhile is followed by one that ends what it began.
    bench.repo.release("prod", "mail", "1.1.0")
    bench.reconcile()
    with bench.store.read() as tx:
        assert registry.resolve(tx, "mail", "prod", pin=bench.repo.pin).release.version == "1.1.0"


def test_an_unsigned_commit_ends_a_rebuild_where_it_would_have_ended_following(bench: Bench, emptied: Bench) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    bench.repo.person("bob", "commit")
    bench.repo.commit("Commits are signed from now on")
    accepted = bench.repo.head()
    bench.repo.release("prod", "mail", "1.1.0")
    with pytest.raises(Invalid, match="is not signed"):
        emptied.reconcile()
    assert emptied.served() == {"mail": "1.0.0"}
    with emptied.store.read() as tx:
        found = requests.source(tx)
        assert found is not None
        assert (found.accepted_commit, found.refused_code) == (accepted, "SignatureInvalid")
        assert registry.resolve(tx, "mail", "prod", pin=bench.repo.pin).release.version == "1.0.0"


def test_a_stranger_gains_nothing_by_naming_what_nobody_signed(bench: Bench, emptied: Bench) -> None:
    _chain(bench)
    bench.repo.bundle("mail", "1.2.0", keys=[PrivateKey.generate()], **EVERY)
    for staging in ("1.2.0", "1.1.0"):
        _staging(bench, staging)
        _prod(bench, "1.2.0")
        _commit(bench, f"staging {staging}, prod 1.2.0")
    assert emptied.reconcile().outcomes["prod"].state == "SignatureInvalid"
    assert emptied.served() == {"mail": "1.0.0"}
