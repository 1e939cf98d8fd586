"""Hunts for broken laws: random cases against an independent model, for as long as wanted.

    PYTHONPATH=tests:tests/support python -m hunt.run --seconds 60 --seed 0 --only workflows

``make hunt SECONDS=60 SEED=0 ONLY=workflows`` runs the same. Each module ``hunt_NAME.py`` of this folder is one hunt: its
function ``hunt(budget)`` takes a ``Budget`` and returns a ``Report``. A finding names the seed that makes its case again.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from hunt.report import Budget, Report

SHOWN = 5
"""Findings that are shown of one hunt; there is a seed for each of the others."""

Hunt = Callable[[Budget], Report]


def hunts() -> dict[str, Hunt]:
    """Find the hunts of this folder by their names."""
    names = sorted(path.stem.removeprefix("hunt_") for path in Path(__file__).parent.glob("hunt_*.py"))
    return {name: importlib.import_module(f"hunt.hunt_{name}").hunt for name in names}


def show(name: str, report: Report) -> None:
    counts = ", ".join(f"{number} {what}" for what, number in sorted(report.counts.items()))
    print(f"{name}: {report.cases} cases ({counts}), {len(report.findings)} broken laws", flush=True)
    for finding in report.findings[:SHOWN]:
        print(
            f"\n{name}: {finding.law}\n  make hunt ONLY={name} SEED={finding.seed} SECONDS=0\n{finding.facts}",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="how long each hunt goes on")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first case")
    known = hunts()
    parser.add_argument("--only", choices=[*known, ""], default="", help="one hunt instead of all")
    options = parser.parse_args()
    broken = False
    for name in [options.only] if options.only else known:
        report = known[name](Budget(seed=options.seed, seconds=options.seconds))
        show(name, report)
        broken = broken or bool(report.findings) or not report.cases
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
