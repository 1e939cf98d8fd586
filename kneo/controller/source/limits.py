"""Limits on the use of a repository, and the execution of commands within limits."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kneo.clock import monotonic


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

    blob_bytes: int = 1_048_576
    """Largest file that is read; equal to the largest envelope. Larger blobs are not fetched where the host can filter.
    """

    files: int = 100_000
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
