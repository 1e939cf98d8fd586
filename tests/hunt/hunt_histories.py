"""Random histories of a config repository against a model of what the registry serves.

Commits bump, go back, remove, break files and mend them, promote along a chain, close windows and change the trust root, several
in one pass; people hold and suspend in between. Law 1: after each pass the registry serves what the model says. Law 2: the
commits, followed one by one into an empty registry, end at the same digests as all of them in one pass.

Sequences that random commits rarely make are played now and then, each move followed by a pass: a release promoted twice along
the chain and then returned to its first version, and a promotion that a window keeps waiting while its origin moves on.
Approvals and ``soak`` are not in these histories: both depend on times and decisions that a rebuild does not have.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from controller_bench import Bench
from hunt.report import Budget, Finding, Report

from kneo import registry
from kneo.clock import ManualClock, SystemClock
from kneo.controller.reconcile import Reconciler
from kneo.controller.source.mirror import Mirror
from kneo.errors import NotFound
from kneo.records.release import Hold, Suspension
from kneo.store import releases, requests
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.requests import Lease

ORDER = ("dev", "staging", "prod")
NAMES = ("bank", "mail")
STEPS = 14
NEVER = [{"deny": "Mon 00:00 - Sun 24:00"}]
SEQUENCES = (
    (("bump", "staging"), ("promote", "prod"), ("bump", "staging"), ("promote", "prod"), ("back", "prod")),
    (("bump", "staging"), ("windows", "prod"), ("promote", "prod"), ("bump", "staging"), ("windows", "prod")),
)
"""Moves for one bundle, each with its environment."""

Versions = dict[str, int]


@dataclass
class Model:
    """What Git declares, and what a registry that follows it serves; a version is its sequence number."""

    named: dict[str, Versions] = field(default_factory=lambda: {name: {} for name in ORDER})
    broken: set[str] = field(default_factory=set)
    closed: set[str] = field(default_factory=set)
    closed_before: set[str] = field(default_factory=set)
    """Environments whose file in force before a pass closes windows: a commit that opens them brings nothing by itself."""
    held: set[tuple[str, str]] = field(default_factory=set)
    suspended: set[str] = field(default_factory=set)
    served: dict[str, Versions] = field(default_factory=lambda: {name: {} for name in ORDER})
    ever: set[tuple[str, str, int]] = field(default_factory=set)
    waited: dict[str, set[tuple[str, int]]] = field(default_factory=lambda: {name: set() for name in ORDER})
    known: set[tuple[str, int]] = field(default_factory=set)

    def follow(self) -> None:
        """Do what a pass over the newest commit does."""
        known = set(self.known)
        for environment in ORDER:
            if environment in self.broken:
                continue
            self._environment(environment, known)
            self.closed_before -= {environment}
            self.closed_before |= {environment} & self.closed

    def _environment(self, environment: str, known: set[tuple[str, int]]) -> None:
        here, named, waited = self.served[environment], self.named[environment], set[tuple[str, int]]()
        for name, version in named.items():
            if here.get(name) == version:
                continue
            newest = max((number for other, number in known if other == name), default=0)
            if (name, version) not in known | self.waited[environment] and version < newest:
                continue
            if self._waits(environment, name, version):
                waited.add((name, version))
                continue
            here[name] = version
            self.ever.add((environment, name, version))
            self.known.add((name, version))
        for name in [name for name in here if name not in named]:
            if not (
                environment in self.suspended | self.closed | self.closed_before or (environment, name) in self.held
            ):
                del here[name]
        self.waited[environment] = waited

    def _waits(self, environment: str, name: str, version: int) -> bool:
        if environment in self.suspended | self.closed | self.closed_before or (environment, name) in self.held:
            return True
        chained = environment == "prod" and (environment, name, version) not in self.ever
        return chained and self.served["staging"].get(name) != version


class History:
    """One random history on a real repository and a real registry, step by step."""

    def __init__(self, bench: Bench, seed: int, report: Report) -> None:
        self.bench, self.random, self.model, self.report = bench, random.Random(seed), Model(), report
        self.signed: Versions = dict.fromkeys(NAMES, 0)
        self.log: list[str] = []
        self.next: list[tuple[str, str, str]] = []
        self._write("Begin to follow")
        bench.reconcile()

    def step(self) -> None:
        if not self.next and self.random.random() < 0.3:
            name = self.random.choice(NAMES)
            self.next = [(move, name, environment) for move, environment in self.random.choice(SEQUENCES)]
        if self.next:
            self._commit(*self.next.pop(0))
        else:
            for _ in range(self.random.choice([1, 1, 1, 2, 3])):
                self._commit(*self._any())
        if self.random.random() < 0.2:
            self._decide()
        self.bench.reconcile()
        self.model.follow()

    def _any(self) -> tuple[str, str, str]:
        """Choose a move, a bundle and an environment."""
        moves = [
            "bump",
            "bump",
            "promote",
            "promote",
            "promote",
            "back",
            "back",
            "back",
            "remove",
            "break",
            "mend",
            "mend",
        ]
        moves += ["windows"] if self.random.random() < 0.5 else ["trust"]
        # Most of it happens along the chain, where what was served before counts.
        environment = self.random.choice(["dev", "staging", "staging", "prod", "prod"])
        return self.random.choice(moves), self.random.choice(NAMES), environment

    def _commit(self, move: str, name: str, environment: str) -> None:
        model = self.model
        if move == "bump" or not self.signed[name]:
            move = "bump"
            self.signed[name] += 1
            every = ("dev", "prod", "staging")
            self.bench.repo.bundle(name, f"{self.signed[name]}.0.0", environments=every)
            model.named[environment][name] = self.signed[name]
        elif move == "promote":
            model.named["prod"] |= {name: model.named["staging"].get(name, self.signed[name])}
        elif move == "back":
            before = sorted(number for env, other, number in model.ever if (env, other) == (environment, name))
            model.named[environment][name] = self.random.choice([*before, self.random.randint(1, self.signed[name])])
        elif move == "remove":
            model.named[environment].pop(name, None)
        elif move == "break":
            model.broken.add(environment)
        elif move == "mend":
            model.broken.clear()
        elif move == "windows":
            model.closed = set() if model.closed else {environment}
        elif move == "trust":
            self.bench.repo.person(f"person-{len(self.log)}", "approver")
        self.report.count(move)
        self._write(f"{move} {name} in {environment}")

    def _write(self, message: str) -> None:
        for environment in ORDER:
            if environment in self.model.broken:
                self.bench.repo.write(f"environments/{environment}.yaml", b"x: [\n")
                continue
            named = {name: f"{number}.0.0" for name, number in self.model.named[environment].items()}
            rules: dict[str, object] = {"promoteFrom": "staging"} if environment == "prod" else {}
            if environment in self.model.closed:
                rules["windows"] = NEVER
            self.bench.repo.environment(environment, named, prune={"maxPercent": 100}, **rules)
        self.bench.repo.commit(message)
        self.log.append(message)

    def _decide(self) -> None:
        """Hold, suspend, or take that back."""
        environment, name = self.random.choice(ORDER), self.random.choice(NAMES)
        with self.bench.store.write() as tx:
            if self.random.random() < 0.5:
                self._toggle_hold(tx, environment, name)
            elif environment in self.model.suspended:
                registry.unsuspend(tx, environment, actor="ann")
                self.model.suspended.remove(environment)
            else:
                registry.suspend(tx, Suspension(environment=environment, actor="ann", reason="r", since=tx.at))
                self.model.suspended.add(environment)
        self.report.count("decisions")
        self.log.append(f"held {sorted(self.model.held)}, suspended {sorted(self.model.suspended)}")

    def _toggle_hold(self, tx: object, environment: str, name: str) -> None:
        key = (environment, name)
        if key in self.model.held:
            registry.unhold(tx, environment, name, actor="ann")  # type: ignore[arg-type]
            self.model.held.remove(key)
            return
        item = Hold(environment=environment, bundle=name, digest=None, actor="ann", reason="r", since=tx.at)  # type: ignore[attr-defined]
        registry.hold(tx, item)  # type: ignore[arg-type]
        self.model.held.add(key)


def served(store: Store) -> dict[str, Versions]:
    with store.read() as tx:
        found = {name: dict[str, int]() for name in ORDER}
        for item in releases.list_releases(tx):
            found[item.environment][item.bundle] = int(item.version.partition(".")[0])
    return found


def _lease(store: Store) -> Lease:
    with store.write() as tx:
        fence = requests.take_lease(tx, "controller", "me", timedelta(days=1))
    if fence is None:
        raise NotFound("the lease of an empty registry is taken")
    return Lease("controller", "me", fence)


def _rebuilt(bench: Bench, folder: Path, *, one_by_one: bool) -> dict[str, Versions]:
    """Follow the commits into an empty registry: each by a pass of its own, or all in one."""
    word = "each" if one_by_one else "one"
    store = open_store(f"sqlite:///{folder / word}.sqlite", ManualClock(bench.store.clock.now()))
    lease, copy = _lease(store), folder / f"{word}-repo"
    shutil.copytree(bench.repo.folder, copy)
    head = bench.repo.head()
    commits = bench.repo.git("rev-list", "--reverse", "--first-parent", "main").splitlines() if one_by_one else [head]
    for commit in commits:
        (copy / ".git/refs/heads/main").write_text(f"{commit}\n")
        mirror = Mirror(str(copy), "main", folder / f"{word}-mirror")
        Reconciler(store, mirror, bench.repo.pin).reconcile(lease)
        mirror.close()
    found = served(store)
    store.close()
    return found


def hunt(budget: Budget) -> Report:
    """Look for histories that break a law."""
    report = Report()
    for seed in budget.seeds():
        with tempfile.TemporaryDirectory(prefix="kneo-hunt-") as name:
            _history(Path(name), seed, report)
        report.cases += 1
    return report


def _history(folder: Path, seed: int, report: Report) -> None:
    store = open_store(f"sqlite:///{folder / 'kneo.sqlite'}", ManualClock(SystemClock().now()))
    bench = Bench(store, folder)
    history = History(bench, seed, report)
    for _ in range(STEPS):
        history.step()
        report.count("passes")
        if served(store) != history.model.served:
            facts = f"serves {served(store)}\nmodel {history.model.served}\n" + "\n".join(history.log)
            report.findings.append(Finding(seed, "a pass serves what the model says", facts))
            break
    else:
        each, one = _rebuilt(bench, folder, one_by_one=True), _rebuilt(bench, folder, one_by_one=False)
        report.count("rebuilds")
        if each != one:
            facts = f"one by one {each}\nin one pass {one}\n" + "\n".join(history.log)
            report.findings.append(Finding(seed, "one pass ends where many passes end", facts))
    store.close()
