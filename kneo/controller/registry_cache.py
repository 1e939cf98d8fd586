"""The registry at the start of a reconciliation, and its releases and bundles in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kneo import registry
from kneo.controller.stages import verify
from kneo.records.release import EnvironmentRecord, Promotion, Release
from kneo.store import releases
from kneo.store.engine import Tx

Served = Mapping[str, Mapping[str, Release]]
"""Releases by environment and bundle name."""


@dataclass(frozen=True)
class KnownBundles:
    """The bundles of the registry: the current releases, and every bundle ever accepted."""

    served: Served
    history: verify.BundleHistory


@dataclass(frozen=True)
class RegistryState:
    """The registry at the start of a reconciliation."""

    names: tuple[str, ...]
    records: Mapping[str, EnvironmentRecord]
    served: Served
    history: verify.BundleHistory
    roots: tuple[tuple[str | None, bytes], ...]
    """Accepted trust roots, oldest first, each with the commit that brought it."""

    decided: Mapping[str, frozenset[tuple[object, ...]]] = field(default_factory=dict)
    """What people have decided, by environment; see ``registry.list_decided``."""


def read_registry(tx: Tx, bundles: KnownBundles | None = None) -> RegistryState:
    """Read the state of the registry; ``bundles`` saves reading releases and bundles again."""
    chain = releases.trust_chain(tx)
    bundles = bundles or known(tx)
    return RegistryState(
        names=releases.environment_names(tx),
        records={record.name: record for record in releases.list_environments(tx)},
        served=bundles.served,
        history=bundles.history,
        roots=tuple(zip(releases.trust_revisions(tx), (envelope for _, _, envelope in chain), strict=True)),
        decided=registry.list_decided(tx),
    )


def known(tx: Tx) -> KnownBundles:
    """Read all releases and bundles."""
    return KnownBundles(served_by(registry.list_served(tx)), verify.bundle_history(releases.known_bundles(tx)))


def served_by(items: Iterable[Release]) -> Served:
    """Group releases by environment and bundle name."""
    served: dict[str, dict[str, Release]] = {}
    for release in items:
        served.setdefault(release.environment, {})[release.bundle] = release
    return served


class RegistryCache:
    """Releases and accepted bundles in memory, so that a commit costs what it changes.

    Only the lease holder changes the registry, and each change is a promotion. While lease and newest promotion are the
    known ones, the cache is valid; otherwise everything is read again. Changes of this process are read back by row.
    """

    def __init__(self) -> None:
        self._fence: int | None = None
        self._newest: str | None = None
        self._known: KnownBundles | None = None
        self._changed: list[Promotion] = []

    def read(self, tx: Tx, fence: int) -> KnownBundles:
        """Return releases and bundles as this transaction reads them.

        Args:
            tx: An open transaction.
            fence: The fencing number of the lease.
        """
        newest = releases.newest_promotion(tx)
        if self._known is None or (self._fence, self._newest) != (fence, newest):
            self._known = known(tx)
        elif self._changed:
            self._known = _updated(self._known, self._changed, tx)
        self._fence, self._newest, self._changed = fence, newest, []
        return self._known

    def add(self, promotions: Iterable[Promotion]) -> None:
        """Add the promotions of an open transaction. After a rollback the newest promotion differs, and all is read again."""
        for promotion in promotions:
            self._changed.append(promotion)
            self._newest = max(self._newest or "", promotion.id)

    def invalidate(self) -> None:
        """Read everything again next time."""
        self._known = None


def _updated(before: KnownBundles, changes: Iterable[Promotion], tx: Tx) -> KnownBundles:
    """Read again the rows that some promotions changed."""
    touched: dict[str, set[str]] = {}
    digests: set[str] = set()
    for promotion in changes:
        touched.setdefault(promotion.environment, set()).add(promotion.bundle)
        if promotion.to_digest is not None and promotion.to_digest not in before.history.known:
            digests.add(promotion.to_digest)
    served = dict(before.served)
    for environment, names in touched.items():
        others = {name: release for name, release in served.get(environment, {}).items() if name not in names}
        changed = served_by(registry.list_served(tx, environment, names)).get(environment, {})
        served[environment] = {**others, **changed}
    added = verify.bundle_history(releases.known_bundles(tx, digests))
    marks = dict(before.history.high_water)
    for name, mark in added.high_water.items():
        if name not in marks or mark.seq > marks[name].seq:
            marks[name] = mark
    return KnownBundles(served, verify.BundleHistory({**before.history.known, **added.known}, marks))
