"""The accepted commits of a repository: recorded in the registry and the mirror; a rewritten history needs an approval."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

from kneo import registry
from kneo.clock import parse_time
from kneo.controller.source.mirror import AllowedRewrite, Mirror
from kneo.controller.source.snapshot import Commit, SourceSnapshot
from kneo.digest import Digest
from kneo.errors import Invalid, KneoError, Transient
from kneo.store import releases, requests
from kneo.store.engine import Store, Tx
from kneo.trust.approvals import verify_approval
from kneo.trust.root import ROOT_ROLE, TrustRoot
from kneo.trust.sshsig import find_ssh_signer
from kneo.trust.statement import ApprovalDecision, rewrite_subject

COMMIT_ROLE = "commit"
"""The role whose keys have to sign every commit; a trust root without it requires no signed commits."""


def check_history(find: Callable[[], Iterable[Commit]], root: TrustRoot | None, now: datetime) -> bool:
    """Check new commits where the trust root in force requires signed commits; return whether it does.

    Args:
        find: Reads the commits, newest first.
        root: The trust root in force before them.
        now: The time of first sight.

    Raises:
        Invalid: see ``check_commits``, and the errors of reading commits.
    """
    if root is None or root.role(COMMIT_ROLE) is None:
        return False
    check_commits(find(), root, now)
    return True


def check_commits(commits: Iterable[Commit], root: TrustRoot, now: datetime) -> None:
    """Check that each commit was signed by a person of the role, with a key that is not revoked.

    Args:
        commits: All commits since the accepted one.
        root: The trust root in force before them; a root that they bring applies to later commits.
        now: The time of first sight; commit dates are set by their authors.

    Raises:
        Invalid: ``SignatureInvalid`` or ``KeyRevoked``, with the commit.
    """
    keys = root.role_keys(COMMIT_ROLE)
    for commit in commits:
        if commit.signature is None:
            raise _refused(commit, "is not signed", "SignatureInvalid")
        try:
            signer = find_ssh_signer(commit.signature, commit.signed, keys)
        except Invalid as error:
            raise _refused(commit, f"has no valid signature: {error.message}", "SignatureInvalid") from error
        if signer is None:
            raise _refused(commit, "is not signed by a person of that role", "SignatureInvalid")
        if root.void(signer.public.keyid, now):
            raise _refused(commit, f"is signed with a key of {signer.principal} that was revoked", "KeyRevoked")


def _refused(commit: Commit, why: str, code: str) -> Invalid:
    msg = f"The trust root requires signed commits (role {COMMIT_ROLE}), and {commit.id} {why}."
    hint = "Sign with git commit -S and an SSH key that the role has, from the last accepted commit on."
    return Invalid(msg, code=code, hint=hint, new=commit.id)


UNREACHABLE = frozenset({"FetchFailed", "invalid_setting", "git_missing", "git_too_old"})
"""Error codes of an unreachable host, which are no problem of a commit."""

SOURCE_ENVIRONMENT = "source"
"""The environment name in approvals of a rewritten history."""


class SourceTracker:
    """Fetches commits through a mirror, and records the accepted one in the registry.

    Args:
        store: The registry's database.
        mirror: The mirror of the repository.
        pin: Digest of the pinned trust root.
    """

    def __init__(self, store: Store, mirror: Mirror, pin: Digest) -> None:
        self.store = store
        self.mirror = mirror
        self.pin = pin
        self._rewrite: AllowedRewrite | None = None
        self._failed = True
        """Whether the registry may hold a failure, recorded by this process or an earlier one."""
        self._base: str | None = None

    def fetch(self) -> SourceSnapshot:
        """Fetch the newest commit; it has to descend from the accepted commit in the registry.

        Raises:
            Transient, Invalid: see ``Mirror.fetch``.
        """
        with self.store.read() as tx:
            known = requests.source(tx)
        self._base = base = known.accepted_commit if known else None
        self._rewrite = None
        with self._recording_failures():
            return self._fetch(base)

    def commits_to_replay(self, snapshot: SourceSnapshot) -> list[SourceSnapshot]:
        """Return the commits before a fetched one if the registry is empty or being rebuilt, else none."""
        with self.store.read() as tx:
            known = requests.source(tx)
        rebuilds = known is None or known.accepted_commit is None or known.rebuilding_since is not None
        if not rebuilds or snapshot.commit == self._base:
            return []
        return self.mirror.history(self._base, snapshot.commit)

    def check_signed(self, snapshot: SourceSnapshot) -> None:
        """Check the signatures of the commits since the accepted one, where the trust root in force requires them.

        Raises:
            Invalid: see ``check_history``.
        """
        base = self._base
        if base is not None and snapshot.commit != base:
            check_history(
                lambda: self.mirror.since(base, snapshot.commit), self._accepted_root(), self.store.clock.now()
            )

    def _accepted_root(self) -> TrustRoot | None:
        with self.store.read() as tx:
            try:
                return registry.trust_root(tx, self.pin)
            except KneoError:
                return None

    def _fetch(self, base: str | None) -> SourceSnapshot:
        try:
            return self.mirror.fetch(base=base)
        except Invalid as error:
            rewrite = _rewrite_of(error)
            root = self._accepted_root() if rewrite is not None else None
            if rewrite is None or root is None or not self._is_approved(rewrite, root):
                raise
            self._rewrite = rewrite
            return self.mirror.fetch(base=base, rewrite=rewrite)

    def accept(self, tx: Tx, snapshot: SourceSnapshot) -> None:
        """Accept a fetched snapshot, in the registry and in the mirror."""
        self.mirror.accept(snapshot, rewrite=self._rewrite)
        self.accept_earlier(tx, snapshot)

    def accept_earlier(self, tx: Tx, snapshot: SourceSnapshot) -> None:
        """Accept a commit that is followed by later ones, in the registry only."""
        requests.accept_commit(tx, self.mirror.address.url, self.mirror.ref, snapshot.commit)
        self._failed = False
        self._base = snapshot.commit

    def refuse(self, tx: Tx, error: KneoError) -> None:
        """Record why the newest commit was not accepted."""
        commit = error.details.get("new")
        requests.refuse_commit(
            tx, self.mirror.address.url, self.mirror.ref, str(commit) if commit else None, error.code, str(error)
        )

    def poll(self) -> str:
        """Return the commit that the ref names on the host now, and record whether the host answered.

        Raises:
            Transient, Invalid: see ``Mirror.poll``.
        """
        with self._recording_failures():
            commit = self.mirror.poll()
        if self._failed:
            with self.store.write() as tx:
                requests.forget_failure(tx)
            self._failed = False
        return commit

    @contextlib.contextmanager
    def _recording_failures(self) -> Iterator[None]:
        """Record an unreachable host when the block fails with one."""
        try:
            yield
        except (Invalid, Transient) as error:
            if error.code in UNREACHABLE:
                self._failed = True
                with self.store.write() as tx:
                    requests.record_failure(tx, self.mirror.address.url, self.mirror.ref, error.code, str(error))
            raise

    def _is_approved(self, rewrite: AllowedRewrite, root: TrustRoot) -> bool:
        """Return whether enough people of the root role approved exactly this rewrite."""
        about = rewrite_subject(rewrite.old, rewrite.new)
        with self.store.read() as tx:
            records, now = releases.list_approvals(tx, SOURCE_ENVIRONMENT, about.digest), tx.now
        people = set()
        for record in records:
            try:
                approval = verify_approval(
                    record.envelope,
                    root=root,
                    roles=(ROOT_ROLE,),
                    bundle_digest=about.digest,
                    environment=SOURCE_ENVIRONMENT,
                    policy_digest=root.digest,
                    now=now,
                    first_seen=parse_time(record.first_seen_at),
                )
            except KneoError:
                continue
            predicate = approval.statement.predicate
            if predicate.decision is ApprovalDecision.APPROVE and predicate.about == about:
                people |= {signer.principal for signer in approval.signers}
        role = root.role(ROOT_ROLE)
        return role is not None and len(people) >= role.threshold


def _rewrite_of(error: Invalid) -> AllowedRewrite | None:
    old, new = error.details.get("old"), error.details.get("new")
    if error.code != "HistoryRewritten" or not isinstance(old, str) or not isinstance(new, str):
        return None
    return AllowedRewrite(old, new)
