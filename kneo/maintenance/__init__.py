"""Keeping an installation healthy: how long things are kept, and copies of the database."""

from __future__ import annotations

from kneo.maintenance.backup import backup_sqlite_database, restore_sqlite_database
from kneo.maintenance.locks import LockAcquisitionError
from kneo.maintenance.retention import RetentionManager, RetentionPolicy, RetentionReport, make_retention

__all__ = [
    "LockAcquisitionError",
    "RetentionManager",
    "RetentionPolicy",
    "RetentionReport",
    "backup_sqlite_database",
    "make_retention",
    "restore_sqlite_database",
]
