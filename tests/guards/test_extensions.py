"""Extensions attach through entry points alone: the core runs without each of them, and names none."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from kneo import extension_points
from kneo.cli.serve.doctor import POINTS

ROOT = Path(__file__).parents[2]
EXTENSIONS = ROOT / "kneo" / "extensions"
ROOMS = sorted(path.name for path in EXTENSIONS.iterdir() if path.is_dir() and path.name != "__pycache__")


def test_the_core_names_no_module_of_an_extension() -> None:
    """The import contracts see imports; this sees names that would be imported at run time."""
    pattern = re.compile(rf"kneo\.extensions\.({'|'.join(ROOMS)})\b")
    found = [
        f"{path.relative_to(ROOT)}: {named[0]}"
        for path in (ROOT / "kneo").rglob("*.py")
        if EXTENSIONS not in path.parents
        for named in pattern.finditer(path.read_text())
    ]
    assert found == []


def test_every_extension_of_kneo_attaches_and_can_be_loaded() -> None:
    """Where this fails after a change of ``pyproject.toml``: install Kneo into the environment again."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    names = {point.name: set(declared.get(extension_points.PREFIX + point.name, {})) for point in POINTS}
    assert declared.keys() == {extension_points.PREFIX + point for point, found in names.items() if found}
    for point in POINTS:
        assert names[point.name] <= set(point.names())
        assert set(point.check().values()) <= {""}
    targets = {target.partition(":")[0] for entries in declared.values() for target in entries.values()}
    assert {f"kneo.extensions.{room}" for room in ROOMS} <= targets


def test_records_of_extensions_import_no_library() -> None:
    """A record is loaded for help and for the doctor, also where the extra of its extension is not installed."""
    code = (
        "import sys\n"
        "for name in ('a2a', 'mcp', 'temporalio', 'pydantic_ai'): sys.modules[name] = None\n"
        "from kneo.cli.serve.doctor import POINTS\n"
        "print([problem for point in POINTS for problem in point.check().values() if problem])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"
