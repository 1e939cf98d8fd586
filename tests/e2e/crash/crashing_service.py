"""``kneo service serve`` that kills itself right before a chosen write reaches the database.

Started by the crash tests: ``crashing_service.py DIE_AT``. Writes are counted from SIGUSR1 on, so that what a service writes
when it starts does not count; with DIE_AT 0 nothing is killed.
"""

from __future__ import annotations

import signal
import sys

from crashing import kill_before

from kneo.cli.main import run


def main() -> int:
    die_at = int(sys.argv[1])

    def arm(_number: int, _frame: object) -> None:
        if die_at:
            kill_before(die_at)

    signal.signal(signal.SIGUSR1, arm)
    return run(["service", "serve", "--port", "0"])


if __name__ == "__main__":
    sys.exit(main())
