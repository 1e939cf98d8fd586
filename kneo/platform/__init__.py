"""Kneo inside another program: one object that starts runs, answers human tasks and reads the records."""

from __future__ import annotations

from kneo.platform.manager import PlatformManager, RunResult, load_platform
from kneo.store.migrate import Database

__all__ = ["Database", "PlatformManager", "RunResult", "load_platform"]
