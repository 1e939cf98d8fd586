"""What a commit costs a controller of many environments.

    python -m benchmarks.environments --environments 100,1000

Each environment has a file of its own and serves one bundle, which it shares with some others. Milliseconds of processors count this process and every git
that it starts, so they hardly depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from config_repo import ConfigRepo

from benchmarks.reconcile.measure import Spent, highest_rss_mib, spend
from kneo.clock import SystemClock
from kneo.controller.reconcile import Reconciler
from kneo.controller.source.mirror import Mirror
from kneo.store import requests
from kneo.store.migrate import open_store
from kneo.store.requests import Lease

SHARED = 50
"""Environments that one bundle is signed for; a statement has room for 64."""

TURNS = 5


class Site:
    """A config repository with this many environments, and a controller with a database of its own."""

    def __init__(self, folder: Path, count: int) -> None:
        self.names = [f"env-{number}" for number in range(count)]
        self.repo = ConfigRepo(folder / "repo", environments=())
        self.version = 0
        self.store = open_store(f"sqlite:///{folder / 'kneo.sqlite'}", SystemClock())
        self.mirror = Mirror(str(self.repo.folder), "main", folder / "mirrors")
        self.reconciler = self.restart()
        with self.store.write() as tx:
            fence = requests.take_lease(tx, "controller", "bench", timedelta(hours=1))
        self.lease = Lease("controller", "bench", fence or 0)

    def restart(self) -> Reconciler:
        """Return a controller that knows nothing of earlier commits."""
        return Reconciler(self.store, self.mirror, self.repo.pin)

    def release(self, names: list[str]) -> None:
        """Commit a new version of the bundles of these environments, and declare it."""
        self.version += 1
        version = f"1.{self.version}.0"
        for start in range(0, len(self.names), SHARED):
            group, bundle = self.names[start : start + SHARED], f"agent-{start // SHARED}"
            changed = [name for name in group if name in names]
            if changed:
                self.repo.bundle(bundle, version, environments=group)
            for name in changed:
                self.repo.environment(name, {bundle: version})
        self.repo.commit(f"Release {self.version}")

    def reconcile(self) -> None:
        """Reconcile the newest commit, after which every environment has to be ready."""
        outcomes = self.reconciler.reconcile(self.lease).outcomes
        if len(outcomes) != len(self.names) or any(outcome.state != "Ready" for outcome in outcomes.values()):
            raise AssertionError(outcomes)

    def close(self) -> None:
        self.mirror.close()
        self.store.close()


def measure(count: int, folder: Path) -> dict[str, float]:
    """Return what reconciling costs with so many environments."""
    site, idle = Site(folder, count), highest_rss_mib()
    site.release(site.names)
    first = spend(site.reconcile)
    one = []
    for turn in range(TURNS):
        site.release([site.names[turn % count]])
        one.append(spend(site.reconcile))
    site.release(site.names)
    every = spend(site.reconcile)
    site.reconciler = site.restart()
    again = spend(site.reconcile)
    site.close()
    return {
        "environments": count,
        **_named("first", first),
        **_named(
            "one_changed", Spent(*(statistics.median(getattr(item, name) for item in one) for name in ("wall", "cpu")))
        ),
        **_named("all_changed", every),
        **_named("restart", again),
        "idle_rss_mib": idle,
        "peak_rss_mib": highest_rss_mib(),
    }


def _named(name: str, spent: Spent) -> dict[str, float]:
    return {f"{name}_cpu_ms": round(spent.cpu), f"{name}_ms": round(spent.wall)}


def main() -> None:
    """Measure each number of environments, smallest first, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--environments", default="100,1000", help="numbers of environments, by comma")
    arguments = parser.parse_args()
    for count in sorted(map(int, arguments.environments.split(","))):
        with tempfile.TemporaryDirectory() as name:
            sys.stdout.write(json.dumps(measure(count, Path(name))) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
