"""Ask a live service everything its description allows, and what it forbids, as each role: ``make schemathesis``."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "support"), str(HERE.parents[1])]

import httpx  # noqa: E402
from service_bench import Bench, serving  # noqa: E402

from kneo.roles import ROLES  # noqa: E402
from kneo.settings import process_environment  # noqa: E402

STREAMS = ("stream_run_events", "stream_human_tasks")
"""Answers that do not end by themselves."""


def hunt(bench: Bench, role: str, *options: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Let schemathesis loose on a service with the key of a role."""
    # The document is made at the first request, for which schemathesis waits ten seconds.
    httpx.get(
        f"{bench.url}/openapi.json", headers={"Authorization": f"Bearer {role}-key"}, timeout=240
    ).raise_for_status()
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        *("--config-file", str(HERE / "schemathesis.toml")),
        *("run", f"{bench.url}/openapi.json", "-H", f"Authorization: Bearer {role}-key"),
        *(part for name in STREAMS for part in ("--exclude-operation-id", name)),
        *("--request-timeout", "120", "--no-color", "--warnings", "off", "--continue-on-failure"),
        *options,
    ]
    env = {**process_environment("PATH", "HOME"), "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE)}
    return subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True, check=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each role")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--role", action="append", choices=[*ROLES])
    asked = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving(folder / "house", f"sqlite:///{folder / 'house' / 'kneo.sqlite'}") as bench:
            bench.paused()
            bench.start()
            for role in asked.role or ROLES:
                budget = ("--max-time", str(asked.seconds), "--seed", str(asked.seed))
                done = hunt(bench, role, *budget, folder=folder)
                print(f"---- {role}\n{done.stdout}{done.stderr}")
                if done.returncode:
                    failed.append(role)
    print(f"failed as {', '.join(failed)}" if failed else "nothing found")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
