"""A config repository with as many bundles as wanted, spread over as many commits and environments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from config_repo import ConfigRepo, announcement

from kneo.trust.dsse import serialise, sign
from kneo.trust.statement import PAYLOAD_TYPE, build_bundle
from kneo.trust.verify import bundle_path


class Fleet:
    """The repository, and which version of each bundle it names: each environment names as many."""

    def __init__(self, folder: Path, bundles: int, commits: int, environments: int = 1) -> None:
        self.repo = ConfigRepo(folder)
        self.environments = ["prod", *(f"prod-{number}" for number in range(1, environments))]
        self._share = -(-bundles // environments)
        self._numbers: dict[str, int] = {}
        self.versions: dict[str, int] = {}
        self.digests: dict[str, str] = {}
        share = max(1, bundles // commits)
        for number in range(bundles):
            self._numbers[f"agent-{number}"] = number
            self.sign(f"agent-{number}")
            if number % share == share - 1:
                self._commit(f"Bundle {number}")
        self.release(self.environments)

    def environment_of(self, bundle: str) -> str:
        """Return the environment that names a bundle."""
        return self.environments[self._numbers[bundle] // self._share]

    def files(self, paths: Iterable[str]) -> list[str]:
        """Return the paths of the environment files that name the bundles at these paths."""
        names = dict.fromkeys(self.environment_of(path.split("/")[1]) for path in paths)
        return [f"environments/{name}.yaml" for name in names]

    def sign(self, name: str) -> str:
        """Sign the next version of a bundle and return the path of its file."""
        seq = self.versions.get(name, 0) + 1
        statement = build_bundle(
            name=name,
            version=f"1.{seq}.0",
            seq=seq,
            prev=self.digests.get(name),
            environments=["dev", self.environment_of(name)],
            issued_at=self.repo.now,
            approved_by="ann",
            spec=announcement(),
        )
        path = bundle_path(name, f"1.{seq}.0")
        self.repo.write(path, serialise(sign(PAYLOAD_TYPE, statement.payload, self.repo.key)))
        self.versions[name], self.digests[name] = seq, statement.digest
        return path

    def release(self, environments: Sequence[str]) -> None:
        """Name the newest version of every bundle of some environments, and commit."""
        named: dict[str, dict[str, str]] = {name: {} for name in environments}
        for name, seq in self.versions.items():
            if (environment := self.environment_of(name)) in named:
                named[environment][name] = f"1.{seq}.0"
        for environment, versions in named.items():
            self.repo.environment(environment, versions)
        self._commit("Release")

    def change(self, turn: int, count: int = 5) -> list[str]:
        """Sign and release new versions of some bundles, others each turn; return their paths."""
        names = list(self.versions)
        changed = [names[(turn * count + number) % len(names)] for number in range(count)]
        paths = [self.sign(name) for name in changed]
        self.release(list({self.environment_of(name): None for name in changed}))
        return paths

    def paths(self) -> list[str]:
        """Where the bundles are that are released now."""
        return [bundle_path(name, f"1.{seq}.0") for name, seq in self.versions.items()]

    def _commit(self, message: str) -> None:
        self.repo.git("add", "bundles", "environments")
        self.repo.git("commit", "-q", "-m", message)
