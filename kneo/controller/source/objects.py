"""A reader of git objects: one ``git cat-file`` process that stays, because starting a process costs more than most
reads.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from kneo.clock import monotonic
from kneo.controller.source.address import redact
from kneo.controller.source.git import Git, MirrorDamaged
from kneo.errors import Invalid, Transient

_CHUNK = 262_144
_HEADER_BYTES = 600


@dataclass(frozen=True)
class Found:
    """An object of the mirror."""

    id: str
    kind: str
    size: int
    content: bytes = b""
    """Empty where only the size was requested."""


class _Ended(Exception):
    """The process returned an unexpected response."""


class _Late(Exception):
    """The process did not respond in time."""


class ObjectReader:
    """Objects of one mirror, by id or by the name of a ref. Sees objects fetched since its start; thread-safe."""

    def __init__(self, git: Git) -> None:
        self._git = git
        self._turn = threading.Lock()
        self._talk: _Talk | None = None

    def read(self, kind: str, names: Sequence[str], max_bytes: int) -> list[Found]:
        """Return objects of one kind with their content, in order.

        Raises:
            MirrorDamaged: the mirror lacks one, or has an object of another kind under its name.
            Transient: ``FetchFailed``: git did not answer in time.
            Invalid: ``LimitExceeded``: together they are larger than allowed.
        """
        objects = self._ask("contents", names, max_bytes)
        return [self._expect(item, kind, name) for item, name in zip(objects, names, strict=True)]

    def sizes(self, ids: Sequence[str]) -> list[int]:
        """Return the sizes of blobs, in order.

        Raises:
            MirrorDamaged: the mirror lacks one, such as a blob that was too large to fetch.
            Transient: ``FetchFailed``: git did not answer in time.
        """
        objects = self._ask("info", ids, 0)
        return [self._expect(item, "blob", oid).size for item, oid in zip(objects, ids, strict=True)]

    def find(self, names: Sequence[str], kind: str) -> list[Found | None]:
        """Return the objects of one kind with these names, without content; None for an unknown name."""
        return [item if item and item.kind == kind else None for item in self._ask("info", names, 0)]

    def close(self) -> None:
        """End the process; the next read starts another."""
        with self._turn:
            self._stop()

    def _ask(self, command: str, names: Sequence[str], max_bytes: int) -> list[Found | None]:
        if not names:
            return []
        with self._turn:
            if self._talk is None or not self._talk.goes_on():
                self._stop()
                self._talk = _Talk(self._git)
            try:
                return self._talk.ask(command, names, max_bytes)
            except _Late as error:
                self._stop()
                msg = f"The mirror of {redact(self._git.address.url)} was not read: {error}."
                raise Transient(msg, code="FetchFailed") from error
            except (_Ended, OSError) as error:
                self._stop()
                raise self._lacks(f"one of {len(names)} objects", str(error)) from error
            except BaseException:
                # The rest of this response would be taken for that of the next request.
                self._stop()
                raise

    def _stop(self) -> None:
        if self._talk is not None:
            self._talk.end()
            self._talk = None

    def _expect(self, item: Found | None, kind: str, name: str) -> Found:
        if item is None or item.kind != kind:
            raise self._lacks(f"the {kind} {name}", "it has another object, or none, under that name")
        return item

    def _lacks(self, what: str, why: str) -> MirrorDamaged:
        msg = f"The mirror of {redact(self._git.address.url)} lacks {what}: {why}."
        return MirrorDamaged(msg, code="FetchFailed")


class _Talk:
    """One ``git cat-file`` process, and its unread output."""

    def __init__(self, git: Git) -> None:
        self._limits = git.limits
        self._process = git.start("cat-file", "--batch-command", "--buffer")
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        self._heard = b""
        self._at = 0
        self._deadline = 0.0
        self.end = weakref.finalize(self, _kill, self._process)

    def goes_on(self) -> bool:
        return self._process.poll() is None

    def ask(self, command: str, names: Sequence[str], max_bytes: int) -> list[Found | None]:
        """Send all names at once; git reads every request before it answers the first."""
        self._deadline = monotonic() + self._limits.read_seconds
        self._send("".join(f"{command} {name}\n" for name in names).encode() + b"flush\n")
        left, answers = max_bytes, list[Found | None]()
        for _ in names:
            header = self._header()
            if header is not None and command == "contents":
                left -= header.size
                if left < 0:
                    msg = f"The objects read at once are larger than {max_bytes} bytes."
                    raise Invalid(msg, code="LimitExceeded")
                header = Found(header.id, header.kind, header.size, self._take(header.size + 1)[:-1])
            answers.append(header)
        return answers

    def _header(self) -> Found | None:
        words = self._line().split()
        if len(words) == 3 and words[2].isdigit():
            return Found(words[0].decode("ascii"), words[1].decode("ascii"), int(words[2]))
        if words[-1:] == [b"missing"]:
            return None
        msg = "git returned an unexpected response"
        raise _Ended(msg)

    def _line(self) -> bytes:
        while (end := self._heard.find(b"\n", self._at)) < 0:
            if len(self._heard) - self._at > _HEADER_BYTES:
                msg = "git returned an unexpected response"
                raise _Ended(msg)
            self._heard, self._at = self._heard[self._at :] + self._hear(), 0
        line, self._at = self._heard[self._at : end], end + 1
        return line

    def _take(self, count: int) -> bytes:
        parts = [self._heard[self._at : self._at + count]]
        self._at += len(parts[0])
        missing = count - len(parts[0])
        while missing:
            chunk = self._hear()
            parts.append(chunk[:missing])
            self._heard, self._at = chunk, len(parts[-1])
            missing -= len(parts[-1])
        return b"".join(parts)

    def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._wait(select.POLLOUT, self._to)
            with contextlib.suppress(BlockingIOError):
                rest = rest[os.write(self._to, rest[:_CHUNK]) :]

    def _hear(self) -> bytes:
        self._wait(select.POLLIN, self._from)
        chunk = os.read(self._from, _CHUNK)
        if not chunk:
            msg = "git ended before it responded"
            raise _Ended(msg)
        return chunk

    def _wait(self, event: int, descriptor: int) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(max(0.0, self._deadline - monotonic()) * 1000):
            msg = f"git did not respond within {self._limits.read_seconds:g} s"
            raise _Late(msg)


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
