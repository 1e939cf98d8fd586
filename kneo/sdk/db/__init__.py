"""Databases of runs: a SQLite file, or PostgreSQL."""

from __future__ import annotations

from kneo.embed.database import RunDatabase, scratch

__all__ = ["RunDatabase", "scratch"]
