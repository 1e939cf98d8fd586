"""Reading git objects by id, many with one command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from controller.source.address import redact
from controller.source.git import Git
from kneo.errors import Transient

_HEADER_BYTES = 200


def read_objects(git: Git, kind: str, ids: Sequence[str], max_bytes: int) -> list[bytes]:
    """Return the content of objects of one kind, in order.

    Raises:
        Transient: ``FetchFailed``: the mirror lacks one, or has something else under its id.
        Invalid: ``LimitExceeded``: together they are larger than allowed.
    """
    if not ids:
        return []
    asked = "".join(f"{oid}\n" for oid in ids).encode()
    most = max_bytes + _HEADER_BYTES * len(ids)
    output = git.local("cat-file", "--batch", "--buffer", stdin=asked, max_output=most).stdout
    return list(_split(git, output, kind, ids))


def _split(git: Git, output: bytes, kind: str, ids: Sequence[str]) -> Iterator[bytes]:
    at = 0
    for oid in ids:
        start = output.find(b"\n", at) + 1
        header = output[at:start].split()
        if len(header) != 3 or header[:2] != [oid.encode(), kind.encode()] or not header[2].isdigit():
            msg = f"The mirror of {redact(git.address.url)} lacks the {kind} {oid}."
            raise Transient(msg, code="FetchFailed", hint="Remove the mirror; it is made again.")
        end = start + int(header[2])
        yield output[start:end]
        at = end + 1
