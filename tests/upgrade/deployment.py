"""Services and workers of one version or of two on one database, replaced one after the other as a rolling update does."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import httpx
from kneo_process import PATIENCE_SECONDS, Machine, Process, eventually


class ProgramMachine(Machine):
    """A machine with the program of a folder; its processes begin with nothing, as in production."""

    begin: ClassVar = staticmethod(subprocess.Popen)

    def __init__(self, folder: Path, database_url: str, program: Path, **variables: str) -> None:
        super().__init__(folder, database_url, PYTHONPATH=str(program), **variables)

    def kneo(
        self, *arguments: str, expect: int | None = 0, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kneo.cli.main", *arguments]
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            cwd=cwd or self.folder,
            env=self.env,
            timeout=PATIENCE_SECONDS,
        )
        assert expect in {None, done.returncode}, f"{arguments} → {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


class Rotation:
    """The services that get requests, in turn, and how many requests each has in flight."""

    def __init__(self) -> None:
        self._services: list[Process] = []
        self._in_flight: Counter[str] = Counter()
        self._turns = itertools.count()
        self._changed = threading.Condition()

    @contextmanager
    def service(self) -> Iterator[str]:
        """Yield the address of the next service for one request."""
        with self._changed:
            url = self._services[next(self._turns) % len(self._services)].url
            self._in_flight[url] += 1
        try:
            yield url
        finally:
            with self._changed:
                self._in_flight[url] -= 1
                self._changed.notify_all()

    @property
    def services(self) -> tuple[Process, ...]:
        with self._changed:
            return tuple(self._services)

    def add(self, service: Process) -> None:
        with self._changed:
            self._services.append(service)

    def remove(self, service: Process) -> None:
        """Send no more requests to a service, and wait until it has answered those in flight."""
        with self._changed:
            self._services.remove(service)
            assert self._changed.wait_for(lambda: self._in_flight[service.url] == 0, PATIENCE_SECONDS), service.url


class Deployment:
    """The processes on one database.

    Args:
        code: The folder of the functions that runs execute, in which all processes work.
    """

    def __init__(self, code: Path) -> None:
        self.code = code
        self.rotation = Rotation()
        self.workers: list[Process] = []

    def serve(self, machine: Machine) -> None:
        """Start a service, and put it into rotation once it is ready."""
        service = machine.start("service", "serve", "--port", "0", "--workers", "0", cwd=self.code)
        eventually(lambda: httpx.get(f"{service.url}/readyz", timeout=PATIENCE_SECONDS).status_code == 200)
        self.rotation.add(service)

    def work(self, machine: Machine) -> None:
        """Start a worker."""
        self.workers.append(machine.start("worker", answers=False, cwd=self.code))

    def replace_service(self, machine: Machine) -> None:
        """Replace the service that has served for the longest time."""
        old = self.rotation.services[0]
        self.serve(machine)
        self.rotation.remove(old)
        end(old)

    def replace_worker(self, machine: Machine) -> None:
        """Replace the worker that has worked for the longest time."""
        self.work(machine)
        end(self.workers.pop(0))

    def stop(self) -> None:
        """Stop all processes."""
        for service in self.rotation.services:
            self.rotation.remove(service)
            end(service)
        while self.workers:
            end(self.workers.pop())


def end(process: Process) -> None:
    """Stop a process by SIGTERM, and check that it ends well."""
    status = process.terminate()
    assert status == 0, f"{process.url or 'worker'} ended with {status}: {process.log.read_text()[-2000:]}"
