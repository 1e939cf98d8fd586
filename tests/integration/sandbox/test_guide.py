"""The first example of the guide "What a tool may do", as its reader types it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from kneo_process import Machine

from kneo.sandbox.levels import host_level

PAGE = Path(__file__).parents[3] / "docs" / "guides" / "specs" / "sandbox.md"

pytestmark = pytest.mark.skipif(not host_level().gives("kernel"), reason=host_level().facts)


def test_an_undeclared_file_is_denied_and_a_declared_one_is_read(tmp_path: Path) -> None:
    machine = Machine(tmp_path, f"sqlite:///{tmp_path}/kneo.sqlite")
    for text in re.findall(r"```(?:yaml|python)[^\n]*\n(.*?)```", PAGE.read_text(), re.DOTALL)[:2]:
        (machine.folder / text.splitlines()[0].removeprefix("# ")).write_text(text)
    command = ("run", "hosts.yaml", "--input", "/etc/hosts")
    denied = machine.kneo(*command, expect=None)
    assert denied.returncode != 0
    assert "PermissionError: [Errno 13] Permission denied" in denied.stdout
    spec = machine.folder / "hosts.yaml"
    declared = spec.read_text().replace("{level: kernel}", "{level: kernel, read: [/etc/hosts]}")
    assert declared != spec.read_text()
    spec.write_text(declared)
    assert "localhost" in machine.kneo(*command).stdout
