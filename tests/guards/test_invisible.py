"""The table of characters that are drawn as nothing has all that Python and node know."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import unicodedata
from pathlib import Path
from types import ModuleType

import pytest

from kneo.invisible import INVISIBLE, UNICODE_VERSION

SCRIPT = Path(__file__).parents[2] / "scripts" / "generate_invisible.py"


@pytest.fixture(scope="module")
def table() -> frozenset[int]:
    return frozenset(point for point in range(sys.maxunicode + 1) if re.match(f"[{INVISIBLE}]", chr(point)))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_invisible", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_has_the_format_characters_that_python_knows(script: ModuleType, table: frozenset[int]) -> None:
    known = {point for point in range(sys.maxunicode + 1) if unicodedata.category(chr(point)) == "Cf"}
    assert known - table == {point for point in script.PREPENDED if unicodedata.category(chr(point)) == "Cf"}


def test_the_table_has_the_ignorable_characters_that_node_knows(script: ModuleType, table: frozenset[int]) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed; Python does not know the property Default_Ignorable_Code_Point")
    unicode, points = script.query(node)
    assert not points - table, "run scripts/generate_invisible.py with this version of node"
    if unicode == UNICODE_VERSION:
        assert script.rendered(unicode, points) == script.MODULE.read_text()
