"""Who signed the commits themselves: asked where the trust root has a role for it, beside the signatures of bundles."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime

from controller.source.commit import Commit
from kneo.errors import Invalid
from kneo.trust.root import TrustRoot
from kneo.trust.sshsig import find_ssh_signer

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
