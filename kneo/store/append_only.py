"""Triggers that keep the audit log and the receipts append-only.

The owner of a database can add triggers, views or rules that drop or change what is written; ``find_problem`` finds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sqlalchemy import text

from kneo.store.engine import Tx
from kneo.store.tables import metadata

_AUDIT = "the audit log is append-only"
_RECEIPTS = "receipts are append-only"
_USES = "uses of grants are append-only"

APPEND_ONLY: Mapping[str, tuple[str, str]] = {
    "audit_events": ("id = NEW.id", _AUDIT),
    "audit_chain": ("seq = NEW.seq OR event_id = NEW.event_id", _AUDIT),
    "audit_nodes": ("level = NEW.level AND position = NEW.position", _AUDIT),
    "audit_checkpoints": ("size = NEW.size", _AUDIT),
    "receipts": (
        "id = NEW.id OR task_id = NEW.task_id OR digest = NEW.digest OR (run_id = NEW.run_id AND sequence = NEW.sequence)",
        _RECEIPTS,
    ),
    "grant_uses": ("task_id = NEW.task_id OR (grant_id = NEW.grant_id AND number = NEW.number)", _USES),
}
"""Append-only tables: the condition for an existing row with the key of a new one, and the message of the triggers."""

_FUNCTIONS = {_AUDIT: "kneo_append_only", _RECEIPTS: "kneo_receipts_stay", _USES: "kneo_grant_uses_stay"}

_SQLITE_FOUND = "SELECT type, name, sql FROM sqlite_master WHERE type IN ('trigger', 'view')"
_SQLITE_TABLES = "SELECT name, sql FROM sqlite_master WHERE type = 'table'"

_POSTGRES_TRIGGERS = """
SELECT t.tgname AS name, pg_get_triggerdef(t.oid, true) AS sql, p.prosrc AS body, t.tgenabled AS enabled
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid
WHERE NOT t.tgisinternal AND c.relnamespace = current_schema()::regnamespace
"""
_POSTGRES_OTHERS = """
SELECT CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'view' ELSE 'rule' END AS kind,
       CASE WHEN r.rulename = '_RETURN' THEN c.relname ELSE r.rulename END AS name
FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class
WHERE c.relnamespace = current_schema()::regnamespace
  AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
UNION ALL
SELECT 'row filter', c.relname FROM pg_class c
WHERE c.relnamespace = current_schema()::regnamespace AND c.relrowsecurity
"""


def create_triggers(tx: Tx) -> None:
    """Create the triggers that keep the tables append-only."""
    for definition in definitions(tx.dialect.name):
        tx.connection.exec_driver_sql(definition)


def definitions(dialect: str, only: str | None = None) -> Iterator[str]:
    """Yield the statements that create the functions and triggers, of all tables or of one."""
    wanted = {message for table, (_, message) in APPEND_ONLY.items() if only in {None, table}}
    for message, function in _FUNCTIONS.items():
        if dialect == "postgresql" and message in wanted:
            yield f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $${_body(message)}$$"
    yield from (definition for definition, message in triggers(dialect).values() if message in wanted)


def find_problem(tx: Tx) -> str | None:
    """Compare the triggers, views and rules of a database with those that Kneo creates; return the first difference, as a clause."""
    existing = _found(tx)
    expected = {
        name: definition if tx.dialect.name == "sqlite" else f"O {definition} AS {_body(message)}"
        for name, (definition, message) in triggers(tx.dialect.name).items()
    }
    for name in sorted(expected):
        if name not in existing:
            return f"the trigger {name}, which keeps it append-only, is missing"
        if existing[name] != expected[name]:
            return f"the trigger {name} differs from its definition"
    others = sorted(set(existing) - set(expected)) or _others(tx)
    return f"the database has a {others[0]} that Kneo did not create" if others else None


def triggers(dialect: str) -> Mapping[str, tuple[str, str]]:
    """Return the definition and the message of each trigger, by its name."""
    definitions: dict[str, tuple[str, str]] = {}
    for table, (same, message) in APPEND_ONLY.items():
        if dialect == "postgresql":
            execute = f"EXECUTE FUNCTION {_FUNCTIONS[message]}()"
            for suffix, change, each in (
                ("append_only", "DELETE OR UPDATE", "ROW"),
                ("no_truncate", "TRUNCATE", "STATEMENT"),
            ):
                name = f"{table}_{suffix}"
                definitions[name] = (
                    f"CREATE TRIGGER {name} BEFORE {change} ON {table} FOR EACH {each} {execute}",
                    message,
                )
            continue
        refuse = f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
        # INSERT OR REPLACE removes the row with the same key without the trigger for DELETE.
        exists = f" WHEN EXISTS (SELECT 1 FROM {table} WHERE {same})"  # noqa: S608 - names of this module
        for suffix, change, when in (
            ("no_update", "UPDATE", ""),
            ("no_delete", "DELETE", ""),
            ("no_replace", "INSERT", exists),
        ):
            name = f"{table}_{suffix}"
            definitions[name] = f"CREATE TRIGGER {name} BEFORE {change} ON {table}{when} {refuse}", message
    return definitions


def _body(message: str) -> str:
    return f" BEGIN RAISE EXCEPTION '{message}'; END "


def _found(tx: Tx) -> dict[str, str]:
    if tx.dialect.name == "postgresql":
        rows = tx.connection.execute(text(_POSTGRES_TRIGGERS)).all()
        return {str(row.name): f"{row.enabled} {row.sql} AS {row.body}" for row in rows}
    rows = tx.connection.execute(text(_SQLITE_FOUND)).all()
    return {row.name if row.type == "trigger" else f"{row.type} {row.name}": str(row.sql) for row in rows}


def _others(tx: Tx) -> list[str]:
    """Find views, rules and conflict clauses, which can hide or change rows as triggers can."""
    if tx.dialect.name == "postgresql":
        return sorted(f"{row.kind} {row.name}" for row in tx.connection.execute(text(_POSTGRES_OTHERS)))
    # A constraint with ON CONFLICT IGNORE or REPLACE drops rows without an error; Kneo creates none.
    rows = tx.connection.execute(text(_SQLITE_TABLES)).all()
    return sorted(
        f"conflict clause of {row.name}"
        for row in rows
        if row.name in metadata.tables and "conflict" in str(row.sql).lower()
    )
