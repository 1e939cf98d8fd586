"""The specs and the commands of ``docs/guides/specs/memory.md`` work, in the order of the page, with a scripted model."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from kneo_process import Desk
from model_server import ModelRequest, ModelServer, Reply, model_server
from model_turns import variables

pytestmark = pytest.mark.e2e

PAGE = (Path(__file__).parents[2] / "docs/guides/specs/memory.md").read_text()
FILES = dict(re.findall(r"^```(?:yaml|python)[^\n]*\n# (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = [
    line for block in re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]


def answer(request: ModelRequest) -> Reply:
    """Answer as a model does that knows what it was told."""
    if "What is my name?" in request.text:
        return Reply("Ada." if "My name is Ada." in request.text else "You did not say.")
    if "Where is the office?" in request.text:
        return Reply("In Turin." if "The office is in Turin." in request.text else "I do not know.")
    return Reply("Hello, Ada.")


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server(answer) as server:
        yield server


def test_the_page_works(server: ModelServer, tmp_path: Path) -> None:
    machine = Desk(tmp_path / "work", f"sqlite:///{tmp_path / 'work' / 'kneo.sqlite'}", **variables(server))
    for name, text in FILES.items():
        (machine.folder / name).write_text(text)
    printed = {}
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        assert program == "kneo"
        printed[command] = machine.kneo(*arguments).stdout
    assert "Ada." in printed['kneo run chat.yaml --session trip --input "What is my name?"']
    assert "In Turin." in printed['kneo run office.yaml --session visit --input "Where is the office?"']
    assert "trip" in printed["kneo sessions list"]
    assert "4 messages" in printed["kneo sessions delete trip"]
    assert [each["session_id"] for each in machine.json("sessions", "list")["sessions"]] == ["visit"]
    other = machine.kneo("run", "chat.yaml", "--session", "other", "--input", "What is my name?").stdout
    assert "You did not say." in other
