"""Looking again at what is served: are the bytes still those that were accepted, and does somebody still vouch for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from controller.load import hmac_path
from controller.report import Drift
from controller.verify import Trust
from kneo.clock import parse_time
from kneo.digest import Digest, digest_of
from kneo.errors import KneoError, Untrusted
from kneo.spec.environment import Environment
from kneo.state.release import BundleRecord, Release
from kneo.store import releases
from kneo.store.engine import Tx
from kneo.trust.dsse import parse_envelope
from kneo.trust.hmac_bundle import verify_hmac_bundle
from kneo.trust.verified import UNSEQUENCED, VerifiedBundle
from kneo.trust.verify import bundle_path, verify_bundle

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
        self, tx: Tx, environment: Environment, trust: Trust, served: Mapping[str, Release], *, fresh: Collection[str]
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


def find_drift(tx: Tx, environment: Environment, trust: Trust, served: Mapping[str, Release]) -> list[Drift]:
    """Hash and verify everything an environment serves, as the runtime would before running it."""
    found = []
    for name, release in sorted(served.items()):
        try:
            check_served(releases.bundle(tx, release.digest), release, environment, trust)
        except KneoError as error:
            found.append(Drift(name, release.digest, error.code, error.message))
    return found


def check_served(
    record: BundleRecord | None, release: Release, environment: Environment, trust: Trust
) -> VerifiedBundle:
    """Judge a served release under the trust and rules of today.

    Raises:
        Untrusted: ``BundleTampered``, or why it would not be accepted today.
        Invalid: its envelope is not one.
    """
    what = f"{release.bundle} {release.version}"
    if record is None or digest_of(record.payload) != release.digest:
        msg = f"the stored bytes of {what} are not {release.digest}."
        raise Untrusted(msg, code="BundleTampered", hint="Restore the registry, or rebuild it from Git.")
    if record.seq == UNSEQUENCED:
        return verify_hmac_bundle(
            record.envelope,
            key=trust.hmac_key,
            signatures=environment.spec.signatures,
            path=hmac_path(record.name, record.version),
            environment=environment.name,
        )
    if parse_envelope(record.envelope, file=what).digest != release.digest:
        msg = f"the stored envelope of {what} is not that of {release.digest}."
        raise Untrusted(msg, code="BundleTampered", hint="Restore the registry, or rebuild it from Git.")
    return verify_bundle(
        record.envelope,
        root=trust.root,
        signatures=environment.spec.signatures,
        path=bundle_path(record.name, record.version),
        environment=environment.name,
        now=parse_time(record.first_seen_at),
        first_seen=parse_time(record.signatures_seen_at),
    )
