"""Files for operators name settings and commands that exist; each file is checked by a test."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from fnmatch import fnmatch

import pytest
from deploy_files import DEPLOY, ROOT, compose, files, units

from kneo.cli.main import run

CHECKED = {
    "image/*": "test_image.py",
    "compose/Caddyfile": "test_proxies.py",
    "compose/*": "test_compose.py",
    "systemd/*": "test_units.py",
    "proxy/*": "test_proxies.py",
    "production.env.example": "test_scripts.py",
    "observability/*": "test_observability.py",
    "helm/*": "test_chart.py",
    "kubernetes/*": "test_chart.py",
}
"""The test of each file."""

VARIABLE = re.compile(r"KNEO_SERV_[A-Z0-9_]*[A-Z0-9]")


def test_every_file_is_checked_by_a_test() -> None:
    names = [str(path.relative_to(DEPLOY)) for path in files()]
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in CHECKED)] == []
    for pattern, test in CHECKED.items():
        if any(fnmatch(name, pattern) for name in names):
            assert pattern.partition("/")[0] in (ROOT / "tests" / "deploy" / test).read_text()


def settings() -> set[str]:
    page = (ROOT / "docs" / "reference" / "settings.md").read_text()
    rows = [row.split("|")[1] for row in page.splitlines() if row.startswith("| `KNEO_")]
    names = {name for row in rows for name in VARIABLE.findall(row)}
    return names | {f"{name}_FILE" for row in rows if "_FILE`" in row for name in VARIABLE.findall(row)}


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_setting_exists(path) -> None:
    named = set(VARIABLE.findall(path.read_text()))
    assert named - settings() == set()


def commands() -> Iterator[list[str]]:
    for service in compose()["services"].values():
        if "kneo" in service["image"].lower():
            yield [str(part) for part in service["command"]]
    for unit in units():
        for line in re.findall(r"^ExecStart=/opt/kneo/bin/kneo (.*)$", unit.read_text(), re.MULTILINE):
            yield shlex.split(line)


@pytest.mark.parametrize("arguments", [*commands()], ids=" ".join)
def test_every_command_line_is_accepted(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    # The options are parsed, and then the help is printed instead of the work being done.
    arguments = ["8000" if part == "%i" else part for part in arguments]
    assert run([*arguments, "--help"]) == 0
    options = set(re.findall(r"--[a-z-]+", " ".join(arguments)))
    assert options <= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
