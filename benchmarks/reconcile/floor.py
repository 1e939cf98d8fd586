"""The least that any implementation has to do with a commit: no registry, no gates, no history."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reconcile.repository import Fleet
from kneo.clock import SystemClock
from kneo.spec.environment import parse_environment
from kneo.spec.lint import check
from kneo.spec.reading.load import load_tree
from kneo.trust.root import verify_chain
from kneo.trust.verify import verify_bundle

MANY = 100


class Floor:
    """A bare ``git fetch``, reading the blobs, verifying the signatures, parsing and validating the payloads."""

    def __init__(self, fleet: Fleet, mirror: Path) -> None:
        self.fleet = fleet
        self.repo = repo = fleet.repo
        self.git = ["git", "--git-dir", str(mirror), "-c", "fetch.fsckObjects=true", "-c", "gc.auto=0"]
        subprocess.run(["git", "init", "-q", "--bare", str(mirror)], check=True)
        self.now = SystemClock().now()
        self.root = verify_chain(repo.pin, [(repo.folder / "environments/trust.json").read_bytes()], self.now)

    def run(self, paths: Sequence[str]) -> None:
        """Take in these bundles, and the environment files that name them."""
        subprocess.run([*self.git, "fetch", "-q", str(self.repo.folder), "+main:refs/heads/main"], check=True)
        files = self.fleet.files(paths)
        blobs = self._read([*files, *paths])
        environments = {file: parse_environment(blobs[file], file=file) for file in files}
        for path in paths:
            environment = environments[self.fleet.files([path])[0]]
            bundle = verify_bundle(
                blobs[path],
                root=self.root,
                signatures=environment.spec.signatures,
                path=path,
                environment=environment.name,
                now=self.now,
            )
            if not load_tree(dict(bundle.spec), rules=check).valid:
                raise AssertionError(path)

    def _names(self, paths: Sequence[str]) -> list[str]:
        """Call files by path where they are few; for each of many git would search the same large folder again."""
        if len(paths) < MANY:
            return [f"main:{path}" for path in paths]
        form = "--format=%(objectname) %(path)"
        listed = subprocess.run([*self.git, "ls-tree", "-r", form, "main"], capture_output=True, check=True, text=True)
        ids = {path: oid for oid, _, path in (line.partition(" ") for line in listed.stdout.splitlines())}
        return [ids[path] for path in paths]

    def _read(self, paths: Sequence[str]) -> dict[str, bytes]:
        asked = "".join(f"{name}\n" for name in self._names(paths)).encode()
        out = subprocess.run([*self.git, "cat-file", "--batch"], input=asked, capture_output=True, check=True).stdout
        blobs, at = {}, 0
        for path in paths:
            end = out.index(b"\n", at)
            size = int(out[at:end].split()[2])
            blobs[path] = out[end + 1 : end + 1 + size]
            at = end + size + 2
        return blobs
