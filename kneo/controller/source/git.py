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

import contextlib
import os
import re
import selectors
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from kneo.clock import monotonic
from kneo.controller import metrics
from kneo.controller.source.address import RepositoryAddress, git_environment, git_options, redact
from kneo.errors import Invalid, Transient
from kneo.settings import GitCredentials


@dataclass(frozen=True, kw_only=True)
class SourceLimits:
    """Limits on git and on the content of a repository.

    A repository beyond one of them is refused with ``LimitExceeded``.
    """

    fetch_seconds: float = 120.0
    """Longest fetch. A first fetch of a repository of 2,000 bundles takes under a second on a local network."""

    poll_seconds: float = 30.0
    read_seconds: float = 60.0
    """Longest local command that reads."""

    pack_bytes: int = 536_870_912
    """Largest file that git may write, so also the largest fetch. The kernel enforces it (``RLIMIT_FSIZE``)."""

    blob_bytes: int = 3_145_728
    """Largest file that is read; equal to the largest envelope. Larger blobs are not fetched where the host can filter.
    """

    files: int = 120_000
    """Most files below ``bundles`` and ``environments``."""

    commits: int = 1_000
    """Most commits of one update where commits have to be signed, and most commits for a rebuild of the registry."""

    read_bytes: int = 536_870_912
    """Most content of one read."""


STDERR_BYTES = 65_536
"""Bytes of a command's error output that are kept; the rest is discarded."""

_CHUNK = 262_144

# A limit set between fork and exec by Python code can deadlock a process that has threads; a shell has none.
_LIMITED = 'ulimit -f "$1" || exit 125; shift; exec "$@"'
_ULIMIT_UNIT = 512


class OutOfBounds(Exception):
    """The command was stopped."""


class TookTooLong(OutOfBounds):
    pass


class SaidTooMuch(OutOfBounds):
    pass


@dataclass(frozen=True, kw_only=True)
class Bounds:
    seconds: float
    stdout_bytes: int
    file_bytes: int | None
    """Largest file that the command may write; None for a command that writes nothing large."""


@dataclass(frozen=True)
class Finished:
    status: int
    stdout: bytes
    stderr: bytes


def run_bounded(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, bounds: Bounds, stdin: bytes = b""
) -> Finished:
    """Run a command to its end.

    The command and all its child processes form one process group, which is killed when a limit is passed.

    Raises:
        TookTooLong, SaidTooMuch: a limit was passed; no process of the command is left.
    """
    with subprocess.Popen(  # noqa: S603 - the argument list is ours; see controller.source.git
        _limited(argv, bounds.file_bytes),
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = _converse(process, stdin, bounds)
            status = process.wait(timeout=max(0.1, bounds.seconds))
        except (OutOfBounds, subprocess.TimeoutExpired) as error:
            _kill_group(process)
            if isinstance(error, OutOfBounds):
                raise
            msg = f"not finished after {bounds.seconds:g} s"
            raise TookTooLong(msg) from error
        except BaseException:
            _kill_group(process)
            raise
    return Finished(status, stdout, stderr)


def _limited(argv: Sequence[str], file_bytes: int | None) -> list[str]:
    if file_bytes is None:
        return list(argv)
    return ["/bin/sh", "-c", _LIMITED, "sh", str(max(1, file_bytes // _ULIMIT_UNIT)), *argv]


def _converse(process: subprocess.Popen[bytes], stdin: bytes, bounds: Bounds) -> tuple[bytes, bytes]:
    """Write and read all three pipes at once, so that neither side waits for the other for ever."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    deadline = monotonic() + bounds.seconds
    out, err = bytearray(), bytearray()
    rest = memoryview(stdin)
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, out)
        selector.register(process.stderr, selectors.EVENT_READ, err)
        selector.register(process.stdin, selectors.EVENT_WRITE)
        while selector.get_map():
            for key, _ in selector.select(_time_left(deadline, bounds)):
                if key.data is None:
                    rest = _feed(process.stdin, rest)
                    more = bool(rest)
                else:
                    more = _drain(key.fd, key.data, STDERR_BYTES if key.data is err else None)
                if not more:
                    selector.unregister(key.fileobj)
                    if key.data is None:
                        _close(process.stdin)
            if len(out) > bounds.stdout_bytes:
                msg = f"more than {bounds.stdout_bytes} bytes of output"
                raise SaidTooMuch(msg)
    return bytes(out), bytes(err)


def _time_left(deadline: float, bounds: Bounds) -> float:
    left = deadline - monotonic()
    if left <= 0:
        msg = f"not finished after {bounds.seconds:g} s"
        raise TookTooLong(msg)
    return left


def _feed(pipe: IO[bytes], rest: memoryview) -> memoryview:
    """Write to the pipe and return the rest; nothing when the reader has closed it."""
    try:
        return rest[os.write(pipe.fileno(), rest[:_CHUNK]) :]
    except BlockingIOError:
        return rest
    except BrokenPipeError:
        return rest[:0]


def _drain(fd: int, into: bytearray, keep: int | None) -> bool:
    """Read available bytes, keep them up to a limit, and return whether more may come."""
    chunk = os.read(fd, _CHUNK)
    into += chunk if keep is None else chunk[: max(0, keep - len(into))]
    return bool(chunk)


def _close(pipe: IO[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError):
        pipe.close()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


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
