"""The names that the guide of embedding lists, which programs import."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "python" / "embed.md"

ROWS = re.findall(r"^\| (`kneo\.[^|]+) \| (`[^|]+) \|$", GUIDE.read_text(), re.MULTILINE)


def modules_of(cell: str) -> list[str]:
    """``kneo.service.auth`` and ``.limits`` are ``kneo.service.auth`` and ``kneo.service.limits``."""
    first, *others = re.findall(r"`([a-z_.]+)`", cell)
    return [first, *(first.rpartition(".")[0] + other for other in others)]


@pytest.mark.parametrize(("modules", "names"), ROWS, ids=[row[0] for row in ROWS])
def test_every_name_of_the_guide_can_be_imported(modules: str, names: str) -> None:
    found = [importlib.import_module(name) for name in modules_of(modules)]
    listed = re.findall(r"`([A-Za-z_]+)`", names)
    assert listed
    assert [name for name in listed if not any(hasattr(module, name) for module in found)] == []
