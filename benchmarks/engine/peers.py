"""Other systems, each in an environment of its own under the user's cache; and services of either kind, started and stopped."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx

from benchmarks.engine import flows
from tests.conformance.clients.published import find_python

CACHE = Path.home() / ".cache" / "kneo-bench"
PATIENCE_SECONDS = 60

Serve = Callable[[], AbstractContextManager[str]]


def langgraph() -> Path:
    """Return a Python that has LangGraph and its SQLite checkpointer."""
    return _environment("langgraph", [sys.executable], ["langgraph==1.2.22", "langgraph-checkpoint-sqlite==3.1.2"])


def langgraph_agents() -> Path:
    """Return a Python that has LangGraph, its SQLite checkpointer and its client of OpenAI."""
    packages = ["langgraph==1.2.22", "langgraph-checkpoint-sqlite==3.1.2", "langchain-openai"]
    return _environment("langgraph-agents", [sys.executable], packages)


def openai_agents() -> Path:
    """Return a Python that has the OpenAI Agents SDK."""
    return _environment("openai-agents", [sys.executable], ["openai-agents==0.24.0"])


def published() -> Path:
    """Return a Python that has the published service, with a FastAPI that it can import."""
    return _environment("kneo-serv", [str(find_python())], ["kneo-serv==1.2.0", "fastapi==0.136.3", "uvicorn"])


def _environment(name: str, python: list[str], packages: list[str]) -> Path:
    folder = CACHE / name
    ready = folder / ".ready"
    if not ready.is_file():
        subprocess.run([*python, "-m", "venv", "--clear", str(folder)], check=True)
        install = [str(folder / "bin" / "python"), "-m", "pip", "-qq", "--disable-pip-version-check", "install"]
        subprocess.run([*install, *packages], check=True)
        ready.touch()
    return folder / "bin" / "python"


@contextlib.contextmanager
def kneo() -> Iterator[str]:
    """Serve Kneo with its defaults; yields its URL."""
    with _serving([sys.executable, "-m", "kneo.cli.main", "service", "serve", "--port"]) as url:
        yield url


@contextlib.contextmanager
def kneo_serv() -> Iterator[str]:
    """Serve the published package with its defaults; yields its URL."""
    with _serving([str(published().with_name("kneo")), "service", "serve", "--host", "127.0.0.1", "--port"]) as url:
        yield url


@contextlib.contextmanager
def bare() -> Iterator[str]:
    """Serve the same requests without doing anything."""
    app = ["benchmarks.engine.bare:app", "--log-level", "warning", "--no-access-log", "--port"]
    with _serving([sys.executable, "-m", "uvicorn", *app]) as url:
        yield url


@contextlib.contextmanager
def _serving(command: list[str]) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as name:
        Path(name, f"{flows.MODULE}.py").write_text(flows.SOURCE)
        env = {"PATH": "/usr/bin:/bin", "HOME": name, "PYTHONPATH": f"{Path(__file__).parents[2]}:{name}"}
        with Path(name, "log").open("wb") as log:
            process = subprocess.Popen([*command, str(port)], cwd=name, env=env, stdout=log, stderr=log)
        try:
            _wait_for(url)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/livez").status_code == 200:
                return
        assert time.monotonic() < deadline, f"{url} did not answer"
        time.sleep(0.1)
