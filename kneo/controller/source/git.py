"""The git command, stripped of everything that could surprise us. The only module that starts it.

Two ways to run it. *Remote* commands (``ls-remote``, ``fetch``) may use exactly one transport, the one of the address, and
see the credentials. *Local* commands may use none, so that nothing read from the mirror can make git go out and fetch.

What is closed, and by what:

- the host's and the user's configuration, by ``GIT_CONFIG_NOSYSTEM``, ``GIT_CONFIG_GLOBAL`` and a home that is not there;
- everything else in this process's environment, by not passing it on;
- other transports and ``ext::``, by ``GIT_ALLOW_PROTOCOL`` and ``protocol.allow``;
- options smuggled in as names, by fixed argument lists, ``--`` and the patterns of ``address`` and ``refs``;
- hooks, filters, submodules, attributes, by never checking anything out, and ``core.hooksPath``;
- malformed objects, by ``fetch.fsckObjects``;
- size and time, by a filter, ``RLIMIT_FSIZE`` where something is fetched, time limits and bounded output.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kneo.controller import metrics
from kneo.controller.source.address import RepositoryAddress, redact
from kneo.controller.source.credentials import git_environment, git_options
from kneo.controller.source.limits import Bounds, Finished, SaidTooMuch, SourceLimits, TookTooLong, run_bounded
from kneo.errors import Invalid, Transient
from kneo.settings import GitCredentials

OLDEST_GIT = (2, 39)
"""Oldest tested version of git."""

_HARDENED = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.bigFileThreshold=1m",
    "credential.helper=",
    "fetch.fsckObjects=true",
    "transfer.fsckObjects=true",
    "fetch.unpackLimit=1",
    "fetch.recurseSubmodules=false",
    "submodule.recurse=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "http.followRedirects=false",
    "http.sslVerify=true",
    "http.lowSpeedLimit=1000",
    "http.lowSpeedTime=30",
    "protocol.allow=never",
)

_NO_TRANSPORT = "none"

_REFUSED_LOGIN = re.compile(rb"Authentication failed|could not read Username|returned error: 40[13]")
_BAD_OBJECT = re.compile(r"fsck error|^error: object [0-9a-f]{40,64}: \w+:", re.MULTILINE)
_DAMAGE = re.compile(
    r"not a git repository: |bad config|bad object|bad tree object|reference broken|bad ref|unexpected line in .{,400}refs"
    r"|index-pack failed|invalid index-pack output|unpack-objects failed|did not send all necessary objects"
    r"|packfile .{,400} (cannot|is)|is corrupt|object file .{,400} is empty|inflate: |Could not read [0-9a-f]{40}"
    r"|unable to read (tree|sha1 file|[0-9a-f]{40})|missing (commit|tree|blob)|index file .{,400} (is too small|corrupt)"
)
"""Messages of git on a damaged repository, besides naming a file of it.

A broken host may send the same messages; they are searched in a bounded number of steps for each character.
"""

_NOT_DAMAGE = re.compile(
    r"early EOF|unexpected disconnect|RPC failed|hung up|No space left|[Dd]isk quota|File too large|Too many open files"
    r"|Cannot allocate memory|out of memory"
)
"""Causes of such messages with an intact mirror."""

_MISSING_REF = re.compile(r"couldn't find remote ref|not our ref|no such remote ref|unadvertised object")
"""Messages of git, in its C locale, about a ref or a commit that the host does not have."""

_POLL_BYTES = 65_536
_MESSAGE_CHARS = 300


class MirrorDamaged(Transient):
    """The mirror on this machine is damaged: git's message is about the local copy, not about the host."""


class RefMissing(Transient):
    """The host has no such ref or commit."""


class Tokens(Protocol):
    """A source of short-lived tokens."""

    def token(self) -> str:
        """Return a valid token.

        Raises:
            Transient: there is none to be had at present.
            Invalid: what makes tokens is set wrongly.
        """

    def forget(self) -> None:
        """Discard the present token: the host refused it."""


@dataclass(frozen=True)
class Git:
    """Git on one mirror, with one remote address.

    Args:
        mirror: The bare repository.
        address: The only address that it may fetch from.
        global_config: A configuration file that Kneo wrote; None without one.
        askpass: The script that gives git a token.
    """

    mirror: Path
    address: RepositoryAddress
    credentials: GitCredentials
    limits: SourceLimits
    global_config: Path | None = None
    askpass: Path = Path("/nonexistent/askpass")
    tokens: Tokens | None = None

    def remote(self, *arguments: str, seconds: float, settings: Sequence[str] = ()) -> bytes:
        """Run a command that talks to the repository's host, and return its output.

        Raises:
            Transient: ``FetchFailed``: the host did not answer, or sent other objects than requested.
            RefMissing: ``FetchFailed``: the host has no such ref.
            MirrorDamaged: git cannot work on the mirror.
            Invalid: ``UnsafeTree``: the objects are malformed; ``LimitExceeded``: they exceed a limit.
        """
        protocol = self.address.protocol
        opened = (*_HARDENED, f"protocol.{protocol}.allow=always", *settings)
        try:
            token = self.tokens.token() if self.tokens is not None else None
            env = {
                **_environment(self.global_config),
                "GIT_ALLOW_PROTOCOL": protocol,
                **git_environment(self.credentials, self.address, self.askpass, token),
            }
            brings = self.limits.pack_bytes if arguments[0] == "fetch" else None
            options = (*_options(opened), *git_options(self.credentials))
            result = self._run((*options, *arguments), env, b"", seconds, _POLL_BYTES, brings)
            if result.status != 0:
                if self.tokens is not None and _REFUSED_LOGIN.search(result.stderr):
                    self.tokens.forget()
                raise self._failed(arguments[0], result)
        except (Invalid, Transient):
            metrics.GIT_REQUESTS.labels(arguments[0], "failed").inc()
            raise
        metrics.GIT_REQUESTS.labels(arguments[0], "done").inc()
        return result.stdout

    def local(
        self, *arguments: str, stdin: bytes = b"", max_output: int = 67_108_864, accept: Sequence[int] = (0,)
    ) -> Finished:
        """Run a command that only reads or writes the mirror.

        Raises:
            MirrorDamaged: git failed, which it never does on an intact mirror.
            Transient: ``FetchFailed``: git did not end in time, or there is no space.
            Invalid: ``LimitExceeded``: its output exceeds the limit.
        """
        options = (*_options(_HARDENED), *arguments)
        result = self._run(options, _local_environment(), stdin, self.limits.read_seconds, max_output)
        if result.status not in accept:
            msg = f"git {arguments[0]} failed on the mirror of {redact(self.address.url)}: {_last_line(result.stderr)}"
            kind = Transient if _NOT_DAMAGE.search(result.stderr.decode(errors="replace")) else MirrorDamaged
            raise kind(msg, code="FetchFailed")
        return result

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command that only reads the mirror and answers until its input ends. The caller bounds and ends it."""
        argv = (find_git(), "--git-dir", str(self.mirror), *_options(_HARDENED), *arguments)
        return subprocess.Popen(  # noqa: S603 - the argument list is ours
            argv,
            env=_local_environment(),
            cwd=self.mirror,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )

    def _run(
        self,
        arguments: Sequence[str],
        env: Mapping[str, str],
        stdin: bytes,
        seconds: float,
        max_output: int,
        file_bytes: int | None = None,
    ) -> Finished:
        bounds = Bounds(seconds=seconds, stdout_bytes=max_output, file_bytes=file_bytes)
        argv = (find_git(), "--git-dir", str(self.mirror), *arguments)
        try:
            return run_bounded(argv, env=env, cwd=self.mirror, bounds=bounds, stdin=stdin)
        except TookTooLong as error:
            msg = f"git was stopped on {redact(self.address.url)}: {error}."
            hint = "Check that the host is reachable; for a large repository raise the time limit."
            raise Transient(msg, code="FetchFailed", hint=hint) from error
        except SaidTooMuch as error:
            msg = f"git was stopped on {redact(self.address.url)}: {error}."
            raise Invalid(msg, code="LimitExceeded") from error

    def _failed(self, command: str, result: Finished) -> Invalid | Transient:
        stderr = result.stderr.decode(errors="replace")
        what = f"git {command} from {redact(self.address.url)} failed: {_last_line(result.stderr)}"
        if _BAD_OBJECT.search(stderr):
            msg = f"{what} The repository holds an object that is not well formed."
            return Invalid(msg, code="UnsafeTree", hint="Run git fsck --strict in a clone to find it.")
        if (_DAMAGE.search(stderr) or f"{self.mirror}/" in stderr) and not _NOT_DAMAGE.search(stderr):
            return MirrorDamaged(what, code="FetchFailed")
        kind = RefMissing if _MISSING_REF.search(stderr) else Transient
        return kind(what, code="FetchFailed", hint=_hint(stderr))


def find_git() -> str:
    """Return the path of git.

    Raises: Invalid: there is none.
    """
    path = shutil.which("git")
    if path is None:
        msg = "The git command was not found on this machine."
        raise Invalid(msg, code="git_missing", hint="Install git 2.39 or later.")
    return path


def check_version(output: bytes) -> None:
    """Check the output of ``git version``.

    Raises:
        Invalid: the version is older than the oldest tested one.
    """
    match = re.match(rb"git version (\d+)\.(\d+)", output)
    if match is None or (int(match[1]), int(match[2])) < OLDEST_GIT:
        version = output[:60].decode(errors="replace").strip()
        msg = f"This machine has {version!r}; git 2.39 or later is needed."
        raise Invalid(msg, code="git_too_old")


def _environment(global_config: Path | None) -> dict[str, str]:
    return {
        "PATH": f"{Path(find_git()).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": str(global_config or "/dev/null"),
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_OPTIONAL_LOCKS": "0",
    }


def _local_environment() -> dict[str, str]:
    return {**_environment(None), "GIT_ALLOW_PROTOCOL": _NO_TRANSPORT, "GIT_NO_LAZY_FETCH": "1"}


def _options(settings: Sequence[str]) -> tuple[str, ...]:
    return tuple(part for setting in settings for part in ("-c", setting))


def _last_line(stderr: bytes) -> str:
    """Return git's error message, escaped: the host may have written it."""
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    fatal = next(
        (line for line in reversed(lines) if line.startswith("fatal:")), lines[-1] if lines else "no reason given"
    )
    return redact(fatal[:_MESSAGE_CHARS]).rstrip(".") + "."


def _hint(stderr: str) -> str | None:
    hints = {
        "Authentication failed": "Check the token in KNEO_SERV_GIT_TOKEN_FILE, or the GitHub App.",
        "could not read Username": "This repository needs a token; set KNEO_SERV_GIT_TOKEN_FILE.",
        "Permission denied (publickey": "Check the deploy key in KNEO_SERV_GIT_SSH_KEY_FILE and that the host knows it.",
        "Host key verification failed": (
            "Check the file in KNEO_SERV_GIT_KNOWN_HOSTS_FILE against the fingerprints that the host publishes."
        ),
        "certificate": "Check the host's certificate; set KNEO_SERV_GIT_CA_FILE for a private certificate authority.",
        "redirect": "Use the address the host redirects to; with some hosts it ends in .git.",
        "shallow": "The repository is a shallow clone; fetch its whole history first (git fetch --unshallow).",
        "dubious ownership": "The repository belongs to another user.",
    }
    return next((hint for mark, hint in hints.items() if mark in stderr), None)
