"""What is served and what was ever accepted, read once and kept in step: the reason a commit costs what it changes."""

from __future__ import annotations

from collections.abc import Iterable

from controller.registry_state import KnownBundles, known, served_by
from controller.stages.verify import BundleHistory, bundle_history
from kneo.records.release import Promotion
from kneo.store import releases
from kneo.store.engine import Tx


class RegistryCache:
    """The registry in memory, as long as it cannot have changed behind our back.

    Whoever holds the lease is the only one to change it, and nothing changes without a promotion. So while the lease and
    the newest promotion are those we know, so is the rest; otherwise everything is read again. What this process changes
    itself is read back row by row.
    """

    def __init__(self) -> None:
        self._fence: int | None = None
        self._newest: str | None = None
        self._known: KnownBundles | None = None
        self._changed: list[Promotion] = []

    def look(self, tx: Tx, fence: int) -> KnownBundles:
        """Say what the registry holds, as this transaction sees it.

        Args:
            tx: An open transaction.
            fence: The number of the lease under which this process writes.
        """
        newest = releases.newest_promotion(tx)
        if self._known is None or (self._fence, self._newest) != (fence, newest):
            self._known = known(tx)
        elif self._changed:
            self._known = _brought_up(self._known, self._changed, tx)
        self._fence, self._newest, self._changed = fence, newest, []
        return self._known

    def wrote(self, promotions: Iterable[Promotion]) -> None:
        """Note what this process is about to change. If it does not come to that, everything is read again."""
        for promotion in promotions:
            self._changed.append(promotion)
            self._newest = max(self._newest or "", promotion.id)

    def forget(self) -> None:
        """Read everything again at the next look."""
        self._known = None


def _brought_up(before: KnownBundles, changes: Iterable[Promotion], tx: Tx) -> KnownBundles:
    """Read again what some promotions changed."""
    touched: dict[str, set[str]] = {}
    digests: set[str] = set()
    for promotion in changes:
        touched.setdefault(promotion.environment, set()).add(promotion.bundle)
        if promotion.to_digest is not None and promotion.to_digest not in before.history.known:
            digests.add(promotion.to_digest)
    served = dict(before.served)
    for environment, names in touched.items():
        kept = {name: release for name, release in served.get(environment, {}).items() if name not in names}
        fresh = served_by(releases.list_releases(tx, environment, names)).get(environment, {})
        served[environment] = {**kept, **fresh}
    return KnownBundles(served, _more(before.history, bundle_history(releases.known_bundles(tx, digests))))


def _more(before: BundleHistory, news: BundleHistory) -> BundleHistory:
    """Add newly accepted bundles to those known."""
    marks = dict(before.high_water)
    for name, mark in news.high_water.items():
        if name not in marks or mark.seq > marks[name].seq:
            marks[name] = mark
    return BundleHistory({**before.known, **news.known}, marks)
