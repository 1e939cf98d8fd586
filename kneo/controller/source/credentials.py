"""Credentials of git and ssh.

Secrets never appear in an argument, an address or a file that Kneo writes.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from kneo.controller.source.address import RepositoryAddress
from kneo.errors import Invalid
from kneo.settings import GitCredentials

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
    if not text.isprintable() or any(letter in text for letter in '"%'):
        msg = f"The path {text!r} has characters that ssh would read as something else."
        raise Invalid(msg, code="invalid_setting")
    return text
