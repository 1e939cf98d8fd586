"""Keeping an installation healthy: how long things are kept, and copies of the database."""

from __future__ import annotations

from kneo.maintenance.backup import backup, backup_sqlite_database, restore, restore_sqlite_database, vacuum
from kneo.maintenance.locks import LockAcquisitionError
from kneo.maintenance.retention import RetentionManager, RetentionPolicy, RetentionReport, make_retention

__all__ = [
    "LockAcquisitionError",
    "RetentionManager",
    "RetentionPolicy",
    "RetentionReport",
    "backup",
    "backup_sqlite_database",
    "make_retention",
    "restore",
    "restore_sqlite_database",
    "vacuum",
]
