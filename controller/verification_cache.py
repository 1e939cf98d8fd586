"""What was judged before and need not be judged again: the reason a commit costs what it changes and no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controller.stages.verify import UnchangedBundle, Verified, unchanged_bundle
from kneo.digest import Digest
from kneo.errors import KneoError
from kneo.records.release import Release
from kneo.spec.models.environment import Environment, ReleasePin
from kneo.trust.dsse import parse_envelope
from kneo.trust.statement import parse_bundle


@dataclass(frozen=True)
class _Memory:
    epoch: Digest
    known: Mapping[str, tuple[str, UnchangedBundle]]
    """Blob id and what it held, by bundle name."""


class VerificationCache:
    """Remembers which file was which bundle, for as long as trust and rules stay what they are."""

    def __init__(self) -> None:
        self._memory: dict[str, _Memory] = {}

    def standing(
        self,
        environment: Environment,
        epoch: Digest,
        places: Mapping[str, str],
        blobs: Mapping[str, str],
        served: Mapping[str, Release],
    ) -> dict[str, UnchangedBundle]:
        """Find the bundles that are served, and whose file is the very one that was judged under this epoch.

        Args:
            environment: Its file.
            epoch: What judging rests on today.
            places: Paths of the files of the bundles it names.
            blobs: Ids of files, by path.
            served: What it serves.
        """
        memory = self._memory.get(environment.name)
        if memory is None or memory.epoch != epoch:
            return {}
        found = {}
        for entry in environment.spec.releases:
            name = entry.bundle
            if name not in places or name not in served or name not in memory.known:
                continue
            blob, standing = memory.known[name]
            if (
                blobs[places[name]] == blob
                and served[name].digest == standing.digest
                and standing.version == entry.version
            ):
                found[name] = standing
        return found

    def recognise(
        self,
        environment: Environment,
        paths: Mapping[str, str],
        envelopes: Mapping[str, bytes],
        served: Mapping[str, Release],
    ) -> dict[str, UnchangedBundle]:
        """Find what an earlier process judged: the registry says under which epoch, the bytes say that it is it."""
        found = {}
        for entry in environment.spec.releases:
            path = paths.get(entry.bundle)
            if path is None:
                continue
            standing = _recognised(entry, path, envelopes[path], served.get(entry.bundle))
            if standing is not None:
                found[entry.bundle] = standing
        return found

    def remember(
        self, name: str, epoch: Digest, places: Mapping[str, str], blobs: Mapping[str, str], verified: Verified
    ) -> None:
        """Keep what was found out for an environment, whether or not it is served yet: only what is served stands."""
        known = {
            bundle: (blobs[places[bundle]], item if isinstance(item, UnchangedBundle) else unchanged_bundle(item))
            for bundle, item in verified.desired.items()
            if bundle in places
        }
        self._memory[name] = _Memory(epoch, known)


def _recognised(entry: ReleasePin, path: str, envelope: bytes, release: Release | None) -> UnchangedBundle | None:
    """Recognise a bundle that is served already, without judging it again; None when it has to be judged."""
    if release is None or release.version != entry.version or not path.endswith(".dsse.json"):
        return None
    try:
        opened = parse_envelope(envelope, file=path)
        if opened.digest != release.digest:
            return None
        predicate = parse_bundle(opened.payload, file=path).predicate
    except KneoError:
        return None
    return UnchangedBundle(
        entry.bundle, entry.version, opened.digest, tuple(need.digest for need in predicate.depends_on)
    )
