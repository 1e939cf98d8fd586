"""Every line that the documents show, run as written there, and compared with the output that they show."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from conformance.seeds.documented import differences
from kneo_process import Machine, Process, eventually
from model_server import Call, ModelRequest, Reply, model_server
from warm import commands

from kneo.cli.main import run
from kneo.settings import process_environment

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


@dataclass(frozen=True, kw_only=True)
class Line:
    """An entry of ``lines.yaml``, which describes the keys; any other key is refused."""

    line: str
    needs: str | None = None
    exit: int = 0
    shows: list[str] = field(default_factory=list)
    output: str | None = None
    overridden: Mapping[str, str] = field(default_factory=dict)
    differs: Mapping[str, str] = field(default_factory=dict)
    instead: str | None = None
    left_out: str | None = None

    @property
    def reasons(self) -> set[str]:
        """The reasons that are on the page for people who come from the other platform."""
        return {*self.differs.values(), *([self.left_out] if self.left_out else [])}


CHAPTERS = {
    chapter: [Line(**item) for item in items]
    for chapter, items in yaml.safe_load((HERE / "lines.yaml").read_text(encoding="utf-8")).items()
}
OPTIONS = yaml.safe_load((HERE / "options.yaml").read_text(encoding="utf-8"))

KEYS = "operator:operator-token:operator;reviewer:reviewer-token:reviewer;viewer:viewer-token:viewer"
ADDRESSES = ("http://127.0.0.1:8000", "https://staging.example.com", "https://kneo.example.com")
WORDS = {
    "<api-key>": "admin-token",
    "<deployment-signing-key>": "a-signing-key",
    "<your-operator-token>": "operator-token",
    "<your-reviewer-token>": "reviewer-token",
    "<your-viewer-token>": "viewer-token",
}
LEGACY = "root_agent: {name: old, model: {provider: dummy, name: dummy}}\n"
UNRESTRICTED = """\
agent: {name: a, model: {provider: openai, name: m}, strategy: react, tools: {include: [t]}}
workflow: [a, b]
components: {agents: {b: {name: b, model: {provider: openai, name: m}, strategy: react, tools: {include: [t]}}}}
tools: {t: {description: d, implementation: examples.app_functions.web_search}}
"""
ASKED = """\
agent: {name: a, model: {provider: dummy, name: dummy}}
workflow: [{id: ask, kind: human, ref: person}]
components: {humans: {person: {request_type: freeform, description: What suffix?}}}
"""
HOLD = "Hold the analysis."


def research(request: ModelRequest) -> Reply:
    """A model that calls its tool before it answers; it does not finish an analysis that is to be held."""
    names = [tool["name"] for tool in request.body.get("tools", ())]
    called = "function_call_output" in request.text
    if "lookup_user" in names:
        question = Reply(calls=[Call("lookup_user", {"user_id": "u-002"})])
        return Reply("The email for u-002 is bob@example.com.") if called else question
    if "web_search" in names and not called:
        return Reply(calls=[Call("web_search", {"query": "Nvidia"})])
    delay = 600 if not names and HOLD in request.text else 0
    kept = f" {HOLD}" if HOLD in request.text else ""
    return Reply(f"Nvidia's AI strategy hinges on accelerators, networks and software.{kept}", delay=delay)


@pytest.fixture(scope="module")
def provider() -> Iterator[dict[str, str]]:
    """The variables of a provider whose model is on loopback."""
    with model_server(research) as server:
        yield {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": server.openai_url}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, provider: dict[str, str]) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("service")
    furnish(folder)
    variables = {"KNEO_SERV_API_KEYS": KEYS, "KNEO_SERV_ADMIN_API_KEY": "admin-token", **provider}
    machine = Machine(folder, f"sqlite:///{folder / 'kneo.sqlite'}", **variables)
    yield machine.start("service", "serve", "--host", "127.0.0.1", "--port", "0")
    machine.stop()


def furnish(folder: Path) -> None:
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "legacy_agent.yaml").write_text(LEGACY)
    (folder / "unrestricted_agent.yaml").write_text(UNRESTRICTED)
    (folder / "asked.yaml").write_text(ASKED)
    (folder / "bundles").mkdir()


class Shell:
    """Types lines into a folder: commands of ours in this process, everything else in a shell."""

    def __init__(self, folder: Path, service: Process, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.service = service
        self.patch = patch
        self.known: dict[str, str] = {}
        self.variables: dict[str, str] = {}

    def type(self, line: str) -> tuple[int, str]:
        line = self._made_local(line).replace("\\\n", " ")
        if line.startswith("export "):
            name, _, value = line.removeprefix("export ").partition("=")
            self.variables[name] = shlex.split(value)[0]
            self.patch.setenv(name, self.variables[name])
            return 0, ""
        if line.startswith("kneo "):
            said = io.StringIO()
            with redirect_stdout(said), redirect_stderr(said):
                status = run(shlex.split(line, comments=True)[1:])
            return status, said.getvalue()
        line = line.replace("$(uuidgen)", str(uuid.uuid4()))  # not every system has it
        env = {
            "PATH": f"{commands()}:{Path(sys.executable).parent}:{process_environment('PATH')['PATH']}",
            **self.variables,
        }
        command = ["bash", "-o", "pipefail", "-c", line]
        done = subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=240, check=False
        )
        return done.returncode, done.stdout + done.stderr

    def learn(self, answer: str) -> None:
        """Remember the ids of an answer for the lines that follow."""
        for name, pattern in (("run_id", "run_"), ("continuation_id", "cont_"), ("request_id", "req_")):
            if found := re.search(rf"\b{pattern}[0-9a-z]{{20,}}", answer):
                self.known[name] = found[0]

    def prepare(self, needed: str) -> None:
        """Start the run that a line is about: through the service, or beside the database for commands that ask it."""
        match needed:
            case "paused":
                self._post("/runs", input="x", spec_path="examples/human_approval_workflow.yaml")
            case "approved":
                self.prepare("paused")
                self._post(
                    f"/human-tasks/{self.known['continuation_id']}/resume",
                    "reviewer-token",
                    request_id=self.known["request_id"],
                    decision="approved",
                    content="Looks good.",
                )
            case "researched":
                self._post("/runs", input="Nvidia", spec_path="examples/research_agent.yaml")
            case "running":
                spec = "examples/research_agent.yaml"
                self._post("/runs", input=HOLD, spec_path=spec, environment="prod", async_mode=True)
                run_id = self.known["run_id"]
                eventually(lambda: self._get(f"/runs/{run_id}")["visited_steps"] == ["retrieve"])
            case "paused-here":
                self._run_here("examples/human_approval_workflow.yaml")
            case "asked-here":
                self._run_here("asked.yaml")
            case "done-here":
                self._run_here("examples/human_approval_workflow.yaml")
                status, said = self.type("kneo human resume <continuation_id> --request-id <request_id> --approve")
                assert status == 0, said
            case _:
                pytest.fail(f"nothing is prepared for {needed}")

    def _run_here(self, spec: str) -> None:
        status, said = self.type(f"kneo run {spec} --input x --json")
        assert status == 0, said
        self.learn(said)

    def _post(self, path: str, key: str = "admin-token", **body: object) -> None:
        answer = self.service.http.post(path, json=body, headers={"Authorization": f"Bearer {key}"})
        assert answer.is_success, answer.text
        self.learn(answer.text)

    def _get(self, path: str) -> dict[str, object]:
        answer = self.service.http.get(path, headers={"Authorization": "Bearer admin-token"})
        found: dict[str, object] = answer.json()
        return found

    def _made_local(self, line: str) -> str:
        for address in ADDRESSES:
            line = line.replace(address, self.service.url)
        for name, value in self.known.items():
            line = line.replace(f"<{name}>", value)
        for written, name in (("run-7c2f", "run_id"), ("cont_", "continuation_id"), ("req_", "request_id")):
            line = re.sub(rf"{written}(\.\.\.|…)", self.known.get(name, written), line)
        for word, value in WORDS.items():
            line = line.replace(word, value)
        return line.strip()


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: Process, provider: dict[str, str]) -> Shell:
    furnish(tmp_path)
    for name, value in provider.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in ("KNEO_ENV", "KNEO_PROJECT_CONFIG", "KNEO_SERV_DATABASE_URL", "KNEO_SERV_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    shell = Shell(tmp_path, service, monkeypatch)
    shell.variables = {"HOME": str(tmp_path / "home"), **provider}
    return shell


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_line_does_what_is_written(chapter: str, shell: Shell):
    problems = []
    for item in CHAPTERS[chapter]:
        if item.left_out is not None:
            continue
        if item.needs is not None:
            shell.prepare(item.needs)
        status, said = shell.type(item.instead or item.line)
        found = differences(item.output, said) if item.output is not None else {}
        found |= {"exit": f"{item.exit} is {status}"} if status != item.exit else {}
        found |= {text: "is missing" for text in item.shows if text not in said}
        listed = {*item.overridden, *item.differs}
        unlisted = {path: what for path, what in found.items() if path not in listed}
        gone = listed - found.keys()
        if unlisted or gone:
            problems.append(f"{item.line.strip()}\n    {unlisted}, listed without need: {gone}\n{said[:1500]}")
        shell.learn(said)
    assert not problems, "\n\n".join(problems)


@pytest.mark.parametrize("command", OPTIONS)
def test_every_documented_option_is_there(command: str, capsys: pytest.CaptureFixture[str]):
    assert run([*command.split(), "--help"]) == 0
    words = set(re.split(r"[\s,\[\]/]+", capsys.readouterr().out))
    assert set(OPTIONS[command]) <= words


def test_every_difference_is_on_the_page():
    page = " ".join((ROOT / "docs" / "moving" / "kneo-serv.md").read_text(encoding="utf-8").split())
    reasons = {" ".join(reason.split()) for items in CHAPTERS.values() for item in items for reason in item.reasons}
    assert not {reason for reason in reasons if reason not in page}


def test_what_is_overridden_names_the_row_of_its_decision():
    named = [says for items in CHAPTERS.values() for item in items for says in item.overridden.values()]
    assert named
    assert all(re.match(r"[1-9]\d*: .{20,}", says) for says in named)
