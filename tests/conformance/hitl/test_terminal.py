"""Questions of flows at a terminal: one at a time, and without control characters."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from kneo.sdk.durable.terminal import WaitPrompt


@dataclass
class Recorder:
    """A host that records answers."""

    answers: list[tuple[str, object]] = field(default_factory=list)

    def decide(self, task: SimpleNamespace, answer: SimpleNamespace) -> None:
        self.answers.append((task.key, answer.value))


def question(key: str, prompt: str) -> SimpleNamespace:
    return SimpleNamespace(key=key, run_id=f"run_{key}", prompt=prompt)


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Replace standard input and standard error by a terminal; return the person's end of it."""
    ours, theirs = os.openpty()
    with monkeypatch.context() as patch, os.fdopen(theirs) as typed, os.fdopen(os.dup(theirs), "w") as shown:
        patch.setattr(sys, "stdin", typed)
        patch.setattr(sys, "stderr", shown)
        patch.setattr(
            "kneo.sdk.durable.terminal.decision_from_value", lambda _task, value: SimpleNamespace(value=value)
        )
        yield ours
    os.close(ours)


def until(person: int, text: str) -> str:
    """Read what the terminal shows until a text stands there."""
    seen = ""
    while text not in seen:
        ready, _, _ = select.select([person], [], [], 240)
        assert ready, seen
        seen += os.read(person, 65_536).decode()
    return seen


def test_a_typed_line_answers_the_question_that_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as person:
        host = Recorder()
        with WaitPrompt(host, [question("pay", "Pay ann?")], 9) as first:  # type: ignore[arg-type, list-item]
            first.look(0)
            with WaitPrompt(host, [question("delete", "Delete?")], 9) as second:  # type: ignore[arg-type, list-item]
                second.look(0)
                shown = until(person, "kneo runs input run_pay")
                assert "Delete?" not in shown
                os.write(person, b"true\n")
                second.look(0)
                assert host.answers == []
                first.look(60)
                assert host.answers == [("pay", True)]
        os.write(person, b"false\n")  # typed before the next question is there
        assert select.select([sys.stdin], [], [], 240)[0]
        with WaitPrompt(host, [question("delete", "Delete?")], 9) as second:  # type: ignore[arg-type, list-item]
            second.look(0)
            until(person, "kneo runs input run_delete")
            second.look(0)
            assert host.answers == [("pay", True)]
            os.write(person, b"true\n")
            second.look(60)
            assert host.answers[1:] == [("delete", True)]


def test_control_characters_of_a_question_are_shown_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as person:
        hostile = "Delete everything?\x1b[2K\r\x1b[1APay 1 EUR?\u202e"
        with WaitPrompt(Recorder(), [question("a\x1b]0;x\x07", hostile)], 9) as prompt:  # type: ignore[arg-type, list-item]
            prompt.look(0)
            shown = until(person, "kneo runs input")
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        assert "Delete everything?\\u001b[2K" in shown
