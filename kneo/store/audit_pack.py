"""The audit pack: one archive with the evidence about an environment and a period, which is verified without the service.

The archive is a ZIP file. ``pack.json`` is an envelope signed with the service key; it names every other file with its digest:

* ``events.jsonl``: every event of the audit log from the first of the period to the last, a line each, in canonical form. Events about
  other environments and services are among them, because only the whole sequence can be compared with the log's root.
* ``checkpoint.txt``: the signed size and root of the log after the last event.
* ``decisions.jsonl``, ``promotions.jsonl``: the receipts of people's decisions and of promotions, a line each.
* ``bundles/``, ``environment/``, ``trust/``: the signed bundles that were promoted, the environment files and the trust roots.
* ``summary.json``, ``report.md``: what the other files say, for reading.

Completeness: the tree's edge before the first event (``before``), and the events, lead to the signed root. The same edge gives the root of
the log before the period, which is compared with the checkpoint of the pack before it.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Annotated

from pydantic import Field

from kneo.digest import Digest, digest_of_json
from kneo.errors import Invalid, NotFound, Untrusted
from kneo.records.audit import Frontier, Kept, leaf_of
from kneo.spec.reading.reader import read_json
from kneo.trust import dsse
from kneo.trust.checkpoint import NOTE_BYTES, SignedCheckpoint, read_checkpoint
from kneo.trust.keys import PrivateKey, PublicKey
from kneo.trust.receipt import Hash
from kneo.trust.receipt_check import service_keys
from kneo.trust.statement import PAYLOAD_TYPE, read_statement, write_statement

PACK_TYPE = "urn:kneo:attestation:audit-pack:v1"

INDEX = "pack.json"
EVENTS, NOTE, DECISIONS, PROMOTIONS = "events.jsonl", "checkpoint.txt", "decisions.jsonl", "promotions.jsonl"
SUMMARY, REPORT = "summary.json", "report.md"

MOST_FILES = 4_000
"""Most files of a pack: their digests fit into one envelope."""

MOST_BYTES = 4 * 1_073_741_824
"""Largest pack, unpacked."""

LINE_BYTES = 1_048_576
"""Longest event or receipt."""


class PackIndex(dsse.SignedRecord):
    """What a pack states about itself."""

    environment: dsse.Name
    since: dsse.Time | None
    until: dsse.Time | None
    made_at: dsse.Time
    first: Annotated[int, Field(ge=1, le=dsse.SEQUENCE_LIMIT)]
    """Number of the first event in the log."""

    last: Annotated[int, Field(ge=0, le=dsse.SEQUENCE_LIMIT)]
    """Number of the last event; ``first - 1`` where the period has none."""

    before: dsse.Several[Hash]
    """The edge of the tree before the first event, the largest subtree first."""

    files: Annotated[dict[str, dsse.DigestText], Field(max_length=MOST_FILES)]


@dataclass(frozen=True, kw_only=True)
class LoggedEvent:
    """An event of a pack, its number and its leaf."""

    seq: int
    leaf: str
    fields: Mapping[str, object]

    def is_of(self, environment: str, event_types: Container[str]) -> bool:
        """Return whether it is an event of one of these types about this environment."""
        return self.fields.get("environment") == environment and self.fields.get("event_type") in event_types


@dataclass(frozen=True, kw_only=True)
class PackPeriod:
    """The part of the audit log that a pack holds; see ``PackIndex``."""

    environment: str
    since: datetime | None
    until: datetime | None
    first: int
    last: int
    before: tuple[str, ...]


class PackWriter:
    """Writes a pack: the files in any order, the signed index last.

    Args:
        stream: The archive.
        made_at: The time of the pack, which each entry has too.
    """

    def __init__(self, stream: IO[bytes], made_at: datetime) -> None:
        self._archive = zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED)
        self._made_at = made_at
        self._files: dict[str, Digest] = {}

    def add(self, name: str, chunks: Iterable[bytes]) -> None:
        """Add a file.

        Raises:
            Invalid: ``LimitExceeded``: there are too many files.
        """
        if len(self._files) >= MOST_FILES:
            msg = f"A pack has at most {MOST_FILES} files."
            raise Invalid(msg, code="LimitExceeded", hint="Choose a shorter period with --since and --until.")
        hashed = hashlib.sha256()
        with self._archive.open(self._entry(name), "w", force_zip64=True) as target:
            for chunk in chunks:
                hashed.update(chunk)
                target.write(chunk)
        self._files[name] = Digest(f"sha256:{hashed.hexdigest()}")

    def close(self, period: PackPeriod, key: PrivateKey) -> PackIndex:
        """Sign the index, and end the archive."""
        index = PackIndex(**vars(period), made_at=self._made_at, files=self._files)
        predicate = index.model_dump(mode="json", by_alias=True)
        subject = digest_of_json(dict(self._files))
        payload = write_statement(PACK_TYPE, f"audit-pack/{index.environment}", subject, predicate)
        self._archive.writestr(self._entry(INDEX), dsse.serialise(dsse.sign(PAYLOAD_TYPE, payload, key)))
        self._archive.close()
        return index

    def _entry(self, name: str) -> zipfile.ZipInfo:
        entry = zipfile.ZipInfo(name, self._made_at.timetuple()[:6])
        entry.compress_type = zipfile.ZIP_DEFLATED
        return entry


DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)
"""What reading an entry of a damaged archive raises: a changed header can claim a password or another compression."""


class PackReader:
    """An opened pack whose index was signed with one of the keys. Each file is compared with its digest while it is read.

    Raises:
        Invalid: it is no pack, or larger than a pack may be.
        Untrusted: ``SignatureInvalid``: none of the keys signed it. ``PackTampered``: a file was added, removed or changed.
    """

    def __init__(self, path: Path, keys: Sequence[PublicKey]) -> None:
        try:
            self._archive = zipfile.ZipFile(path)
            entries = self._archive.infolist()
        except FileNotFoundError as error:
            msg = f"There is no audit pack at {path}."
            raise NotFound(msg, hint="kneo audit pack writes one.", file=str(path)) from error
        except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
            msg = f"{path} is not an audit pack: {error}."
            raise Invalid(msg, code="Malformed", hint="kneo audit pack writes one.") from error
        names = [entry.filename for entry in entries]
        if sum(entry.file_size for entry in entries) > MOST_BYTES or len(entries) > MOST_FILES + 1:
            msg = f"{path} is larger than an audit pack may be."
            raise Invalid(msg, code="LimitExceeded")
        self.index = self._signed_index(path, keys, INDEX in names)
        different = set(names).symmetric_difference({*self.index.files, INDEX}) or {
            name for name in names if names.count(name) > 1
        }
        if different:
            raise tampered(min(different), "was added, removed or stored twice")

    def _signed_index(self, path: Path, keys: Sequence[PublicKey], exists: bool) -> PackIndex:
        if not exists:
            msg = f"{path} is not an audit pack: it has no {INDEX}."
            raise Invalid(msg, code="Malformed", hint="kneo audit pack writes one.")
        try:
            with self._archive.open(INDEX) as source:
                data = source.read(dsse.ENVELOPE_BYTES + 1)
        except DAMAGED as error:
            raise tampered(INDEX, "cannot be unpacked") from error
        envelope = dsse.parse_envelope(data, file=INDEX)
        if envelope.payload_type != PAYLOAD_TYPE or not dsse.find_signers(envelope, service_keys(keys)):
            msg = f"{path} was not signed with any of the keys given."
            raise Untrusted(
                msg, code="SignatureInvalid", hint="kneo task receipt key --output service.pem writes the key."
            )
        statement = read_statement(envelope.payload, PACK_TYPE, file=INDEX)
        return dsse.read_record(PackIndex, statement.predicate, file=INDEX)

    def lines(self, name: str) -> Iterator[bytes]:
        """Yield the lines of a file without their ends.

        Raises:
            Untrusted: ``PackTampered``, after the last line.
        """
        for line in self._parts(name, lambda source: source.readline(LINE_BYTES)):
            yield line.rstrip(b"\n")

    def read(self, name: str) -> bytes:
        """Return a file.

        Raises:
            Untrusted: ``PackTampered``.
        """
        return b"".join(self._parts(name, lambda source: source.read(LINE_BYTES)))

    def _parts(self, name: str, read: Callable[[IO[bytes]], bytes]) -> Iterator[bytes]:
        hashed = hashlib.sha256()
        try:
            source = self._archive.open(name)
        except DAMAGED as error:
            raise tampered(name, "cannot be unpacked") from error
        with source:
            while True:
                try:
                    part = read(source)
                except DAMAGED as error:
                    raise tampered(name, "cannot be unpacked") from error
                if not part:
                    break
                hashed.update(part)
                yield part
        if self.index.files[name] != f"sha256:{hashed.hexdigest()}":
            raise tampered(name, "is not the file that was signed")

    def names(self, folder: str) -> list[str]:
        """List the files below a folder."""
        return sorted(name for name in self.index.files if name.startswith(f"{folder}/"))

    def close(self) -> None:
        """Close the archive."""
        self._archive.close()


def tampered(name: str, what: str) -> Untrusted:
    """Return the error of a file that is not the signed one."""
    return Untrusted(f"{name[:200]} {what}.", code="PackTampered", file=name[:200])


def check_log(pack: PackReader, keys: Sequence[PublicKey], kept: Kept) -> tuple[SignedCheckpoint, list[LoggedEvent]]:
    """Verify that the events are those of the log, without a gap; return the checkpoint and the events.

    Args:
        pack: The pack.
        keys: The public keys of the service.
        kept: Roots that an auditor has kept, by the size of the log; those within the period are compared.

    Raises:
        Untrusted: ``PackTampered``, ``SignatureInvalid``.
    """
    index = pack.index
    note = pack.read(NOTE)[: NOTE_BYTES * 4].decode("utf-8", "replace")
    checkpoint = read_checkpoint(note, *keys)
    tree = Frontier.after(index.first - 1, index.before)
    events = []
    _compare(tree, kept)
    for line in pack.lines(EVENTS):
        leaf = leaf_of(line)
        tree.add(leaf)
        _compare(tree, kept)
        event = read_json(line, file=f"event {tree.size}").value
        if not isinstance(event, dict):
            raise tampered(EVENTS, f"has something else than an event as number {tree.size}")
        events.append(LoggedEvent(seq=tree.size, leaf=leaf, fields=event))
    if (tree.size, tree.root()) != (checkpoint.size, checkpoint.root) or tree.size != index.last:
        raise tampered(EVENTS, f"does not lead to the root of the log's first {checkpoint.size} events")
    return checkpoint, events


def root_before(index: PackIndex) -> str:
    """Return the root of the log before the first event of a pack."""
    return Frontier.after(index.first - 1, index.before).root()


def _compare(tree: Frontier, kept: Kept) -> None:
    if kept.roots.get(tree.size, tree.root()) != tree.root():
        raise tampered(EVENTS, f"does not continue the kept checkpoint of {tree.size} events")
