"""Every command of ``docs/guides/releases/README.md`` works, in the order of the page, on the repository that ``kneo init`` makes."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from config_repo import GIT_ENV
from kneo_process import Desk, Machine

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/guides/releases/README.md").read_text()
SECTION = re.compile(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECTIONS = {title: [block.splitlines() for block in BLOCK.findall(text)] for title, text in SECTION.findall(PAGE)}
TABLE = [line.split("|") for line in SECTION.findall(PAGE)[-1][1].splitlines() if line.startswith("| `")]
EDITS: Mapping[tuple[str, int], tuple[str, str, str]] = {
    ("Release a version", 0): ("specs/announcement.yaml", "version: v1", "version: v1\nmetadata: {note: second}"),
    ("Release a version", 1): ("environments/staging.yaml", "version: 1.0.0", "version: 1.1.0"),
    ("Change the rules of an environment", 0): ("environments/prod.yaml", "maxPercent: 20", "maxPercent: 50"),
    ("Retire an environment", 0): ("environments/staging.yaml", "spec:\n", "spec:\n  retired: true\n"),
}
"""What the page asks to edit before a block: file, text, and what replaces it."""


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Desk(tmp_path / "work", f"sqlite:///{tmp_path / 'work' / 'kneo.sqlite'}")
    yield made
    made.stop()


def _execute(machine: Machine, repo: Path, command: str) -> str:
    program, *arguments = shlex.split(command)
    if program == "git":
        subprocess.run(["git", *arguments], cwd=repo, env=GIT_ENV, check=True, capture_output=True)
        return ""
    assert program == "kneo", command
    if "--prune" in arguments:
        arguments.append("--yes")  # a person confirms at a terminal, which a test does not have
    # A rebuild does not know the approvals and the times of before, as the page says, and reports it by its status.
    expect = 1 if arguments[:2] == ["controller", "run"] else 0
    return machine.kneo(*arguments, cwd=repo, expect=expect).stdout


def test_the_commands_of_the_page_work_in_order(machine: Machine) -> None:
    made = machine.json("init", "acme")
    repo = Path(str(made["directory"]))
    machine.up("--repo", str(repo), "--trust-root", str(made["trust_root"]), "--interval", "1h")
    machine.kneo("reconcile")
    printed: dict[str, str] = {}
    for title, blocks in SECTIONS.items():
        if title == "Rebuild a registry":
            machine.stop()
            machine.env["KNEO_SERV_DATABASE_URL"] = f"sqlite:///{machine.folder / 'rebuilt.sqlite'}"
        for number, lines in enumerate(blocks):
            if (title, number) in EDITS:
                name, old, new = EDITS[title, number]
                text = (repo / name).read_text()
                assert old in text
                (repo / name).write_text(text.replace(old, new, 1))
            for line in lines:
                printed[f"{title}: {line}"] = _execute(machine, repo, line)
    assert "1.1.0" in printed["Release a version: kneo status staging"]
    assert "kneo approve prod/announcement" in printed["Promote a release: kneo why prod/announcement"]
    assert "Wrong prices" in printed["Roll back a release: kneo history prod"]
    assert "may be removed" in printed["Retire an environment: kneo status staging"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repo, check=True, capture_output=True, text=True).stdout
    assert machine.json("source", "show")["accepted_commit"] == head.strip()
    assert "KeyRevoked" in printed["Rebuild a registry: kneo controller run --once --repo ."]


def test_the_reasons_of_the_page_are_those_of_the_code() -> None:
    code = "".join(path.read_text() for path in (ROOT / "kneo").rglob("*.py"))
    named = {reason for row in TABLE for reason in re.findall(r"`(\w+)`", row[1])}
    assert not {reason for reason in named if f'"{reason}"' not in code}
    gates = (ROOT / "kneo/controller/stages/gates.py").read_text()
    assert set(found := re.findall(r'Blocked\(\s*"\w+", "(\w+)"', gates)) <= named
    assert len(found) > 8
    problems = "".join(path.read_text() for path in (ROOT / "kneo/controller").rglob("*.py"))
    assert set(re.findall(r'Problem\("(\w+)"', problems)) <= named


def test_the_commands_that_resolve_a_reason_exist(machine: Machine) -> None:
    commands = {found for row in TABLE for found in re.findall(r"`(kneo [^`]+)`", row[3])}
    assert commands
    for command in sorted(commands):
        words = re.split(r" (?=[A-Z-])", command, maxsplit=1)[0].split()[1:]
        printed = machine.kneo(*words, "--help").stdout
        assert all(option in printed for option in re.findall(r"--\w+", command)), command
