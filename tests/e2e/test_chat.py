"""``kneo agent chat`` in a real terminal: lines, gates, commands and Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kneo_process import PATIENCE_SECONDS, Machine, eventually
from model_server import Call, ModelRequest, ModelServer, Reply, model_server

pytestmark = pytest.mark.e2e

IN_TERMINAL = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal; a job in the background ignores it
os.open(sys.argv[1], os.O_RDWR)  # the first terminal that the leader of a session opens controls it: Ctrl-C reaches it
from kneo.cli.main import main
main(sys.argv[2:])
"""

BANK = """
from pathlib import Path
def pay(arguments, key):
    with open(Path(__file__).with_suffix(".log"), "a") as log:
        log.write(f"pay {arguments['amount']}\\n")
    return {"paid": arguments["amount"]}
"""

SPEC = {
    "version": "v1",
    "agent": {
        "name": "teller",
        "model": {"provider": "openai", "name": "m", "extra": {"api": "chat"}},
        "strategy": {"type": "react"},
        "tools": {"include": ["pay"], "permissions": {"allow_network": False}},
    },
    "tools": {
        "pay": {
            "description": "Pay an amount.",
            "implementation": "bank.pay",
            "parameters": {"type": "object", "properties": {"amount": {"type": "integer"}}, "required": ["amount"]},
            "capabilities": ["privileged"],
            "review": {"before": {"human": "ops"}},
        }
    },
    "components": {"humans": {"ops": {"description": "Fine?"}}},
}


def answer(request: ModelRequest) -> Reply:
    """Answer by the last text of the user."""
    asked = next(each for each in reversed(request.body["messages"]) if each["role"] == "user")["content"]
    last = request.body["messages"][-1]["role"]
    if "Pay" in asked:
        return Reply("Paid it.") if last == "tool" else Reply(calls=[Call("pay", {"amount": 5})])
    if "Wait" in asked:
        return Reply("Never.", delay=3_600)
    return Reply(f"You said {asked}.")


class Terminal:
    """A command with a terminal of its own, which a person sees and types into."""

    def __init__(self, machine: Machine, *arguments: str) -> None:
        self.seen = ""
        self._read = 0
        self._master, slave = os.openpty()

        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL, os.ttyname(slave), *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=machine.folder,
            env={**machine.env, "TERM": "dumb"},
            start_new_session=True,
        )
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def line(self, text: str) -> None:
        self.type(f"{text}\n")

    def until(self, pattern: str) -> str:
        """Wait for a text after the last one that was waited for, and return what came until then."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (found := re.search(pattern, self.seen[self._read :])) is None:
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.seen[self._read :]!r}"
            assert self._more(1.0), f"no {pattern!r} in {self.seen[self._read :]!r}; the command has ended"
        start, self._read = self._read, self._read + found.end()
        return self.seen[start : self._read]

    def interrupt_until(self, pattern: str) -> str:
        """Type Ctrl-C until a text comes: Python does not notice one that comes just before it waits for a line."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        again = time.monotonic() + 10
        self.type("\x03")
        while re.search(pattern, self.seen[self._read :]) is None and time.monotonic() < deadline:
            if time.monotonic() > again:
                self.type("\x03")
                again = time.monotonic() + 10
            assert self._more(1.0), f"no {pattern!r} in {self.seen[self._read :]!r}; the command has ended"
        return self.until(pattern)

    def end(self) -> int:
        """Wait for the command to end."""
        while self._more(1.0):
            pass
        return self.process.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def _more(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], seconds)
        if not ready:
            return True
        with contextlib.suppress(OSError):  # the other end is closed
            data = os.read(self._master, 65_536)
            self.seen += data.decode(errors="replace").replace("\r", "")
            return bool(data)
        return False


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server(answer) as server:
        yield server


@pytest.fixture
def machine(tmp_path: Path, server: ModelServer) -> Machine:
    machine = Machine(
        tmp_path / "machine",
        f"sqlite:///{tmp_path}/kneo.sqlite",
        OPENAI_API_KEY="k",
        OPENAI_BASE_URL=server.openai_url,
    )
    (machine.folder / "bank.py").write_text(BANK)
    (machine.folder / "spec.json").write_text(json.dumps(SPEC))
    return machine


@pytest.fixture
def terminals(machine: Machine) -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def chat(machine: Machine, terminals: list[Terminal], *arguments: str) -> Terminal:
    terminals.append(Terminal(machine, "agent", "chat", *(arguments or ("spec.json",))))
    return terminals[-1]


def paid(machine: Machine) -> list[str]:
    log = machine.folder / "bank.log"
    return log.read_text().splitlines() if log.exists() else []


def test_lines_are_runs_of_a_session_that_commands_show(machine: Machine, terminals: list[Terminal]) -> None:
    terminal = chat(machine, terminals, "spec.json", "--session", "talk")
    assert "--session talk" in terminal.until(r"> ")
    terminal.line("Hello")
    terminal.until("You said Hello.")
    assert "You said Hello." not in terminal.until(r"> "), "a streamed reply is not printed again"
    terminal.line("Again")
    terminal.until("You said Again.")
    terminal.until(r"> ")
    for command, shown in (
        ("/history", r"> Hello\nYou said Hello.\n> Again\nYou said Again.\n"),
        ("/usage", "2 requests, 0 tool calls"),
        ("/tools", r"pay  Pay an amount\.  \(asks a person\)"),
        ("/trace", "model_completed"),
        ("/nothing", "There is no command /nothing"),
        ("/retry", "You said Again."),
    ):
        terminal.line(command)
        terminal.until(shown)
        terminal.until(r"> ")
    terminal.line("/quit")
    assert terminal.end() == 0
    listed = machine.json("runs", "list", "--session", "talk")["runs"]
    assert [run["input_text"] for run in listed] == ["Again", "Again", "Hello"]
    assert {run["workflow_kind"] for run in listed} == {"agent"}


def test_a_gate_is_answered_in_the_terminal_with_edited_arguments(machine: Machine, terminals: list[Terminal]) -> None:
    terminal = chat(machine, terminals)
    terminal.until(r"> ")
    terminal.line("Pay it")
    question = terminal.until(r"\[a\]pprove \[e\]dit \[r\]eject \[l\]ater: ")
    assert '"amount": 5' in question.replace('":5', '": 5')
    terminal.line("x")
    terminal.until(r"\[l\]ater: ")
    terminal.line("e")
    terminal.until("Text: ")
    terminal.line('{"amount": "many"}')
    terminal.until(r"(?s)amount.*\[l\]ater: ")
    assert paid(machine) == []
    terminal.line("e")
    terminal.until("Text: ")
    terminal.line('{"amount": 6}')
    terminal.until("Paid it.")
    terminal.until(r"> ")
    assert paid(machine) == ["pay 6"]


def test_a_question_that_is_answered_later_waits_in_the_inbox(machine: Machine, terminals: list[Terminal]) -> None:
    terminal = chat(machine, terminals)
    terminal.until(r"> ")
    terminal.line("Pay it")
    terminal.until(r"\[l\]ater: ")
    terminal.line("later")
    later = terminal.until(r"kneo task decide \S+")
    terminal.until(r"> ")
    terminal.line("Hello")
    terminal.until("You said Hello.")
    terminal.until(r"> ")
    terminal.type("\x04")
    assert terminal.end() == 0
    ended = machine.json("task", "decide", later.rpartition(" ")[2], "--approve")
    assert (ended["status"], ended["output_text"], paid(machine)) == ("succeeded", "Paid it.", ["pay 5"])


def test_an_edited_spec_counts_from_the_next_line_on(
    machine: Machine, server: ModelServer, terminals: list[Terminal]
) -> None:
    terminal = chat(machine, terminals)
    terminal.until(r"> ")
    terminal.line("Hello")
    terminal.until("You said Hello.")
    terminal.until(r"> ")
    edited = {**SPEC, "agent": {**SPEC["agent"], "system_prompt": "Be brief."}}
    (machine.folder / "spec.json").write_text(json.dumps(edited))
    terminal.line("Again")
    terminal.until("The spec has changed.")
    terminal.until("You said Again.")
    assert ["Be brief." in request.text for request in server.requests] == [False, True]
    terminal.until(r"> ")
    (machine.folder / "spec.json").write_text("{")
    terminal.line("Broken")
    terminal.until("✗")
    terminal.until(r"> ")
    (machine.folder / "spec.json").write_text(json.dumps(SPEC))
    terminal.line("Whole")
    terminal.until("You said Whole.")
    terminal.line("/quit")
    assert terminal.end() == 0


def test_a_question_for_another_person_is_answered_in_their_part(machine: Machine, terminals: list[Terminal]) -> None:
    asked = {"description": "Fine?", "candidates": {"users": ["ann"]}}
    (machine.folder / "spec.json").write_text(json.dumps({**SPEC, "components": {"humans": {"ops": asked}}}))
    terminal = chat(machine, terminals)
    terminal.until(r"> ")
    terminal.line("Pay it")
    terminal.until(r"\[l\]ater: ")
    terminal.line("a")
    terminal.until("⚠")
    terminal.until(r"\[l\]ater: ")
    terminal.line("later")
    terminal.until(r"> ")
    terminal.line("/as ann")
    terminal.until("answered as ann")
    terminal.until(r"\[l\]ater: ")
    terminal.line("a")
    terminal.until("Paid it.")
    terminal.until(r"> ")
    terminal.line("/as")
    terminal.until("answered as you")
    terminal.line("/quit")
    assert terminal.end() == 0
    assert paid(machine) == ["pay 5"]


def test_ctrl_c_cancels_the_run_and_not_the_chat(
    machine: Machine, server: ModelServer, terminals: list[Terminal]
) -> None:
    terminal = chat(machine, terminals)
    terminal.until(r"> ")
    terminal.line("Wait")
    eventually(lambda: server.requests)
    terminal.type("\x03")
    terminal.until("Cancelled run_")
    terminal.until(r"> ")
    terminal.interrupt_until("Leave with /quit")
    terminal.until(r"> ")
    terminal.line("Hello")
    terminal.until("You said Hello.")
    terminal.until(r"> ")
    terminal.line("/quit")
    assert terminal.end() == 0


def test_another_model_needs_no_spec(machine: Machine, server: ModelServer, terminals: list[Terminal]) -> None:
    terminal = chat(machine, terminals, "--model", "openai/other")
    terminal.until(r"> ")
    terminal.line("Hello")
    terminal.until("Hello")
    eventually(lambda: server.requests)
    assert server.requests[0].model == "other"
    terminal.type("\x04")


def test_a_chat_over_http_is_the_same(machine: Machine, terminals: list[Terminal]) -> None:
    service = machine.start("service", "serve", "--port", "0")
    try:
        terminal = chat(machine, terminals, "spec.json", "--service-url", service.url)
        terminal.until(r"> ")
        terminal.line("Pay it")
        terminal.until(r"\[l\]ater: ")
        terminal.line("a")
        terminal.until("Paid it.")
        terminal.until(r"> ")
        terminal.line("/quit")
        assert terminal.end() == 0
        assert paid(machine) == ["pay 5"]
    finally:
        machine.stop()
