"""Parse a snapshot's files: environments, trust roots, approvals. Nothing is verified here."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kneo.controller.source.snapshot import SourceSnapshot
from kneo.errors import KneoError
from kneo.records.release import RECONCILE_FAILED, Release
from kneo.spec.environment import parse_environment
from kneo.spec.models.environment import Environment, ReleasePin
from kneo.trust.hmac_bundle import hmac_path
from kneo.trust.verify import bundle_path

log = logging.getLogger("kneo.controller")

_SEE_LOG = "The log of the controller has the traceback; please report this defect."

TRUST = "environments/trust.json"
ENVIRONMENT = re.compile(r"environments/([a-z0-9][a-z0-9-]{0,62})\.ya?ml")
EARLIER_ROOT = re.compile(r"environments/roots/([1-9][0-9]{0,6})\.json")
_APPROVALS = ".approvals/"
_EVIDENCE_FILE = re.compile(r"(bundles/[^/]+/[^/]+)\.evidence/[^/]+\.dsse\.json")
MAX_EVIDENCE_FILES = 200
"""Attestation files of one bundle version; of more, those with the first names are read."""
_APPROVAL_FILE = re.compile(r"(?:bundles/[^/]+/[^/]+|environments/[^/]+)\.approvals/[^/]+\.dsse\.json")


@dataclass(frozen=True)
class SourceProblem:
    """A file that cannot be used, with reason and message of a condition."""

    reason: str
    message: str


def failure(what: str, error: Exception) -> SourceProblem:
    """Log an exception, and return it as a problem of one environment, so that the others are reconciled.

    Args:
        what: The failed work, as the subject of a sentence.
        error: The exception. Only a ``KneoError`` has a message for people; others may hold content of a file.
    """
    log.error("%s failed", what, exc_info=error)
    if isinstance(error, KneoError):
        return SourceProblem(error.code, str(error))
    message = f"{what} failed with an unexpected {type(error).__name__}. {_SEE_LOG}"
    return SourceProblem(RECONCILE_FAILED, message)


def removed(name: str, revision: str, questions: object) -> SourceProblem:
    """Return the problem of a commit without the file of an environment that was declared before.

    Args:
        name: The environment.
        revision: The commit.
        questions: The open tasks in the environment, in words.
    """
    message = f"environments/{name}.yaml is not in {revision}. Its releases stay as they are. {questions}"
    return SourceProblem("EnvironmentRemoved", message)


@dataclass(frozen=True)
class DeclaredState:
    """Everything that one commit declares."""

    revision: str
    environments: Mapping[str, Environment | SourceProblem]
    files: Mapping[str, bytes]
    """The environment files as they were read, by environment."""
    roots: tuple[bytes, ...]
    """Trust root envelopes, oldest first."""
    blobs: Mapping[str, str]
    """Ids of the bundle files, by path: equal ids are equal bytes."""
    approval_files: Mapping[str, tuple[bytes, ...]]
    """Approvals in the commit, by environment: approvals of its rules and of its declared bundles."""

    evidence: Mapping[str, tuple[str, ...]]
    """Paths of the attestation files, by the path of their bundle version without a suffix."""

    def evidence_paths(self, environment: Environment, served: Iterable[Release]) -> tuple[str, ...]:
        """Return the attestation files of the versions that an environment declares or serves."""
        declared = ((entry.bundle, entry.version) for entry in environment.spec.releases)
        versions = {*declared, *((item.bundle, item.version) for item in served)}
        folders = sorted(bundle_path(*version).removesuffix(".dsse.json") for version in versions)
        return tuple(path for folder in folders for path in self.evidence.get(folder, ())[:MAX_EVIDENCE_FILES])


def find_bundle(entry: ReleasePin, blobs: Mapping[str, str]) -> str | None:
    """Return the path of a declared release's bundle in a commit."""
    path = bundle_path(entry.bundle, entry.version)
    if path in blobs:
        return path
    path = hmac_path(entry.bundle, entry.version)
    return path if path in blobs else None


def find_bundles(environment: Environment, blobs: Mapping[str, str]) -> dict[str, str]:
    """Return the paths of an environment's bundle files that exist, by bundle name."""
    paths = ((entry.bundle, find_bundle(entry, blobs)) for entry in environment.spec.releases)
    return {name: path for name, path in paths if path is not None}


class Loader:
    """Reads commits in sequence, and of each commit only the files that changed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, Environment | SourceProblem, bytes]] = {}

    def load(self, snapshot: SourceSnapshot) -> DeclaredState:
        """Parse a commit. A file that cannot be parsed is a ``SourceProblem`` of its environment only."""
        paths, twice = _environment_paths(snapshot)
        roots = _root_paths(snapshot)
        approvals = [path for path in snapshot.files if _APPROVALS in path and _APPROVAL_FILE.fullmatch(path)]
        changed = [path for name, path in paths.items() if self._id(name) != snapshot.files[path].id]
        texts = snapshot.read([*changed, *roots, *approvals])
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
            approval_files=_by_environment(environments, {path: texts[path] for path in approvals}),
            evidence=_evidence(snapshot.files),
        )

    def _id(self, name: str) -> str | None:
        return self._known[name][0] if name in self._known else None


def load(snapshot: SourceSnapshot) -> DeclaredState:
    """Parse one commit."""
    return Loader().load(snapshot)


def _environment_paths(snapshot: SourceSnapshot) -> tuple[dict[str, str], dict[str, SourceProblem]]:
    """Return each environment's file. Two files for one environment are a problem: a review of one would miss the other."""
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


def _by_environment(
    environments: Mapping[str, Environment | SourceProblem], texts: Mapping[str, bytes]
) -> dict[str, tuple[bytes, ...]]:
    """Group approvals by the environments that they may be for; each approval names its environment."""
    by_folder: dict[str, list[bytes]] = defaultdict(list)
    for path, text in sorted(texts.items()):
        # Verification needs the trust root, and is done later.
        by_folder[path.rpartition("/")[0]].append(text)
    return {
        name: tuple(text for folder in _approval_folders(name, environment) for text in by_folder.get(folder, ()))
        for name, environment in environments.items()
    }


def _evidence(paths: Iterable[str]) -> dict[str, tuple[str, ...]]:
    by_version: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        if ".evidence/" in path and (match := _EVIDENCE_FILE.fullmatch(path)) is not None:
            by_version[match[1]].append(path)
    return {version: tuple(sorted(found)) for version, found in by_version.items()}


def _approval_folders(name: str, environment: Environment | SourceProblem) -> Iterable[str]:
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
    except Exception as error:  # noqa: BLE001 - logged, and a problem of this environment alone
        return failure(f"Reading {path}", error)
    if environment.name != name:
        message = f"{path}: metadata.name is {environment.name!r}; it must be {name!r}, like the file."
        return SourceProblem("PolicyInvalid", message)
    return environment


def in_order(environments: Mapping[str, Environment | SourceProblem]) -> list[str]:
    """Sort environments so that each comes after the one it promotes from."""
    ordered: dict[str, None] = {}

    def visit(name: str, above: tuple[str, ...]) -> None:
        environment = environments.get(name)
        if environment is None or name in ordered or name in above:
            return
        if isinstance(environment, Environment) and environment.spec.promote_from is not None:
            visit(environment.spec.promote_from, (*above, name))
        ordered[name] = None

    for name in sorted(environments):
        visit(name, ())
    return list(ordered)
