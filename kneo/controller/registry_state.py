"""The registry as the controller sees it: its state at the start of a reconciliation, evidence for gates, caches, and the changes of the lease holder."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from kneo import registry
from kneo.clock import isoformat
from kneo.controller.stages import verify
from kneo.controller.stages.approvals import GIT, ApprovalVotes, committed_records, count_votes, role_members
from kneo.controller.stages.gates import Allowed, Evidence
from kneo.controller.stages.load import SourceProblem
from kneo.controller.stages.plan import Action, Promote, Retire, Rollback, kind_of
from kneo.controller.stages.rejections import AcceptedFiles
from kneo.digest import Digest
from kneo.errors import KneoError, Transient
from kneo.records.release import ApprovalRecord, EnvironmentRecord, Promotion, Release
from kneo.registry import BundlePromotion, ReleaseChange
from kneo.spec.environment import parse_environment
from kneo.spec.models.environment import Environment, ReleasePin
from kneo.store import releases, requests
from kneo.store.engine import Tx
from kneo.trust.dsse import parse_envelope
from kneo.trust.statement import parse_bundle

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
    return KnownBundles(served_by(registry.list_served(tx)), verify.bundle_history(releases.known_bundles(tx)))


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
        file = f"environments/{record.name}.yaml"
        return parse_environment(record.declaration, file=file, accepted=True).spec.retired
    except KneoError:
        return False


def pending_bundles(record: EnvironmentRecord | None) -> frozenset[str]:
    """Return the digests of the bundles that were verified for an environment before and are pending."""
    pending = record.pending if record is not None else ()
    return frozenset(item.digest for item in pending if item.digest is not None)


def rules_before(
    record: EnvironmentRecord | None, environment: Environment, revision: str
) -> Environment | SourceProblem | None:
    """Return the environment file in force before a commit, where its rules differ from the commit's.

    A file that came into force with this very commit does not count as in force before it, unless people approved the change.

    Returns:
        The file; None without an earlier file or with the same rules; a problem for a file that this version cannot read,
        because then no change can be compared with it.
    """
    if record is None:
        return None
    text: bytes | None = record.declaration
    if record.policy_digest == environment.policy_digest:
        came_now = record.policy_revision == revision and not record.policy_approved
        text = record.previous if came_now else None
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
    trust: verify.TrustContext,
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
    votes = count_votes(decisions(tx, name, approval_files, trust), name, trust)
    return Evidence(
        now=trust.now,
        served=served,
        votes=votes,
        elsewhere=_votes_elsewhere(tx, name, trust) if len(files) > 1 else {},
        files={
            **_named_files(tx, name, votes, {file.policy_digest for file in files}),
            **{file.policy_digest: file for file in files[1:]},
        },
        members=role_members(trust),
        root_expires=trust.root.expires,
        holds=registry.holds_in_force(tx, name),
        suspension=registry.suspension_in_force(tx, name),
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


def _votes_elsewhere(tx: Tx, name: str, trust: verify.TrustContext) -> ApprovalVotes:
    """Return the decisions about files of other environments."""
    others = (other for other in releases.environment_names(tx) if other != name)
    return {
        subject: about
        for other in others
        for subject, votes in count_votes(decisions(tx, other, (), trust), other, trust).items()
        if (about := tuple(vote for vote in votes if vote.policy_digest == subject))
    }


def _named_files(tx: Tx, name: str, votes: ApprovalVotes, present: Collection[str]) -> AcceptedFiles:
    """Return the earlier files that rejections name; the audit log has those, too, whose rows are missing.

    Args:
        tx: The transaction.
        name: The environment.
        votes: The decisions about it.
        present: The digests of the file in force and the one in the commit.
    """
    named = {vote.policy_digest for about in votes.values() for vote in about if not (vote.approves or vote.overruled)}
    if not named:
        return {}
    found = releases.list_replaced_files(tx, name, named)
    lost = (named - found.keys() - set(present)) & registry.list_accepted_rules(tx, name)
    return {**{digest: _accepted_file(name, digest, text) for digest, text in found.items()}, **dict.fromkeys(lost)}


def _accepted_file(name: str, policy_digest: str, text: bytes) -> Environment | None:
    try:
        file = parse_environment(text, file=f"environments/{name}.yaml", accepted=True)
    except KneoError:
        return None
    return file if file.policy_digest == policy_digest else None


def record_decisions(tx: Tx, environment: str, approval_files: Sequence[bytes], trust: verify.TrustContext) -> None:
    """Record the approvals in a commit with the time of their first sight, which a revocation is compared with."""
    for item in decisions(tx, environment, approval_files, trust) if approval_files else ():
        if item.origin == GIT:
            releases.insert_approval(tx, item)


def decisions(
    tx: Tx, environment: str, approval_files: Sequence[bytes], trust: verify.TrustContext
) -> tuple[ApprovalRecord, ...]:
    """Return the recorded decisions about an environment and those that this commit adds.

    A decision from a commit stays recorded when a later commit deletes its file: a push cannot undo it.
    """
    recorded = releases.list_approvals(tx, environment, unexpired_at=isoformat(trust.now))
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
        changed = served_by(registry.list_served(tx, environment, names)).get(environment, {})
        served[environment] = {**others, **changed}
    added = verify.bundle_history(releases.known_bundles(tx, digests))
    marks = dict(before.history.high_water)
    for name, mark in added.high_water.items():
        if name not in marks or mark.seq > marks[name].seq:
            marks[name] = mark
    return KnownBundles(served, verify.BundleHistory({**before.history.known, **added.known}, marks))


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


@dataclass(frozen=True)
class Lease:
    """The controller lease, checked in every transaction that it protects."""

    name: str
    owner: str
    fence: int


def check_lease(tx: Tx, lease: Lease) -> None:
    """Check that this controller still holds the lease.

    Raises:
        Transient: another controller took over.
    """
    if not requests.holds_lease(tx, lease.name, lease.owner, lease.fence):
        msg = "Another controller took over; this one wrote nothing."
        raise Transient(msg, code="LeaseLost")


def apply(
    tx: Tx, environment: str, actions: Sequence[tuple[Action, Allowed]], change: ReleaseChange
) -> tuple[Promotion, ...]:
    """Write allowed actions with the approvals that allowed them; return the promotions."""
    serving, retired = [], []
    for action, verdict in actions:
        because = replace(change, approvals=verdict.approvals)
        match action:
            case Promote() | Rollback():
                bundle, kind = action.bundle.record, kind_of(action)
                serving.append(BundlePromotion(bundle=bundle, kind=kind, current=action.current, change=because))
            case Retire():
                retired.append(registry.retire(tx, action.current, change=because))
            case _:
                assert_never(action)
    return (*retired, *registry.promote(tx, environment, serving))
