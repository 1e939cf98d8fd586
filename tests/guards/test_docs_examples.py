"""Every example of the guides, and of the pages about moving, is what it says.

A YAML block is checked by what it is: a spec, an environment, a project config, answers, or a part of a spec, to which the
components it names are added. It has no finding, or the one that stands behind ``yaml`` in its fence. One that begins
with ``# NAME.yaml`` is that file for the console blocks after it. Of a console block every command runs, and prints
what stands below it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from model_server import Reply, model_server

from kneo.cli.main import run
from kneo.project.files import ModuleFiles
from kneo.spec.environment import parse_environment
from kneo.spec.lint import check
from kneo.spec.models.answers import AnswersFile
from kneo.spec.modules import RuleContext
from kneo.spec.policy import windows_open
from kneo.spec.project import parse_project
from kneo.spec.reading.load import SourceFile, load_spec, load_tree
from kneo.spec.reading.reader import read
from kneo.spec.reading.validate import parse_model

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guides"
MOVING = ROOT / "docs" / "moving"
PAGES = sorted(os.path.relpath(page, GUIDES) for folder in (GUIDES, MOVING) for page in folder.rglob("*.md"))
FENCE = re.compile(r"^```(?P<kind>\w+)(?: (?P<said>[^\n]+))?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
RUN_ID = re.compile(r"run_[0-9a-z]{26}")
FILE = re.compile(r"\A# ([\w.-]+\.yaml)\n")
CONTEXT = RuleContext(ModuleFiles([ROOT]))
BUCKETS = {
    "agent": "agents",
    "guardrail": "agents",
    "function": "functions",
    "workflow": "workflows",
    "human": "humans",
}
STANDING_IN = {
    "agents": lambda name: {"name": name},
    "functions": lambda _: {"implementation": "examples.app_functions.summarize"},
    "workflows": lambda _: ["root"],
    "humans": lambda name: {"description": name},
}


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    kind: str
    said: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(
            os.path.relpath(page, GUIDES),
            text.count("\n", 0, found.start()) + 1,
            found["kind"],
            found["said"] or "",
            found["text"],
        )
        for found in FENCE.finditer(text)
    ]


BLOCKS = [block for name in PAGES for block in blocks(GUIDES / name)]
YAML = [block for block in BLOCKS if block.kind == "yaml"]


class Anything:
    """Whatever file an example names."""

    def text(self, path: str) -> str | None:
        return f"What {path} says."

    def names(self, _path: str) -> tuple[str, ...] | None:
        return None


def completed(part: dict) -> dict:
    """Make a spec of a part: add an agent, and the components that its steps name."""
    spec = {"agent": {"name": "root"}, **part}
    components = {bucket: dict(things) for bucket, things in spec.get("components", {}).items()}
    for bucket, name in _named(spec.get("workflow")):
        things = components.setdefault(bucket, {})
        if not (bucket == "agents" and name == spec["agent"]["name"]):
            things.setdefault(name, STANDING_IN[bucket](name))
    return {**spec, "components": components}


def _named(value: object):
    if isinstance(value, list):
        for each in value:
            yield from [("agents", each)] if isinstance(each, str) else _named(each)
    elif isinstance(value, dict):
        if value.get("kind") in BUCKETS and isinstance(value.get("ref"), str):
            yield BUCKETS[value["kind"]], value["ref"]
        for gate in (value.get("review") or {}).values():
            human = gate.get("human") if isinstance(gate, dict) else gate
            if isinstance(human, str):
                yield "humans", human
        for key in ("steps", "else", "participants", "nodes", "choices"):
            inner = value.get(key)
            yield from _named(list(inner.values()) if isinstance(inner, dict) else inner)


@pytest.mark.parametrize("block", YAML, ids=str)
def test_the_yaml_of_the_guide_is_valid(block: Block) -> None:
    value = read(block.text.encode(), file="example.yaml").value
    assert isinstance(value, dict)
    if value.get("kind") == "Environment":
        parse_environment(block.text.encode(), file="prod.yaml")
    elif "project" in value:
        parse_project(block.text.encode(), file="config.yaml")
    elif "answers" in value:
        parse_model(AnswersFile, read(block.text.encode(), file="answers.yaml"))
    elif block.said == "overlay":
        base = ROOT / "examples" / "research_agent.yaml"
        over = [SourceFile("overlay.yaml", block.text.encode())]
        found = load_spec(base.read_bytes(), file="a.yaml", overlays=over, context=CONTEXT, rules=check).diagnostics
        assert [each.code for each in found] == []
    else:
        part = value if "agent" in value or "root_agent" in value else completed(value)
        found = load_tree(part, context=CONTEXT, files=Anything(), rules=check).diagnostics
        codes = list(dict.fromkeys(each.code for each in found))
        assert codes == block.said.split(), [each.message for each in found]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Iterator[Path]:
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    for name in ("KNEO_ENV", "KNEO_PROJECT_CONFIG", "KNEO_SERV_IMPORT_ALLOW"):
        monkeypatch.delenv(name, raising=False)
    with model_server(lambda _request: Reply("Paris is the capital of France.")) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        yield tmp_path


def commands(block: Block) -> list[tuple[str, str]]:
    """Return each command of a console block with what it prints."""
    parts = re.split(r"^\$ (.*)\n", block.text, flags=re.MULTILINE)
    assert parts[0] == "", "a console block begins with a command"
    return list(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_the_guide_print_what_it_says(page: str, folder: Path, capsys) -> None:
    for block in [block for block in BLOCKS if block.page == page]:
        named = FILE.match(block.text)
        if named:
            (folder / named[1]).write_text(block.text)
        for command, printed in commands(block) if block.kind == "console" else []:
            program, *arguments = shlex.split(command)
            assert program == "kneo", f"{block}: only kneo is run"
            run(arguments)
            assert RUN_ID.sub("run_", capsys.readouterr().out) == RUN_ID.sub("run_", printed), f"{block}: {command}"


SYSTEMS = [page for page in PAGES if "moving/" in page and not page.endswith(("README.md", "kneo-serv.md"))]


@pytest.mark.parametrize("page", SYSTEMS)
def test_a_page_about_moving_shows_what_you_have_and_checks_what_you_write(page: str) -> None:
    found = [block for block in BLOCKS if block.page == page]
    (written,) = [block for block in found if block.kind == "yaml"]
    assert next(block.line for block in found if block.kind == "text") < written.line
    checked = [block for block in found if block.kind == "console"]
    assert "kneo spec simulate" in checked[0].text if FILE.match(written.text) else "kind: Environment" in written.text


def test_the_environment_of_argo_cd_allows_and_denies_what_its_project_does() -> None:
    (block,) = [block for block in YAML if block.page.endswith("argo-cd.md")]
    environment = parse_environment(block.text.encode(), file="prod.yaml")
    (text,) = [each.text for each in BLOCKS if each.page == block.page and each.kind == "text"]
    assert 'schedule: "0 16 * * 5", duration: 64h' in text
    start = datetime.fromisoformat("2026-11-27T16:00:00+01:00")
    for hours, is_open in ((-1, True), (0, False), (63, False), (64, True)):
        assert windows_open(environment.windows, start + timedelta(hours=hours)) is is_open
    spec = environment.spec
    assert spec.approvals is not None
    assert (spec.approvals.required, spec.approvals.exclude, spec.prune.max_percent) == (1, ("bundle_signer",), 20)
