"""Databases with tables and no rows, under the names that programs give them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def migrated_file(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """Makes such a file in the test's folder."""
    template = request.getfixturevalue("_sqlite_template")
    return lambda name: Path(shutil.copy(template, tmp_path / name))
