"""A deadline for a whole run, as opposed to the time a person has to answer.

Start a run that waits for somebody, give it a second, and let the sweep end it: whichever deadline comes first wins.

    python -m examples.run_with_timeout
"""

from __future__ import annotations

import time

from kneo.platform import PlatformManager

SPEC = "examples/human_approval_workflow.yaml"
DEADLINE_SECONDS = 1


def main() -> None:
    """Start, wait, sweep, and show how the run ended."""
    with PlatformManager() as manager:
        run = manager.start_run_from_spec(
            input_text="draft the launch announcement",
            spec_path=SPEC,
            target="workflow",
            timeout_seconds=DEADLINE_SECONDS,
        )
        manager.dispatch_run(run.id)
        print(f"started {run.id}")  # noqa: T201 - it is a program for people
        time.sleep(DEADLINE_SECONDS + 0.2)
        # The worker's own timers do the same once a second: whoever comes first ends it.
        manager.prune_timed_out_runs()
        print(f"it ended as {manager.get_run(run.id).status}")  # noqa: T201 - as above


if __name__ == "__main__":
    main()
