"""The files and the commands of ``docs/guides/specs/skills.md`` work, in the order of the page, with a scripted model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from kneo_process import Desk
from model_server import Call, ModelServer, Reply, model_server
from model_turns import variables

pytestmark = pytest.mark.e2e

PAGE = (Path(__file__).parents[2] / "docs/guides/specs/skills.md").read_text()
FILES = dict(re.findall(r"^```(?:yaml|markdown)[^\n]*\n# (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = [
    line for block in re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]

EXCEPTIONS = [Call("read_skill", {"name": "refunds", "resource": "references/exceptions.md"})]
SCRIPT = [Reply(calls=EXCEPTIONS), Reply("Gift cards are not refunded, sorry.")]


def desk_of(server: ModelServer, folder: Path) -> Desk:
    machine = Desk(folder, f"sqlite:///{folder / 'kneo.sqlite'}", **variables(server))
    for name, text in FILES.items():
        (machine.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (machine.folder / name).write_text(text)
    return machine


def test_the_page_works(tmp_path: Path) -> None:
    with model_server(SCRIPT) as server:
        machine = desk_of(server, tmp_path / "work")
        run, resolve = [shlex.split(command)[1:] for command in COMMANDS[:2]]
        assert "Gift cards are not refunded, sorry." in machine.kneo(*run).stdout
        machine.kneo(*resolve)

        first, second = (str(request.body) for request in server.requests)
        assert "How to refund an order." in first
        assert "Refund at most 20 euros." in first
        assert "Answer in one sentence." in first
        assert "Gift cards are not refunded." not in first
        assert "Gift cards are not refunded." in second

        # What was resolved needs no file beside it.
        frozen = yaml.safe_load((machine.folder / "resolved.yaml").read_text())["skills"]["refunds"]
        assert frozen["resources"] == {"references/exceptions.md": "Gift cards are not refunded.\n"}
        assert "source" not in frozen


def test_a_run_has_the_skills_that_its_request_adds_and_disables(tmp_path: Path) -> None:
    with model_server([Reply("Yes.")]) as server:
        machine = desk_of(server, tmp_path / "work")
        spec = yaml.safe_load(FILES["support.yaml"])
        spec["skills"]["legal"] = {"content": "Name the law."}
        (machine.folder / "support.yaml").write_text(yaml.safe_dump(spec))
        service = machine.start("service", "serve", "--port", "0")
        order = {"input": "Hello.", "spec_path": "support.yaml"}
        service.post("/runs", {**order, "skills": {"add": ["legal"], "disable": ["tone"]}})
        asked = str(server.requests[-1].body)
        assert "Name the law." in asked
        assert "How to refund an order." in asked
        assert "Answer in one sentence." not in asked

        unknown = service.post("/runs", {**order, "skills": {"add": ["lgal"]}}, expect=400)
        assert unknown["error"] == "spec_invalid"
        assert unknown["diagnostics"][0]["code"] == "E_SKILL_REF"
        assert len(server.requests) == 1
