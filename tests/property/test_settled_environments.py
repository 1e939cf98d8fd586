"""Environments whose evaluation is left out stand exactly as a full evaluation of every environment leaves them.

Each step changes something at random, and lets two controllers reconcile: the one under test, and one that evaluates everything, on a copy
of the database as it was before. Where the first one left an environment out, every row about it is the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest
from canary_bench import PLAN, CanaryBench
from config_repo import ConfigRepo
from installation_key import find_key
from sqlalchemy import MetaData, delete, select

from kneo import registry
from kneo.clock import ManualClock, isoformat
from kneo.controller.reconcile import Reconciler
from kneo.controller.source.mirror import Mirror
from kneo.controller.stages.report import Outcome
from kneo.errors import KneoError, Transient
from kneo.records.release import Hold, Suspension
from kneo.registry import canaries as live_canaries
from kneo.runtime.engine.start import Starter
from kneo.spec.models.environment import Environment
from kneo.spec.models.spec import Spec
from kneo.store import releases, requests
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.requests import ControllerRequest
from kneo.store.tables import approvals, holds, metadata
from kneo.trust.statement import ApprovalDecision

STEPS = 12
PEOPLE = {name: {"roles": ["approver"]} for name in ("bob", "cid")}
APPROVALS = {"required": 1, "roles": ["approver"], "expires": "2d"}
BUNDLES = ("mail", "fax")
VERSIONS = tuple(f"1.{number}.0" for number in range(4))

SPECS: Mapping[str, dict[str, object]] = {
    "dev": {},
    "qa": {"promoteFrom": "dev", "soak": "1h"},
    "asks": {"approvals": APPROVALS, "people": PEOPLE},
    "opens": {"windows": [{"allow": "Mon-Fri 09:00 - 17:00"}], "approvals": APPROVALS, "people": PEOPLE},
    "prod": {"canaries": {"mail": PLAN}},
    "quiet": {"prune": {"maxPercent": 10}, "atomic": True},
}


class World:
    """A repository of several environments, a registry with the controller under test, and random changes of both."""

    def __init__(self, store: Store, folder: Path, seed: int) -> None:
        self.random = Random(seed)
        self.folder = folder
        self.bench = CanaryBench(store, folder)
        self.repo: ConfigRepo = self.bench.repo
        (self.repo.folder / "environments/dev.yaml").unlink()
        (self.repo.folder / "environments/prod.yaml").unlink()
        for bundle in BUNDLES:
            for version in VERSIONS:
                self.repo.bundle(bundle, version, self.repo.other_spec(), environments=list(SPECS))
        # The first files of environments that require approvals would wait for keys of the trust root.
        self.specs: dict[str, dict[str, object]] = {name: {} for name in SPECS}
        self.released: dict[str, dict[str, str]] = {name: {"mail": "1.0.0"} for name in SPECS}
        self.number = 0
        self.commit(*SPECS)
        self.owner = "me"
        self.subject = self.bench.reconciler()
        self.bench.starter = Starter(store, Spec.model_validate, pin=self.repo.pin)
        self.left_out: set[str] = set()
        self.times_left_out = 0
        self.waiting_left_out = 0
        self.reconcile()
        self.specs = {name: dict(spec) for name, spec in SPECS.items()}
        self.commit(*SPECS)
        self.reconcile()
        self.commit()
        self.times_left_out = 0

    # ---- changes ------------------------------------------------------------------------------------------------

    def commit(self, *names: str) -> None:
        for name in names:
            self.repo.environment(name, self.released[name], **self.specs[name])
        self.number += 1
        self.repo.write("README.md", str(self.number).encode())
        self.repo.commit(f"Change {self.number}")

    def change_nothing(self) -> None:
        self.commit()

    def release(self) -> None:
        name = self.random.choice([*SPECS, "asks", "opens", "opens"])
        self.released[name][self.random.choice(BUNDLES)] = self.random.choice(VERSIONS)
        self.commit(name)

    def remove(self) -> None:
        name = self.random.choice(list(SPECS))
        self.released[name].pop(self.random.choice(BUNDLES), None)
        self.commit(name)

    def change_rules(self) -> None:
        name = self.random.choice(list(SPECS))
        added = self.random.choice([{"suspend": True}, {"approvals": APPROVALS, "people": PEOPLE}, {"atomic": True}])
        self.specs[name] = {**SPECS[name], **(added if self.random.random() < 0.6 else {})}
        self.commit(name)

    def sign_approval(self) -> None:
        name = self.random.choice(["asks", "opens"])
        released = list(self.released[name].items())
        if released:
            bundle, version = self.random.choice(released)
            verdict = self.random.choice(list(ApprovalDecision))
            issued = self.bench.store.clock.now() + timedelta(minutes=self.random.choice([-1, 20]))
            self.repo.approve(name, bundle, version, "ann", decision=verdict, issued_at=issued)
        self.commit()

    def wait(self) -> None:
        minutes = self.random.choice([0, 1, 4, 61, 6 * 60, 26 * 60, 50 * 60, -3])
        self.clock.advance(timedelta(minutes=minutes))

    def decide(self) -> None:
        waiting = [name for name in SPECS if any(item.subject for item in self.bench.pending(name))]
        if waiting:
            name = self.random.choice(waiting)
            item = self.random.choice([item for item in self.bench.pending(name) if item.subject])
            with self.bench.store.write() as tx:
                decided = registry.prepare_decision(
                    tx, name, item, self.random.choice(list(ApprovalDecision)), tx.now + self.span()
                )
                person = self.random.choice(["bob", "cid", "eve"])
                registry.record_decision(tx, decided, approver=person, service_key=self.bench.service_key)

    def hold(self) -> None:
        name, bundle = self.random.choice(list(SPECS)), self.random.choice(BUNDLES)
        with self.bench.store.write() as tx:
            if bundle in registry.holds_in_force(tx, name):
                registry.unhold(tx, name, bundle, actor="bob")
            else:
                until = isoformat(tx.now + self.span()) if self.random.random() < 0.7 else None
                item = Hold(
                    environment=name, bundle=bundle, digest=None, actor="bob", reason="wait", since=tx.at, until=until
                )
                registry.hold(tx, item)

    def suspend(self) -> None:
        name = self.random.choice(list(SPECS))
        with self.bench.store.write() as tx:
            if registry.suspension_in_force(tx, name) is not None:
                registry.unsuspend(tx, name, actor="bob")
            else:
                until = isoformat(tx.now + self.span()) if self.random.random() < 0.7 else None
                registry.suspend(tx, Suspension(environment=name, actor="bob", reason="wait", since=tx.at, until=until))

    def direct_canary(self) -> None:
        turn = self.random.choice(
            [
                live_canaries.pause_by,
                live_canaries.resume_by,
                live_canaries.promote_by,
                live_canaries.abort_by,
                live_canaries.restart_by,
            ]
        )
        with self.bench.store.write() as tx:
            turn(tx, "prod", "mail", "because", "bob")

    def run_canary(self) -> None:
        started = self.bench.start(12)
        self.bench.end(started, *self.random.sample(started, self.random.choice([0, 0, 6])))

    def fail_in_dev(self) -> None:
        if self.bench.served("dev"):
            self.bench.failed_run(self.random.choice(list(self.bench.served("dev"))), "dev")

    def delete_rows(self) -> None:
        with self.bench.store.write() as tx:
            tx.connection.execute(delete(self.random.choice([holds, approvals])))

    def roll_back(self) -> None:
        name = self.random.choice(list(SPECS))
        payload = {"environment": name, "bundle": self.random.choice(BUNDLES), "to": None, "reason": "broken"}
        asked = ControllerRequest(id="req_1", kind="rollback", payload=payload, actor="bob", status="open", result=None)
        self.subject.handlers["rollback"](asked, self.bench.lease(self.owner))

    def take_over(self) -> None:
        """Let another controller reconcile, which is then gone."""
        self.bench.take_over(self.owner)
        self.bench.reconciler().reconcile(self.bench.lease("other"))
        self.bench.take_over("other")

    @property
    def clock(self) -> ManualClock:
        assert isinstance(self.bench.store.clock, ManualClock)
        return self.bench.store.clock

    def span(self) -> timedelta:
        return timedelta(minutes=self.random.choice([2, 30, 5 * 60, 25 * 60]))

    def act(self) -> str:
        actions: Sequence[Callable[[], None]] = (
            *(self.change_nothing, self.release, self.release, self.remove, self.change_rules, self.sign_approval),
            *(self.wait, self.wait, self.wait, self.decide, self.decide, self.hold, self.suspend),
            *(self.direct_canary, self.run_canary, self.fail_in_dev, self.delete_rows, self.roll_back, self.take_over),
        )
        done = []
        for action in self.random.choices(actions, k=self.random.choice([0, 1, 1, 2])):
            done.append(action.__name__)
            try:
                action()
            except KneoError:
                done.append("(refused)")
        return " ".join(done) or "nothing"

    # ---- reconciliations ----------------------------------------------------------------------------------------

    def reconcile(self) -> Mapping[str, Outcome]:
        evaluated: set[str] = set()
        run = self.subject.environments.run

        def noted(environment: Environment, *arguments: object) -> Outcome:
            evaluated.add(environment.name)
            return run(environment, *arguments)  # type: ignore[arg-type]

        self.subject.environments.run = noted  # type: ignore[method-assign]
        try:
            outcomes = self.subject.reconcile(self.bench.lease(self.owner)).outcomes
        finally:
            self.subject.environments.run = run  # type: ignore[method-assign]
        self.left_out = set(outcomes) - evaluated
        self.times_left_out += len(self.left_out)
        self.waiting_left_out += sum(outcomes[name].state != "Ready" for name in self.left_out)
        return outcomes

    def reconcile_in_full(self, copy: Path) -> tuple[Mapping[str, Outcome], dict[str, set[tuple[object, ...]]]]:
        """Let a controller that knows nothing reconcile a copy of the registry."""
        store = open_store(f"sqlite:///{copy}", self.clock, find_key)
        mirror = Mirror(str(self.repo.folder), "main", self.folder / "mirrors-of-full")
        full = Reconciler(store, mirror, self.repo.pin, service_key=self.bench.service_key.public)
        with store.write() as tx:
            fence = requests.take_lease(tx, "controller", self.owner, timedelta(minutes=5))
        outcomes = full.reconcile(requests.Lease("controller", self.owner, fence or 0)).outcomes
        found = rows_by_environment(store)
        mirror.close()
        store.close()
        return outcomes, found


def rows_by_environment(store: Store) -> dict[str, set[tuple[object, ...]]]:
    """Return every row about an environment, but those of single runs."""
    found: dict[str, set[tuple[object, ...]]] = {name: set() for name in SPECS}
    schema: MetaData = metadata
    with store.read() as tx:
        for table in schema.sorted_tables:
            about = (
                "object" if table.name == "conditions" else "name" if table.name == "environments" else "environment"
            )
            if about not in table.c or table.name in {"runs", "tasks"}:
                continue
            for row in tx.connection.execute(select(table)):
                name = str(getattr(row, about)).removeprefix("environment/")
                if name in found:
                    found[name].add((table.name, *(repr(value) for value in row)))
    return found


@pytest.fixture
def sqlite_store(migrated_file: Callable[[str], Path], clock: ManualClock) -> Store:
    return open_store(f"sqlite:///{migrated_file('kneo.sqlite')}", clock, find_key)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_left_out_stands_as_a_full_evaluation_leaves_it(
    sqlite_store: Store, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The verification of all releases evaluates every environment, and would hide what is left out for too long.
    monkeypatch.setattr("kneo.controller.environment.DRIFT_INTERVAL", timedelta(days=1_000))
    world, story = World(sqlite_store, tmp_path, seed), []
    world.reconcile()
    for _ in range(STEPS):
        story.append(world.act())
        copy = tmp_path / "copy.sqlite"
        with sqlite_store.read() as tx:
            tx.connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copyfile(tmp_path / "kneo.sqlite", copy)
        try:
            expected, rows = world.reconcile_in_full(copy)
            outcomes = world.reconcile()
        except Transient as error:
            pytest.fail(f"{story}: {error}")
        finally:
            for path in tmp_path.glob("copy.sqlite*"):
                path.unlink()
        found = rows_by_environment(sqlite_store)
        for name in world.left_out:
            assert found[name] == rows[name], (name, story)
            assert outcomes[name].state == expected[name].state, (name, story)
        # Both begin with the same rows, so each environment comes to the same state.
        assert {name: item.state for name, item in outcomes.items()} == {
            name: item.state for name, item in expected.items()
        }
    assert world.times_left_out > STEPS, story
    sqlite_store.close()


@pytest.fixture
def world(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world whose environments all wait for nothing, at noon of a Wednesday."""
    monkeypatch.setattr("kneo.controller.environment.DRIFT_INTERVAL", timedelta(days=1_000))
    found = World(store, tmp_path, 0)
    found.reconcile()
    now = found.clock.now()
    noon = now.replace(hour=12, minute=0) + timedelta(days=(2 - now.weekday()) % 7 or 7)
    found.clock.advance(noon - now)
    return found


def test_a_window_that_opens_is_seen(world: World) -> None:
    world.specs["quiet"] = {"windows": [{"allow": "Thu 09:00 - 10:00"}]}
    world.commit("quiet")
    world.reconcile()
    world.released["quiet"] = {"mail": "1.1.0"}
    world.commit("quiet")
    assert world.reconcile()["quiet"].state == "WindowClosed"
    assert world.reconcile()["quiet"].state == "WindowClosed"
    assert "quiet" in world.left_out
    world.clock.advance(timedelta(hours=20, minutes=59))
    assert world.reconcile()["quiet"].state == "WindowClosed"
    assert "quiet" in world.left_out
    world.clock.advance(timedelta(minutes=2))
    assert world.reconcile()["quiet"].state == "Ready"
    assert world.bench.served("quiet") == {"mail": "1.1.0"}


def test_an_approval_that_lapses_and_a_hold_that_ends_are_seen(world: World) -> None:
    world.released["asks"] = {"mail": "1.1.0"}
    with world.bench.store.write() as tx:
        until = isoformat(tx.now + timedelta(days=3))
        item = Hold(
            environment="asks", bundle="mail", digest=None, actor="bob", reason="wait", since=tx.at, until=until
        )
        registry.hold(tx, item)
    world.commit("asks")
    assert world.reconcile()["asks"].state == "Held"
    with world.bench.store.write() as tx:
        (waiting,) = releases.pending(tx, "asks")
        expires = tx.now + timedelta(days=1)
        decided = registry.prepare_decision(tx, "asks", waiting, ApprovalDecision.APPROVE, expires)
        registry.record_decision(tx, decided, approver="bob", service_key=world.bench.service_key)
    for days, also in ((0, 0), (0, 0), (2, 1), (0, 1)):
        world.clock.advance(timedelta(days=days))
        assert world.reconcile()["asks"].state == "Held"
        assert [len(item.also) for item in world.bench.pending("asks")] == [also]
    assert "asks" in world.left_out
    world.clock.advance(timedelta(days=2))
    assert world.reconcile()["asks"].state == "AwaitingApproval"
    assert world.reconcile()["asks"].state == "AwaitingApproval"
    assert "asks" in world.left_out


def test_what_another_process_writes_is_seen(world: World, store: Store) -> None:
    world.reconcile()
    assert world.left_out == set(SPECS)
    with store.write() as tx:
        registry.suspend(tx, Suspension(environment="dev", actor="bob", reason="wait", since=tx.at))
    world.reconcile()
    assert world.left_out == set(SPECS) - {"dev"}
    with store.write() as tx:
        releases.delete_suspension(tx, "dev")
    world.reconcile()
    assert world.left_out == set(SPECS) - {"dev"}
