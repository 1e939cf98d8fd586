"""Signals that a service receives in the moment in which it announces its URL."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import httpx
import kneo_process
import pytest
from kneo_process import Machine, Process, eventually

from kneo.service.auth import key_digest

SIGNALLED = """
import os, sys
from kneo.cli.serve.service import run_service
from kneo.cli.serve.worker import logged_settings
def announce(url):
    os.kill(os.getpid(), int(sys.argv[1]))
    print(url, flush=True)
run_service(logged_settings(), "127.0.0.1", 0, 1, announce)
"""


class Signalled(Machine):
    """Services that send themselves a signal before anything follows the announcement."""

    program: ClassVar = ("-c", SIGNALLED)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    (tmp_path / "keys").write_text(f"ann:{key_digest('key-of-ann')}:admin\n")
    made = Signalled(tmp_path, f"sqlite:///{tmp_path / 'kneo.sqlite'}", KNEO_SERV_API_KEYS_FILE="keys")
    yield made
    made.stop()


def ended(process: Process) -> int:
    status = eventually(lambda: (status := process.popen.poll()) is not None and (status,))
    return status[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_stop_ends_a_service_that_has_just_announced_its_url(machine: Machine, number: int) -> None:
    process = machine.start(str(int(number)))
    assert ended(process) == 0, process.log.read_text()


def test_a_service_that_has_just_announced_its_url_reads_its_keys_again(machine: Machine) -> None:
    process = machine.start(str(int(signal.SIGHUP)))
    eventually(lambda: "the API keys were reloaded" in process.log.read_text())
    answer = httpx.get(f"{process.url}/v1/me", headers={"Authorization": "Bearer key-of-ann"}, timeout=240)
    assert answer.status_code == 200
    assert process.terminate() == 0, process.log.read_text()


class _Interrupted(threading.Event):
    """An event whose wait Ctrl-C ends."""

    def wait(self, *_: object) -> bool:
        raise KeyboardInterrupt


@pytest.mark.e2e
def test_a_process_whose_start_is_interrupted_is_stopped_with_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path, "sqlite://")
    monkeypatch.setattr(Machine, "program", ("-c", "import signal; signal.pause()"))
    monkeypatch.setattr(kneo_process, "threading", SimpleNamespace(Event=_Interrupted, Thread=threading.Thread))
    with pytest.raises(KeyboardInterrupt):
        machine.start()
    [process] = machine.processes
    assert process.popen.poll() is None
    machine.stop()
    assert process.popen.poll() is not None
