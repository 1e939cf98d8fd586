"""Questions of a flow at the terminal of the program that runs it."""

from __future__ import annotations

import select
import sys
import threading
from collections.abc import Sequence
from typing import Self

from kneo.clock import sleep
from kneo.embed.answers import decision_from_value
from kneo.embed.runs import RunHost
from kneo.errors import KneoError
from kneo.json_text import RepeatedMember, parse_json
from kneo.names import plain
from kneo.records.task import HumanTask

_terminal = threading.Lock()
"""Held by the prompt that shows its question: a typed line answers the question above it, whichever threads wait."""


class WaitPrompt:
    """Shows the open questions of a paused run, and takes the answer to the first one where people can type it.

    The line about each question goes to standard error, whether or not a person sits there. Answers are accepted at the same
    time by the CLI, the API and the console; whichever is recorded first counts. Of several prompts of a process, one at a time
    shows its question.

    Args:
        host: The database of the run.
        tasks: Its open questions.
        seconds: How long the program polls for an answer.
    """

    def __init__(self, host: RunHost, tasks: Sequence[HumanTask], seconds: float) -> None:
        self._host = host
        self._task = tasks[0] if tasks and seconds > 0 and _can_type() else None
        self._has_terminal = False
        for task in tasks if seconds > 0 else ():
            _show(f"Kneo: Waiting on `{task.key}` (type=external_input, timeout={seconds:g}s) in {task.run_id}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._has_terminal:
            self._has_terminal = False
            _terminal.release()

    def look(self, seconds: float) -> None:
        """Wait so long for a typed line, and decide with it."""
        if self._task is None or not self._begin(self._task):
            sleep(seconds)
        elif select.select([sys.stdin], [], [], seconds)[0]:
            line = sys.stdin.readline()
            if not line:  # the terminal is closed
                self._task = None
            elif line.strip():
                self._decide(self._task, line.strip())

    def _begin(self, task: HumanTask) -> bool:
        """Show the question, unless another prompt has the terminal; return whether this one has it."""
        if not self._has_terminal and _terminal.acquire(blocking=False):
            self._has_terminal = True
            _discard_input()
            _show(f"{task.prompt}\nAnswer, or leave it to: kneo runs input {task.run_id} --key {task.key} --value JSON")
        return self._has_terminal

    def _decide(self, task: HumanTask, text: str) -> None:
        try:
            value = parse_json(text)
        except RepeatedMember as error:
            _show(error.msg)
            return
        except ValueError:
            value = text
        try:
            self._host.decide(task, decision_from_value(task, value))
        except KneoError as error:
            _show(f"{error.message} {error.hint or ''}".rstrip())
        else:
            self._task = None


def _can_type() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def _discard_input() -> None:
    """Discard what was typed before the question was there to read."""
    import termios

    termios.tcflush(sys.stdin, termios.TCIFLUSH)


def _show(text: str) -> None:
    sys.stderr.write(f"{plain(text)}\n")
    sys.stderr.flush()
