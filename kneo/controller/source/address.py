"""Addresses of repositories: https, ssh, or a local folder that the operator named.

No other address reaches the git command.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kneo.errors import Invalid

_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_USER = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_PATH = r"[A-Za-z0-9._~+%@/-]+"
_HTTPS = re.compile(rf"https://{_HOST}/{_PATH}")
_SSH = re.compile(rf"ssh://(?:{_USER}@)?{_HOST}/{_PATH}")
_SCP = re.compile(rf"({_USER}@[A-Za-z0-9][A-Za-z0-9.-]*):({_PATH})")
_USERINFO = re.compile(r"://[^/@\s]*@")

ADDRESS_CHARS = 2_000


@dataclass(frozen=True)
class RepositoryAddress:
    url: str
    protocol: str
    """``https``, ``ssh`` or ``file``: the only transport that git may use for this repository."""

    path: Path | None = None
    """The folder, for ``file``."""

    @property
    def host(self) -> str:
        """The host with its port, as the address writes it; empty for a folder."""
        return self.url.split("://", 1)[1].split("/", 1)[0].rpartition("@")[2] if self.path is None else ""


def parse_address(text: str) -> RepositoryAddress:
    """Parse a repository's address.

    Raises:
        Invalid: another transport, a secret inside the address, or forbidden characters.
    """
    if text.startswith(("/", "file:///")):
        return _folder(text.removeprefix("file://"))
    if len(text) > ADDRESS_CHARS:
        raise _refused(text, "is too long")
    if scp := _SCP.fullmatch(text):
        text = f"ssh://{scp[1]}/{scp[2].removeprefix('/')}"
    if _has_odd_parts(text):
        raise _refused(text, "has a path that goes up or looks like an option")
    if _HTTPS.fullmatch(text):
        return RepositoryAddress(text, "https")
    if _SSH.fullmatch(text):
        return RepositoryAddress(text, "ssh")
    if _USERINFO.search(text):
        raise _refused(text, "carries a user name or a secret")
    raise _refused(text, "has a transport that is not supported")


def redact(text: str) -> str:
    """Hide user names and secrets in the addresses of a text, and everything unprintable."""
    visible = "".join(letter if letter.isprintable() else " " for letter in text)
    return _USERINFO.sub("://***@", visible)


def _folder(text: str) -> RepositoryAddress:
    path = Path(text)
    if not text.isprintable() or ".." in path.parts:
        raise _refused(text, "is not a plain folder")
    if not path.is_dir():
        msg = f"There is no repository at {text}."
        raise Invalid(msg, code="invalid_repository", hint="Give the folder of a Git repository, or its https address.")
    return RepositoryAddress(str(path), "file", path)


def check_complete(address: RepositoryAddress) -> None:
    """Check that a local repository is no shallow clone.

    A fetch with a filter from a shallow clone does not end: git takes the commits that the clone lacks for promised ones,
    and starts one process after another to fetch them.

    Raises:
        Invalid: ``shallow_repository``.
    """
    if address.path is not None and any((git / "shallow").is_file() for git in (address.path / ".git", address.path)):
        msg = f"{address.path} is a shallow clone: a part of its history is missing."
        hint = "Fetch the whole history: git fetch --unshallow. In CI, check out with fetch-depth: 0."
        raise Invalid(msg, code="shallow_repository", hint=hint)


def _has_odd_parts(text: str) -> bool:
    parts = text.split("://", 1)[-1].split("/")
    return any(part == ".." or part.startswith("-") for part in parts)


def _refused(text: str, why: str) -> Invalid:
    msg = f"The repository address {redact(text[:200])!r} {why}."
    hint = "Use https://host/path, ssh://user@host/path or an absolute folder; tokens go into a token file."
    return Invalid(msg, code="invalid_repository", hint=hint)


_BRANCHES = "refs/heads/"
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(?:/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")
_REF_CHARS = 250


def check_ref(ref: str) -> str:
    """Check that a text can only be a ref.

    Raises:
        Invalid: it could be an option, a revision expression or a path.
    """
    odd = "..", "//", "@{", ".lock/", "/."
    if (
        len(ref) > _REF_CHARS
        or not _REF.fullmatch(ref)
        or ref.endswith((".lock", "."))
        or any(part in ref for part in odd)
    ):
        msg = f"{ref[:100]!r} is not the name of a branch or a ref."
        raise Invalid(
            msg, code="invalid_ref", hint="Give a branch such as main, or a full ref such as refs/pull/7/head."
        )
    return ref


def short_ref(ref: str) -> str:
    """Return the short name of a branch."""
    return ref.removeprefix(_BRANCHES)


def full_ref(ref: str) -> str:
    """Return the full name of a branch."""
    return ref if ref == "HEAD" or ref.startswith("refs/") else f"{_BRANCHES}{ref}"
