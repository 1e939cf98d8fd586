"""How we show a Git host who we are. Paths only: secrets stay in their files and are read by git and ssh themselves."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kneo.errors import Invalid

ASKPASS = """\
#!/bin/sh
case "$1" in
Username*) printf '%s\\n' "$KNEO_GIT_USERNAME" ;;
*) cat -- "$KNEO_GIT_TOKEN_FILE" ;;
esac
"""
"""What git runs to ask for a name and a token, so that neither ever stands in an argument or in a file of ours."""


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Files that prove who we are and tell whom we talk to. All optional; public https repositories need none."""

    username: str = "git"
    """Name that goes with the token; most hosts ignore it."""

    token_file: Path | None = None
    """A file whose first line is an access token, for https."""

    ssh_key_file: Path | None = None
    """A deploy key without a passphrase, for ssh."""

    known_hosts_file: Path | None = None
    """The host keys we accept, for ssh. Required there: an unknown host is never trusted on first use."""

    ca_file: Path | None = None
    """Certificate authorities to trust instead of the system's, for https."""

    client_cert_file: Path | None = None
    client_key_file: Path | None = None
    """Our own certificate and its key, for hosts that ask for one."""


def git_options(credentials: Credentials) -> tuple[str, ...]:
    """Say which ``-c`` options make git use these credentials over https."""
    files = {
        "http.sslCAInfo": credentials.ca_file,
        "http.sslCert": credentials.client_cert_file,
        "http.sslKey": credentials.client_key_file,
    }
    return tuple(part for name, file in files.items() if file is not None for part in ("-c", f"{name}={_file(file)}"))


def git_environment(credentials: Credentials, protocol: str, askpass: Path) -> Mapping[str, str]:
    """Say which environment variables make git use these credentials.

    Raises:
        Invalid: ssh without known hosts, or a file that does not exist.
    """
    if protocol == "ssh":
        return {"GIT_SSH_COMMAND": _ssh_command(credentials), "GIT_SSH_VARIANT": "ssh"}
    if protocol == "https" and credentials.token_file is not None:
        return {
            "GIT_ASKPASS": str(askpass),
            "KNEO_GIT_USERNAME": credentials.username,
            "KNEO_GIT_TOKEN_FILE": _file(credentials.token_file),
        }
    return {}


def _ssh_command(credentials: Credentials) -> str:
    if credentials.known_hosts_file is None:
        msg = "A repository over ssh needs a known_hosts file, so that we know the host when we meet it."
        raise Invalid(msg, code="invalid_setting", hint="Make one with ssh-keyscan and check its fingerprints.")
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": _file(credentials.known_hosts_file),
        "GlobalKnownHostsFile": "/dev/null",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "PreferredAuthentications": "publickey",
        "ForwardAgent": "no",
        "ConnectTimeout": "15",
    }
    # ssh splits the value of some options at spaces, so paths are quoted once for it and once for the shell.
    words = ["ssh", "-F", "none"]
    words += [part for name, value in options.items() for part in ("-o", f'{name}="{value}"')]
    if credentials.ssh_key_file is not None:
        words += ["-i", _file(credentials.ssh_key_file)]
    return shlex.join(words)


def _file(path: Path) -> str:
    text = str(path.absolute())
    if not path.is_file():
        msg = f"The file {text} does not exist or is not a file."
        raise Invalid(msg, code="invalid_setting")
    if not text.isprintable() or any(letter in text for letter in '"%'):
        msg = f"The path {text!r} has characters that ssh would read as something else."
        raise Invalid(msg, code="invalid_setting")
    return text
