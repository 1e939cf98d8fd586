"""A config repository with as many bundles as wanted, spread over as many commits."""

from __future__ import annotations

from pathlib import Path

from config_repo import ConfigRepo, announcement

from kneo.trust.dsse import serialise, sign
from kneo.trust.statement import PAYLOAD_TYPE, build_bundle
from kneo.trust.verify import bundle_path

ENVIRONMENT = "environments/prod.yaml"


class Fleet:
    """The repository, and which version of each bundle it names."""

    def __init__(self, folder: Path, bundles: int, commits: int) -> None:
        self.repo = ConfigRepo(folder)
        self.versions: dict[str, int] = {}
        self.digests: dict[str, str] = {}
        share = max(1, bundles // commits)
        for number in range(bundles):
            self.sign(f"agent-{number}")
            if number % share == share - 1:
                self._commit(f"Bundle {number}")
        self.release()

    def sign(self, name: str) -> str:
        """Sign the next version of a bundle and return the path of its file."""
        seq = self.versions.get(name, 0) + 1
        statement = build_bundle(
            name=name,
            version=f"1.{seq}.0",
            seq=seq,
            prev=self.digests.get(name),
            environments=["dev", "prod"],
            issued_at=self.repo.now,
            approved_by="ann",
            spec=announcement(),
        )
        path = bundle_path(name, f"1.{seq}.0")
        self.repo.write(path, serialise(sign(PAYLOAD_TYPE, statement.payload, self.repo.key)))
        self.versions[name], self.digests[name] = seq, statement.digest
        return path

    def release(self) -> None:
        """Name the newest version of every bundle, and commit."""
        self.repo.environment("prod", {name: f"1.{seq}.0" for name, seq in self.versions.items()})
        self._commit("Release")

    def change(self, turn: int, count: int = 5) -> list[str]:
        """Sign and release new versions of some bundles, others each turn; return their paths."""
        names = list(self.versions)
        paths = [self.sign(names[(turn * count + number) % len(names)]) for number in range(count)]
        self.release()
        return paths

    def paths(self) -> list[str]:
        """Where the bundles are that are released now."""
        return [bundle_path(name, f"1.{seq}.0") for name, seq in self.versions.items()]

    def _commit(self, message: str) -> None:
        self.repo.git("add", "bundles", "environments")
        self.repo.git("commit", "-q", "-m", message)
