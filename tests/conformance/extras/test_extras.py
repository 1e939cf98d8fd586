"""Kneo as people install it, with each extra and with none, in environments made for this: ``make extras``."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from installation_key import SERVICE_KEY, installation_variables
from kneo_process import Machine, eventually

from kneo.settings import function_environment

ROOT = Path(__file__).parents[3]

SPEC = """
version: v1
agent: {name: a, model: {provider: dummy, name: dummy}}
workflow:
  type: sequential
  name: w
  steps: [{id: answer, kind: agent, ref: writer}]
components:
  agents: {writer: {name: writer, model: {provider: dummy, name: dummy}}}
"""

Install = Callable[[str], Path]


def call(command: list[str | Path], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, **options)


PIP = ["-m", "pip", "-qq", "--disable-pip-version-check", "--no-input"]


def build_wheel(folder: Path, **options: object) -> Path:
    built = call([sys.executable, *PIP, "wheel", "--no-deps", "--wheel-dir", folder, ROOT], **options)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("kneo-*.whl")
    return wheel


@pytest.fixture(scope="module")
def install(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """Installs what would be published with one extra into an environment of its own; returns its Python."""
    if not request.config.getoption("--fresh-environments"):
        pytest.skip("environments are made from a package index: make extras")
    folder = tmp_path_factory.mktemp("extras")
    wheel = build_wheel(folder)
    made: dict[str, Path] = {}

    def install(extra: str) -> Path:
        if extra not in made:
            home = folder / (extra or "core")
            assert call([sys.executable, "-m", "venv", home]).returncode == 0
            python = home / "bin" / "python"
            done = call([python, *PIP, "install", f"{wheel}[{extra}]" if extra else wheel])
            assert done.returncode == 0, done.stderr
            made[extra] = python
        return made[extra]

    return install


class Kneo:
    """The command of one environment, in a folder with a spec."""

    def __init__(self, python: Path, folder: Path, **variables: str) -> None:
        self.python = python
        self.machine = Machine(folder, f"sqlite:///{folder / 'kneo.sqlite'}", **variables)
        (folder / "spec.yaml").write_text(SPEC)

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [self.python.with_name("kneo"), *arguments]
        return call(command, cwd=self.machine.folder, env=self.machine.env)

    def works(self) -> None:
        assert "Usage: kneo" in self("--help").stdout
        linted = self("spec", "lint", "spec.yaml", "--json")
        assert linted.returncode == 0, linted.stdout
        ended = self("run", "spec.yaml", "--input", "hello", "--json")
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert json.loads(ended.stdout)["status"] == "succeeded"

    def has(self, module: str) -> bool:
        return call([self.python, "-c", f"import {module}"]).returncode == 0


@pytest.mark.timeout(600)
def test_without_any_extra_everything_works_on_sqlite(install: Install, tmp_path: Path):
    kneo = Kneo(install(""), tmp_path)
    kneo.works()
    assert not kneo.has("psycopg")
    assert not kneo.has("opentelemetry.sdk")


@pytest.mark.timeout(600)
def test_the_wheel_is_complete_and_says_where_it_comes_from(install: Install, tmp_path: Path):
    install("")  # skips without environments
    environment = {**function_environment(), "KNEO_BUILD_REPOSITORY": "https://git.example.org/team/kneo"}
    with zipfile.ZipFile(build_wheel(tmp_path, env=environment)) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (metadata,) = [wheel.read(name).decode() for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    listed = call(["git", "-C", ROOT, "ls-files", "kneo"])
    assert packed == set(listed.stdout.split())
    assert "kneo/py.typed" in packed
    assert "Project-URL: Source, https://git.example.org/team/kneo" in metadata
    assert "Classifier: Typing :: Typed" in metadata


@pytest.mark.timeout(600)
def test_a_release_is_made_run_and_approved_without_the_repository(install: Install, tmp_path: Path):
    kneo = Kneo(install(""), tmp_path)
    author = {f"GIT_{who}_{what}": "ann@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    kneo.machine.env |= author
    made = json.loads(kneo("init", "shop", "--json").stdout)
    command = [kneo.python.with_name("kneo"), "up", "--repo", "shop", "--port", "0"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=kneo.machine.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = next(line for line in process.stdout if "http://" in line).split("http://")[1].split(",")[0].strip()
            service = ["--service-url", f"http://{url}", "--json"]

            def started() -> dict[str, object] | None:
                done = kneo("run", "--bundle", str(made["bundle"]), "--env", "dev", "--input", "hi", *service)
                return json.loads(done.stdout) if done.returncode == 0 else None

            run = eventually(started)
            assert run["status"] == "paused", run
            decided = kneo("task", "decide", str(run["continuation_id"]), "--approve", *service)
            assert json.loads(decided.stdout)["status"] == "succeeded", decided
        finally:
            process.terminate()
            process.stdout.read()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("variables", "extra"),
    [
        (
            {
                "KNEO_SERV_DATABASE_URL": "postgresql://localhost:1/nothing",
                "KNEO_SERV_SERVICE_KEY": SERVICE_KEY.dump().decode(),
            },
            "kneo[postgres]",
        ),
        ({"KNEO_SERV_OTEL_ENABLED": "true"}, "kneo[telemetry]"),
    ],
)
def test_what_an_extra_is_needed_for_says_so(variables: dict[str, str], extra: str, install: Install, tmp_path: Path):
    kneo = Kneo(install(""), tmp_path)
    kneo.machine.env |= variables
    refused = kneo("service", "serve", "--port", "0")
    assert refused.returncode == 1, refused.stderr
    assert extra in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.timeout(600)
@pytest.mark.parametrize("extra", ["postgres", "all"])
def test_on_postgresql(extra: str, install: Install, tmp_path: Path, postgres_url: str):
    kneo = Kneo(install(extra), tmp_path)
    kneo.machine.env |= {"KNEO_SERV_DATABASE_URL": postgres_url, **installation_variables(postgres_url)}
    kneo.works()


@pytest.fixture
def collector() -> Iterator[object]:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    got: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            got.append(self.path)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server, got
        server.shutdown()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("extra", ["telemetry", "deploy"])
def test_with_telemetry(extra: str, install: Install, tmp_path: Path, collector):
    server, got = collector
    endpoint = f"http://127.0.0.1:{server.server_port}"
    variables = {"KNEO_SERV_OTEL_ENABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    kneo = Kneo(install(extra), tmp_path, **variables)
    kneo.works()
    program = "from kneo.settings import from_env; from kneo import telemetry; assert telemetry"
    assert call([kneo.python, "-c", program], env=kneo.machine.env).returncode == 0
    command = [kneo.python.with_name("kneo"), "service", "serve", "--port", "0"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=kneo.machine.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as service:
        assert service.stdout is not None
        url = next(line for line in service.stdout if "http://" in line).split()[-1]
        answer = call(["curl", "-sf", f"{url}/v1/runs"])
        service.terminate()
        service.stdout.read()
    assert json.loads(answer.stdout)["count"] == 1
    assert "/v1/traces" in got


def test_all_is_every_extra_but_the_developers():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert {"postgres", "telemetry", "deploy", "all"} <= set(extras)

    def everything(name: str) -> set[str]:
        inner = [each.removeprefix("kneo[").rstrip("]").split(",") for each in extras[name] if each.startswith("kneo[")]
        return {name} | {found for names in inner for each in names for found in everything(each)}

    assert everything("all") == set(extras) - {"browser", "deploy-check", "dev", "docs"}


@pytest.mark.timeout(600)
def test_the_checks_of_a_new_repository_install_kneo_from_a_clone(install: Install, tmp_path: Path):
    """The commands that kneo init prints, with this repository as the clone, then what the action that signs installs."""
    kneo = Kneo(install(""), tmp_path)
    printed = kneo("init", "shop").stdout.splitlines()
    wheel, lock = (line.strip() for line in printed[-2:])
    tools = tmp_path / "tools"
    assert call([sys.executable, "-m", "venv", tools]).returncode == 0
    assert call([tools / "bin" / "python", *PIP, "install", "uv"]).returncode == 0
    shop, env = tmp_path / "shop", {**function_environment(), "PATH": f"{tools / 'bin'}:/usr/bin:/bin"}
    for command in (wheel.replace("/path/to/a/clone/of/kneo", str(ROOT)), lock):
        done = call(["sh", "-c", command], cwd=shop, env=env)
        assert done.returncode == 0, done.stderr
    assert "./.github/wheels/kneo-" in (shop / ".github" / "kneo.txt").read_text()
    action = yaml.safe_load((shop / ".github/actions/sign/action.yml").read_text())
    (step,) = [step for step in action["runs"]["steps"] if step["name"] == "Install"]
    runner = tmp_path / "runner"
    runner.mkdir()
    given = {"RUNNER_TEMP": str(runner), "GITHUB_PATH": str(runner / "path"), "REQUIREMENTS": ".github/kneo.txt"}
    done = call(["bash", "-eo", "pipefail", "-c", step["run"]], cwd=shop, env=env | given)
    assert done.returncode == 0, done.stdout + done.stderr
    Kneo(runner / "kneo" / "bin" / "python", tmp_path / "checked").works()
