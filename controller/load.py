"""A snapshot's files as what they declare: environments, trust roots, bundle envelopes. Read, believed nothing of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from controller.source.snapshot import SourceSnapshot
from kneo.errors import KneoError
from kneo.spec.environment import Environment, parse_environment

TRUST = "environments/trust.json"
ENVIRONMENT = re.compile(r"environments/([a-z0-9][a-z0-9-]{0,62})\.ya?ml")
EARLIER_ROOT = re.compile(r"environments/roots/([1-9][0-9]{0,6})\.json")


@dataclass(frozen=True)
class Problem:
    """A file that cannot be used, in the words of a condition."""

    reason: str
    message: str


@dataclass(frozen=True)
class Declared:
    """Everything one commit says."""

    revision: str
    environments: Mapping[str, Environment | Problem]
    files: Mapping[str, bytes]
    """The environment files as they were read, by environment."""
    roots: tuple[bytes, ...]
    """Trust root envelopes, oldest first."""
    bundles: Mapping[str, bytes]
    """Bundle envelopes that some environment names, by path."""


def bundle_path(name: str, version: str) -> str:
    """Where a config repository keeps a bundle."""
    return f"bundles/{name}/{version}.dsse.json"


def load(snapshot: SourceSnapshot) -> Declared:
    """Read what a commit declares. A file that cannot be read is a ``Problem`` of its environment only."""
    names = {match[1]: path for path in sorted(snapshot.files) if (match := ENVIRONMENT.fullmatch(path))}
    roots = _root_paths(snapshot)
    texts = snapshot.read([*names.values(), *roots])
    environments = {name: _environment(name, path, texts[path]) for name, path in names.items()}
    wanted = {
        bundle_path(release.bundle, release.version)
        for environment in environments.values()
        if isinstance(environment, Environment)
        for release in environment.spec.releases
    }
    return Declared(
        revision=snapshot.revision,
        environments=environments,
        files={name: texts[path] for name, path in names.items()},
        roots=tuple(texts[path] for path in roots),
        bundles=snapshot.read(sorted(wanted & set(snapshot.files))),
    )


def _root_paths(snapshot: SourceSnapshot) -> list[str]:
    earlier = sorted((int(match[1]), path) for path in snapshot.files if (match := EARLIER_ROOT.fullmatch(path)))
    paths = [path for _, path in earlier]
    return [*paths, TRUST] if TRUST in snapshot.files else paths


def _environment(name: str, path: str, text: bytes) -> Environment | Problem:
    try:
        environment = parse_environment(text, file=path)
    except KneoError as error:
        return Problem("PolicyInvalid", str(error))
    if environment.name != name:
        message = f"{path}: metadata.name is {environment.name!r}; it must be {name!r}, like the file."
        return Problem("PolicyInvalid", message)
    return environment
