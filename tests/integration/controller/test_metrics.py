"""What a controller counts, and whether it still lives: read the way a monitor reads it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from controller_bench import Bench, serving
from prometheus_client.parser import text_string_to_metric_families

from kneo.cli.serve.listener import Listener
from kneo.cli.serve.worker import serving_probes
from kneo.controller import loop, metrics
from kneo.controller.loop import LATE, LATE_SECONDS, Controller
from kneo.errors import Transient
from kneo.runtime.engine.start import Starter
from kneo.service.app import create_app
from kneo.settings import from_env
from kneo.store import requests
from kneo.store.engine import Store

Count = Callable[..., float]


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    return Bench(store, tmp_path)


def read(text: str, name: str, **labels: str) -> float:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return 0.0


@contextlib.contextmanager
def probes(is_alive: Callable[[], bool]) -> Iterator[str]:
    """Serve probes during a block; yield their address."""
    with contextlib.closing(Listener("127.0.0.1", 0)) as listener, serving_probes(listener, is_alive):
        yield listener.url


def metrics_text(is_alive: Callable[[], bool]) -> str:
    with probes(is_alive) as url:
        return httpx.get(f"{url}/metrics", timeout=240).text


@pytest.fixture
def count() -> Count:
    """How far a number moved since the test began."""
    began = metrics_text(lambda: True)

    def moved(name: str, **labels: str) -> float:
        now = metrics_text(lambda: True)
        return read(now, name, **labels) - read(began, name, **labels)

    return moved


def turn(controller: Controller) -> None:
    """What ``Controller.run`` does over and over."""
    controller._turn()


def test_a_pass_counts_what_it_did(bench: Bench, count: Count) -> None:
    bench.repo.bundle("mail", "1.0.0")
    bench.repo.bundle("bank", "1.0.0")
    bench.repo.tamper("bank", "1.0.0")
    bench.repo.environment("prod", {"mail": "1.0.0", "bank": "1.0.0"})
    bench.repo.commit("Release one that holds and one that does not")
    controller = Controller(bench.store, bench.reconciler())
    turn(controller)
    assert count("kneo_bundle_verify_total", result="accepted") == 1
    assert count("kneo_bundle_verify_total", result="rejected", reason="SignatureInvalid") == 1
    assert count("kneo_promotion_total", environment="prod", result="promote") == 1
    assert count("kneo_promotion_lead_seconds_count", environment="prod") == 1
    assert 0 <= count("kneo_promotion_lead_seconds_sum", environment="prod") < 600
    assert count("kneo_git_requests_total", op="fetch", result="done") == 1
    assert count("kneo_git_fetch_bytes_total") > 500
    assert count("kneo_reconcile_duration_seconds_count", loop="pass") == 1
    assert count("kneo_reconcile_total", result="done") == 1
    assert read(metrics_text(controller.is_alive), "kneo_environment_ready", environment="prod") == 0
    assert (
        read(metrics_text(controller.is_alive), "kneo_trust_root_expiry_timestamp")
        > bench.store.clock.now().timestamp()
    )


FINDINGS = ("kneo_environment_ready", "kneo_drift_objects")


def findings(controller: Controller) -> set[str]:
    """Return the environments of each gauge of findings, and whether the expiry of the trust root is known."""
    families = [*text_string_to_metric_families(metrics_text(controller.is_alive))]
    named = {f"{s.name} {s.labels['environment']}" for f in families for s in f.samples if s.name in FINDINGS}
    expiry = read(metrics_text(controller.is_alive), "kneo_trust_root_expiry_timestamp")
    return named | ({"root"} if expiry else set())


def test_findings_are_cleared_with_the_lease(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr(loop, "monotonic", lambda: now)
    metrics.clear_findings()
    controller = Controller(bench.store, bench.reconciler())
    bench.repo.release("prod", "mail", "1.0.0")
    turn(controller)
    every = findings(controller)
    assert {*(f"{name} prod" for name in FINDINGS), "root"} <= every

    def give_lease(owner: str | None) -> None:
        with bench.store.write() as tx:
            requests.drop_lease(tx, requests.CONTROLLER_LEASE, controller.owner)
            if owner is not None:
                assert requests.take_lease(tx, requests.CONTROLLER_LEASE, owner, loop.LEASE)
            else:
                requests.drop_lease(tx, requests.CONTROLLER_LEASE, "other")

    give_lease("other")
    now += loop.LEASE.total_seconds()
    turn(controller)
    assert findings(controller) == set()

    # The commit is the same and the interval is not over, but the gauges are empty.
    give_lease(None)
    now += 1
    turn(controller)
    assert findings(controller) == every


def test_findings_are_cleared_when_the_database_is_away_for_longer_than_the_lease(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    monkeypatch.setattr(loop, "monotonic", lambda: now)
    monkeypatch.setattr(loop, "REQUEST_POLL_SECONDS", 0)
    metrics.clear_findings()
    controller = Controller(bench.store, bench.reconciler())
    bench.repo.release("prod", "mail", "1.0.0")
    turn(controller)
    seen: list[bool] = []

    def away() -> None:
        nonlocal now
        seen.append(bool(findings(controller)))
        now += loop.LEASE.total_seconds() / 2
        if len(seen) == 4:
            controller.stop()
        msg = "The database did not answer."
        raise Transient(msg)

    monkeypatch.setattr(controller, "_turn", away)
    controller.run()
    assert seen == [True, True, False, False]


def test_gauges_of_an_environment_that_was_removed_disappear(bench: Bench) -> None:
    metrics.clear_findings()
    controller = Controller(bench.store, bench.reconciler())
    bench.repo.bundle("mail", "1.0.0")
    bench.repo.environment("old", {"mail": "1.0.0"}, prune={"maxPercent": 100})
    bench.repo.environment("prod", {"mail": "1.0.0"})
    bench.repo.commit("Release twice")
    turn(controller)
    both = {f"{gauge} {name}" for gauge in FINDINGS for name in ("dev", "old", "prod")} | {"root"}
    assert findings(controller) == both

    file = bench.repo.folder / "environments/old.yaml"
    declared = file.read_text()
    file.unlink()
    bench.repo.commit("Remove old while it serves")
    reconcile(bench, controller)
    assert read(metrics_text(controller.is_alive), "kneo_environment_ready", environment="old") == 0
    assert findings(controller) == both, "it still serves a release"

    file.write_text(declared)
    bench.repo.environment("old", {}, prune={"maxPercent": 100})
    bench.repo.commit("Remove the release of old")
    reconcile(bench, controller)
    bench.repo.environment("old", {}, retired=True, prune={"maxPercent": 100})
    bench.repo.commit("Retire old")
    reconcile(bench, controller)
    assert findings(controller) == both
    file.unlink()
    bench.repo.commit("Remove old")
    reconcile(bench, controller)
    assert findings(controller) == {name for name in both if not name.endswith(" old")}


def test_no_environment_is_ready_while_the_history_is_rewritten(bench: Bench) -> None:
    metrics.clear_findings()
    controller = Controller(bench.store, bench.reconciler())
    bench.repo.release("prod", "mail", "1.0.0")
    turn(controller)
    assert read(metrics_text(controller.is_alive), "kneo_environment_ready", environment="prod") == 1
    bench.repo.git("commit", "--amend", "-q", "-m", "Another history")
    reconcile(bench, controller)
    assert read(metrics_text(controller.is_alive), "kneo_environment_ready", environment="prod") == 0
    assert "kneo_environment_ready prod" in findings(controller)


def reconcile(bench: Bench, controller: Controller) -> None:
    """Let a controller reconcile now."""
    with bench.store.write() as tx:
        requests.insert_request(tx, "reconcile", {"environment": "-"}, "test")
    turn(controller)


def test_a_commit_that_no_webhook_told_of_is_counted(
    bench: Bench, count: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    monkeypatch.setattr(loop, "monotonic", lambda: now)
    controller = Controller(bench.store, bench.reconciler())
    bench.repo.release("prod", "mail", "1.0.0")
    turn(controller)
    assert count("kneo_webhook_missed_total") == 0

    now += 3_600
    turn(controller)
    assert (count("kneo_webhook_missed_total"), count("kneo_reconcile_duration_seconds_count", loop="poll")) == (0, 1)

    bench.repo.release("prod", "mail", "1.1.0")
    now += 3_600
    turn(controller)
    assert count("kneo_webhook_missed_total") == 1

    bench.repo.release("prod", "mail", "1.2.0")
    with bench.store.write() as tx:
        requests.insert_request(tx, "reconcile", {"environment": "-"}, "hook:generic")
    turn(controller)
    assert bench.served() == {"mail": "1.2.0"}
    assert count("kneo_webhook_missed_total") == 1


def test_a_host_that_does_not_answer_is_counted(bench: Bench, count: Count) -> None:
    controller = Controller(bench.store, bench.reconciler())
    bench.repo.git("branch", "-m", "main", "gone")
    turn(controller)
    assert count("kneo_git_requests_total", op="fetch", result="failed") == 1
    assert count("kneo_reconcile_total", result="failed") == 1


def test_liveness_fails_when_no_look_finished_in_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr(loop, "monotonic", lambda: now)
    controller = Controller(bench.store, bench.reconciler())
    late = max(LATE_SECONDS, LATE * controller.interval.total_seconds())
    with probes(controller.is_alive) as url:
        probe = f"{url}/livez"
        turn(controller)
        assert httpx.get(probe, timeout=240).status_code == 200
        bench.repo.git("branch", "-m", "main", "gone")
        now += late + 1
        turn(controller)
        assert httpx.get(probe, timeout=240).status_code == 503
        bench.repo.git("branch", "-m", "gone", "main")
        now += late + 1
        turn(controller)
        assert httpx.get(probe, timeout=240).status_code == 200


def test_a_service_tells_of_its_controller_and_its_hooks(bench: Bench, tmp_path: Path) -> None:
    alive = True
    settings = replace(from_env({}, tmp_path), hook_secrets={"generic": "secret"})
    starter = Starter(bench.store, lambda spec: spec, pin=bench.repo.pin)
    bench.repo.release("prod", "mail", "1.0.0")
    bench.reconcile()
    with serving(create_app(settings, bench.store, starter, alive=lambda: alive)) as http:
        assert http.get("/v1/livez").status_code == 200
        alive = False
        assert http.get("/v1/livez").status_code == 503
        assert http.post("/v1/hooks/generic", content=b"{}").status_code == 401
        text = http.get("/metrics").text
    assert read(text, "kneo_webhook_total", provider="generic", result="refused") == 1
    assert read(text, "kneo_audit_tree_size") == len(bench.sealed("release.promoted")) + len(
        bench.sealed("trust.accepted")
    ) + len(bench.sealed("environment.declared"))
    assert read(text, "kneo_bundle_verify_total", result="accepted") >= 1
