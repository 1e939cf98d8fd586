"""The fenced blocks of documentation pages, and a walk that does what a page says, in its order, in an empty folder.

A ``bash`` block is executed line by line; a ``text`` block directly after it is what its commands print, where ``…`` stands for any text.
A block whose first line is ``# NAME`` is that file. A block of commands that no test executes has ``<!-- not executed: REASON -->`` before it.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from config_repo import GIT_ENV
from kneo_process import Machine, eventually

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

FENCE = re.compile(
    r"(?:^ *<!-- not executed: (?P<reason>[^\n]+?) -->\n+)?^(?P<indent> *)```(?P<kind>\w*)(?P<info>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
FILE = re.compile(r"\A(?:#|//) ([\w./-]+\.\w+)\n")
PROGRAMS = "kneo|git|pip|pipx|uv|curl|make|docker|podman|kubectl|helm|systemctl|openssl|nginx|psql"
COMMAND = re.compile(rf"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:{PROGRAMS})(?: |$)")
SERVER = re.compile(r"^kneo up\b")
SERVICE = "http://127.0.0.1:8000"
SHELL = re.compile(r"[|<>&;$`*]")
SHORT_ID = re.compile(r"\b(cont|run|req)_…")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    kind: str
    info: str
    text: str
    reason: str
    end: int

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The lines of commands, without comments; a continued line is one command."""
        lines = re.sub(r" *\\\n\s*", " ", self.text).splitlines()
        return [re.sub(r"\s{2,}#.*$", "", line).strip() for line in lines if COMMAND.match(line.strip())]


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page in their order."""
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(ROOT).as_posix()
    return [
        Block(
            name,
            text.count("\n", 0, found.start("kind")) + 1,
            found["kind"],
            found["info"].strip(),
            re.sub(rf"^{found['indent']}", "", found["text"], flags=re.MULTILINE),
            found["reason"] or "",
            found.end(),
        )
        for found in FENCE.finditer(text)
    ]


def lines(block: Block) -> Iterator[str]:
    """Return the shell commands of a block, each as one line without its comment."""
    for line in re.sub(r" *\\\n\s*", " ", block.text).splitlines():
        command = re.sub(r"(^|\s{2,})#.*$", "", line).strip()
        if command:
            yield command


@dataclass
class Walk:
    """A walk through pages: the folder, the shell's variables and everything that was printed so far."""

    machine: Machine
    failing: Mapping[str, int] = field(default_factory=dict)
    printed: str = ""

    def __post_init__(self) -> None:
        self.folder = self.machine.folder
        self.url = SERVICE

    def page(self, page: Path) -> None:
        """Do what a page says."""
        text = page.read_text(encoding="utf-8")
        output, end = "", 0
        for block in blocks(page):
            follows = not text[end : text.index("```", end) if "```" in text[end:] else None].strip()
            named = FILE.match(block.text)
            if block.reason:
                continue
            if block.kind == "bash":
                output = "".join([self.command(command) for command in lines(block)])
            elif block.kind == "text" and follows and output:
                self._compare(block, output)
            elif named:
                target = self.folder / named[1]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(block.text)
            end = block.end

    def command(self, command: str) -> str:
        """Execute one command and return what it prints."""
        for name, value in re.findall(r"^export (\w+)=(\S+)$", command):
            self.machine.env[name] = value.strip("\"'")
            return ""
        if command.startswith("cd "):
            self.folder = (self.folder / command.removeprefix("cd ")).resolve()
            return ""
        if SERVER.match(command):
            return self._serve(command)
        complete = SHORT_ID.sub(self._last_id, command).replace(SERVICE, self.url)
        expect = self.failing.get(command, 0)
        if complete.startswith("kneo ") and not SHELL.search(complete):
            done = self.machine.kneo(*shlex.split(complete)[1:], cwd=self.folder, expect=expect)
        else:
            done = subprocess.run(
                ["bash", "-c", complete],
                cwd=self.folder,
                env=GIT_ENV | self.machine.env,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == expect, f"{command}\n{done.stdout}\n{done.stderr}"
        self.printed += done.stdout + done.stderr
        return done.stdout + done.stderr

    def _serve(self, command: str) -> str:
        arguments = command.removeprefix("kneo up").split()
        process = self.machine.start("up", "--port", "0", *arguments, cwd=self.folder)
        self.url = process.url
        # A person starts the next command later than a program does: wait for the first release.
        eventually(lambda: "released" in self.machine.kneo("status", cwd=self.folder, expect=None).stdout)
        return "".join(process.printed)

    def _last_id(self, short: re.Match[str]) -> str:
        found = re.findall(rf"{short[1]}_[0-9a-z]{{20,}}", self.printed)
        assert found, f"no {short[0]} was printed"
        return found[-1]

    @staticmethod
    def _compare(block: Block, output: str) -> None:
        """Check that each line of a block was printed, in this order."""
        rest = re.sub(r"[ \t]+", " ", output)
        for line in block.text.splitlines():
            words = re.sub(r"\s+", " ", line).strip()
            if words and words != "…":
                found = re.search(".*?".join(map(re.escape, words.split("…"))), rest)
                assert found, f"{block}: {line!r} is not in\n{output}"
                rest = rest[found.end() :]
