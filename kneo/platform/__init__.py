"""Kneo inside another program: one object that starts runs, answers human tasks and reads the records."""

from __future__ import annotations

from kneo.embed.database import Database
from kneo.embed.platform import PlatformManager, RunResult, load_platform

__all__ = ["Database", "PlatformManager", "RunResult", "load_platform"]
