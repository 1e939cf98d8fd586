"""One pass of the controller over real repositories, on both databases."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from controller_bench import Bench
from gates.asking import answer, ask

from kneo import registry
from kneo.controller.reconcile import Reconciler
from kneo.controller.source.mirror import Mirror
from kneo.controller.stages.report import Ready, Reconciling, Stalled
from kneo.digest import Digest
from kneo.errors import Invalid, Transient
from kneo.records.release import ConditionType
from kneo.records.task import TaskStatus
from kneo.spec.policy import DAYS
from kneo.store import audit, requests
from kneo.store.engine import Store


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    return Bench(store, tmp_path)


def test_a_release_is_served_with_its_promotion_and_its_event(bench: Bench) -> None:
    digest = bench.repo.release("prod", "mail", "1.0.0")
    done = bench.reconcile()
    assert done.outcomes == {"dev": Ready(0), "prod": Ready(1)}
    assert bench.release("mail").digest == digest
    assert bench.release("mail").revision == f"main@sha1:{bench.repo.head()}"
    assert bench.condition(ConditionType.READY) == (True, "Serving")
    assert [event["to_digest"] for event in bench.events("release.promoted")] == [digest]
    assert audit.verify(bench.store).pending == 0


def test_a_second_pass_writes_nothing(bench: Bench) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    bench.reconcile()
    before = bench.rows()
    assert bench.reconcile().outcomes["prod"] == Ready(0)
    assert bench.rows() == before


def test_one_bad_bundle_blocks_no_other(bench: Bench) -> None:
    bench.repo.bundle("mail", "1.0.0")
    bench.repo.bundle("bank", "1.0.0")
    bench.repo.environment("prod", {"mail": "1.0.0", "bank": "1.0.0"})
    bench.repo.commit("Release two")
    bench.reconcile()
    bench.repo.bundle("mail", "1.1.0")
    bench.repo.bundle("bank", "1.1.0")
    bench.repo.tamper("bank", "1.1.0")
    bench.repo.environment("prod", {"mail": "1.1.0", "bank": "1.1.0"})
    bench.repo.commit("Release two more, one of them touched")
    outcome = bench.reconcile().outcomes["prod"]
    assert isinstance(outcome, Stalled)
    assert outcome.reason == "SignatureInvalid"
    assert bench.served() == {"mail": "1.1.0", "bank": "1.0.0"}
    assert bench.condition(ConditionType.VERIFIED) == (False, "SignatureInvalid")


def test_atomic_environments_change_whole_or_not_at_all(bench: Bench) -> None:
    bench.repo.bundle("mail", "1.0.0")
    bench.repo.bundle("bank", "1.0.0", keys=[bench.repo.stranger])
    bench.repo.environment("prod", {"mail": "1.0.0", "bank": "1.0.0"}, atomic=True)
    bench.repo.commit("Release two, one by a stranger")
    bench.reconcile()
    assert bench.served() == {}


def test_a_bad_environment_file_stalls_that_environment_only(bench: Bench) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    bench.reconcile()
    bench.repo.bundle("mail", "1.1.0")
    bench.repo.environment("dev", {"mail": "1.1.0"})
    bench.repo.write("environments/prod.yaml", b"apiVersion: kneo/v1\nkind: Environment\nspec: {}\n")
    bench.repo.commit("Break prod")
    outcomes = bench.reconcile().outcomes
    assert outcomes["dev"] == Ready(1)
    assert isinstance(outcomes["prod"], Stalled)
    assert bench.condition(ConditionType.POLICY_VALID) == (False, "PolicyInvalid")
    assert bench.served() == {"mail": "1.0.0"}


def test_an_environment_that_asks_for_no_signature_is_refused(bench: Bench) -> None:
    bench.repo.environment("prod", {}, signatures={"accept": ["dsse"], "roles": ["release"], "threshold": 0})
    bench.repo.commit("Ask for nothing")
    assert isinstance(bench.reconcile().outcomes["prod"], Stalled)


def test_a_trust_root_that_is_not_the_pinned_one_stalls_everything(bench: Bench) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    outcomes = bench.reconcile(pin=Digest("sha256:" + "0" * 64)).outcomes
    assert {outcome.reason for outcome in outcomes.values()} == {"RootNotPinned"}
    assert bench.served() == {}


def test_a_removed_environment_file_keeps_serving(bench: Bench) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    bench.reconcile()
    (bench.repo.folder / "environments/prod.yaml").unlink()
    bench.repo.commit("Remove prod")
    outcome = bench.reconcile().outcomes["prod"]
    assert isinstance(outcome, Stalled)
    assert outcome.reason == "EnvironmentRemoved"
    assert bench.served() == {"mail": "1.0.0"}


def test_whoever_removes_an_environment_is_told_of_its_open_questions(bench: Bench) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    bench.reconcile()
    waiting = [ask(bench.store) for _ in range(7)]
    (bench.repo.folder / "environments/prod.yaml").unlink()
    bench.repo.commit("Remove prod")
    bench.reconcile()
    with bench.store.read() as tx:
        status = registry.find_status(tx, "prod")
    [told] = {condition.message for condition in status.conditions if condition.reason == "EnvironmentRemoved"}
    assert "7 questions are open there" in told
    assert [task.id in told for task in waiting] == [True] * 5 + [False] * 2
    assert "and 2 more" in told
    assert answer(bench.store, waiting[0], "ann").status is TaskStatus.DECIDED


def test_an_emptied_environment_waits_for_a_person(bench: Bench) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    bench.reconcile()
    bench.repo.environment("prod", {})
    bench.repo.commit("Empty prod")
    outcome = bench.reconcile().outcomes["prod"]
    assert isinstance(outcome, Reconciling)
    assert outcome.reason == "MassPruneBlocked"
    assert bench.served() == {"mail": "1.0.0"}


def test_a_release_that_is_not_named_any_more_is_retired_within_the_guard(bench: Bench) -> None:
    names = [f"agent-{number}" for number in range(5)]
    for name in names:
        bench.repo.bundle(name, "1.0.0")
    bench.repo.environment("prod", dict.fromkeys(names, "1.0.0"))
    bench.repo.commit("Release five")
    bench.reconcile()
    bench.repo.environment("prod", dict.fromkeys(names[1:], "1.0.0"))
    bench.repo.commit("Retire one")
    assert bench.reconcile().outcomes["prod"] == Ready(1)
    assert set(bench.served()) == set(names[1:])
    assert len(bench.events("release.retired")) == 1


def test_a_missing_bundle_and_a_wrong_digest_are_told_apart(bench: Bench) -> None:
    bench.repo.environment("prod", {"mail": "1.0.0"})
    bench.repo.commit("Name what is not there")
    assert bench.reconcile().outcomes["prod"].state == "BundleNotFound"
    bench.repo.bundle("mail", "1.0.0")
    bench.repo.environment("prod", {"mail": "1.0.0"}, digests={"mail": "sha256:" + "1" * 64})
    bench.repo.commit("Name another digest")
    assert bench.reconcile().outcomes["prod"].state == "DigestMismatch"


def test_an_older_version_that_was_never_accepted_is_a_rollback_attack(bench: Bench) -> None:
    bench.repo.bundle("mail", "1.0.0")
    bench.repo.release("prod", "mail", "1.1.0")
    bench.reconcile()
    bench.repo.environment("prod", {"mail": "1.0.0"})
    bench.repo.commit("Name an older one that never ran")
    assert bench.reconcile().outcomes["prod"].state == "RollbackDetected"
    assert bench.served() == {"mail": "1.1.0"}


def test_going_back_to_what_ran_before_is_a_rollback_promotion(bench: Bench) -> None:
    first = bench.repo.release("prod", "mail", "1.0.0")
    bench.reconcile()
    bench.repo.release("prod", "mail", "1.1.0")
    bench.reconcile()
    bench.repo.git("revert", "--no-edit", "HEAD")
    assert bench.reconcile().outcomes["prod"] == Ready(1)
    assert bench.release("mail").digest == first
    assert [event["to_digest"] for event in bench.events("release.rolled_back")] == [first]


def test_a_closed_window_waits(bench: Bench) -> None:
    later = DAYS[(bench.store.clock.now().weekday() + 2) % 7]
    bench.repo.bundle("mail", "1.0.0")
    bench.repo.environment("prod", {"mail": "1.0.0"}, windows=[{"allow": f"{later} 08:00 - 20:00"}])
    bench.repo.commit("Release before the window")
    outcome = bench.reconcile().outcomes["prod"]
    assert isinstance(outcome, Reconciling)
    assert outcome.reason == "WindowClosed"
    assert bench.served() == {}
    bench.store.clock.advance(timedelta(hours=8))
    while bench.store.clock.now().weekday() != DAYS.index(later) or not 8 <= bench.store.clock.now().hour < 20:
        bench.store.clock.advance(timedelta(hours=1))
    assert bench.reconcile().outcomes["prod"] == Ready(1)


def test_only_what_dev_serves_may_come_to_prod(bench: Bench) -> None:
    bench.repo.bundle("mail", "1.0.0")
    bench.repo.environment("prod", {"mail": "1.0.0"}, promoteFrom="dev")
    bench.repo.commit("Skip dev")
    assert bench.reconcile().outcomes["prod"].state == "DependencyNotReady"
    bench.repo.environment("dev", {"mail": "1.0.0"})
    bench.repo.commit("Not any more")
    bench.reconcile()
    assert bench.served() == {"mail": "1.0.0"}


def test_rewritten_history_stalls_and_keeps_serving(bench: Bench) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    bench.reconcile()
    bench.repo.release("prod", "mail", "1.1.0")
    bench.repo.git("reset", "-q", "--soft", "HEAD~2")
    bench.repo.commit("Another past")
    with pytest.raises(Invalid) as caught:
        bench.reconcile()
    assert caught.value.code == "HistoryRewritten"
    assert bench.condition(ConditionType.STALLED) == (True, "HistoryRewritten")
    assert bench.served() == {"mail": "1.0.0"}


def test_a_controller_that_lost_its_lease_writes_nothing(bench: Bench) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    mine = bench.lease()
    with bench.store.write() as tx:
        requests.drop_lease(tx, "controller", "me")
    bench.lease("another")
    before = bench.rows()
    mirror = Mirror(str(bench.repo.folder), "main", bench.folder / "mirrors")
    with pytest.raises(Transient) as caught:
        Reconciler(bench.store, mirror, bench.repo.pin).reconcile(mine)
    assert caught.value.code == "LeaseLost"
    assert bench.rows() == before


def test_the_same_commits_make_the_same_registry(bench: Bench, tmp_path: Path) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    bench.reconcile()
    bench.repo.release("prod", "mail", "1.1.0")
    bench.reconcile()
    other = Reconciler(bench.store, Mirror(str(bench.repo.folder), "main", tmp_path / "other"), bench.repo.pin)
    before = bench.rows()
    other.reconcile(bench.lease())
    assert bench.rows() == before
