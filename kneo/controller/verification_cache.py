"""Verified bundles of each environment, so that a commit verifies only what it changes."""

from __future__ import annotations

from collections.abc import Mapping

from kneo.controller.stages import verify
from kneo.digest import Digest
from kneo.errors import KneoError
from kneo.records.release import Release
from kneo.spec.models.environment import Environment, ReleasePin
from kneo.trust.dsse import parse_envelope
from kneo.trust.statement import parse_bundle


class VerificationCache:
    """Verified bundles by environment, valid as long as trust and rules (the epoch) stay the same."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Digest, Mapping[str, tuple[str, verify.UnchangedBundle]]]] = {}
        """By environment: the epoch, and blob id and bundle by bundle name."""

    def unchanged(
        self,
        environment: Environment,
        epoch: Digest,
        places: Mapping[str, str],
        blobs: Mapping[str, str],
        served: Mapping[str, Release],
    ) -> dict[str, verify.UnchangedBundle]:
        """Return the released bundles whose file was verified under this epoch.

        Args:
            environment: The environment's file.
            epoch: The present epoch.
            places: Paths of the declared bundles' files, by bundle name.
            blobs: Ids of files, by path.
            served: Releases by bundle name.
        """
        known_epoch, known = self._known.get(environment.name, (None, {}))
        if known_epoch != epoch:
            return {}
        unchanged_bundles = {}
        for entry in environment.spec.releases:
            name = entry.bundle
            if name not in places or name not in served or name not in known:
                continue
            blob, bundle = known[name]
            if blobs[places[name]] == blob and served[name].digest == bundle.digest and bundle.version == entry.version:
                unchanged_bundles[name] = bundle
        return unchanged_bundles

    def recognise(
        self,
        environment: Environment,
        paths: Mapping[str, str],
        envelopes: Mapping[str, bytes],
        served: Mapping[str, Release],
    ) -> dict[str, verify.UnchangedBundle]:
        """Return the released bundles that an earlier process verified: registry epoch and payload digest are the same."""
        recognised = (
            _recognised(entry, paths[entry.bundle], envelopes[paths[entry.bundle]], served.get(entry.bundle))
            for entry in environment.spec.releases
            if entry.bundle in paths
        )
        return {bundle.name: bundle for bundle in recognised if bundle is not None}

    def remember(
        self, name: str, epoch: Digest, places: Mapping[str, str], blobs: Mapping[str, str], verified: verify.Verified
    ) -> None:
        """Keep the verified bundles of an environment."""
        self._known[name] = (
            epoch,
            {
                bundle: (
                    blobs[places[bundle]],
                    item if isinstance(item, verify.UnchangedBundle) else verify.unchanged_bundle(item),
                )
                for bundle, item in verified.desired.items()
                if bundle in places
            },
        )


def _recognised(
    entry: ReleasePin, path: str, envelope: bytes, release: Release | None
) -> verify.UnchangedBundle | None:
    """Return a released bundle without verification; None for one that has to be verified."""
    if release is None or release.version != entry.version or not path.endswith(".dsse.json"):
        return None
    try:
        opened = parse_envelope(envelope, file=path)
        if opened.digest != release.digest:
            return None
        predicate = parse_bundle(opened.payload, file=path).predicate
    except KneoError:
        return None
    return verify.UnchangedBundle(
        entry.bundle, entry.version, opened.digest, tuple(need.digest for need in predicate.depends_on)
    )
