"""Values of the whole project: policies that were set through the service, and the names of its API keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

from sqlalchemy import bindparam, select

from kneo.clock import parse_time
from kneo.names import person_key
from kneo.spec.policy import PolicyFlags
from kneo.store.authenticated import MAC, check, is_authentic, with_mac
from kneo.store.engine import Tx, lock_table, upsert
from kneo.store.prepared import Prepared, Row
from kneo.store.tables import project_metadata

POLICIES, KEY_NAMES, BACKUP = "environment_policy_enforcement", "api_key_names", "last_backup"


def read(tx: Tx, key: str) -> Mapping[str, object]:
    """Read a value; empty where none is stored.

    Raises:
        Untrusted, Invalid: a process with the service key did not store it; see ``kneo.store.authenticated``.
    """
    row = _row(tx, key)
    return _value(check(tx, project_metadata, row)) if row is not None else {}


_VALUE = Prepared(select(project_metadata).where(project_metadata.c.key == bindparam("of_key")))


def _row(tx: Tx, key: str) -> Row | None:
    return tx.once((project_metadata, key), lambda: _VALUE.first(tx, {"of_key": key}))


def _value(row: Row) -> Mapping[str, object]:
    return row.value if isinstance(row.value, dict) else {}


def write(tx: Tx, key: str, value: Mapping[str, object]) -> None:
    row = with_mac(tx, project_metadata, {"key": key, "value": dict(value)})
    upsert(tx, project_metadata, {"key": key}, value=row["value"], mac=row[MAC], updated_at=tx.at)


def lock(tx: Tx, key: str) -> None:
    """Lock a value until the transaction ends, before reading it to change a part of it."""
    lock_table(tx, f"project_metadata:{key}")


def list_policies(tx: Tx) -> Mapping[str, PolicyFlags]:
    """Return all policies, by environment."""
    return policies_in(tx, _row(tx, POLICIES))


def policies_in(tx: Tx, row: Row | None) -> Mapping[str, PolicyFlags]:
    """Return the policies of a row that was read; empty for none.

    Raises:
        Untrusted, Invalid: as ``read``.
    """
    value = _value(check(tx, project_metadata, row)) if row is not None else {}
    return {name: PolicyFlags.model_validate(flags) for name, flags in value.items()}


def find_policy(tx: Tx, environment: str) -> PolicyFlags | None:
    """Return the policy of an environment; None where none was set."""
    return list_policies(tx).get(environment)


def put_policy(tx: Tx, environment: str, flags: PolicyFlags) -> PolicyFlags | None:
    """Set the policy of an environment; return the one it replaces."""
    lock(tx, POLICIES)
    before = find_policy(tx, environment)
    write(tx, POLICIES, {**read(tx, POLICIES), environment: flags.model_dump(mode="json")})
    return before


def read_key_names(tx: Tx) -> Mapping[str, str]:
    """Return the names of the service's API keys by person key; empty where the service needs no key.

    The service stores them at its start for workers and commands, which may have no keys themselves.
    """
    names = read(tx, KEY_NAMES).get("names")
    return {person_key(str(name)): str(name) for name in names} if isinstance(names, list) else {}


def record_backup(tx: Tx) -> None:
    """Record that a backup was completed now."""
    write(tx, BACKUP, {"at": tx.at})


def last_backup(tx: Tx) -> datetime | None:
    """Return when the last backup was completed; None without one."""
    row = _row(tx, BACKUP)
    at = _value(row).get("at") if row is not None else None
    return parse_time(at) if isinstance(at, str) else None


def has_issuer(tx: Tx) -> bool:
    """Return whether the service accepts people of an OpenID Connect issuer."""
    return bool(read(tx, KEY_NAMES).get("issuer"))


def put_key_names(tx: Tx, names: Collection[str], issuer: str = "") -> None:
    """Replace the names of API keys and the issuer of tokens, where they differ."""
    value = {"names": sorted(names), **({"issuer": issuer} if issuer else {})}
    row = _row(tx, KEY_NAMES)
    if row is None or _value(row) != value or not is_authentic(tx, project_metadata, row):
        write(tx, KEY_NAMES, value)
