"""The registry as the controller sees it: its state at the start of a reconciliation, evidence for gates, and a cache."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kneo.clock import isoformat
from kneo.controller.stages.approvals import GIT, committed_records, count_votes, role_members
from kneo.controller.stages.gates import Evidence
from kneo.controller.stages.load import SourceProblem
from kneo.controller.stages.verify import BundleHistory, TrustContext, bundle_history
from kneo.errors import KneoError
from kneo.records.release import ApprovalRecord, EnvironmentRecord, Promotion, Release
from kneo.spec.environment import parse_environment
from kneo.spec.models.environment import Environment
from kneo.store import approvals, releases
from kneo.store.engine import Tx

Served = Mapping[str, Mapping[str, Release]]
"""Releases by environment and bundle name."""


@dataclass(frozen=True)
class KnownBundles:
    """The bundles of the registry: the current releases, and every bundle ever accepted."""

    served: Served
    history: BundleHistory


@dataclass(frozen=True)
class RegistryState:
    """The registry at the start of a reconciliation."""

    names: tuple[str, ...]
    records: Mapping[str, EnvironmentRecord]
    served: Served
    history: BundleHistory
    roots: tuple[tuple[str | None, bytes], ...]
    """Accepted trust roots, oldest first, each with the commit that brought it."""


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
    )


def known(tx: Tx) -> KnownBundles:
    """Read all releases and bundles."""
    return KnownBundles(served_by(releases.list_releases(tx)), bundle_history(releases.known_bundles(tx)))


def served_by(items: Iterable[Release]) -> Served:
    """Group releases by environment and bundle name."""
    served: dict[str, dict[str, Release]] = {}
    for release in items:
        served.setdefault(release.environment, {})[release.bundle] = release
    return served


def is_retired(record: EnvironmentRecord | None, served: Served) -> bool:
    """Return whether an environment is retired by the file in force and has no release left."""
    if record is None or served.get(record.name):
        return False
    try:
        return parse_environment(record.declaration, file=f"environments/{record.name}.yaml").spec.retired
    except KneoError:
        return False


def rules_before(
    record: EnvironmentRecord | None, environment: Environment, revision: str
) -> Environment | SourceProblem | None:
    """Return the environment file in force before a commit, where its rules differ from the commit's.

    A file that came into force with this very commit does not count as in force before it.

    Returns:
        The file; None without an earlier file or with the same rules; a problem for a file that this version cannot read,
        because then no change can be compared with it.
    """
    if record is None:
        return None
    text: bytes | None = record.declaration
    if record.policy_digest == environment.policy_digest:
        text = record.previous if record.policy_revision == revision else None
    if text is None:
        return None
    try:
        before = parse_environment(text, file=environment.file, accepted=True)
    except KneoError as error:
        message = (
            f"The rules in force before this commit cannot be read, so it is unknown what the commit loosens: {error} "
            "Run the version that accepted them, and let it accept a file that this version can read."
        )
        return SourceProblem("PolicyUnreadable", message)
    # Compare digests as this version computes them: an earlier version may have known fewer rules.
    return before if before.policy_digest != environment.policy_digest else None


def gather_evidence(
    tx: Tx,
    files: Sequence[Environment],
    approval_files: Sequence[bytes],
    trust: TrustContext,
    served: Served,
    candidates: Collection[str] = (),
) -> Evidence:
    """Read the evidence for the gates of an environment, inside the transaction that changes it.

    Args:
        tx: The transaction.
        files: The environment's file, then the one in force before it, where that has other rules.
        approval_files: Approvals in the commit.
        trust: The trust of this reconciliation.
        served: Releases, as this transaction reads them.
        candidates: Digests of the bundles that may be released.
    """
    name = files[0].name
    chained = any(file.spec.promote_from is not None for file in files)
    soaking = {file.spec.promote_from for file in files if file.spec.soak} - {None}
    return Evidence(
        now=trust.now,
        served=served,
        votes=count_votes(decisions(tx, name, approval_files, trust), name, trust),
        members=role_members(trust),
        root_expires=trust.root.expires,
        holds={hold.bundle: hold for hold in approvals.list_holds(tx, name)},
        suspension=approvals.suspension(tx, name),
        failures={
            release.digest: failed
            for origin in soaking
            for release in served.get(str(origin), {}).values()
            if (failed := releases.last_failure(tx, str(origin), release.digest)) is not None
        },
        served_before=releases.served_before(tx, name, candidates) | releases.qualified(tx, name)
        if chained
        else frozenset(),
    )


def record_decisions(tx: Tx, environment: str, approval_files: Sequence[bytes], trust: TrustContext) -> None:
    """Record the approvals in a commit with the time of their first sight, which a revocation is compared with."""
    for item in decisions(tx, environment, approval_files, trust) if approval_files else ():
        if item.origin == GIT:
            approvals.insert_approval(tx, item)


def decisions(
    tx: Tx, environment: str, approval_files: Sequence[bytes], trust: TrustContext
) -> tuple[ApprovalRecord, ...]:
    """Return the recorded decisions about an environment and those that this commit adds.

    A decision from a commit stays recorded when a later commit deletes its file: a push cannot undo it.
    """
    recorded = approvals.list_approvals(tx, environment, unexpired_at=isoformat(trust.now))
    earlier = {(record.payload_digest, record.principal): record for record in recorded}
    committed = committed_records(approval_files, trust.root, earlier, trust.now)
    here = {record.id: record for record in (*recorded, *committed) if record.environment == environment}
    return tuple(sorted(here.values(), key=lambda record: (record.first_seen_at, record.id)))


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
        changed = served_by(releases.list_releases(tx, environment, names)).get(environment, {})
        served[environment] = {**others, **changed}
    added = bundle_history(releases.known_bundles(tx, digests))
    marks = dict(before.history.high_water)
    for name, mark in added.high_water.items():
        if name not in marks or mark.seq > marks[name].seq:
            marks[name] = mark
    return KnownBundles(served, BundleHistory({**before.history.known, **added.known}, marks))
