"""What a commit costs the controller, beside what it would cost at least.

    python -m benchmarks.reconcile --bundles 2000 --commits 500
    python -m benchmarks.reconcile --bundles 100000 --commits 50 --environments 50 --only cold,changes,memory

Every figure stands beside its floor, measured in the same run: a machine that is busy is busy for both.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

from benchmarks.reconcile.measure import changes, cold, peak_memory, webhook
from benchmarks.reconcile.repository import Fleet

MEASURES = {"cold": cold, "changes": changes, "memory": peak_memory, "webhook": webhook}


def main() -> None:
    """Make a repository, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundles", type=int, default=2_000)
    parser.add_argument("--commits", type=int, default=500)
    parser.add_argument("--environments", type=int, default=1)
    parser.add_argument("--only", default=",".join(MEASURES), help="which of them, by comma")
    arguments = parser.parse_args()
    found: dict[str, float] = {name: getattr(arguments, name) for name in ("bundles", "commits", "environments")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fleet = Fleet(folder / "repo", arguments.bundles, arguments.commits, arguments.environments)
        for wanted in arguments.only.split(","):
            found |= MEASURES[wanted](fleet, folder)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
