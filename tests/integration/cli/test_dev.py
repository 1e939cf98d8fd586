"""``kneo dev``: a spec with a worker, the console and a chat, while it is being written."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from kneo_process import Machine, eventually

CHAIR = "The chair of order 8 never arrived. Refund 120 EUR."
MUG = "My mug of order 7 is broken, please refund it."


class Session:
    """A process of ``kneo dev``, the lines that are typed, and what it prints."""

    def __init__(self, machine: Machine, folder: Path, *arguments: str) -> None:
        self.log = folder.parent / "printed"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kneo.cli.main", "dev", "--port", "0", *arguments],
                cwd=folder,
                env=machine.env,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def printed(self) -> str:
        return self.log.read_text()

    def type(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def shows(self, text: str, times: int = 1) -> None:
        eventually(lambda: self.printed().count(text) >= times or self.process.poll() is not None)
        assert self.printed().count(text) >= times, self.printed()

    @property
    def url(self) -> str:
        return re.search(r"Kneo is up at (\S+)", self.printed())[1]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path / "machine", f"sqlite:///{tmp_path / 'unused.sqlite'}")
    made.env["PYTHONUNBUFFERED"] = "1"
    return made


@pytest.fixture
def folder(machine: Machine, tmp_path: Path) -> Path:
    machine.kneo("init", str(tmp_path / "project"), "--template", "agent")
    return tmp_path / "project"


@pytest.fixture
def session(machine: Machine, folder: Path) -> Iterator[Session]:
    made = Session(machine, folder)
    yield made
    with made.process:
        made.process.kill()


def line_of(text: str, part: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


def test_an_agent_is_tried_without_a_key_and_every_part_is_played(session: Session, folder: Path) -> None:
    session.shows("The model is scripted")
    session.shows("People for /as: finance")
    assert httpx.get(f"{session.url}/livez").status_code == 200
    link = re.search(r"Console, signed in .*: (\S+)", session.printed())[1]
    assert "inbox" in httpx.get(link, follow_redirects=True).text.lower()
    session.type(MUG)
    session.shows("We refunded 20 EUR for order 7.")
    session.type(CHAIR)
    session.shows("Is this refund right?")
    session.type("a")
    session.shows("We refunded 120 EUR for order 8.")
    session.type("/as finance")
    session.type(CHAIR)
    session.shows("Is this refund right?", times=2)
    session.type("r")
    session.type("It arrived.")
    session.shows("tool_call_rejected")
    session.type("Good morning")
    session.shows("The scripted model replies to these inputs")
    session.type("/quit")
    assert session.process.wait(60) == 0
    assert not (folder.parent / "unused.sqlite").exists()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{session.url}/livez")


def test_a_saved_error_is_shown_with_its_line_and_a_corrected_spec_counts(session: Session, folder: Path) -> None:
    session.shows("The model is scripted")
    spec, suite = folder / "specs/support.yaml", folder / "evals/support.yaml"
    text = spec.read_text()
    spec.write_text(text.replace("include: [lookup_order, refund]", "include: [lookup_order, refnd]"))
    error = f"✗ specs/support.yaml:{line_of(text, 'include:')}: E_TOOL_REF: The tool refnd is"
    session.shows(error)
    session.shows("(at agent.tools)")
    session.type(MUG)
    session.shows(error, times=2)
    assert "We refunded" not in session.printed()
    suite.write_text(suite.read_text().replace("We refunded 20 EUR for order 7.", "Twenty euros are on their way."))
    spec.write_text(text.replace("description: Refund an order.", "description: Refund one order."))
    session.shows("The spec has changed.")
    session.type(MUG)
    session.shows("Twenty euros are on their way.")


def test_a_spec_with_errors_at_the_start_is_awaited(machine: Machine, folder: Path) -> None:
    spec = folder / "specs/support.yaml"
    text = spec.read_text()
    spec.write_text(text.replace("include: [lookup_order, refund]", "include: [lookup_order, refnd]"))
    session = Session(machine, folder)
    with session.process:
        session.shows(f"✗ specs/support.yaml:{line_of(text, 'include:')}: E_TOOL_REF: The tool refnd is")
        session.shows("Did you mean refund?")
        spec.write_text(text.replace("max_iterations: 6", "max_iterations: six"))
        session.shows(f"✗ specs/support.yaml:{line_of(text, 'max_iterations')}: E_SCHEMA")
        session.shows("(at agent.strategy")
        assert session.printed().count("Waiting until it is corrected.") == 2
        spec.write_text(text)
        session.shows("The model is scripted")
        session.type(MUG)
        session.shows("We refunded 20 EUR for order 7.")
        session.type("/quit")
        assert session.process.wait(60) == 0


def test_a_second_one_in_the_same_folder_is_refused(session: Session, machine: Machine, folder: Path) -> None:
    session.shows("The model is scripted")
    refused = machine.kneo("dev", "--port", "0", cwd=folder, expect=5)
    assert "Another process executes steps on this database." in refused.stderr
    port = session.url.rpartition(":")[2]
    refused = machine.kneo("dev", "--port", port, cwd=folder, expect=5)
    assert f"127.0.0.1:{port} is in use" in refused.stderr


def test_a_spec_without_a_model_is_served_and_not_tried(machine: Machine, tmp_path: Path) -> None:
    machine.kneo("init", str(tmp_path / "gateway"), "--template", "gateway")
    refused = machine.kneo("dev", cwd=tmp_path / "gateway", expect=2)
    assert "programs elsewhere call its tools" in refused.stderr


def test_without_a_key_and_a_suite_the_missing_key_is_named(machine: Machine, folder: Path) -> None:
    (folder / "evals/support.yaml").unlink()
    refused = machine.kneo("dev", cwd=folder, expect=1)
    assert "OPENAI_API_KEY" in refused.stderr
