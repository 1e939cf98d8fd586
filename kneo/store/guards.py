"""What keeps the audit log and the receipts append-only: the triggers that the migrations make, and nothing else.

Whoever owns the database can put other triggers, views or rules there, which swallow or change what is written. They are found
by comparing with the list here; a test compares the list with the migrations.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import text

from kneo.store.engine import Tx
from kneo.store.tables import metadata

_AUDIT = "the audit log is append-only"
_RECEIPTS = "receipts are append-only"

APPEND_ONLY: Mapping[str, tuple[str, str]] = {
    "audit_events": ("id = NEW.id", _AUDIT),
    "audit_chain": ("seq = NEW.seq OR event_id = NEW.event_id", _AUDIT),
    "audit_nodes": ("level = NEW.level AND position = NEW.position", _AUDIT),
    "audit_checkpoints": ("size = NEW.size", _AUDIT),
    "receipts": (
        "id = NEW.id OR task_id = NEW.task_id OR digest = NEW.digest OR (run_id = NEW.run_id AND sequence = NEW.sequence)",
        _RECEIPTS,
    ),
}
"""Tables that can only be added to: which row is in the way of a new one, and what a trigger says."""

_FUNCTIONS = {_AUDIT: "kneo_append_only", _RECEIPTS: "kneo_receipts_stay"}

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


def problem(tx: Tx) -> str | None:
    """Compare triggers, views and rules with what the migrations make; return what is wrong, in a clause."""
    expected, found = wanted(tx.dialect.name), _found(tx)
    for name in sorted(expected):
        if name not in found:
            return f"the trigger {name}, which keeps it append-only, is missing"
        if found[name] != expected[name]:
            return f"the trigger {name} is not what it was made as"
    others = sorted(set(found) - set(expected)) or _others(tx)
    return f"there is a {others[0]} in the database that Kneo has not made" if others else None


def wanted(dialect: str) -> dict[str, str]:
    """Return what the migrations make: the definition of each trigger, by its name."""
    made: dict[str, str] = {}
    for table, (same, says) in APPEND_ONLY.items():
        if dialect == "postgresql":
            function = _FUNCTIONS[says]
            body = f" BEGIN RAISE EXCEPTION '{says}'; END "
            begin = f"CREATE TRIGGER {table}"
            end = f"EXECUTE FUNCTION {function}()"
            made[f"{table}_append_only"] = _enabled(
                f"{begin}_append_only BEFORE DELETE OR UPDATE ON {table} FOR EACH ROW {end}", body
            )
            made[f"{table}_no_truncate"] = _enabled(
                f"{begin}_no_truncate BEFORE TRUNCATE ON {table} FOR EACH STATEMENT {end}", body
            )
            continue
        refuse = f"BEGIN SELECT RAISE(ABORT, '{says}'); END"
        for change in ("UPDATE", "DELETE"):
            name = f"{table}_no_{change.lower()}"
            made[name] = f"CREATE TRIGGER {name} BEFORE {change} ON {table} {refuse}"
        exists = f"EXISTS (SELECT 1 FROM {table} WHERE {same})"  # noqa: S608 - words of this file
        made[f"{table}_no_replace"] = (
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} WHEN {exists} {refuse}"
        )
    return made


def _enabled(definition: str, body: str) -> str:
    return f"O {definition} AS {body}"


def _found(tx: Tx) -> dict[str, str]:
    if tx.dialect.name == "postgresql":
        rows = tx.connection.execute(text(_POSTGRES_TRIGGERS)).all()
        return {str(row.name): f"{row.enabled} {row.sql} AS {row.body}" for row in rows}
    rows = tx.connection.execute(text(_SQLITE_FOUND)).all()
    return {row.name if row.type == "trigger" else f"{row.type} {row.name}": str(row.sql) for row in rows}


def _others(tx: Tx) -> list[str]:
    """Find what can hide or change rows beside triggers."""
    if tx.dialect.name == "postgresql":
        return sorted(f"{row.kind} {row.name}" for row in tx.connection.execute(text(_POSTGRES_OTHERS)))
    # A constraint that says ON CONFLICT IGNORE or REPLACE drops rows in silence; none of ours does.
    rows = tx.connection.execute(text(_SQLITE_TABLES)).all()
    return sorted(
        f"conflict clause of {row.name}"
        for row in rows
        if row.name in metadata.tables and "conflict" in str(row.sql).lower()
    )
