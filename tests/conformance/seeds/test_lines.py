"""Every line that the documents show, run as it stands there; and what is said where ours does something else."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import yaml
from kneo_process import Machine, Process
from model_server import Call, ModelRequest, Reply, model_server

from kneo.cli.main import run
from kneo.settings import process_environment

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CHAPTERS = yaml.safe_load((HERE / "lines.yaml").read_text(encoding="utf-8"))
OPTIONS = yaml.safe_load((HERE / "options.yaml").read_text(encoding="utf-8"))

KEYS = "operator:operator-token:operator;reviewer:reviewer-token:reviewer;viewer:viewer-token:viewer"
ADDRESSES = ("http://127.0.0.1:8000", "https://staging.example.com", "https://kneo.example.com")
LEGACY = "root_agent: {name: old, model: {provider: dummy, name: dummy}}\n"


def research(request: ModelRequest) -> Reply:
    """A model that searches before it answers, where it has a tool for that."""
    names = [tool["name"] for tool in request.body.get("tools", ())]
    if "web_search" in names and "function_call_output" not in request.text:
        return Reply(calls=[Call("web_search", {"query": "Nvidia"})])
    return Reply("Nvidia sells accelerators, networks and software.")


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
                status = run(shlex.split(line)[1:])
            return status, said.getvalue()
        line = line.replace("$(uuidgen)", str(uuid.uuid4()))  # not every system has it
        env = {"PATH": process_environment("PATH")["PATH"], **self.variables}
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
        if needed == "paused":
            body = {"input": "x", "spec_path": "examples/human_approval_workflow.yaml"}
            answer = self.service.http.post("/runs", json=body, headers={"Authorization": "Bearer admin-token"})
            self.learn(answer.text)
            return
        status, said = self.type("kneo run examples/human_approval_workflow.yaml --input x --json")
        assert status == 0, said
        self.learn(said)
        if needed == "done":
            status, said = self.type("kneo task decide <continuation_id> --request-id <request_id> --approve")
            assert status == 0, said

    def _made_local(self, line: str) -> str:
        for address in ADDRESSES:
            line = line.replace(address, self.service.url)
        for name, value in self.known.items():
            line = line.replace(f"<{name}>", value)
        for written, name in (("run-7c2f", "run_id"), ("cont_", "continuation_id"), ("req_", "request_id")):
            line = re.sub(rf"{written}(\.\.\.|…)", self.known.get(name, written), line)
        return line.replace("<api-key>", "admin-token").replace("<deployment-signing-key>", "a-signing-key").strip()


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: Process, provider: dict[str, str]) -> Shell:
    furnish(tmp_path)
    for name, value in provider.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in ("KNEO_ENV", "KNEO_PROJECT_CONFIG", "KNEO_SERV_DATABASE_URL", "KNEO_SERV_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return Shell(tmp_path, service, monkeypatch)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_line_does_what_is_written(chapter: str, shell: Shell):
    problems = []
    for item in CHAPTERS[chapter]:
        if needed := item.get("needs"):
            # What waits or ended beside the database is looked at beside it, whatever profile is active by now.
            shell.prepare(needed)
        status, said = shell.type(item["line"])
        missing = [text for text in item.get("responds", ()) if text not in said]
        if status != item.get("exit", 0) or missing:
            problems.append(f"{item['line'].strip()}\n    ended with {status}, without {missing}:\n{said[:1500]}")
        shell.learn(said)
    assert not problems, "\n\n".join(problems)


@pytest.mark.parametrize("command", OPTIONS)
def test_every_documented_option_is_there(command: str, capsys: pytest.CaptureFixture[str]):
    assert run([*command.split(), "--help"]) == 0
    words = set(re.split(r"[\s,\[\]/]+", capsys.readouterr().out))
    assert set(OPTIONS[command]) <= words


def test_every_difference_is_on_the_page():
    page = " ".join((ROOT / "docs" / "moving" / "kneo-serv.md").read_text(encoding="utf-8").split())
    reasons = {" ".join(item["differs"].split()) for items in CHAPTERS.values() for item in items if "differs" in item}
    assert not {reason for reason in reasons if reason not in page}
