"""Access to the remote repository that a clone is pushed to."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kneo.cli.repository.clone import OWN_ACCESS, GitAccess
from kneo.controller.source.address import parse_address
from kneo.controller.source.credentials import git_environment, git_options, write_askpass
from kneo.controller.source.mirror import app_tokens
from kneo.settings import GitCredentials

_ONE_HOST = ("credential.helper=", "http.followRedirects=false", "push.recurseSubmodules=no")
"""Git options that keep a token from other helpers and hosts."""


@contextlib.contextmanager
def login(credentials: GitCredentials, url: str) -> Iterator[GitAccess]:
    """Log in to the push address of a clone for the duration of a block.

    Without credentials in the settings, the operator's own configuration of git applies.

    Raises:
        Invalid: the address is not supported, or a file of the credentials is missing.
        Transient: a GitHub App got no token.
    """
    if credentials == GitCredentials():
        yield OWN_ACCESS
        return
    address = parse_address(url)
    if address.protocol == "ssh" and credentials.known_hosts_file is None and credentials.ssh_key_file is None:
        yield OWN_ACCESS
        return
    tokens = app_tokens(credentials, address, write=True)
    with tempfile.TemporaryDirectory(prefix="kneo-push-") as folder:
        askpass = Path(folder) / "askpass"
        write_askpass(askpass)
        environment = git_environment(credentials, address, askpass, tokens.token() if tokens else None)
        settings = _ONE_HOST if "GIT_ASKPASS" in environment else ()
        options = tuple(part for setting in settings for part in ("-c", setting))
        yield GitAccess((*options, *git_options(credentials)), {"LC_ALL": "C", **environment})
