"""``make demo``: what it shows, and that its server ends with it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from kneo_process import PATIENCE_SECONDS
from processes import is_executing
from warm import start_python

from examples import demo
from kneo.settings import process_environment

ROOT = Path(demo.__file__).parents[1]

SERVER = """#!/bin/sh
trap 'kill $!; echo in order > ended; exit 0' TERM
sleep 600 &
echo "Kneo is up at http://127.0.0.1:9, as always"
wait
"""
"""The server of a demo, which obeys SIGTERM and nothing else."""

DEMO = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in its background with SIGINT ignored
sys.path.insert(0, sys.argv[1])
from examples import demo

def hold(made):
    with made.up() as server:
        print(server.pid, flush=True)
        server.wait()

demo.run = hold
sys.executable = sys.argv[2]
demo.main()
"""


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_demo_that_is_stopped_stops_its_server(tmp_path: Path, number: signal.Signals) -> None:
    server = tmp_path / "server"
    server.write_text(SERVER)
    server.chmod(0o755)
    with start_python(
        [sys.executable, "-c", DEMO, ROOT, server],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        pid = int(next(line for line in lines if line.strip().isdecimal()))
        try:
            process.send_signal(number)
            assert process.wait(PATIENCE_SECONDS) != 0
            assert not is_executing(pid)
            assert (tmp_path / ".demo" / "ended").read_text() == "in order\n"
        finally:
            process.kill()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


SHOWN = (
    "We refunded 20 EUR for order 7.",
    "Refund 120 EUR for order 8",
    "We refunded 100 EUR for order 8.",
    "Refund 300 EUR for order 9",
    "We cannot refund order 9.",
    "✗ claim-above-the-price: lookup_order was called 0 times; 1 is expected.",
    "SignatureInvalid: support 1.1.0 was rejected",
    "✓ Receipt verified.",
    "✗ actor: actor is shown as something else than what the envelope says.",
    "✓ Audit log verified",
)
"""What the demo shows, in this order."""


@pytest.mark.e2e
def test_the_demo_refunds_asks_refuses_and_proves_on_one_screen_and_leaves_its_server_running(tmp_path: Path) -> None:
    lines: list[str] = []
    with start_python(
        [sys.executable, "-m", "examples.demo", "--up"],
        cwd=tmp_path,
        env={**process_environment(), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        up = None
        try:
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                if up := re.search(r"Kneo is up at (http://\S+) \(", line):
                    break
            assert up, lines
            assert httpx.get(f"{up[1]}/readyz").status_code == 200
        finally:
            process.terminate()
    shown, at = "\n".join(lines), 0
    for text in SHOWN:
        assert text in shown[at:], text
        at = shown.index(text, at)
    assert len(lines) <= 60
    assert max(len(line) for line in lines if "/console/" not in line) <= 120
