"""An environment pins the code behind its specs, from the commit to the step."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from config_repo import ConfigRepo, announcement
from engine import level_sandboxes

from kneo.clock import ManualClock, SystemClock
from kneo.controller.reconcile import Reconciler
from kneo.controller.source.mirror import Mirror
from kneo.digest import digest_of
from kneo.records.run import Run, RunStatus
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.start import Starter, StartRequest
from kneo.runtime.engine.wait import find_run
from kneo.runtime.engine.worker import Driver
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.executor import Executor
from kneo.spec.models.spec import Spec
from kneo.store import requests
from kneo.store.engine import Store
from kneo.store.requests import Lease


def straight() -> dict[str, object]:
    """The tour's spec without its person."""
    workflow = {"type": "sequential", "steps": [{"id": "publish", "kind": "function", "ref": "publish"}]}
    return announcement(workflow=workflow)


def run_with(store: Store, repo: ConfigRepo, folder: Path, pins: dict[str, str]) -> Run:
    repo.bundle("mail", "1.0.0", straight())
    repo.environment("prod", {"mail": "1.0.0"}, implementations=pins)
    repo.commit("Release mail under pins")
    with store.write() as tx:
        fence = requests.take_lease(tx, "controller", "me", timedelta(minutes=5))
    assert fence is not None
    mirror = Mirror(str(repo.folder), "main", folder / "mirrors")
    Reconciler(store, mirror, repo.pin).reconcile(Lease("controller", "me", fence))
    order = StartRequest(input="hi", requester="bob", bundle="mail", environment="prod")
    run = Starter(store, Spec.model_validate, pin=repo.pin).start(order)
    code = CodeLoader((repo.folder,), ())
    driver = Driver(store, ProgramLoader(store), Executor(code, level_sandboxes(code)))
    asyncio.run(driver.drive_alone(run.id))
    return find_run(store, run.id)


@pytest.fixture
def repo(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigRepo:
    assert isinstance(store.clock, ManualClock)
    store.clock.advance(SystemClock().now() - store.clock.now())
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "test_functions", raising=False)
    return ConfigRepo(tmp_path / "repo")


def test_the_pinned_code_runs(store: Store, repo: ConfigRepo, tmp_path: Path) -> None:
    digest = digest_of((repo.folder / "test_functions.py").read_bytes())
    run = run_with(store, repo, tmp_path, {"test_functions": digest})
    assert run.status is RunStatus.SUCCEEDED
    assert len(repo.published()) == 1


def test_code_nobody_pinned_has_no_effect(store: Store, repo: ConfigRepo, tmp_path: Path) -> None:
    run = run_with(store, repo, tmp_path, {"test_functions": digest_of(b"what was reviewed")})
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error.type == "implementation_not_pinned"
    assert repo.published() == []
