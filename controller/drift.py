"""Looking again at what is served: are the bytes still those that were accepted, and does somebody still vouch for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from controller.stages.report import Drift
from controller.stages.verify import TrustContext
from kneo import registry
from kneo.digest import Digest
from kneo.errors import KneoError
from kneo.records.release import Release
from kneo.spec.environment import Environment
from kneo.store import releases
from kneo.store.engine import Tx

DRIFT_INTERVAL = timedelta(minutes=10)
"""How often everything that is served is looked at again when nothing else is a reason to."""


class DriftWatch:
    """Looks when trust or rules changed, and every so often; remembers what it found in between."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Digest, datetime, tuple[Drift, ...]]] = {}

    def due(self, now: datetime) -> bool:
        """Say whether it is time to look again without another reason."""
        return any(now >= looked + DRIFT_INTERVAL for _, looked, _ in self._seen.values())

    def look(
        self,
        tx: Tx,
        environment: Environment,
        trust: TrustContext,
        served: Mapping[str, Release],
        *,
        fresh: Collection[str],
    ) -> tuple[Drift, ...]:
        """Say what is wrong with what an environment serves.

        Args:
            tx: An open transaction.
            environment: Its file.
            trust: What is believed.
            served: What it serves.
            fresh: Digests that were verified and written in this very transaction; they are not looked at again.
        """
        epoch = trust.epoch(environment)
        known = self._seen.get(environment.name)
        if known is None or known[0] != epoch or trust.now >= known[1] + DRIFT_INTERVAL:
            older = {name: release for name, release in served.items() if release.digest not in fresh}
            known = (epoch, trust.now, tuple(find_drift(tx, environment, trust, older)))
            self._seen[environment.name] = known
        return tuple(item for item in known[2] if item.bundle in served and served[item.bundle].digest == item.digest)


def find_drift(tx: Tx, environment: Environment, trust: TrustContext, served: Mapping[str, Release]) -> list[Drift]:
    """Hash and verify everything an environment serves, as the runtime would before running it."""
    found = []
    for name, release in sorted(served.items()):
        try:
            registry.check_served(releases.bundle(tx, release.digest), release, environment, trust.root, trust.hmac_key)
        except KneoError as error:
            found.append(Drift(name, release.digest, error.code, error.message))
    return found
