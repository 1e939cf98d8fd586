"""Addresses of repositories (https, ssh, or a local folder that the operator named), and the credentials of git and ssh.

No other address reaches the git command. Secrets never appear in an argument, an address or a file that Kneo writes.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kneo.errors import Invalid
from kneo.names import visible
from kneo.settings import GitCredentials

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
    """Return a text as one line, without user names and secrets in its addresses, and with escapes for what is not visible."""
    return _USERINFO.sub("://***@", visible(re.sub(r"\s", " ", text)))


def _folder(text: str) -> RepositoryAddress:
    path = Path(text)
    if visible(text) != text or ".." in path.parts:
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


ASKPASS = """\
#!/bin/sh
case "$1" in
"Username for 'https://$KNEO_GIT_HOST': ") printf '%s\\n' "$KNEO_GIT_USERNAME" ;;
"Password for 'https://"*)
    [ "${1#*@}" = "$KNEO_GIT_HOST': " ] || exit 1
    if [ -n "$KNEO_GIT_TOKEN" ]; then printf '%s\\n' "$KNEO_GIT_TOKEN"; else cat -- "$KNEO_GIT_TOKEN_FILE"; fi ;;
*) exit 1 ;;
esac
"""
"""The program that git runs for a user name and a token.

It answers for one host only, wherever a redirect or a submodule leads.
"""

APP_USERNAME = "x-access-token"
"""User name for the token of a GitHub App."""


def write_askpass(path: Path) -> None:
    """Write the program that answers git's prompts."""
    path.write_text(ASKPASS, encoding="ascii")
    path.chmod(0o700)


def git_options(credentials: GitCredentials) -> tuple[str, ...]:
    """Return the ``-c`` options that make git use these credentials over https."""
    files = {
        "http.sslCAInfo": credentials.ca_file,
        "http.sslCert": credentials.client_cert_file,
        "http.sslKey": credentials.client_key_file,
    }
    return tuple(
        part for name, file in files.items() if file is not None for part in ("-c", f"{name}={existing_file(file)}")
    )


def git_environment(
    credentials: GitCredentials, address: RepositoryAddress, askpass: Path, token: str | None = None
) -> Mapping[str, str]:
    """Return the environment variables that make git use these credentials at an address.

    Args:
        credentials: The operator's credentials.
        address: The only repository they are used for.
        askpass: A file with the content of ``ASKPASS``.
        token: A token that is in no file, as one of a GitHub App.

    Raises:
        Invalid: ssh without known hosts, or a file that does not exist.
    """
    if address.protocol == "ssh":
        return {"GIT_SSH_COMMAND": _ssh_command(credentials), "GIT_SSH_VARIANT": "ssh"}
    if address.protocol != "https" or not (token or credentials.token_file):
        return {}
    variables = {"GIT_ASKPASS": str(askpass), "KNEO_GIT_HOST": address.host, "KNEO_GIT_USERNAME": credentials.username}
    if token is not None:
        return {**variables, "KNEO_GIT_USERNAME": APP_USERNAME, "KNEO_GIT_TOKEN": token}
    assert credentials.token_file is not None
    return {**variables, "KNEO_GIT_TOKEN_FILE": existing_file(credentials.token_file)}


def _ssh_command(credentials: GitCredentials) -> str:
    if credentials.known_hosts_file is None:
        msg = "A repository over ssh needs a known_hosts file, which identifies its host."
        hint = "Make one with ssh-keyscan, check its fingerprints, and set KNEO_SERV_GIT_KNOWN_HOSTS_FILE."
        raise Invalid(msg, code="invalid_setting", hint=hint)
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": existing_file(credentials.known_hosts_file),
        "GlobalKnownHostsFile": "/dev/null",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "PreferredAuthentications": "publickey",
        "ForwardAgent": "no",
        "ConnectTimeout": "15",
    }
    # ssh splits the value of some options at spaces, so paths are quoted for ssh and for the shell.
    words = ["ssh", "-F", "none"]
    words += [part for name, value in options.items() for part in ("-o", f'{name}="{value}"')]
    if credentials.ssh_key_file is not None:
        words += ["-i", existing_file(credentials.ssh_key_file)]
    return shlex.join(words)


def existing_file(path: Path) -> str:
    """Return the absolute path of an existing file.

    Raises:
        Invalid: ``invalid_setting``: it does not exist, or ssh would misread its path.
    """
    text = str(path.absolute())
    if not path.is_file():
        msg = f"The file {text} does not exist or is not a file."
        raise Invalid(msg, code="invalid_setting")
    if visible(text) != text or any(letter in text for letter in '"%'):
        msg = f"The path {text!r} has characters that ssh would read as something else."
        raise Invalid(msg, code="invalid_setting")
    return text
