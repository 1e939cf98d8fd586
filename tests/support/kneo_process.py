"""Kneo as its users meet it: processes, HTTP and commands, with a folder of their own and nothing of this machine's."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, TypeVar
from unittest import mock

import httpx
from installation_key import installation_variables
from warm import commands, run_python, start_python

from kneo.cli.main import run
from kneo.settings import process_environment

T = TypeVar("T")

PATIENCE_SECONDS = 240.0


def eventually(look: Callable[[], T], *, seconds: float = PATIENCE_SECONDS) -> T:
    """Call ``look`` until it returns something true; the last thing it returned is in the failure."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"still {found!r} after {seconds} s"
        time.sleep(0.05)


class Machine:
    """A folder to work in and the environment its processes see."""

    program: ClassVar[Sequence[str]] = ("-m", "kneo.cli.main")
    """What a process that stays executes."""

    begin: ClassVar[Callable[..., subprocess.Popen[str]]] = staticmethod(start_python)
    """How a process that stays is started."""

    def __init__(self, folder: Path, database_url: str, **variables: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.env = {
            "PATH": f"{commands()}:{Path(sys.executable).parent}:{process_environment('PATH')['PATH']}",
            "HOME": str(folder / "home"),
            "KNEO_SERV_DATABASE_URL": database_url,
            "NO_COLOR": "1",
            **installation_variables(database_url),
            **variables,
        }
        (folder / "home").mkdir(exist_ok=True)
        self.processes: list[Process] = []

    def kneo(
        self, *arguments: str, expect: int | None = 0, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        done = run_python([sys.executable, "-m", "kneo.cli.main", *arguments], cwd=cwd or self.folder, env=self.env)
        if expect is not None:
            assert done.returncode == expect, f"{arguments} → {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *arguments: str, expect: int | None = 0, cwd: Path | None = None) -> dict[str, object]:
        """Run one command with ``--json`` and read its answer."""
        return json.loads(self.kneo(*arguments, "--json", expect=expect, cwd=cwd).stdout)

    def up(self, *arguments: str) -> Process:
        """Start ``kneo up`` and wait until it answers."""
        return self.start("up", "--port", "0", *arguments)

    def start(self, *arguments: str, answers: bool = True, cwd: Path | None = None) -> Process:
        """Start a process that stays; with ``answers``, wait until it says at which address."""
        process = Process(self, arguments, cwd=cwd or self.folder)
        if answers:
            process.wait_until_announced()
        return process

    def stop(self) -> None:
        for process in self.processes:
            process.kill()


class Desk(Machine):
    """A machine whose commands run in this process: for what commands do, not for what processes do."""

    def kneo(
        self, *arguments: str, expect: int | None = 0, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        out, errors = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict("os.environ", self.env, clear=True),
            contextlib.chdir(cwd or self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(errors),
        ):
            status = run(list(arguments))
        done = subprocess.CompletedProcess(arguments, status, out.getvalue(), errors.getvalue())
        if expect is not None:
            assert status == expect, f"{arguments} → {status}\n{done.stdout}\n{done.stderr}"
        return done


class Process:
    """A Kneo process that stays, and a client for it."""

    def __init__(self, machine: Machine, arguments: Sequence[str], *, cwd: Path) -> None:
        self.log = machine.folder / f"process-{len(machine.processes)}.log"
        with self.log.open("w") as log:
            self.popen = machine.begin(
                [sys.executable, *machine.program, *arguments],
                cwd=cwd,
                env=machine.env,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        # From here on the machine stops it, whatever interrupts the wait for its address.
        machine.processes.append(self)
        self._announced = threading.Event()
        self.url = ""
        self.printed: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def wait_until_announced(self) -> None:
        """Wait until the process says at which address it answers."""
        assert self._announced.wait(PATIENCE_SECONDS), self.log.read_text()
        assert self.url, self.log.read_text()

    @cached_property
    def http(self) -> httpx.Client:
        """A client for the address of the process."""
        return httpx.Client(base_url=f"{self.url}/v1", timeout=PATIENCE_SECONDS)

    def _listen(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.printed.append(line)
            if "http://" in line and not self.url:
                self.url = "http://" + line.split("http://")[1].split(",")[0].strip()
                self._announced.set()
        self._announced.set()

    def get(self, path: str, **query: str) -> dict[str, object]:
        answer = self.http.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: dict[str, object] | None = None, *, expect: int = 200) -> dict[str, object]:
        answer = self.http.post(path, json=body or {})
        assert answer.status_code == expect, answer.text
        return answer.json()

    def kill(self) -> None:
        """Kill the process with no chance to tidy up."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGKILL)
        self._end()

    def terminate(self) -> int:
        """Ask the process to stop and return its exit status."""
        self.popen.send_signal(signal.SIGTERM)
        status = self.popen.wait(PATIENCE_SECONDS)
        self._end()
        return status

    def _end(self) -> None:
        self.popen.wait(PATIENCE_SECONDS)
        if "http" in vars(self):
            self.http.close()
        if self.popen.stdout is not None:
            self.popen.stdout.close()
