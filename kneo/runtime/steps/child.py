"""A process that calls functions for another one and can be killed while it does.

It reads one JSON object per line and answers each with one. The first says where functions may come from.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from kneo.clock import sleep
from kneo.errors import KneoError
from kneo.runtime.code import CodeLoader
from kneo.runtime.interpret.waits import read_given
from kneo.runtime.steps.base import StepContext, Waiting
from kneo.runtime.steps.call import Signature, call

WATCH_SECONDS = 0.5

Message = Mapping[str, object]


def main() -> None:
    """Answer until the other side is gone."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a function prints must not be taken for an answer
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    hello = json.loads(sys.stdin.readline())
    loader = CodeLoader(tuple(Path(root) for root in hello["roots"]), tuple(hello["allow"]))
    for line in sys.stdin:
        _answer(answers, handle(loader, json.loads(line)))


def handle(loader: CodeLoader, request: Message) -> Message:
    """Call the function a request names and say what came of it."""
    try:
        given, signature = request["context"], request["signature"]
        assert isinstance(given, dict)
        code = loader.load(str(request["function"]), given["implementations"])
        assert isinstance(signature, dict)
        context = StepContext(**{**given, "answers": read_given(given["answers"])})
        text = call(code, str(request["input"]), context, Signature(**signature))
    except Waiting as waiting:
        return {"waiting": waiting.wanted.as_json()}
    except Exception as error:  # noqa: BLE001 - the step's error, told to whoever asked
        kind = error.code if isinstance(error, KneoError) else type(error).__name__
        return {"error": {"type": kind, "message": str(error) or kind}}
    return {"text": text, "code_digest": code.module_digest}


def _answer(answers: TextIO, message: Message) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _end_with_parent(parent: int) -> None:
    # A function must not go on having effects after the process that would record them was killed.
    while os.getppid() == parent:
        sleep(WATCH_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
