"""The journal of agents: the entries of each conversation of a run, in the order in which they were first written."""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from sqlalchemy import bindparam, func, select

from kneo.digest import Digest, digest_of
from kneo.errors import Invalid
from kneo.records.agent_session import MEMORY_ENTRY
from kneo.records.conversation import ConversationEntry, EntryKind, EntryStatus
from kneo.store.authenticated import check, with_mac
from kneo.store.engine import Tx, decode_json, encode_json, upserting
from kneo.store.prepared import Prepared, Row
from kneo.store.tables import agent_journal

COMPRESS_BYTES = 4_096
"""Bodies from this size on are compressed."""

_KEY = ("run_id", "key")
_FIRST = ("sequence",)
"""The column that keeps its first value when an entry is replaced."""


@dataclass(frozen=True, kw_only=True)
class JournalLimits:
    """Bounds on the journal of one run.

    Attributes:
        body_bytes: The body of one entry, before compression.
        conversation_entries: The entries of one conversation.
        run_entries: The entries of all conversations of the run.
    """

    body_bytes: int = 4 * 1024 * 1024
    conversation_entries: int = 200
    run_entries: int = 1_000


DEFAULT_LIMITS = JournalLimits()


class ConversationTooLong(Invalid):
    """A conversation has reached a limit of the journal; nothing was written."""

    default_code = "conversation_too_long"

    def __init__(self, conversation: str, what: str, limit: int) -> None:
        super().__init__(
            f"The conversation {conversation[:200]} cannot continue: its journal is limited to {limit} {what}.",
            hint="Give the agent fewer iterations or smaller tool results, or split its work into several steps.",
            limit=limit,
        )


_LENGTHS = Prepared(
    select(agent_journal.c.conversation, func.max(agent_journal.c.sequence).label("length"))
    .where(agent_journal.c.run_id == bindparam("of_run"))
    .group_by(agent_journal.c.conversation)
)


def append(tx: Tx, run_id: str, entries: Sequence[ConversationEntry], limits: JournalLimits = DEFAULT_LIMITS) -> None:
    """Write entries; one of a name that its conversation has replaces the earlier one, in the earlier one's place.

    The caller has committed the run behind its fence.

    Raises:
        ConversationTooLong: a limit is reached.
    """
    lengths: dict[str, int] = {row.conversation: row.length for row in _LENGTHS.rows(tx, {"of_run": run_id})}
    rows = []
    for entry in entries:
        length = lengths[entry.conversation] = lengths.get(entry.conversation, 0) + 1
        rows.append(_row(tx, run_id, entry, length, limits))
    _upsert(tx.dialect.name).change_many(tx, rows)
    if max(lengths.values(), default=0) > limits.conversation_entries or sum(lengths.values()) > limits.run_entries:
        # Replaced entries were counted too.
        _check_lengths(tx, run_id, limits)


def _check_lengths(tx: Tx, run_id: str, limits: JournalLimits) -> None:
    counts = select(agent_journal.c.conversation, func.count()).where(agent_journal.c.run_id == run_id)
    lengths: dict[str, int] = {}
    for conversation, count in tx.connection.execute(counts.group_by(agent_journal.c.conversation)):
        lengths[conversation] = count
        if count > limits.conversation_entries:
            raise ConversationTooLong(conversation, "entries", limits.conversation_entries)
    if sum(lengths.values()) > limits.run_entries:
        raise ConversationTooLong(max(lengths, key=lengths.__getitem__), "entries in a run", limits.run_entries)


@cache
def _upsert(dialect: str) -> Prepared:
    return Prepared(upserting(dialect, agent_journal, _KEY, keep=_FIRST))


def _row(tx: Tx, run_id: str, entry: ConversationEntry, sequence: int, limits: JournalLimits) -> dict[str, object]:
    body = encode_json(dict(entry.body))
    if len(body) > limits.body_bytes:
        raise ConversationTooLong(entry.conversation, "bytes in an entry", limits.body_bytes)
    key = _entry_key(entry.conversation, entry.name)
    packed = body if len(body) < COMPRESS_BYTES else zlib.compress(body)
    row = {
        "run_id": run_id,
        "key": key,
        "conversation": entry.conversation,
        "sequence": sequence,
        "name": entry.name,
        "number": entry.number,
        "kind": entry.kind.value,
        "status": entry.status.value,
        "body": tx.data_keys.seal(packed, _place(run_id, key)),
        "facts": dict(entry.facts),
        "started_at": entry.started_at,
        "completed_at": entry.completed_at,
    }
    return with_mac(tx, agent_journal, row)


def _place(run_id: str, key: str) -> bytes:
    """Return what a sealed body is bound to, so that rows cannot be swapped."""
    return f"{run_id}\0{key}".encode()


def _entry_key(conversation: str, name: str) -> Digest:
    return digest_of(f"{conversation}\0{name}".encode())


_CONVERSATION = Prepared(
    select(agent_journal)
    .where(agent_journal.c.run_id == bindparam("of_run"), agent_journal.c.conversation == bindparam("in_conversation"))
    .order_by(agent_journal.c.sequence)
)
_OF_RUN = Prepared(
    select(agent_journal)
    .where(agent_journal.c.run_id == bindparam("of_run"))
    .order_by(agent_journal.c.conversation, agent_journal.c.sequence)
)


def load(tx: Tx, run_id: str, conversation: str) -> tuple[ConversationEntry, ...]:
    """Read the entries of one conversation.

    Raises:
        Untrusted, Invalid: a process with the service key did not write one of them; see ``kneo.store.authenticated``.
        JournalSealed: the body of one is sealed with a key that is not here.
    """
    rows = _CONVERSATION.rows(tx, {"of_run": run_id, "in_conversation": conversation})
    return tuple(_entry(row, _body(tx, row)) for row in rows)


def list_entries(tx: Tx, run_id: str) -> tuple[ConversationEntry, ...]:
    """Read the entries of all conversations of a run, one conversation after the other."""
    return tuple(_entry(row, _body(tx, row)) for row in _OF_RUN.rows(tx, {"of_run": run_id}))


_FACTS = Prepared(
    select(*(column for column in agent_journal.c if column.name not in {"body", "key", "mac"}))
    .where(agent_journal.c.run_id == bindparam("of_run"))
    .order_by(agent_journal.c.started_at, agent_journal.c.conversation, agent_journal.c.sequence)
)


def list_facts(tx: Tx, run_id: str) -> tuple[ConversationEntry, ...]:
    """Read the entries of all conversations of a run without their bodies, in the order in which they began."""
    return tuple(_entry(row, {}) for row in _FACTS.rows(tx, {"of_run": run_id}))


_RECOLLECTIONS = Prepared(
    select(agent_journal)
    .where(agent_journal.c.run_id == bindparam("of_run"), agent_journal.c.name == MEMORY_ENTRY)
    .order_by(agent_journal.c.conversation)
)


def list_recollections(tx: Tx, run_id: str) -> tuple[ConversationEntry, ...]:
    """Read the entries that say what the conversations of a run began with."""
    return tuple(_entry(row, _body(tx, row)) for row in _RECOLLECTIONS.rows(tx, {"of_run": run_id}))


_CONVERSATION_NAME = re.compile(r"\d+(>|$)")


def copy(tx: Tx, source: str, target: str, steps: Collection[str]) -> None:
    """Copy the conversations of steps from one run to another, each with those of the agents behind its tools.

    Args:
        tx: An open transaction.
        source: The run that has them.
        target: The run that gets them.
        steps: The locations of the steps.
    """
    for row in _OF_RUN.rows(tx, {"of_run": source}):
        if any(_is_of(row.conversation, step) for step in steps):
            check(tx, agent_journal, row)
            body = tx.data_keys.open(bytes(row.body), _place(source, row.key))
            sealed = tx.data_keys.seal(body, _place(target, row.key))
            copied = with_mac(tx, agent_journal, {**row._asdict(), "run_id": target, "body": sealed})
            _upsert(tx.dialect.name).change(tx, copied)


def _is_of(conversation: str, step: str) -> bool:
    return conversation.startswith(f"{step}~") and _CONVERSATION_NAME.match(conversation, len(step) + 1) is not None


def _entry(row: Row, body: Mapping[str, object]) -> ConversationEntry:
    return ConversationEntry(
        conversation=row.conversation,
        name=row.name,
        number=row.number,
        kind=EntryKind(row.kind),
        status=EntryStatus(row.status),
        body=body,
        facts=row.facts,
        started_at=row.started_at,
        completed_at=row.completed_at,
    )


def _body(tx: Tx, row: Row) -> Mapping[str, object]:
    """Return the body of a row, after a check of the row.

    Raises:
        JournalSealed, Untrusted: it is sealed, and cannot be opened.
        Untrusted, Invalid: as ``load``.
    """
    check(tx, agent_journal, row)
    body = tx.data_keys.open(bytes(row.body), _place(row.run_id, row.key))
    # JSON begins with a brace, zlib with 0x78.
    content = decode_json(body if body[:1] == b"{" else zlib.decompress(body))
    assert isinstance(content, dict)
    return content
