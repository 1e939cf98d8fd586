"""The specs, the code and the commands of ``docs/guides/specs/agents.md`` work, in the order of the page, with a scripted model."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from kneo_process import Desk
from model_server import Call, ModelServer, Reply, model_server
from model_turns import variables

pytestmark = pytest.mark.e2e

PAGE = (Path(__file__).parents[2] / "docs/guides/specs/agents.md").read_text()
FILES = dict(re.findall(r"^```(?:yaml|python)[^\n]*\n# (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = [
    line for block in re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]

REFUND = [Call("look_up", {"order": 7}), Call("refund", {"order": 7, "euros": 20})]


def answer(request) -> Reply:
    """Answer as a model does that reads the task."""
    if "do you open" in request.text:
        return Reply("At nine.")
    if "shop is down" in request.text:
        return Reply(json.dumps({"urgent": True, "team": "support"}))
    return Reply(calls=REFUND) if request.turns == 0 else Reply("You get 15 euros back.")


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
        if "TASK" in arguments:
            tasks = machine.json("task", "list")["tasks"]
            [task] = [each["continuation_id"] for each in tasks]
            too_much = machine.kneo("task", "decide", task, "--edit", '{"order": 7, "euros": 101}', expect=1)
            assert "must satisfy maximum: 100" in too_much.stderr
            arguments = [task if argument == "TASK" else argument for argument in arguments]
        printed[command] = machine.kneo(*arguments).stdout

    opens, refund, _, edit, triage = printed.values()
    assert "At nine." in opens
    assert "paused" in refund
    assert "You get 15 euros back." in edit
    assert '{"team":"support","urgent":true}' in triage
    # The model saw the result of the call with the arguments that the person edited.
    shown = [request.text for request in server.requests if "Refund order 7." in request.text][-1]
    assert "refunded 15 euros for order 7" in shown
    assert sum("Refund order 7." in request.text for request in server.requests) == 2


def test_every_spec_of_the_page_has_no_errors(tmp_path: Path) -> None:
    machine = Desk(tmp_path / "work", f"sqlite:///{tmp_path / 'kneo.sqlite'}", OPENAI_API_KEY="sk-test")
    for name, text in FILES.items():
        (machine.folder / name).write_text(text)
    for name in FILES:
        if name.endswith(".yaml"):
            found = machine.json("spec", "lint", name, expect=None)["diagnostics"]
            assert [each["code"] for each in found if each["severity"] == "error"] == [], name
