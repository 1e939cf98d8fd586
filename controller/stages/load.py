"""A snapshot's files as what they declare: environments, trust roots, approvals. Read, believed nothing of."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controller.source.snapshot import SourceSnapshot
from kneo.errors import KneoError
from kneo.spec.environment import parse_environment
from kneo.spec.models.environment import Environment, ReleasePin
from kneo.trust.hmac_bundle import hmac_path
from kneo.trust.verify import bundle_path

TRUST = "environments/trust.json"
ENVIRONMENT = re.compile(r"environments/([a-z0-9][a-z0-9-]{0,62})\.ya?ml")
EARLIER_ROOT = re.compile(r"environments/roots/([1-9][0-9]{0,6})\.json")
_BALLOTS = ".approvals/"
_BALLOT = re.compile(r"(?:bundles/[^/]+/[^/]+|environments/[^/]+)\.approvals/[^/]+\.dsse\.json")


@dataclass(frozen=True)
class SourceProblem:
    """A file that cannot be used, in the words of a condition."""

    reason: str
    message: str


def removed(name: str, revision: str, questions: object) -> SourceProblem:
    """Say that a commit has no file for an environment that was declared before, and what that leaves behind.

    Args:
        name: The environment.
        revision: The commit.
        questions: The questions that are open there, in words.
    """
    message = f"environments/{name}.yaml is not in {revision}. What it serves stays as it is. {questions}"
    return SourceProblem("EnvironmentRemoved", message)


@dataclass(frozen=True)
class DeclaredState:
    """Everything one commit says."""

    revision: str
    environments: Mapping[str, Environment | SourceProblem]
    files: Mapping[str, bytes]
    """The environment files as they were read, by environment."""
    roots: tuple[bytes, ...]
    """Trust root envelopes, oldest first."""
    blobs: Mapping[str, str]
    """Ids of the bundle files, by path: equal ids are equal bytes."""
    ballots: Mapping[str, tuple[bytes, ...]]
    """Approvals that the commit carries, by environment: those of its own rules and of the bundles it names."""


def find_bundle(entry: ReleasePin, blobs: Mapping[str, str]) -> str | None:
    """Find the file of a named release in a commit."""
    path = bundle_path(entry.bundle, entry.version)
    if path in blobs:
        return path
    path = hmac_path(entry.bundle, entry.version)
    return path if path in blobs else None


def find_bundles(environment: Environment, blobs: Mapping[str, str]) -> dict[str, str]:
    """Find the files of all releases that an environment names, by bundle name; those of which there is one."""
    found = ((entry.bundle, find_bundle(entry, blobs)) for entry in environment.spec.releases)
    return {name: path for name, path in found if path is not None}


class Loader:
    """Reads commits one after the other, and of each only what the one before did not have."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, Environment | SourceProblem, bytes]] = {}

    def load(self, snapshot: SourceSnapshot) -> DeclaredState:
        """Read what a commit declares. A file that cannot be read is a ``SourceProblem`` of its environment only."""
        paths, twice = _environment_paths(snapshot)
        roots = _root_paths(snapshot)
        ballots = [path for path in snapshot.files if _BALLOTS in path and _BALLOT.fullmatch(path)]
        news = [path for name, path in paths.items() if self._id(name) != snapshot.files[path].id]
        texts = snapshot.read([*news, *roots, *ballots])
        self._known = {
            name: self._known[name]
            if path not in texts
            else (snapshot.files[path].id, _environment(name, path, texts[path]), texts[path])
            for name, path in paths.items()
        }
        environments = {name: known[1] for name, known in self._known.items()} | twice
        return DeclaredState(
            revision=snapshot.revision,
            environments=environments,
            files={name: known[2] for name, known in self._known.items()},
            roots=tuple(texts[path] for path in roots),
            blobs={path: blob.id for path, blob in snapshot.files.items() if path.startswith("bundles/")},
            ballots=_ballots(environments, {path: texts[path] for path in ballots}),
        )

    def _id(self, name: str) -> str | None:
        return self._known[name][0] if name in self._known else None


def load(snapshot: SourceSnapshot) -> DeclaredState:
    """Read what one commit declares."""
    return Loader().load(snapshot)


def _environment_paths(snapshot: SourceSnapshot) -> tuple[dict[str, str], dict[str, SourceProblem]]:
    """Find each environment's file. One with two is a problem: whoever reviews the one must not be bypassed by the other."""
    paths: dict[str, str] = {}
    twice: dict[str, SourceProblem] = {}
    for path in sorted(snapshot.files):
        match = ENVIRONMENT.fullmatch(path)
        if match is None:
            continue
        if match[1] in paths:
            message = f"{paths[match[1]]} and {path} are about the same environment; remove one of them."
            twice[match[1]] = SourceProblem("PolicyInvalid", message)
        paths.setdefault(match[1], path)
    return paths, twice


def _ballots(
    environments: Mapping[str, Environment | SourceProblem], texts: Mapping[str, bytes]
) -> dict[str, tuple[bytes, ...]]:
    """Sort approvals to the environments that could be meant; each says itself which one is."""
    by_folder: dict[str, list[bytes]] = defaultdict(list)
    for path, text in sorted(texts.items()):
        # None is left out here: which of them count takes the trust root, and rubbish must not crowd out what counts.
        by_folder[path.rpartition("/")[0]].append(text)
    return {
        name: tuple(ballot for folder in _ballot_folders(name, environment) for ballot in by_folder.get(folder, ()))
        for name, environment in environments.items()
    }


def _ballot_folders(name: str, environment: Environment | SourceProblem) -> Iterable[str]:
    yield f"environments/{name}.approvals"
    if isinstance(environment, Environment):
        for entry in environment.spec.releases:
            yield bundle_path(entry.bundle, entry.version).removesuffix(".dsse.json") + ".approvals"


def _root_paths(snapshot: SourceSnapshot) -> list[str]:
    earlier = sorted((int(match[1]), path) for path in snapshot.files if (match := EARLIER_ROOT.fullmatch(path)))
    paths = [path for _, path in earlier]
    return [*paths, TRUST] if TRUST in snapshot.files else paths


def _environment(name: str, path: str, text: bytes) -> Environment | SourceProblem:
    try:
        environment = parse_environment(text, file=path)
    except KneoError as error:
        return SourceProblem("PolicyInvalid", str(error))
    if environment.name != name:
        message = f"{path}: metadata.name is {environment.name!r}; it must be {name!r}, like the file."
        return SourceProblem("PolicyInvalid", message)
    return environment


def in_order(environments: Mapping[str, Environment | SourceProblem]) -> list[str]:
    """Sort environments so that each comes after the one it promotes from."""
    ordered: list[str] = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        environment = environments.get(name)
        if environment is None or name in ordered or name in above:
            return
        if isinstance(environment, Environment) and environment.spec.promote_from is not None:
            visit(environment.spec.promote_from, (*above, name))
        ordered.append(name)

    for name in sorted(environments):
        visit(name, ())
    return ordered
