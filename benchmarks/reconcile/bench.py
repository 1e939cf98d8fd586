"""What a commit costs the controller, beside what it would cost at least.

    python benchmarks/reconcile/bench.py --bundles 2000 --commits 500

The floor is a bare ``git fetch``, reading the blobs, verifying the signatures, parsing and validating the payloads, and
nothing else: no registry, no gates, no history.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from config_repo import ConfigRepo, announcement

from controller.apply import Lease
from controller.load import bundle_path
from controller.reconcile import Reconciler
from controller.source.mirror import Mirror
from kneo.clock import SystemClock
from kneo.spec.environment import parse_environment
from kneo.spec.load import load_tree
from kneo.spec.rules import check
from kneo.store import requests
from kneo.store.migrate import open_store
from kneo.trust.dsse import serialise, sign
from kneo.trust.intoto import PAYLOAD_TYPE
from kneo.trust.root import verify_chain
from kneo.trust.statement import build_bundle
from kneo.trust.verify import verify_bundle


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def make(folder: Path, bundles: int, commits: int) -> ConfigRepo:
    """Make a repository with so many bundles, spread over so many commits."""
    repo = ConfigRepo(folder)
    releases: dict[str, str] = {}
    share = max(1, bundles // commits)
    for number in range(bundles):
        add(repo, f"agent-{number}", "1.0.0", 1, None)
        releases[f"agent-{number}"] = "1.0.0"
        if number % share == share - 1 and number < bundles - 1:
            repo.commit(f"Bundle {number}")
    repo.environment("prod", releases)
    repo.commit("Release all")
    return repo


def add(repo: ConfigRepo, name: str, version: str, seq: int, prev: str | None) -> str:
    statement = build_bundle(
        name=name,
        version=version,
        seq=seq,
        prev=prev,
        environments=["dev", "prod"],
        issued_at=repo.now,
        approved_by="ann",
        spec=announcement(),
    )
    repo.write(bundle_path(name, version), serialise(sign(PAYLOAD_TYPE, statement.payload, repo.key)))
    return statement.digest


class Floor:
    """The least that any implementation has to do."""

    def __init__(self, repo: ConfigRepo, folder: Path) -> None:
        self.repo = repo
        self.mirror = folder / "floor.git"
        subprocess.run(["git", "init", "-q", "--bare", str(self.mirror)], check=True)
        roots = [(repo.folder / "environments/trust.json").read_bytes()]
        self.now = SystemClock().now()
        self.root = verify_chain(repo.pin, roots, self.now)

    def run(self, paths: list[str]) -> None:
        git = ["git", "--git-dir", str(self.mirror), "-c", "fetch.fsckObjects=true"]
        subprocess.run([*git, "fetch", "-q", str(self.repo.folder), "+main:refs/heads/main"], check=True)
        wanted = ["environments/prod.yaml", *paths]
        asked = "".join(f"main:{path}\n" for path in wanted).encode()
        out = subprocess.run([*git, "cat-file", "--batch"], input=asked, capture_output=True, check=True).stdout
        blobs, at = {}, 0
        for path in wanted:
            end = out.index(b"\n", at)
            size = int(out[at:end].split()[2])
            blobs[path] = out[end + 1 : end + 1 + size]
            at = end + size + 2
        environment = parse_environment(blobs[wanted[0]], file=wanted[0])
        for path in paths:
            bundle = verify_bundle(
                blobs[path],
                root=self.root,
                signatures=environment.spec.signatures,
                path=path,
                environment="prod",
                now=self.now,
            )
            assert load_tree(dict(bundle.spec), rules=check).valid


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundles", type=int, default=2_000)
    parser.add_argument("--commits", type=int, default=500)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repo = make(folder / "repo", arguments.bundles, arguments.commits)
        sys.stdout.write(json.dumps(measure(repo, folder, arguments.bundles), indent=2) + "\n")


def measure(repo: ConfigRepo, folder: Path, bundles: int) -> dict[str, object]:
    floor = Floor(repo, folder)
    paths = [bundle_path(f"agent-{number}", "1.0.0") for number in range(bundles)]
    cold_floor = timed(lambda: floor.run(paths))
    store = open_store(f"sqlite:///{folder / 'kneo.sqlite'}", SystemClock())
    mirror = Mirror(str(repo.folder), "main", folder / "mirrors")
    reconciler = Reconciler(store, mirror, repo.pin)
    with store.write() as tx:
        fence = requests.take_lease(tx, "controller", "bench", timedelta(hours=1))
    lease = Lease("controller", "bench", fence or 0)
    cold = timed(lambda: reconciler.reconcile(lease))
    remote = ["git", "ls-remote", "-q", str(repo.folder), "refs/heads/main"]
    bare = min(timed(lambda: subprocess.run(remote, check=True, capture_output=True)) for _ in range(20))
    poll = min(timed(mirror.poll) for _ in range(20))
    five, five_floor = [], []
    for turn in range(5):
        changed = [f"agent-{turn * 5 + number}" for number in range(5)]
        version = f"1.{turn + 1}.0"
        content = (repo.folder / "environments/prod.yaml").read_text()
        for item in changed:
            old = floor_digest(repo, item)
            add(repo, item, version, 2, old)
            content = content.replace(
                f"- bundle: {item}\n    version: 1.0.0", f"- bundle: {item}\n    version: {version}"
            )
        repo.write("environments/prod.yaml", content.encode())
        repo.commit(f"Change five {turn}")
        five_floor.append(timed(lambda items=changed, at=version: floor.run([bundle_path(n, at) for n in items])))
        five.append(timed(lambda: reconciler.reconcile(lease)))
    again = timed(lambda: Reconciler(store, mirror, repo.pin).reconcile(lease))
    store.close()
    return {
        "bundles": bundles,
        "cold_seconds": round(cold, 3),
        "cold_floor_seconds": round(cold_floor, 3),
        "cold_ratio": round(cold / cold_floor, 2),
        "no_op_poll_ms": round(poll * 1000, 1),
        "ls_remote_ms": round(bare * 1000, 1),
        "five_changed_ms": round(min(five) * 1000),
        "five_changed_floor_ms": round(min(five_floor) * 1000),
        "five_ratio": round(min(five) / min(five_floor), 2),
        "restart_seconds": round(again, 3),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def floor_digest(repo: ConfigRepo, name: str) -> str:
    from kneo.trust.dsse import parse_envelope

    return parse_envelope((repo.folder / bundle_path(name, "1.0.0")).read_bytes()).digest


if __name__ == "__main__":
    main()
