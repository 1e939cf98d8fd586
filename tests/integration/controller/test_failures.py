"""A defect stops the bundle or the environment that it concerns, is reported there, and stops no other."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from config_repo import announcement
from controller_bench import Bench
from prometheus_client.parser import text_string_to_metric_families

from kneo.cli.serve.listener import Listener
from kneo.cli.serve.worker import serving_probes
from kneo.controller import environment, metrics, preview, reconcile
from kneo.controller.loop import Controller
from kneo.controller.reconcile import Reconciler
from kneo.controller.source.git import SourceLimits
from kneo.controller.source.mirror import Mirror
from kneo.controller.stages import load, verify
from kneo.records.release import ConditionType
from kneo.registry import explain
from kneo.store import requests
from kneo.store.engine import Store
from kneo.store.requests import ControllerRequest

SECRET = "sk-live-1234567890"


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    return Bench(store, tmp_path)


def damaged() -> dict[str, object]:
    """A spec that was signed without a look at it: the kind of a step is a map."""
    spec = announcement()
    assert isinstance(spec["workflow"], dict)
    spec["workflow"]["steps"][0]["kind"] = {"agent": SECRET}
    return spec


def release_everywhere(bench: Bench, **specs: dict[str, object]) -> None:
    """Declare mail in dev, and bank in dev and in prod."""
    for name in ("mail", "bank"):
        bench.repo.bundle(name, "1.0.0", specs.get(name))
    bench.repo.environment("dev", {"mail": "1.0.0", "bank": "1.0.0"}, inlineSpecs=True)
    bench.repo.environment("prod", {"bank": "1.0.0"})
    bench.repo.commit("Release")


def fails(original: Callable[..., object], when: Callable[..., bool]) -> Callable[..., object]:
    """A function with a defect that some of its arguments meet."""

    def defective(*args: object, **kwargs: object) -> object:
        if when(*args):
            raise TypeError(SECRET)
        return original(*args, **kwargs)

    return defective


def test_a_signed_bundle_of_an_unexpected_structure_is_refused_alone(bench: Bench) -> None:
    release_everywhere(bench, mail=damaged())
    outcomes = bench.reconcile().outcomes
    assert (outcomes["dev"].state, outcomes["prod"].state) == ("SpecInvalid", "Ready")
    assert (bench.served("dev"), bench.served()) == ({"bank": "1.0.0"}, {"bank": "1.0.0"})
    (refused,) = bench.pending("dev")
    assert (refused.bundle, refused.gate, refused.reason) == ("mail", "verify", "SpecInvalid")
    assert "workflow.steps[0]" in refused.message


def test_a_defect_in_the_check_of_a_bundle_refuses_this_bundle(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    release_everywhere(bench)
    monkeypatch.setattr(verify, "check_spec", fails(verify.check_spec, lambda bundle, *_: bundle.name == "mail"))
    with caplog.at_level(logging.ERROR, "kneo.controller"):
        outcomes = bench.reconcile().outcomes
    assert (outcomes["dev"].state, outcomes["prod"].state) == ("SpecInvalid", "Ready")
    assert bench.served("dev") == {"bank": "1.0.0"}
    (refused,) = bench.pending("dev")
    assert refused.message.startswith("The check of mail 1.0.0 failed with an unexpected TypeError.")
    assert SECRET not in refused.message
    (logged,) = caplog.records
    assert logged.exc_info is not None
    assert "check_spec" in str(logged.exc_info[2] and caplog.text)


def test_a_defect_in_an_environment_is_its_condition_and_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_everywhere(bench)
    controller = Controller(bench.store, bench.reconciler())
    metrics.clear_findings()
    failed = counted("kneo_reconcile_total", result="failed")
    with monkeypatch.context() as defect:
        defect.setattr(environment, "make_plan", fails(environment.make_plan, lambda rules, *_: rules.name == "dev"))
        turn(bench, controller)
    assert (bench.served("dev"), bench.served()) == ({}, {"bank": "1.0.0"})
    assert bench.condition(ConditionType.STALLED, "dev") == (True, "ReconcileFailed")
    assert bench.condition(ConditionType.READY, "dev") == (False, "ReconcileFailed")
    assert bench.condition(ConditionType.READY, "prod") == (True, "Serving")
    assert counted("kneo_environment_ready", environment="dev") == 0
    assert counted("kneo_environment_ready", environment="prod") == 1
    assert counted("kneo_reconcile_total", result="failed") == failed + 1
    assert controller.reconciler.commit is None, "the same commit is reconciled again"
    assert controller.is_alive()

    turn(bench, controller)
    assert bench.served("dev") == {"mail": "1.0.0", "bank": "1.0.0"}
    assert bench.condition(ConditionType.STALLED, "dev") is None
    assert counted("kneo_environment_ready", environment="dev") == 1


def test_the_reason_of_a_failed_reconciliation_is_explained(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    release_everywhere(bench)
    bench.reconcile()
    bench.repo.bundle("bank", "1.1.0")
    bench.repo.environment("prod", {"bank": "1.1.0"})
    bench.repo.commit("Release another version")
    monkeypatch.setattr(environment, "make_plan", fails(environment.make_plan, lambda rules, *_: rules.name == "prod"))
    assert bench.reconcile().outcomes["prod"].state == "ReconcileFailed"
    with bench.store.read() as tx:
        (gate,) = explain.why(tx, "prod", "bank").gates
    assert (gate.gate, gate.reason) == ("environment", "ReconcileFailed")
    assert gate.message == (
        "The reconciliation of prod failed with an unexpected TypeError. "
        "The log of the controller has the traceback; please report this defect."
    )
    assert bench.served() == {"bank": "1.0.0"}


def test_a_defect_in_reading_an_environment_file_is_a_problem_of_this_environment(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.reconcile()
    release_everywhere(bench)
    monkeypatch.setattr(load, "parse_environment", fails(load.parse_environment, lambda text: b"name: dev" in text))
    outcomes = bench.reconcile().outcomes
    assert (outcomes["dev"].state, outcomes["prod"].state) == ("ReconcileFailed", "Ready")


def test_a_defect_outside_of_the_environments_is_the_condition_of_each(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_everywhere(bench)
    controller = Controller(bench.store, bench.reconciler())
    turn(bench, controller)
    with monkeypatch.context() as defect:
        defect.setattr(reconcile, "establish_trust", fails(reconcile.establish_trust, lambda *_: True))
        result = turn(bench, controller)
    assert result["error"] == "internal_error"
    assert SECRET not in str(result)
    for name in ("dev", "prod"):
        assert bench.condition(ConditionType.STALLED, name) == (True, "ReconcileFailed")
        assert counted("kneo_environment_ready", environment=name) == 0
    turn(bench, controller)
    assert bench.condition(ConditionType.READY) == (True, "Serving")


def test_two_bundles_of_one_number_in_one_commit_stop_no_third_environment(bench: Bench) -> None:
    bench.repo.bundle("mail", "1.0.0")
    bench.repo.bundle("mail", "1.1.0", bench.repo.other_spec(), seq=1)
    bench.repo.bundle("bank", "1.0.0", environments=["third"])
    bench.repo.environment("dev", {"mail": "1.0.0"}, inlineSpecs=True)
    bench.repo.environment("prod", {"mail": "1.1.0"})
    bench.repo.environment("third", {"bank": "1.0.0"})
    bench.repo.commit("Release two bundles of one number")
    outcomes = bench.reconcile().outcomes
    assert {name: outcome.state for name, outcome in outcomes.items()} == {
        "dev": "Ready",
        "prod": "Equivocation",
        "third": "Ready",
    }
    assert bench.served("third") == {"bank": "1.0.0"}
    assert bench.reconcile().outcomes["prod"].state == "Equivocation"
    assert bench.pending("prod")[0].reason == "Equivocation"


def test_an_environment_with_too_large_bundles_stops_no_other(bench: Bench) -> None:
    large = announcement(metadata={"purpose": "x" * 20_000})
    release_everywhere(bench, mail=large, bank=large)
    limits = replace(SourceLimits(), read_bytes=40_000)
    mirror = Mirror(str(bench.repo.folder), "main", bench.folder / "mirrors", limits=limits)
    outcomes = Reconciler(bench.store, mirror, bench.repo.pin).reconcile(bench.lease()).outcomes
    assert (outcomes["dev"].state, outcomes["prod"].state) == ("LimitExceeded", "Ready")


def test_a_plan_of_a_defective_environment_shows_the_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    release_everywhere(bench)
    bench.reconcile()
    bench.repo.bundle("bank", "1.1.0")
    bench.repo.environment("prod", {"bank": "1.1.0"})
    bench.repo.commit("Release another version")
    monkeypatch.setattr(preview, "make_plan", fails(preview.make_plan, lambda rules, *_: rules.name == "dev"))
    handler = bench.reconciler().handlers["plan"]
    request = ControllerRequest(id="ask_1", kind="plan", payload={}, actor="ann", status="open", result=None)
    plan = handler(request, bench.lease())
    environments = plan["environments"]
    assert isinstance(environments, list)
    described = {item["name"]: item for item in environments}
    assert described["dev"]["problem"]["reason"] == "ReconcileFailed"
    assert [action["to"] for action in described["prod"]["actions"]] == ["1.1.0"]


def turn(bench: Bench, controller: Controller) -> dict[str, object]:
    """Let a controller reconcile once; return its result."""
    with bench.store.write() as tx:
        asked = requests.insert_request(tx, "reconcile", {"environment": "-"}, "test")
    controller._turn()
    with bench.store.read() as tx:
        found = requests.get(tx, asked)
    assert found is not None
    return dict(found.result or {})


def counted(name: str, **labels: str) -> float:
    """A figure of the controller, as a monitor reads it."""
    with contextlib.closing(Listener("127.0.0.1", 0)) as listener, serving_probes(listener, lambda: True):
        text = httpx.get(f"http://127.0.0.1:{listener.port}/metrics", timeout=240).text
    found = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return next((each.value for each in found if each.name == name and labels.items() <= each.labels.items()), 0.0)
