"""Rows that have a message authentication code (MAC) of the service key; see ``kneo.trust.record_mac``.

The rows of runs and tasks change column by column, and are authenticated in ``kneo.store.runs`` and ``kneo.store.tasks``. The rows of
the tables here are written whole.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Table

from kneo.errors import Untrusted
from kneo.store import tables
from kneo.store.engine import Tx, encode_json
from kneo.store.prepared import Row

log = logging.getLogger("kneo.store")

MAC = "mac"
"""The column of the code."""


@dataclass(frozen=True)
class Covered:
    """The columns of a table that its MAC covers.

    Args:
        noun: A row in messages.
        key: The column that names a row in messages.
        columns: Their names, in the order in which they are covered. A column that is added later is in ``but``: rows of earlier
            versions do without it.
        but: The reason why each other column is not covered.
    """

    noun: str
    key: str
    columns: tuple[str, ...]
    but: Mapping[str, str]


def _all(table: Table, noun: str, key: str, *, but: Mapping[str, str] | None = None) -> tuple[str, Covered]:
    others = but or {}
    names = tuple(column.name for column in table.columns if column.name not in {MAC, *others})
    return table.name, Covered(noun, key, names, others)


SHOWN = "shown only"

COVERED: Mapping[str, Covered] = dict(
    (
        _all(tables.trust_roots, "The trust root", "version", but={"accepted_at": SHOWN}),
        _all(tables.environments, "The file in force of the environment", "name", but={"updated_at": SHOWN}),
        _all(
            tables.bundles,
            "The bundle",
            "digest",
            but={"payload": "covered by its digest", "envelope": "its signatures are verified"},
        ),
        _all(tables.qualified_bundles, "The qualified bundle", "digest"),
        _all(tables.promotions, "The promotion", "id"),
        _all(tables.pending_releases, "The pending change", "id"),
        _all(tables.pending_plans, "The plan of the pending change", "id"),
        _all(tables.approvals, "The decision", "id", but={"origin": SHOWN}),
        _all(tables.attestations, "The attestation", "id"),
        _all(tables.canaries, "The canary", "id"),
        _all(tables.requests, "The request", "id", but={"result": SHOWN, "finished_at": SHOWN}),
        _all(tables.project_metadata, "The value of the project", "key", but={"updated_at": SHOWN}),
        _all(tables.steps, "A step of the run", "run_id"),
        _all(tables.checkpoints, "A checkpoint of the run", "run_id"),
        _all(tables.journal_entries, "A journal entry of the run", "run_id"),
        _all(
            tables.agent_journal,
            "A journal entry of the run",
            "run_id",
            but={"sequence": "an entry that replaces another one keeps its place in the order"},
        ),
        _all(tables.session_messages, "A message of the session", "session_id"),
        _all(tables.session_summaries, "A summary of the session", "session_id"),
        _all(tables.task_links, "The link", "id"),
        _all(tables.grants, "The grant", "id"),
        _all(
            tables.browser_sessions, "The session of a browser of", "person", but={"seen_at": "written at each request"}
        ),
        _all(tables.sign_in_links, "The sign-in link of", "person"),
    )
)


def body_of(values: Iterable[object]) -> bytes:
    """Return values in the form that a MAC covers; bytes are covered by their digest."""
    return encode_json([hashlib.sha256(value).hexdigest() if type(value) is bytes else value for value in values])


def with_mac(tx: Tx, table: Table, row: Mapping[str, object]) -> dict[str, object]:
    """Return a row, with all columns that are covered, and its MAC."""
    body = body_of([row[name] for name in COVERED[table.name].columns])
    return {**row, MAC: tx.macs.make(table.name, body)}


RowT = TypeVar("RowT")


def body_of_row(table: Table, row: Row) -> bytes:
    """Return what the MAC of a row covers."""
    return body_of([getattr(row, name) for name in COVERED[table.name].columns])


def check(tx: Tx, table: Table, row: RowT) -> RowT:
    """Return a row, after a check of its MAC.

    Raises:
        Untrusted, Invalid: as ``RecordMacs.check``.
    """
    covered = COVERED[table.name]
    body = body_of([getattr(row, name) for name in covered.columns])
    tx.macs.check(table.name, body, getattr(row, MAC), f"{covered.noun} {getattr(row, covered.key)}")
    return row


def is_authentic(tx: Tx, table: Table, row: Row) -> bool:
    """Return whether ``check`` accepts a row; one that it refuses is logged."""
    try:
        check(tx, table, row)
    except Untrusted as error:
        _report(error)
        return False
    return True


def _report(error: Untrusted) -> None:
    log.error("a row does not count: %s", error, extra={"event": "record_refused", "code": error.code})
