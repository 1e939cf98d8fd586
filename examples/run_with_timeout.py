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
    manager = PlatformManager()
    run = manager.start_run_from_spec(
        input_text="draft the launch announcement",
        spec_path=SPEC,
        target="workflow",
        timeout_seconds=DEADLINE_SECONDS,
    )
    manager.dispatch_run(run.run_id)
    print(f"started {run.run_id}")  # noqa: T201 - it is a program for people
    time.sleep(DEADLINE_SECONDS + 0.5)
    ended = manager.prune_timed_out_runs()
    print(f"ended {ended} run(s); this one is {manager.get_run(run.run_id).status}")  # noqa: T201 - as above


if __name__ == "__main__":
    main()
