"""One bare mirror per repository: poll, fetch, read, and only then accept.

A fetch goes to a candidate ref that nothing else reads. The accepted commit is ``refs/kneo/accepted``, and stays
reachable under ``refs/kneo/keep/<commit>``, so that neither a forced push nor housekeeping can remove a commit that was
deployed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from kneo.clock import Clock, SystemClock, isoformat, parse_time
from kneo.controller import metrics
from kneo.controller.source.address import (
    ASKPASS,
    RepositoryAddress,
    check_complete,
    check_ref,
    full_ref,
    parse_address,
    redact,
    short_ref,
    write_askpass,
)
from kneo.controller.source.git import Git, MirrorDamaged, RefMissing, SourceLimits, Tokens, check_version
from kneo.controller.source.objects import ObjectReader
from kneo.controller.source.snapshot import (
    FOLDERS,
    ID,
    Blob,
    Commit,
    Folder,
    SourceSnapshot,
    all_files,
    our_folders,
    parse_commit,
    read_folders,
    too_large,
)
from kneo.errors import Conflict, Invalid, NotFound, Transient
from kneo.settings import GitCredentials

log = logging.getLogger("kneo.controller")

T = TypeVar("T")

CANDIDATE = "refs/kneo/candidate"
PEEKED = "refs/kneo/peeked"
ACCEPTED = "refs/kneo/accepted"
KEEP = "refs/kneo/keep/"

_REMOTE = "source"
_COMMIT_BYTES = 1_048_576
_TREE_BYTES = 67_108_864

REBUILD_EVERY = timedelta(hours=1)
"""Shortest time between two rebuilds of a damaged mirror: fetching everything costs the host, too."""

PACKS = 50
"""Number of packs from which ``maintain`` repacks. Every fetch with new objects adds one."""


@dataclass(frozen=True)
class AllowedRewrite:
    """An approved rewrite of history, from exactly one commit to exactly another."""

    old: str
    new: str


class Mirror:
    """The local mirror of a repository, for one ref.

    Args:
        url: https, ssh or an absolute folder.
        ref: A branch name, or a full ref such as ``refs/pull/7/head``.
        folder: The folder of mirrors; each repository has a folder of its own in it.
        credentials: The credentials for its host.
        limits: The limits.
        clock: The source of the time.

    Raises:
        Invalid: the address or the ref is not supported.
    """

    def __init__(
        self,
        url: str,
        ref: str,
        folder: Path,
        credentials: GitCredentials | None = None,
        limits: SourceLimits | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.address: RepositoryAddress = parse_address(url)
        self.ref = short_ref(check_ref(ref))
        self.limits = limits or SourceLimits()
        name = hashlib.sha256(self.address.url.encode()).hexdigest()[:32]
        self.path = folder.absolute() / f"{name}.git"
        self._folder = folder.absolute() / f"{name}.d"
        credentials = credentials or GitCredentials()
        self._git = Git(
            mirror=self.path,
            address=self.address,
            credentials=credentials,
            limits=self.limits,
            global_config=self._folder / "gitconfig",
            askpass=self._folder / "askpass",
            tokens=app_tokens(credentials, self.address),
        )
        self._objects = ObjectReader(self._git)
        self._known: dict[str, Folder] = {}
        self._clock = clock or SystemClock()
        self._marked = self._folder / "damaged"
        """A file that exists after a use of the mirror failed as it never does on an intact mirror, in this process or
        another.
        """

    def poll(self) -> str:
        """Ask the host for the commit of the ref. Changes nothing; the cheap half of an idle loop.

        Raises:
            Transient: ``FetchFailed``: the host did not answer, or has no such ref.
        """
        full = full_ref(self.ref)
        with self._lock():
            output = self._repairing(lambda: self._ask_host(full))
        for line in output.decode("ascii", "replace").splitlines():
            commit, _, name = line.partition("\t")
            if name == full and ID.fullmatch(commit):
                return commit
        msg = f"{redact(self.address.url)} has no {self.ref}."
        raise Transient(msg, code="FetchFailed", hint="Push the branch, or name another one.")

    def fetch(self, *, base: str | None = None, rewrite: AllowedRewrite | None = None) -> SourceSnapshot:
        """Fetch the newest commit of the ref without accepting it.

        1. Objects are fetched to the candidate ref; git refuses malformed ones and stops at the limits.
        2. The accepted commit must be an ancestor.
        3. Every relevant file is plain, plainly named, and small enough.

        Args:
            base: The accepted commit in the registry; it must be an ancestor too. Needed after the loss of a mirror.
            rewrite: The one approved rewrite of history.

        Raises:
            Transient: ``FetchFailed``.
            Invalid: ``HistoryRewritten``, ``LimitExceeded``, ``UnsafeTree``.
        """
        with self._lock():
            return self._repairing(lambda: self._fetch(base, rewrite))

    def _fetch(self, base: str | None, rewrite: AllowedRewrite | None) -> SourceSnapshot:
        # (1)
        self._bring(full_ref(self.ref), CANDIDATE)
        commit = self._head(CANDIDATE)
        if commit is None:
            raise self._no_commit(self.ref)
        # (2)
        accepted = self._head(ACCEPTED)
        if accepted is None and (self.path / ACCEPTED).is_file():
            msg = f"The mirror of {redact(self.address.url)} no longer has the commit that was accepted."
            raise MirrorDamaged(msg, code="FetchFailed")
        for old in {base, accepted.id if accepted else None} - {None}:
            self._check_descends(str(old), commit, rewrite)
        # (3)
        return self._look(commit, self.ref)

    def peek(self, ref: str) -> SourceSnapshot:
        """Fetch another ref, or a commit id where the host allows it, and accept nothing. For plans.

        Raises:
            NotFound: ``ref_not_found``: the host has no such ref.
            Transient: ``FetchFailed``.
            Invalid: ``LimitExceeded``, ``UnsafeTree``, or not a ref.
        """
        target = ref if ID.fullmatch(ref) else full_ref(short_ref(check_ref(ref)))
        with self._lock():
            return self._repairing(lambda: self._peek(target))

    def _peek(self, target: str) -> SourceSnapshot:
        try:
            self._bring(target, PEEKED)
        except RefMissing as error:
            msg = f"{redact(self.address.url)} has no {short_ref(target)}."
            raise NotFound(msg, code="ref_not_found", hint="Push the branch, or name another one.") from error
        commit = self._head(PEEKED)
        if commit is None:
            raise self._no_commit(target)
        return self._look(commit, short_ref(target))

    def accept(self, snapshot: SourceSnapshot, *, rewrite: AllowedRewrite | None = None) -> None:
        """Accept a fetched snapshot.

        Raises:
            Invalid: ``HistoryRewritten``: it does not descend from the accepted commit.
            Conflict: another process moved the accepted ref.
            Transient: ``FetchFailed``: the mirror is damaged; the next fetch rebuilds it.
        """
        with self._lock(), self._noticing_damage():
            accepted = self._head(ACCEPTED)
            if accepted is not None and accepted.id == snapshot.commit:
                return
            if accepted is not None:
                self._check_descends(accepted.id, self._commit(snapshot.commit), rewrite)
            before = accepted.id if accepted else "0" * len(snapshot.commit)
            commands = (
                f"update {ACCEPTED} {snapshot.commit} {before}\nupdate {KEEP}{snapshot.commit} {snapshot.commit}\n"
            )
            if self._git.local("update-ref", "--stdin", stdin=commands.encode(), accept=(0, 128)).status != 0:
                if (self._head(ACCEPTED) or accepted) == accepted:
                    msg = f"The mirror of {redact(self.address.url)} does not store the accepted commit."
                    raise MirrorDamaged(msg, code="FetchFailed")
                msg = f"The mirror of {redact(self.address.url)} moved while {snapshot.revision} was being accepted."
                raise Conflict(msg, code="mirror_moved", hint="Fetch again.")

    def accepted(self) -> SourceSnapshot | None:
        """Return the accepted snapshot; None without one. Needs no network."""
        if not self.path.is_dir():
            return None
        with self._lock(), self._noticing_damage():
            head = self._head(ACCEPTED)
            return self._look(head, self.ref) if head else None

    def since(self, old: str, new: str) -> list[Commit]:
        """Read the new commits of a branch, newest first: the commit itself, and its first parents back to a known one.

        Raises:
            Invalid: ``LimitExceeded``: there are too many.
        """
        span = f"{old}..{new}"
        with self._noticing_damage():
            output = self._git.local(
                "rev-list", "--first-parent", f"--max-count={self.limits.commits + 1}", span, "--"
            ).stdout
            ids = output.decode("ascii").split()
            if len(ids) > self.limits.commits:
                msg = f"{self.ref} grew by more than {self.limits.commits} commits at once."
                raise Invalid(msg, code="LimitExceeded", hint="Push them in parts.", new=new)
            objects = self._objects.read("commit", ids, _COMMIT_BYTES * 16)
        return [parse_commit(commit, item.content) for commit, item in zip(ids, objects, strict=True)]

    def history(self, old: str | None, new: str) -> list[SourceSnapshot]:
        """List the commits that lead to one, oldest first and without that one: those that changed a relevant file.

        Args:
            old: The commit after which to begin; None begins at the first, or at the limit of commits.
            new: The commit they lead to.
        """
        span = new if old is None else f"{old}..{new}"
        count = f"--max-count={self.limits.commits + 1}"
        output = self._git.local("rev-list", "--first-parent", count, span, "--", *FOLDERS).stdout
        ids = [commit for commit in reversed(output.decode("ascii").split()) if commit != new]
        snapshots = []
        with self._lock():
            for commit in ids[-self.limits.commits :]:
                # A commit that could not be reconciled when it was new is not reconciled now.
                with contextlib.suppress(Invalid):
                    snapshots.append(self._look(self._commit(commit), self.ref))
        return snapshots

    def maintain(self) -> bool:
        """Repack the mirror when it has many packs; return whether it did."""
        if len(self._packs()) < PACKS:
            return False
        with self._lock(), self._noticing_damage():
            self._git.local("pack-refs", "--all")
            self._git.local("repack", "-a", "-d", "-q")
            self._objects.close()
        return True

    def close(self) -> None:
        """End the processes of this mirror; the next use starts them again."""
        self._objects.close()

    def read_blobs(self, blobs: Sequence[Blob]) -> list[bytes]:
        """Return the content of blobs, in order. ``SourceSnapshot.read`` reads by path.

        Raises:
            Invalid: ``LimitExceeded``.
            Transient: ``FetchFailed``: the mirror does not have one of them.
        """
        total = sum(blob.size for blob in blobs)
        if total > self.limits.read_bytes:
            msg = f"{total} bytes are too many to read at once; the limit is {self.limits.read_bytes}."
            raise Invalid(msg, code="LimitExceeded")
        with self._noticing_damage():
            return [item.content for item in self._objects.read("blob", [blob.id for blob in blobs], total)]

    def trees(self, ids: Sequence[str]) -> list[bytes]:
        """Return tree objects as they are stored, in order."""
        return [item.content for item in self._objects.read("tree", ids, _TREE_BYTES)]

    def sizes(self, ids: Sequence[str]) -> list[int]:
        """Return the sizes of blobs, in order."""
        return self._objects.sizes(ids)

    def _ask_host(self, full: str) -> bytes:
        self._prepare()
        return self._git.remote("ls-remote", "--quiet", "--", self.address.url, full, seconds=self.limits.poll_seconds)

    def _repairing(self, act: Callable[[], T]) -> T:
        """Use the mirror under its lock; rebuild a damaged mirror, and use it once more."""
        if self._marked.exists() and self._may_rebuild():
            self._rebuild("an earlier use of it failed")
        try:
            with self._noticing_damage():
                return act()
        except MirrorDamaged as error:
            if not self._may_rebuild():
                raise
            self._rebuild(str(error))
            with self._noticing_damage():
                return act()

    @contextlib.contextmanager
    def _noticing_damage(self) -> Iterator[None]:
        try:
            yield
        except MirrorDamaged:
            with contextlib.suppress(OSError):
                self._marked.touch()
            raise

    def _may_rebuild(self) -> bool:
        """Return whether the last rebuild, by any process, is long enough ago."""
        try:
            last = parse_time((self._folder / "rebuilt").read_text(encoding="ascii"))
        except (OSError, ValueError, Invalid):
            return True
        return abs(self._clock.now() - last) >= REBUILD_EVERY

    def _ask_elsewhere(self) -> None:
        """Request something from the host, outside the mirror.

        Raises:
            Transient: ``FetchFailed``: it does not answer.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        away = replace(self._git, mirror=self._folder)
        away.remote("ls-remote", "--quiet", "--", self.address.url, "HEAD", seconds=self.limits.poll_seconds)

    def _rebuild(self, why: str) -> None:
        """Move the mirror away and create an empty one.

        The accepted commit is in the registry too, and is still compared.

        Raises:
            Transient: ``FetchFailed``: the host is unreachable, so that nothing could be fetched, or the disk fails.
        """
        self._ask_elsewhere()
        aside = self.path.with_suffix(".damaged")
        self._objects.close()
        self._known = {}
        try:
            shutil.rmtree(aside, ignore_errors=True)
            if self.path.exists():
                self.path.rename(aside)
            self._marked.unlink(missing_ok=True)
            (self._folder / "rebuilt").write_text(isoformat(self._clock.now()), encoding="ascii")
        except OSError as error:
            msg = f"The mirror of {redact(self.address.url)} is damaged and cannot be moved away: {error.strerror}."
            raise Transient(msg, code="FetchFailed", hint=f"Remove {self.path}; it is rebuilt.") from error
        metrics.MIRROR_REBUILT.inc()
        log.warning("rebuilding a damaged mirror: %s", why, extra={"event": "mirror_rebuilt", "aside": str(aside)})

    def _bring(self, target: str, into: str) -> None:
        check_complete(self.address)
        self._prepare()
        self._drop_unfinished()
        before = self._packs()
        try:
            self._git.remote(
                "fetch",
                "--quiet",
                "--no-tags",
                "--no-recurse-submodules",
                "--no-auto-maintenance",
                "--no-write-fetch-head",
                f"--filter=blob:limit={self.limits.blob_bytes + 1}",
                "--",
                _REMOTE,
                f"+{target}:{into}",
                seconds=self.limits.fetch_seconds,
                settings=(f"remote.{_REMOTE}.url={self.address.url}",),
            )
        except Transient as error:
            # The kernel stops a file at the limit without an error message; the rest of the file shows it.
            if self._drop_unfinished() >= self.limits.pack_bytes // 512 * 512:
                msg = f"{redact(self.address.url)} sends more than {self.limits.pack_bytes} bytes."
                raise Invalid(msg, code="LimitExceeded", hint="Keep large files out of the repository.") from error
            raise
        metrics.FETCH_BYTES.inc(sum(pack.stat().st_size for pack in self._packs() - before))

    def _packs(self) -> set[Path]:
        return set(self.path.glob("objects/pack/*.pack"))

    def _drop_unfinished(self) -> int:
        """Remove the files of an interrupted fetch and return the size of the largest."""
        largest = 0
        for file in self.path.glob("objects/pack/tmp_*"):
            largest = max(largest, file.stat().st_size)
            file.unlink()
        return largest

    def _check_descends(self, old: str, new: Commit, rewrite: AllowedRewrite | None) -> None:
        if (
            old == new.id
            or rewrite == AllowedRewrite(old, new.id)
            or old in new.parents
            or self._is_ancestor(old, new.id)
        ):
            return
        msg = f"{self.ref} of {redact(self.address.url)} was at {old} and is now at {new.id}, which does not follow it."
        hint = "If the rewrite is intended, approve it: kneo source accept-rewrite. Until then current releases stay."
        raise Invalid(msg, code="HistoryRewritten", hint=hint, old=old, new=new.id)

    def _is_ancestor(self, old: str, new: str) -> bool:
        """Return whether one commit is an ancestor of another; false for a commit that the mirror does not have."""
        if not ID.fullmatch(old) or self._objects.find([old], "commit") == [None]:
            return False
        return self._git.local("merge-base", "--is-ancestor", old, new, accept=(0, 1)).status == 0

    def _head(self, ref: str) -> Commit | None:
        """Read the commit of a ref, through an annotated tag if there is one; None without one."""
        (item,) = self._objects.find([f"{ref}^{{commit}}"], "commit")
        return self._commit(item.id) if item is not None else None

    def _commit(self, commit: str) -> Commit:
        (item,) = self._objects.read("commit", [commit], _COMMIT_BYTES)
        return parse_commit(commit, item.content)

    def _no_commit(self, ref: str) -> Invalid:
        msg = f"{ref} of {redact(self.address.url)} does not name a commit."
        return Invalid(msg, code="UnsafeTree", hint="Name a branch.")

    def _look(self, commit: Commit, ref: str) -> SourceSnapshot:
        id_bytes = len(commit.tree) // 2
        try:
            (root,) = self.trees([commit.tree])
            wanted = our_folders(root, id_bytes)
            folders = read_folders(wanted, self._known, self, self.limits, id_bytes)
        except Transient:
            # git stops at a file that the filter left out, because it cannot tell its size.
            missing = self._missing(commit.tree)
            if missing is None or self._had(missing, commit.tree):
                raise
            raise too_large(missing, self.limits) from None
        self._known = folders
        return SourceSnapshot(commit.id, commit.tree, ref, all_files(folders, self.limits), self, commit.at)

    def _missing(self, tree: str) -> str | None:
        """Name a relevant file that the host did not send."""
        output = self._git.local("rev-list", "--objects", "--no-walk", "--missing=print", tree, accept=(0, 128)).stdout
        absent = {line[1:].split()[0] for line in output.splitlines() if line.startswith(b"?")}
        names = self._git.local("ls-tree", "-r", "-z", tree, "--", *FOLDERS, accept=(0, 128)).stdout.split(b"\0")[:-1]
        for entry in names:
            meta, _, path = entry.partition(b"\t")
            if meta.split()[-1] in absent:
                return path.decode("ascii", "backslashreplace")
        return None

    def _had(self, path: str, tree: str) -> bool:
        """Return whether the accepted commit has the same file, so that the mirror had it once."""
        accepted = self._head(ACCEPTED)
        if accepted is None:
            return False
        both = [self._git.local("ls-tree", each, "--", path).stdout for each in (tree, accepted.tree)]
        return both[0] == both[1]

    def _prepare(self) -> None:
        """Create the mirror and its configuration files if they are missing."""
        config, askpass = self._folder / "gitconfig", self._folder / "askpass"
        if not _holds(askpass, ASKPASS):
            write_askpass(askpass)
        if not _holds(config, _global_config(self.address)):
            config.write_text(_global_config(self.address), encoding="utf-8")
        if (self.path / "HEAD").is_file():
            return
        self._objects.close()
        self.path.mkdir(mode=0o700, exist_ok=True)
        check_version(self._git.local("version").stdout)
        self._git.local("init", "--bare", "--quiet", "--template=", "--initial-branch=main")

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Let one process at a time use the mirror. Every command inside is bounded, so waiting is too."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _holds(file: Path, text: str) -> bool:
    try:
        return file.read_text(encoding="utf-8") == text
    except (OSError, ValueError):
        return False


def app_tokens(credentials: GitCredentials, address: RepositoryAddress, *, write: bool = False) -> Tokens | None:
    """Return the token source of a GitHub App for a repository; None where no App is set, or none is needed."""
    if not credentials.github_app_id or address.protocol != "https":
        return None
    from kneo.controller.source.github_app import InstallationTokens  # Most processes need no HTTP client for it.

    return InstallationTokens(credentials, address, write=write)


def _global_config(address: RepositoryAddress) -> str:
    """Return the only configuration file that git reads.

    A local folder needs the permission to read files of other users.
    """
    if address.path is None:
        return ""
    folders = {address.path, address.path.resolve()}
    names = sorted({str(place) for folder in folders for place in (folder, folder / ".git")})
    quoted = "".join('\tdirectory = "{}"\n'.format(name.replace("\\", "\\\\").replace('"', '\\"')) for name in names)
    serving = "[uploadpack]\n\tallowFilter = true\n\tallowAnySHA1InWant = true\n"
    return f"[safe]\n{quoted}{serving}"
