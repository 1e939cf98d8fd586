"""The registry is what the commits say: told twice it is the same, told again to an empty database it is the same."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from controller_bench import Bench
from sqlalchemy import select

from kneo.clock import ManualClock
from kneo.controller.reconcile import Reconciler
from kneo.controller.source.mirror import Mirror
from kneo.controller.stages.report import Ready
from kneo.store import audit, requests
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.requests import Lease
from kneo.store.tables import metadata

NAMES = ("bank", "fax", "mail")
COMMITS = 6
SEEDS = {"sqlite": 1, "postgresql": 2}
RULES: dict[str, object] = {
    "approvals": {"required": 1, "roles": ["approver"], "signed": True},
    "people": {"bob": {"roles": ["approver"]}},
    "prune": {"maxPercent": 100},
}

TABLES = ("bundles", "environments", "promotions", "releases", "trust_roots")
OWN = {
    *("accepted_at", "approvals", "at", "audit_event_id", "first_seen_at", "id", "mac", "promotion_id", "since"),
    "updated_at",
}
"""Columns in which two registries of the same commits differ: ids, times, and the codes over them."""

Empty = Callable[[str], Store]


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    return Bench(store, tmp_path)


@pytest.fixture
def empty(tmp_path: Path, store: Store) -> Iterator[Empty]:
    """Makes empty registries."""
    opened: list[Store] = []

    def make(name: str) -> Store:
        opened.append(open_store(f"sqlite:///{tmp_path / name}.sqlite", ManualClock(store.clock.now())))
        return opened[-1]

    yield make
    for item in opened:
        item.close()


def _registry(store: Store) -> dict[str, list[dict[str, object]]]:
    """Everything that was accepted, promoted and is served, up to ids and times."""
    found = {}
    with store.read() as tx:
        for name in TABLES:
            table = metadata.tables[name]
            rows = tx.connection.execute(select(table)).mappings()
            plain = [{key: value for key, value in row.items() if key not in OWN} for row in rows]
            found[name] = sorted(plain, key=repr)
    return found


def _told(store: Store) -> list[tuple[object, ...]]:
    """The audit log, up to ids, times and approvals."""
    with store.read() as tx:
        items = [item.event for item in audit.events(tx)]
    facts = ("bundle", "digest", "from_digest", "policy_digest", "reason", "revision", "to_digest", "version")
    return [(item.event_type, item.environment, *(item.metadata.get(name) for name in facts)) for item in items]


class _Walk:
    """Commits that release, retire, go back and get approved, as a seed says."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench, self.random = bench, random.Random(seed)
        self.signed: dict[str, list[str]] = {name: [] for name in NAMES}
        self.named: dict[str, str] = {}
        self.approved: set[tuple[str, str]] = set()
        self._write("Begin to follow")

    def step(self) -> None:
        name = self.random.choice(NAMES)
        known = self.signed[name]
        move = self.random.choice(["release", "release", "back", "retire", "approve"])
        if move == "release" or not known:
            version = f"1.{len(known)}.0"
            self.bench.repo.bundle(name, version, self.bench.repo.other_spec() if len(known) % 2 else None)
            known.append(version)
            self.named[name] = version
        elif move == "back":
            self.named[name] = self.random.choice(known)
        elif move == "retire":
            self.named.pop(name, None)
        self._write(f"{move} {name}")

    def _write(self, message: str) -> None:
        self.bench.repo.environment("prod", self.named, **RULES)
        for name, version in self.named.items():
            if (name, version) not in self.approved and self.random.random() < 0.8:
                self.bench.repo.approve("prod", name, version, "bob")
                self.approved.add((name, version))
        self.bench.repo.commit(message)


def _lease(store: Store) -> Lease:
    with store.write() as tx:
        fence = requests.take_lease(tx, "controller", "me", timedelta(days=1))
    assert fence is not None
    return Lease("controller", "me", fence)


def test_what_was_reached_is_reached_again(bench: Bench, empty: Empty, tmp_path: Path, dialect: str) -> None:
    bench.reconcile()
    bench.repo.person("bob", "approver")
    bench.repo.commit("Trust bob")
    bench.reconcile()
    walk = _Walk(bench, SEEDS[dialect])
    bench.reconcile()
    reached = 0
    for _ in range(COMMITS):
        walk.step()
        outcome = bench.reconcile().outcomes["prod"]
        rows = bench.rows()
        assert bench.reconcile().outcomes["prod"].state == outcome.state
        assert bench.rows() == rows
        if isinstance(outcome, Ready):
            reached += 1
            assert bench.served() == walk.named
    assert reached
    _replayed(bench, empty("replayed"), tmp_path)
    _in_one_pass(bench, empty("one"), tmp_path)


def _replayed(bench: Bench, again: Store, folder: Path) -> None:
    """Commit after commit into an empty database."""
    commits = bench.repo.git("rev-list", "--reverse", "--first-parent", "main").splitlines()
    copy = folder / "copy"
    shutil.copytree(bench.repo.folder, copy)
    lease = _lease(again)
    for commit in commits:
        (copy / ".git/refs/heads/main").write_text(f"{commit}\n")
        # Another process each time: nothing may depend on what one remembers.
        Reconciler(again, Mirror(str(copy), "main", folder / "copies"), bench.repo.pin).reconcile(lease)
    assert _registry(again) == _registry(bench.store)
    assert _told(again) == _told(bench.store)


def _in_one_pass(bench: Bench, again: Store, folder: Path) -> None:
    """All commits at once into an empty database, which is how a registry that was lost is rebuilt."""
    reconciler = Reconciler(again, Mirror(str(bench.repo.folder), "main", folder / "heads"), bench.repo.pin)
    reconciler.reconcile(_lease(again))
    assert _registry(again) == _registry(bench.store)
    assert _told(again) == _told(bench.store)


def test_a_name_that_an_earlier_version_accepted_is_accepted_again(bench: Bench) -> None:
    bench.repo.release("prod", "mail", "1.0.0")
    key = bench.repo.person("odd", "release")
    odd = bench.repo.root.keys[key.keyid].model_copy(update={"principal": "\u043edd"})
    document = bench.repo.root.model_copy(update={"keys": {**bench.repo.root.keys, key.keyid: odd}})
    bench.repo.next_root(document)
    bench.repo.commit("Name a person in mixed scripts")
    bench.repo.release("prod", "mail", "1.1.0")
    assert bench.reconcile().outcomes["prod"].state == "Ready"
    bench.repo.person("cid", "release")
    bench.repo.commit("Add a person and keep the others")
    assert bench.reconcile().outcomes["prod"].state == "Ready"
