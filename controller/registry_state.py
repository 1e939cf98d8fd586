"""What the registry holds: read once at the start of a pass, and what gates look at once more when it is applied."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from controller.approvals import GIT, committed_records, count_votes, role_members
from controller.stages.gates import Evidence
from controller.stages.load import SourceProblem
from controller.stages.verify import BundleHistory, bundle_history
from kneo.clock import isoformat
from kneo.errors import KneoError
from kneo.records.release import ApprovalRecord, EnvironmentRecord, Promotion, Release
from kneo.spec.environment import parse_environment
from kneo.spec.models.environment import Environment
from kneo.store import approvals, releases
from kneo.store.engine import Tx
from kneo.trust.keys import PublicKey
from kneo.trust.root import TrustRoot

Served = Mapping[str, Mapping[str, Release]]
"""Releases by environment and bundle name."""


@dataclass(frozen=True)
class KnownBundles:
    """The bundles of the registry: which are served where, and which were ever accepted."""

    served: Served
    history: BundleHistory


@dataclass(frozen=True)
class RegistryState:
    """What the registry holds at the start of a pass."""

    names: tuple[str, ...]
    records: Mapping[str, EnvironmentRecord]
    served: Served
    history: BundleHistory
    roots: tuple[tuple[str | None, bytes], ...]
    """Accepted trust roots with the commit that brought each, oldest first."""


def read_registry(tx: Tx, bundles: KnownBundles | None = None) -> RegistryState:
    """Read everything a pass compares with; of bundles only what is not known already."""
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
    """Read all of it."""
    return KnownBundles(served_by(releases.list_releases(tx)), bundle_history(releases.known_bundles(tx)))


def served_by(items: Iterable[Release]) -> Served:
    """Sort releases."""
    found: dict[str, dict[str, Release]] = {}
    for release in items:
        found.setdefault(release.environment, {})[release.bundle] = release
    return found


def is_retired(record: EnvironmentRecord | None, everywhere: Served) -> bool:
    """Say whether an environment has ended: the file in force says so, and nothing is served there any more."""
    if record is None or everywhere.get(record.name):
        return False
    try:
        return parse_environment(record.declaration, file=f"environments/{record.name}.yaml").spec.retired
    except KneoError:
        return False


def rules_before(
    record: EnvironmentRecord | None, environment: Environment, revision: str
) -> Environment | SourceProblem | None:
    """Find the environment file in force before a commit, where its rules are others than the commit's.

    A file that came into force with this very commit is not yet a reason to let anything through.

    Returns:
        The file; None when there was none or its rules are the same; a problem when nobody can say which they were, and
        so nothing can be allowed.
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
            f"The rules in force before this commit cannot be read, so nobody can say what it loosens: {error} "
            "Run the version that accepted them, and let it accept a file that this version can read."
        )
        return SourceProblem("PolicyUnreadable", message)
    # Digests are compared as this version computes them: another may have known fewer rules.
    return before if before.policy_digest != environment.policy_digest else None


@dataclass(frozen=True, kw_only=True)
class DecisionTrust:
    """Whose decisions count."""

    root: TrustRoot
    service_key: PublicKey | None
    now: datetime


def gather_evidence(
    tx: Tx,
    files: Sequence[Environment],
    ballots: Sequence[bytes],
    believed: DecisionTrust,
    everywhere: Served,
    named: Collection[str] = (),
) -> Evidence:
    """Read what the gates of an environment look at, inside the transaction that acts on it.

    Args:
        tx: That transaction.
        files: The environment's file, then the one in force before it, where that has other rules.
        ballots: Approvals that the commit carries.
        believed: Whose decisions count.
        everywhere: What is served, as this transaction sees it.
        named: Digests of the bundles that may come to be served.
    """
    name = files[0].name
    chained = any(file.spec.promote_from is not None for file in files)
    records = decisions(tx, name, ballots, believed)
    soaking = {file.spec.promote_from for file in files if file.spec.soak} - {None}
    return Evidence(
        now=believed.now,
        served=everywhere,
        votes=count_votes(records, name, believed.root, believed.service_key, believed.now),
        members=role_members(believed.root, believed.now),
        root_expires=believed.root.expires,
        holds={hold.bundle: hold for hold in approvals.list_holds(tx, name)},
        suspension=approvals.suspension(tx, name),
        failures={
            release.digest: failed
            for origin in soaking
            for release in everywhere.get(str(origin), {}).values()
            if (failed := releases.last_failure(tx, str(origin), release.digest)) is not None
        },
        served_before=releases.served_before(tx, name, named) | releases.qualified(tx, name)
        if chained
        else frozenset(),
    )


def record_decisions(tx: Tx, environment: str, ballots: Sequence[bytes], believed: DecisionTrust) -> None:
    """Write down the approvals that a commit carries, when they are seen first: a revocation asks for that."""
    for item in decisions(tx, environment, ballots, believed) if ballots else ():
        if item.origin == GIT:
            approvals.insert_approval(tx, item)


def decisions(
    tx: Tx, environment: str, ballots: Sequence[bytes], believed: DecisionTrust
) -> tuple[ApprovalRecord, ...]:
    """Gather what people decided: everything recorded here, wherever it came from, and what this commit adds to it.

    A decision that a commit brought stays recorded when a later one deletes its file: whoever may push may not undo it.
    """
    recorded = approvals.list_approvals(tx, environment, unexpired_at=isoformat(believed.now))
    known = {(record.payload_digest, record.principal): record for record in recorded}
    committed = committed_records(ballots, believed.root, known, believed.now)
    here = {record.id: record for record in (*recorded, *committed) if record.environment == environment}
    return tuple(sorted(here.values(), key=lambda record: (record.first_seen_at, record.id)))


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
