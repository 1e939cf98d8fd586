"""Canaries through the whole controller: real starts, real reconciliations, both databases."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from canary_bench import PLAN, CanaryBench, canary_bench
from console_load import statements
from operation_context import operation_context
from pydantic_core import to_json
from sqlalchemy import select, update

from kneo import registry
from kneo.api.canaries import (
    CanaryChange,
    CanaryView,
    abort_canary,
    get_canary,
    get_canary_result,
    pause_canary,
    promote_canary,
    restart_canary,
    resume_canary,
)
from kneo.api.promotion_receipts import list_promotion_receipts
from kneo.clock import SystemClock
from kneo.controller.approval_receipts import ReceiptTerms, check_attestation
from kneo.controller.stages.report import Ready
from kneo.errors import Forbidden, KneoError, NotFound
from kneo.records.canary import CanaryState
from kneo.records.release import Hold
from kneo.records.run import RunStatus
from kneo.runtime.engine.start import Starter, StartRequest
from kneo.spec.models.spec import Spec
from kneo.store import canaries, releases, runs
from kneo.store.canaries import _remembered
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.requests import ControllerRequest
from kneo.store.tables import canary_runs
from kneo.trust.dsse import parse_envelope, serialise, sign
from kneo.trust.root import verify_chain
from kneo.trust.root_edit import add_key
from kneo.trust.statement import PAYLOAD_TYPE, ApprovalDecision

pytestmark = pytest.mark.both_databases

APPROVALS = {"required": 1, "roles": ["approver"], "exclude": []}
PEOPLE = {"bob": {"roles": ["approver"]}, "cid": {"roles": ["approver"]}}


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> CanaryBench:
    return canary_bench(store, tmp_path)


def test_a_canary_begins_steps_and_ends_as_a_promotion(bench: CanaryBench) -> None:
    bench.declare("1.1.0", PLAN)
    assert bench.outcome.state == "CanaryRunning"
    assert bench.served() == {"mail": "1.0.0"}
    canary = bench.canary()
    assert (canary.state, canary.step, canary.share) == (CanaryState.RUNNING, 1, 0.5)
    found = bench.start(19)
    bench.end(found)
    assert bench.reconcile().outcomes["prod"].state == "CanaryRunning"
    assert "the next step needs 1 more runs" in bench.pending()[0].message
    more = bench.start(11)
    bench.end(more)
    assert 5 <= len(bench.arm([*found, *more], "1.1.0")) <= 25
    assert isinstance(bench.reconcile().outcomes["prod"], Ready)
    assert bench.served() == {"mail": "1.1.0"}
    canary = bench.canary()
    assert (canary.state, canary.step, canary.share) == (CanaryState.PASSED, 2, 1.0)
    assert [event["step"] for event in bench.events("canary.advanced")] == [2]
    assert len(bench.events("canary.began")) == len(bench.events("canary.ended")) == 1
    assert bench.events("release.promoted")[0]["canary"] == canary.id
    assert {run.release.version for run in bench.start(5) if run.release} == {"1.1.0"}


def test_a_first_release_and_a_version_of_before_follow_no_plan(bench: CanaryBench) -> None:
    bench.repo.bundle("news", "1.0.0")
    bench.repo.environment("dev", {"news": "1.0.0"}, canaries={"news": PLAN})
    bench.declare("1.1.0")
    assert bench.served("dev") == {"news": "1.0.0"}
    bench.declare("1.0.0", PLAN)
    assert bench.served() == {"mail": "1.0.0"}
    bench.declare("1.1.0", PLAN)
    assert bench.served() == {"mail": "1.1.0"}
    assert bench.events("canary.began") == []


def test_little_data_never_advances(bench: CanaryBench) -> None:
    bench.declare("1.1.0", {**PLAN, "every": "1h"})
    bench.later(timedelta(days=30))
    bench.end(bench.start(3))
    assert bench.reconcile().outcomes["prod"].state == "CanaryRunning"
    assert bench.canary().step == 1


def test_a_failing_candidate_is_rolled_back_in_a_closed_window_while_open_runs_finish(bench: CanaryBench) -> None:
    bench.declare("1.1.0", {**PLAN, "every": "500 runs"})
    closed = [{"deny": "Mon 00:00 - Mon 00:00"}, {"deny": "* 00:00 - 23:59"}]
    bench.repo.environment(
        "prod", {"mail": "1.1.0"}, canaries={"mail": {**PLAN, "every": "500 runs"}}, windows=closed[1:]
    )
    bench.repo.commit("Close the window")
    bench.reconcile()
    found = bench.start(80)
    open_runs = bench.arm(found, "1.1.0")[:3]
    bench.end([run for run in found if run not in open_runs], *bench.arm(found, "1.1.0")[3:])
    bench.reconciler().settle_canaries(bench.lease())
    canary = bench.canary()
    assert (canary.state, canary.share, canary.blocks) == (CanaryState.ROLLED_BACK, 0.0, True)
    assert "failed runs were the candidate's" in canary.reason
    assert {run.release.version for run in bench.start(20) if run.release} == {"1.0.0"}
    assert len(bench.events("canary.rolled_back")) == 1
    bench.declare("1.1.0", {**PLAN, "every": "500 runs"})
    assert bench.outcome.state == "CanaryRolledBack"
    with bench.store.read() as tx:
        bench.starter.check_still_allowed(tx, bench.arm(found, "1.0.0")[0])
        with pytest.raises(Forbidden):
            bench.starter.check_still_allowed(tx, open_runs[0])
        left = runs.get(tx, open_runs[0].id)
    assert left is not None
    assert left.status is RunStatus.RUNNING


def test_nothing_goes_forward_by_itself_after_a_rollback(bench: CanaryBench) -> None:
    _roll_back(bench)
    bench.declare("1.1.0", {**PLAN, "every": "30 runs"})
    assert bench.outcome.state == "CanaryRolledBack"
    bench.declare("1.1.0")
    assert bench.outcome.state == "CanaryRolledBack"
    assert bench.served() == {"mail": "1.0.0"}


def _roll_back(bench: CanaryBench, **spec: object) -> None:
    bench.declare("1.1.0", {**PLAN, "every": "500 runs"}, **spec)
    found = bench.start(60)
    bench.end(found, *bench.arm(found, "1.1.0"))
    bench.reconcile()
    assert bench.canary().state is CanaryState.ROLLED_BACK


def test_the_candidate_is_not_addressable_and_a_named_version_is_not_counted(bench: CanaryBench) -> None:
    bench.declare("1.1.0", PLAN)
    for reference in ("mail@1.1.0", bench.canary().digest):
        with pytest.raises(KneoError) as caught:
            bench.start(reference=reference)
        assert caught.value.code == "canary_not_addressable"
    bench.start(5, reference="mail@1.0.0")
    assert _counted(bench) == 0


def _counted(bench: CanaryBench) -> int:
    with bench.store.read() as tx:
        return len(tx.connection.execute(select(canary_runs)).all())


def test_a_start_executes_the_release_or_the_running_candidate_only(bench: CanaryBench) -> None:
    def versions(number: int = 15) -> set[str]:
        return {run.release.version for run in bench.start(number) if run.release}

    bench.repo.bundle("mail", "1.2.0")
    stranger = parse_envelope((bench.repo.folder / "bundles/mail/1.2.0.dsse.json").read_bytes()).digest
    bench.declare("1.1.0", {**PLAN, "every": "500 runs"})
    assert versions() == {"1.0.0", "1.1.0"}
    for reference in ("mail@1.2.0", stranger):
        with pytest.raises(KneoError) as caught:
            bench.start(reference=reference)
        assert caught.value.code == "bundle_not_approved"
    _operate(bench, "pause")
    assert versions() == {"1.0.0", "1.1.0"}, "a paused canary keeps its share"
    _operate(bench, "abort")
    assert versions() == {"1.0.0"}
    _operate(bench, "restart")
    bench.declare("1.1.0", {**PLAN, "every": "500 runs"})
    assert versions() == {"1.0.0", "1.1.0"}
    with bench.store.write() as tx:
        tx.connection.execute(update(canaries.canaries).values(version="1.2.0", digest=stranger))
    assert versions() <= {"1.0.0", "1.1.0"}
    _remembered.clear()
    assert versions() == {"1.0.0"}, "a row that another program wrote is no canary"


def test_a_session_is_sticky_and_counts_once(bench: CanaryBench) -> None:
    bench.declare("1.1.0", PLAN)
    arms = set()
    for number in range(12):
        versions = {run.release.version for run in bench.start(3, session_id=f"s{number}") if run.release}
        assert len(versions) == 1
        arms |= versions
    assert arms == {"1.0.0", "1.1.0"}
    assert _counted(bench) == 12


def test_runs_of_the_candidate_are_continued_while_its_canary_lives(bench: CanaryBench) -> None:
    bench.declare("1.1.0", PLAN)
    run = bench.arm(bench.start(12), "1.1.0")[0]
    with bench.store.read() as tx:
        bench.starter.check_still_allowed(tx, run)


def test_one_approval_is_for_the_whole_plan_and_for_no_other(bench: CanaryBench) -> None:
    rules: dict[str, object] = {"approvals": APPROVALS, "people": PEOPLE}
    bench.declare("1.0.0", **rules)
    bench.declare("1.1.0", PLAN, **rules)
    assert bench.outcome.state == "AwaitingApproval"
    bench.decide("bob")
    assert bench.reconcile().outcomes["prod"].state == "CanaryRunning"
    bench.later(timedelta(days=8))
    found = bench.start(30)
    bench.end(found)
    bench.declare("1.1.0", {**PLAN, "steps": ["100%"]}, **rules)
    assert bench.outcome.state == "AwaitingApproval"
    assert (bench.canary().state, bench.served()) == (CanaryState.ENDED, {"mail": "1.0.0"})


def test_an_approval_that_expires_counts_until_its_canary_ends(bench: CanaryBench) -> None:
    rules: dict[str, object] = {"approvals": APPROVALS, "people": PEOPLE}
    bench.declare("1.0.0", **rules)
    bench.declare("1.1.0", PLAN, **rules)
    bench.decide("bob")
    bench.reconcile()
    bench.later(timedelta(days=8))
    bench.end(bench.start(30))
    assert isinstance(bench.reconcile().outcomes["prod"], Ready)
    assert bench.served() == {"mail": "1.1.0"}


def test_removing_the_plan_needs_an_approval_of_the_bundle(bench: CanaryBench) -> None:
    rules: dict[str, object] = {"approvals": APPROVALS, "people": PEOPLE}
    bench.declare("1.0.0", **rules)
    bench.declare("1.1.0", PLAN, **rules)
    bench.decide("bob")
    bench.reconcile()
    bench.declare("1.1.0", **rules)
    assert bench.outcome.state == "AwaitingApproval"
    bench.decide("bob")
    assert isinstance(bench.reconcile().outcomes["prod"], Ready)


def test_changed_rules_need_new_approvals_before_the_next_step(bench: CanaryBench) -> None:
    rules: dict[str, object] = {"approvals": APPROVALS, "people": PEOPLE}
    bench.declare("1.0.0", **rules)
    bench.declare("1.1.0", PLAN, **rules)
    bench.decide("bob")
    bench.reconcile()
    bench.end(bench.start(30))
    bench.declare("1.1.0", PLAN, approvals={**APPROVALS, "required": 2}, people=PEOPLE)
    bench.repo.commit("Nothing")
    assert bench.reconcile().outcomes["prod"].state == "AwaitingApproval"
    assert (bench.canary().step, bench.canary().state) == (1, CanaryState.RUNNING)
    bench.decide("bob")
    bench.decide("cid")
    assert isinstance(bench.reconcile().outcomes["prod"], Ready)


def test_a_rejection_takes_the_share_away(bench: CanaryBench) -> None:
    rules: dict[str, object] = {"approvals": APPROVALS, "people": PEOPLE}
    bench.declare("1.0.0", **rules)
    bench.declare("1.1.0", PLAN, **rules)
    bench.decide("bob")
    bench.reconcile()
    bench.decide("cid", decision=ApprovalDecision.REJECT)
    bench.reconcile()
    canary = bench.canary()
    assert (canary.state, canary.share) == (CanaryState.PAUSED, 0.0)
    assert {run.release.version for run in bench.start(12) if run.release} == {"1.0.0"}


def test_a_hold_takes_the_share_away(bench: CanaryBench) -> None:
    bench.declare("1.1.0", PLAN)
    with bench.store.write() as tx:
        registry.hold(tx, Hold(environment="prod", bundle="mail", digest=None, actor="ann", reason="look", since=tx.at))
    bench.reconcile()
    assert (bench.canary().state, bench.canary().share) == (CanaryState.PAUSED, 0.0)


def test_a_requested_rollback_ends_the_canary(bench: CanaryBench) -> None:
    bench.declare("1.1.0")
    bench.repo.bundle("mail", "1.2.0")
    bench.declare("1.2.0", PLAN)
    payload = {"environment": "prod", "bundle": "mail", "reason": "bad"}
    request = ControllerRequest(id="ask_1", kind="rollback", payload=payload, actor="ann", status="open", result=None)
    bench.reconciler().handlers["rollback"](request, bench.lease())
    assert (bench.canary().state, bench.canary().share) == (CanaryState.ENDED, 0.0)
    assert bench.served() == {"mail": "1.0.0"}


def test_another_version_in_git_ends_the_canary_and_begins_its_own(bench: CanaryBench) -> None:
    bench.declare("1.1.0", PLAN)
    first = bench.canary()
    bench.repo.bundle("mail", "1.2.0")
    bench.declare("1.2.0", PLAN)
    assert bench.outcome.state == "CanaryRunning"
    second = bench.canary()
    assert (second.version, second.step, second.id != first.id) == ("1.2.0", 1, True)
    with bench.store.read() as tx:
        ended = canaries.get(tx, first.id)
    assert ended is not None
    assert (ended.state, ended.share) == (CanaryState.ENDED, 0.0)


def test_a_plan_shows_the_canary_to_come(bench: CanaryBench) -> None:
    bench.repo.environment("prod", {"mail": "1.1.0"}, canaries={"mail": PLAN})
    bench.repo.commit("Release mail 1.1.0")
    request = ControllerRequest(id="ask_1", kind="plan", payload={}, actor="ann", status="open", result=None)
    planned = bench.reconciler().handlers["plan"](request, bench.lease())["environments"]
    assert isinstance(planned, list)
    (gate,) = next(item for item in planned if item["name"] == "prod")["gates"]
    assert (gate["gate"], gate["reason"]) == ("canary", "CanaryPending")
    assert "50%, 100% of new runs" in gate["message"]


def test_runs_that_wait_for_people_count_once_they_are_old_enough(bench: CanaryBench) -> None:
    bench.declare("1.1.0", {**PLAN, "within": "1h"})
    bench.start(30)
    assert bench.reconcile().outcomes["prod"].state == "CanaryRunning"
    bench.later(timedelta(hours=2))
    assert isinstance(bench.reconcile().outcomes["prod"], Ready)


def test_the_message_of_a_canary_is_recorded_once(bench: CanaryBench) -> None:
    bench.declare("1.1.0", PLAN)
    for _ in range(3):
        bench.end(bench.start(2))
        bench.reconcile()
    reasons = [event["reason"] for event in bench.events("release.waiting")]
    assert reasons == ["CanaryRunning"]


@pytest.mark.parametrize("before", [0, 3], ids=["read first", "remembered"])
def test_a_share_that_was_raised_in_the_database_starts_no_more_runs(bench: CanaryBench, before: int) -> None:
    bench.declare("1.1.0", {**PLAN, "steps": ["5%", "100%"]})
    bench.start(before)
    with bench.store.write() as tx:
        tx.connection.execute(update(canaries.canaries).values(share=10_000))
    assert len(bench.arm(bench.start(20), "1.1.0")) <= (10 if before else 0)


def test_a_start_with_a_canary_reads_no_more_than_one_without(bench: CanaryBench) -> None:
    def count_reads() -> int:
        with statements(bench.store) as found:
            bench.start()
        return len(found)

    bench.start()
    before = count_reads()
    bench.declare("1.1.0", {**PLAN, "steps": ["5%", "100%"]})
    bench.start()
    assert min(count_reads() for _ in range(5)) == before, "the few runs of the canary read its bundle"


# ---- operators ------------------------------------------------------------------------------------------------------


def _operate(bench: CanaryBench, act: str) -> CanaryView:
    bench.drop_lease()  # a controller that does not answer would be waited for
    view: CanaryView = OPERATIONS[act](operation_context(bench.store), "prod", "mail", CanaryChange(reason="because"))
    return view


OPERATIONS: dict[str, Any] = {
    "pause": pause_canary,
    "resume": resume_canary,
    "promote": promote_canary,
    "abort": abort_canary,
    "restart": restart_canary,
}


def test_a_paused_canary_keeps_its_share_and_takes_no_step(bench: CanaryBench) -> None:
    bench.declare("1.1.0", PLAN)
    assert (_operate(bench, "pause").state, bench.canary().share) == ("paused", 0.5)
    bench.end(bench.start(30))
    assert bench.reconcile().outcomes["prod"].state == "CanaryPaused"
    assert _operate(bench, "resume").state == "running"
    bench.end(bench.start(30))
    assert isinstance(bench.reconcile().outcomes["prod"], Ready)


def test_a_canary_that_is_paused_rolls_back_too(bench: CanaryBench) -> None:
    bench.declare("1.1.0", {**PLAN, "every": "500 runs"})
    _operate(bench, "pause")
    found = bench.start(60)
    bench.end(found, *bench.arm(found, "1.1.0"))
    bench.reconciler().settle_canaries(bench.lease())
    assert bench.canary().state is CanaryState.ROLLED_BACK


def test_an_aborted_canary_waits_for_its_restart(bench: CanaryBench) -> None:
    bench.declare("1.1.0", PLAN)
    assert _operate(bench, "abort").state == "ended"
    assert bench.reconcile().outcomes["prod"].state == "CanaryEnded"
    _operate(bench, "restart")
    assert bench.reconcile().outcomes["prod"].state == "CanaryRunning"
    assert (bench.canary().step, bench.canary().share) == (1, 0.5)


def test_a_canary_that_was_rolled_back_begins_again_after_a_restart(bench: CanaryBench) -> None:
    _roll_back(bench)
    with pytest.raises(KneoError) as caught:
        _operate(bench, "resume")
    assert caught.value.code == "canary_ended"
    _operate(bench, "restart")
    assert bench.reconcile().outcomes["prod"].state == "CanaryRunning"


def test_approvals_after_a_rollback_reopen_the_gate_and_earlier_ones_do_not(bench: CanaryBench) -> None:
    rules: dict[str, object] = {"approvals": APPROVALS, "people": PEOPLE}
    bench.declare("1.0.0", **rules)
    bench.declare("1.1.0", {**PLAN, "every": "500 runs"}, **rules)
    bench.decide("bob")
    bench.reconcile()
    found = bench.start(60)
    bench.end(found, *bench.arm(found, "1.1.0"))
    assert bench.reconcile().outcomes["prod"].state == "CanaryRolledBack"
    bench.later(timedelta(minutes=1))
    bench.decide("bob")
    assert bench.reconcile().outcomes["prod"].state == "CanaryRunning"


def test_an_early_promotion_needs_the_approvals_of_the_bundle(bench: CanaryBench) -> None:
    rules: dict[str, object] = {"approvals": APPROVALS, "people": PEOPLE}
    bench.declare("1.0.0", **rules)
    bench.declare("1.1.0", PLAN, **rules)
    bench.decide("bob")
    bench.reconcile()
    _operate(bench, "promote")
    assert bench.reconcile().outcomes["prod"].state == "AwaitingApproval"
    assert bench.canary().share == 0.5
    bench.decide("bob")
    assert isinstance(bench.reconcile().outcomes["prod"], Ready)
    assert bench.served() == {"mail": "1.1.0"}
    with pytest.raises(KneoError) as caught:
        get_canary_result(operation_context(bench.store), "prod", "mail")
    assert caught.value.code == "canary_not_ended"


def test_a_full_approval_covers_the_canary_too(bench: CanaryBench) -> None:
    rules: dict[str, object] = {"approvals": APPROVALS, "people": PEOPLE}
    bench.declare("1.0.0", **rules)
    bench.declare("1.1.0", PLAN, **rules)
    waits = bench.pending()[0]
    with bench.store.write() as tx:
        decided = registry.prepare_decision(
            tx, "prod", waits, ApprovalDecision.APPROVE, tx.now + timedelta(days=7), full=True
        )
        registry.record_decision(tx, decided, approver="bob", service_key=bench.service_key)
    assert (decided.subject, decided.about) == (waits.digest, None)
    assert bench.reconcile().outcomes["prod"].state == "CanaryRunning"
    bench.declare("1.1.0", **rules)
    assert isinstance(bench.outcome, Ready)


@pytest.mark.parametrize("act", ["pause", "resume", "abort", "restart", "promote"])
def test_a_bundle_without_a_canary_is_not_found(bench: CanaryBench, act: str) -> None:
    with pytest.raises(NotFound) as caught:
        _operate(bench, act)
    assert caught.value.code == "canary_not_found"


def test_the_view_has_the_figures(bench: CanaryBench) -> None:
    bench.declare("1.1.0", {**PLAN, "every": "500 runs"})
    found = bench.start(30)
    bench.end(found, *bench.arm(found, "1.0.0")[:2])
    bench.reconcile()
    view = get_canary(operation_context(bench.store), "prod", "mail")
    assert (view.runs + view.control, view.steps, view.step) == (30, [0.5, 1.0], 1)
    (metric,) = view.metrics
    assert (metric.candidate_bad, metric.control_bad, metric.ratio, metric.limit) == (0, 2, 0.0, 20.0)
    assert view.next == "the next step needs 470 more runs"
    assert bench.canary().salt not in to_json(view).decode(), "no caller can compute which version a session gets"


# ---- results and rebuilds -------------------------------------------------------------------------------------------


def _pass(bench: CanaryBench) -> None:
    bench.declare("1.1.0", PLAN)
    bench.end(bench.start(30))
    assert isinstance(bench.reconcile().outcomes["prod"], Ready)


def _commit_result(bench: CanaryBench) -> None:
    envelope = get_canary_result(operation_context(bench.store), "prod", "mail")
    bench.repo.write("bundles/mail/1.1.0.evidence/canary.dsse.json", json.dumps(envelope).encode())
    bench.repo.commit("Add the result of the canary")


@pytest.fixture
def trusted(bench: CanaryBench) -> CanaryBench:
    """A repository whose trust root has the service key under the role controller."""
    key = bench.store.find_key()
    assert key is not None
    bench.repo.next_root(add_key(bench.repo.root, key.public, principal="service", roles=["controller"]))
    bench.repo.commit("Trust the service")
    bench.reconcile()
    return bench


Rebuild = Callable[[], CanaryBench]


@pytest.fixture
def rebuild(trusted: CanaryBench, tmp_path: Path, migrated_file: Callable[[str], Path]) -> Iterator[Rebuild]:
    """Rebuild the registry from the commits in an empty database."""
    opened: list[Store] = []

    def again() -> CanaryBench:
        other = CanaryBench.__new__(CanaryBench)
        other.__dict__ |= trusted.__dict__
        other.store = open_store(
            f"sqlite:///{migrated_file('again.sqlite')}", trusted.store.clock, trusted.store.find_key
        )
        opened.append(other.store)
        other.folder = tmp_path / "again"
        other.starter = Starter(other.store, Spec.model_validate, pin=trusted.repo.pin)
        other.outcome = other.reconcile().outcomes["prod"]
        return other

    yield again
    for store in opened:
        store.close()


def test_a_rebuild_after_a_canary_that_passed_releases_its_version_with_the_result(
    trusted: CanaryBench, rebuild: Rebuild
) -> None:
    _pass(trusted)
    _commit_result(trusted)
    trusted.reconcile()
    again = rebuild()
    assert again.served() == trusted.served() == {"mail": "1.1.0"}
    assert again.events("release.promoted")[0]["attestations"]


def test_a_rebuild_without_the_result_pauses_the_canary_without_a_share(trusted: CanaryBench, rebuild: Rebuild) -> None:
    _pass(trusted)
    again = rebuild()
    assert again.served() == {"mail": "1.0.0"}
    canary = again.canary()
    assert (canary.state, canary.share, canary.reason) == (CanaryState.PAUSED, 0.0, "Rebuilt")
    assert {run.release.version for run in again.start(12) if run.release} == {"1.0.0"}
    _operate(again, "resume")
    assert again.canary().share == 0.5


def test_a_rebuild_during_a_canary_gives_it_no_share(trusted: CanaryBench, rebuild: Rebuild) -> None:
    trusted.declare("1.1.0", PLAN)
    again = rebuild()
    assert (again.outcome.state, again.canary().share, again.served()) == ("CanaryPaused", 0.0, {"mail": "1.0.0"})


def test_a_rebuild_after_a_canary_that_was_rolled_back_keeps_its_version_blocked(
    trusted: CanaryBench, rebuild: Rebuild
) -> None:
    _roll_back(trusted)
    _commit_result(trusted)
    trusted.reconcile()
    again = rebuild()
    assert (again.outcome.state, again.served()) == ("CanaryRolledBack", {"mail": "1.0.0"})
    assert again.canary().state is CanaryState.ROLLED_BACK


def test_a_result_that_the_service_key_did_not_sign_opens_nothing(trusted: CanaryBench, rebuild: Rebuild) -> None:
    _pass(trusted)
    envelope = get_canary_result(operation_context(trusted.store), "prod", "mail")
    payload = parse_envelope(json.dumps(envelope).encode()).payload
    forged = serialise(sign(PAYLOAD_TYPE, payload, trusted.repo.key))
    trusted.repo.write("bundles/mail/1.1.0.evidence/canary.dsse.json", forged)
    trusted.repo.commit("Forge a result")
    assert rebuild().served() == {"mail": "1.0.0"}


def test_the_receipts_of_a_promotion_have_the_result_of_its_canary(bench: CanaryBench) -> None:
    _pass(bench)
    with bench.store.read() as tx:
        done = releases.latest_promotion(tx, "prod", "mail")
    assert done is not None
    view = json.loads(to_json(list_promotion_receipts(operation_context(bench.store), done.id)))
    key = bench.store.find_key()
    assert key is not None
    root = verify_chain(
        bench.repo.pin, [(bench.repo.folder / "environments/trust.json").read_bytes()], SystemClock().now()
    )
    terms = ReceiptTerms(
        root=root,
        service_keys=(key.public,),
        file_of=lambda _: pytest.fail("no rules are read"),
        before=None,
        seen_at=bench.store.clock.now(),
    )
    assert check_attestation(view["canary"], terms).problems == ()
    view["canary"]["statement"]["predicate"]["result"] = "FAILED"
    assert check_attestation(view["canary"], terms).problems


# ---- shares ---------------------------------------------------------------------------------------------------------


def test_two_thousand_starts_over_two_servers_get_the_approved_share(bench: CanaryBench, migrated_url: str) -> None:
    bench.declare("1.1.0", {**PLAN, "steps": ["20%", "100%"], "every": "5000 runs"})
    other = open_store(migrated_url, bench.store.clock, bench.store.find_key)
    starters = [bench.starter, Starter(other, Spec.model_validate, pin=bench.repo.pin)]
    by_session: dict[str, set[str]] = {}
    for number in range(2_000):
        session = f"s{number % 1_000}"
        order = StartRequest(
            input="x", requester="ann", environment="prod", bundle="mail", origin={"session_id": session}
        )
        run = starters[number % 3 % 2].start(order)
        assert run.release is not None
        by_session.setdefault(session, set()).add(run.release.version)
    other.close()
    assert all(len(versions) == 1 for versions in by_session.values())
    candidates = sum(versions == {"1.1.0"} for versions in by_session.values())
    assert 140 <= candidates <= 260
