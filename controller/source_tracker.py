"""Following the repository: what was accepted is remembered twice, and history is rewritten only with leave."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

from controller.source.mirror import AllowedRewrite, Mirror
from controller.source.snapshot import Commit, SourceSnapshot
from kneo.clock import parse_time
from kneo.errors import Invalid, KneoError, Transient
from kneo.store import approvals, sources
from kneo.store.engine import Store, Tx
from kneo.trust.approvals import verify_approval
from kneo.trust.root import ROOT_ROLE, TrustRoot
from kneo.trust.sshsig import find_ssh_signer
from kneo.trust.statement import ApprovalDecision, rewrite_subject

COMMIT_ROLE = "commit"
"""A trust root with this role wants every commit signed by one of its keys. Without the role nobody asks."""


def check_history(find: Callable[[], Iterable[Commit]], root: TrustRoot | None, now: datetime) -> bool:
    """Check the commits that came, where the trust root in force asks for it; say whether it does.

    Args:
        find: Reads them, when they are wanted.
        root: The trust root in force before them.
        now: When we first saw them.

    Raises:
        Invalid: see ``check_commits``, and what finding them raises.
    """
    if root is None or root.role(COMMIT_ROLE) is None:
        return False
    check_commits(find(), root, now)
    return True


def check_commits(commits: Iterable[Commit], root: TrustRoot, now: datetime) -> None:
    """Check that each of these commits was signed by somebody of the role, with a key that is not revoked.

    Args:
        commits: All that came since the last accepted one, not only the newest.
        root: The trust root in force before them; one that they bring judges those after them.
        now: When we first saw them. The dates inside them are their authors' own.

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
            raise _refused(commit, f"has no signature that counts: {error.message}", "SignatureInvalid") from error
        if signer is None:
            raise _refused(commit, "is not signed by anybody of that role", "SignatureInvalid")
        if root.void(signer.public.keyid, now):
            raise _refused(commit, f"is signed with a key of {signer.principal} that was revoked", "KeyRevoked")


def _refused(commit: Commit, why: str, code: str) -> Invalid:
    msg = f"The trust root wants commits signed (role {COMMIT_ROLE}), and {commit.id} {why}."
    hint = "Sign with git commit -S and an SSH key that the role has, from the last accepted commit on."
    return Invalid(msg, code=code, hint=hint, new=commit.id)


UNREACHABLE = frozenset({"FetchFailed", "invalid_setting", "git_missing", "git_too_old"})
"""Codes of errors that say nothing about a commit: the host, or our own way to it, is what failed."""

SOURCE_ENVIRONMENT = "source"
"""What approvals of a rewritten history name as their environment."""


class SourceTracker:
    """The repository through a mirror, with the registry's memory of it beside."""

    def __init__(self, store: Store, mirror: Mirror) -> None:
        self.store = store
        self.mirror = mirror
        self._rewrite: AllowedRewrite | None = None
        self._failed = True
        """Whether a failure may be recorded, by this process or an earlier one."""
        self._base: str | None = None

    def fetch(self, find_root: Callable[[], TrustRoot | None]) -> SourceSnapshot:
        """Fetch what the ref names now; it has to follow what our own records say was accepted last.

        Args:
            find_root: Finds the trust root in force, whose root role may agree to a rewritten history.

        Raises:
            Transient, Invalid: see ``Mirror.fetch``.
        """
        with self.store.read() as tx:
            known = sources.source(tx)
        self._base = base = known.accepted_commit if known else None
        self._rewrite = None
        with self.remembering_failures():
            return self._fetch(base, find_root)

    def replayed(self, snapshot: SourceSnapshot) -> list[SourceSnapshot]:
        """Find the commits to follow before a fetched one: all that led to it where the registry is empty, else none."""
        with self.store.read() as tx:
            known = sources.source(tx)
        rebuilds = known is None or known.accepted_commit is None or known.rebuilding_since is not None
        if not rebuilds or snapshot.commit == self._base:
            return []
        return self.mirror.history(self._base, snapshot.commit)

    def check_signed(self, snapshot: SourceSnapshot, find_root: Callable[[], TrustRoot | None]) -> None:
        """Check who signed the commits that came since the accepted one, where the trust root in force asks for it.

        Raises:
            Invalid: see ``check_history``.
        """
        base = self._base
        if base is not None and snapshot.commit != base:
            check_history(lambda: self.mirror.since(base, snapshot.commit), find_root(), self.store.clock.now())

    def _fetch(self, base: str | None, find_root: Callable[[], TrustRoot | None]) -> SourceSnapshot:
        try:
            return self.mirror.fetch(base=base)
        except Invalid as error:
            rewrite = _rewrite_of(error)
            root = find_root() if rewrite is not None else None
            if rewrite is None or root is None or not self._agreed(rewrite, root):
                raise
            self._rewrite = rewrite
            return self.mirror.fetch(base=base, rewrite=rewrite)

    def accept(self, tx: Tx, snapshot: SourceSnapshot) -> None:
        """Make a fetched snapshot the accepted one, here and in the mirror."""
        self.mirror.accept(snapshot, rewrite=self._rewrite)
        self.accept_earlier(tx, snapshot)

    def accept_earlier(self, tx: Tx, snapshot: SourceSnapshot) -> None:
        """Make a commit that others follow the accepted one. The mirror keeps it for theirs."""
        sources.accept_commit(tx, self.mirror.address.url, self.mirror.ref, snapshot.commit)
        self._failed = False
        self._base = snapshot.commit

    def refuse(self, tx: Tx, error: KneoError) -> None:
        """Remember why the newest commit was not accepted."""
        commit = error.details.get("new")
        sources.refuse_commit(
            tx, self.mirror.address.url, self.mirror.ref, str(commit) if commit else None, error.code, str(error)
        )

    def poll(self) -> str:
        """Ask the host which commit the ref names now, and remember whether it answered.

        Raises:
            Transient, Invalid: see ``Mirror.poll``.
        """
        with self.remembering_failures():
            commit = self.mirror.poll()
        if self._failed:
            with self.store.write() as tx:
                sources.forget_failure(tx)
            self._failed = False
        return commit

    @contextlib.contextmanager
    def remembering_failures(self) -> Iterator[None]:
        """Record why the host could not be asked, when what is done in a block fails for that reason."""
        try:
            yield
        except (Invalid, Transient) as error:
            if error.code in UNREACHABLE:
                self._failed = True
                with self.store.write() as tx:
                    sources.record_failure(tx, self.mirror.address.url, self.mirror.ref, error.code, str(error))
            raise

    def _agreed(self, rewrite: AllowedRewrite, root: TrustRoot) -> bool:
        """Say whether as many people of the root role as it takes to change the root agreed to exactly this."""
        about = rewrite_subject(rewrite.old, rewrite.new)
        with self.store.read() as tx:
            records, now = approvals.list_approvals(tx, SOURCE_ENVIRONMENT, about.digest), tx.now
        people = set()
        for record in records:
            try:
                found = verify_approval(
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
            said = found.statement.predicate
            if said.decision is ApprovalDecision.APPROVE and said.about == about:
                people |= {signer.principal for signer in found.signers}
        role = root.role(ROOT_ROLE)
        return role is not None and len(people) >= role.threshold


def _rewrite_of(error: Invalid) -> AllowedRewrite | None:
    old, new = error.details.get("old"), error.details.get("new")
    if error.code != "HistoryRewritten" or not isinstance(old, str) or not isinstance(new, str):
        return None
    return AllowedRewrite(old, new)
