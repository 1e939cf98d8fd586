"""``kneo service serve`` that kills itself at a chosen write.

Started by the crash tests: ``crashing_service.py DIE_AT [WHEN]``. WHEN is ``before`` the write is committed, which is the default, or
``after``. Writes are counted from SIGUSR1 on, so that what a service writes when it starts does not count; with DIE_AT 0 nothing is
killed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from crashing import kill_before

from kneo.cli.main import run
from kneo.store.writer import CommitNotifier


def kill_after(number: int) -> None:
    """Die right after the commit of this write, before anyone learns of it."""
    notify, written = CommitNotifier.notify, 0

    def count(notifier: CommitNotifier, changes: Sequence[tuple[str, object]]) -> None:
        nonlocal written
        written += 1
        if written == number:
            os.kill(os.getpid(), signal.SIGKILL)
        notify(notifier, changes)

    CommitNotifier.notify = count  # type: ignore[method-assign]


def main() -> int:
    die_at, when = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "before"

    def arm(_number: int, _frame: object) -> None:
        if die_at:
            (kill_after if when == "after" else kill_before)(die_at)

    signal.signal(signal.SIGUSR1, arm)
    return run(["service", "serve", "--port", "0"])


if __name__ == "__main__":
    sys.exit(main())
