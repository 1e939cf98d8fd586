"""What was judged before and need not be judged again: the reason a commit costs what it changes and no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from controller.load import find_bundle
from controller.verify import Standing, Verified, standing_of, still_standing
from kneo.digest import Digest
from kneo.spec.environment import Environment
from kneo.state.release import Release


@dataclass
class _Memory:
    epoch: Digest
    known: dict[str, tuple[str, Standing]] = field(default_factory=dict)
    """Blob id and what it held, by bundle name."""


class Judged:
    """Remembers which file was which bundle, for as long as trust and rules stay what they are."""

    def __init__(self) -> None:
        self._memory: dict[str, _Memory] = {}

    def standing(
        self, environment: Environment, epoch: Digest, blobs: Mapping[str, str], served: Mapping[str, Release]
    ) -> dict[str, Standing]:
        """Find the bundles that are served, and whose file is the very one that was judged under this epoch."""
        memory = self._memory.get(environment.name)
        if memory is None or memory.epoch != epoch:
            return {}
        found = {}
        for entry in environment.spec.releases:
            blob, standing = memory.known.get(entry.bundle, ("", None))
            release = served.get(entry.bundle)
            path = find_bundle(entry, blobs)
            if (
                standing is not None
                and release is not None
                and path is not None
                and blobs[path] == blob
                and release.digest == standing.digest
                and standing.version == entry.version
            ):
                found[entry.bundle] = standing
        return found

    def unread(
        self, environment: Environment, blobs: Mapping[str, str], standing: Mapping[str, Standing]
    ) -> dict[str, str]:
        """Say which files have to be read, by bundle name."""
        wanted = (
            (entry.bundle, find_bundle(entry, blobs))
            for entry in environment.spec.releases
            if entry.bundle not in standing
        )
        return {name: path for name, path in wanted if path is not None}

    def recognise(
        self,
        environment: Environment,
        paths: Mapping[str, str],
        envelopes: Mapping[str, bytes],
        served: Mapping[str, Release],
    ) -> dict[str, Standing]:
        """Find what an earlier process judged: the registry says under which epoch, the bytes say that it is it."""
        found = {}
        for entry in environment.spec.releases:
            path = paths.get(entry.bundle)
            if path is None:
                continue
            standing = still_standing(entry, path, envelopes[path], served.get(entry.bundle))
            if standing is not None:
                found[entry.bundle] = standing
        return found

    def remember(self, environment: Environment, epoch: Digest, blobs: Mapping[str, str], verified: Verified) -> None:
        """Keep what was found out, whether or not it is served yet: only what is served stands."""
        memory = _Memory(epoch)
        for entry in environment.spec.releases:
            bundle, path = verified.desired.get(entry.bundle), find_bundle(entry, blobs)
            if bundle is not None and path is not None:
                standing = bundle if isinstance(bundle, Standing) else standing_of(bundle)
                memory.known[entry.bundle] = (blobs[path], standing)
        self._memory[environment.name] = memory
