"""Kneo inside another program: one object to start runs, answer people and look back."""

from __future__ import annotations

from kneo.platform.load import load_platform
from kneo.platform.manager import PlatformManager
from kneo.platform.result import RunResult
from kneo.store.migrate import Database

__all__ = ["Database", "PlatformManager", "RunResult", "load_platform"]
