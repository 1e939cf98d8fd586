"""The commands of the README, executed in their order in one folder."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from config_repo import GIT_ENV
from docs_pages import blocks, lines
from kneo_process import Machine, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

README = Path(__file__).parents[2] / "README.md"
SERVER = "kneo up --repo ."
EDITOR = """#!{python}
import pathlib, sys
file = pathlib.Path(sys.argv[1])
text = file.read_text()
file.write_text(text.replace("1.0.0", "1.1.0") if file.name == "prod.yaml" else text + "metadata: {{note: changed}}\\n")
"""
REFUSED = {'kneo run specs/announcement.yaml --env prod --input "Hello"': 1}
"""The commands that fail, with their exit status."""


PRINTED = (
    r"kneo task decide cont_\w+ --request-id req_\w+ --approve\n",
    r"Status: succeeded",
    r"bundle +announcement 1\.0\.0  sha256:[0-9a-f]{64}\nsigned by  owner\n",
    r"promote +prod at .* by controller\n  commit +[0-9a-f]{40}\n",
    r"approved +approve\.step by \w+ at .*\n  receipt +rcp_\w+",
    r"prod runs released bundles only",
    r"2 branches; every step and gate is on at least one of them",
    r"approvals? .*0 of 1",
)
"""Patterns of what the commands print."""


def commands() -> list[str]:
    """Return the shell commands of the blocks that are executed, without comments; a continued line is one command."""
    return [line for block in blocks(README) if block.kind == "sh" and not block.reason for line in lines(block)]


def released(machine: Machine, folder: Path, version: str) -> bool:
    """Return whether prod mentions a version, released or pending."""
    return version in machine.kneo("status", "prod", cwd=folder, expect=None).stdout


def with_ids(command: str, printed: str) -> str:
    """Complete the shortened ids of a command with the first ones that were printed."""
    return re.sub(r"(cont|run)_…", lambda short: re.search(rf"{short[1]}_[0-9a-z]{{20,}}", printed)[0], command)


@pytest.fixture
def machine(tmp_path: Path, database_url: str) -> Iterator[Machine]:
    editor = tmp_path / "editor"
    editor.write_text(EDITOR.format(python=sys.executable))
    editor.chmod(0o700)
    made = Machine(tmp_path / "work", database_url)
    if database_url.startswith("sqlite"):
        del made.env["KNEO_SERV_DATABASE_URL"]  # a newcomer sets no variable
    made.env = {**GIT_ENV, **made.env, "EDITOR": str(editor), "COLUMNS": "300"}
    yield made
    made.stop()


def test_the_commands_of_the_readme_work(machine: Machine) -> None:
    folder, printed = machine.folder, ""
    for command in commands():
        if command == SERVER:
            machine.start("up", "--port", "0", "--repo", ".", "--interval", "1h", cwd=folder)
            eventually(partial(released, machine, folder, "1.0.0"))
        elif command.startswith("cd "):
            folder /= command.removeprefix("cd ")
        else:
            if command.startswith("kneo why"):
                eventually(partial(released, machine, folder, "1.1.0"))
            done = subprocess.run(
                ["bash", "-c", with_ids(command, printed)],
                cwd=folder,
                env=machine.env,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == REFUSED.get(command, 0), f"{command}\n{done.stdout}\n{done.stderr}"
            printed += done.stdout + done.stderr
    eventually(lambda: "1.1.0" in str(machine.json("status", "prod", cwd=folder)["releases"]))
    for expected in PRINTED:
        assert re.search(expected, printed), expected
