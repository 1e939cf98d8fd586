"""Upgrade a PostgreSQL database in use from an earlier commit to this program, and go back where that is promised.

Two services and two workers of the earlier program run on the database, while clients start runs, decide and read. This program
migrates the database and replaces one process after the other. Where the earlier program works on the new schema, all processes
are then replaced by its own again. Exit status 1 where a request failed, a run was lost or doubled, or the audit log or a receipt
does not verify.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from databases import Server, start_server
from upgrade.deployment import ProgramMachine
from upgrade.releases import PROMISE, ROOT, HistoryMissing, earlier_version, last_before, unpack
from upgrade.update import VARIABLES, RollingUpdate, Size, UpdateResult, stopping

SHOWN = 20


def show(version: str, result: UpdateResult, seconds: float) -> None:
    """Print a result for people."""
    evidence = result.evidence
    print(f"from: {version}, schema {result.migrated[0]}, to schema {result.migrated[1]}")
    print(f"went back: {'yes' if result.went_back else 'no: an earlier version than the promise'}")
    print(f"seconds: {seconds:.0f}")
    print(f"runs: {len(evidence.runs)} {dict(Counter(run.status for run in evidence.runs))}")
    print(f"decisions: {len(evidence.sent)}, {result.decided_later} of them about tasks of the other version")
    print(f"receipts: {result.receipts}")
    print(f"failed requests: {len(evidence.failures)}")
    for violation in result.violations[:SHOWN]:
        print(f"VIOLATION {violation.law}: {violation.facts}")
    print(f"{len(result.violations)} violations")


def upgrade(version: str, runs: int, folder: Path, server: Server) -> bool:
    """Upgrade an empty database from a version and print the result; return whether nothing is broken."""
    unpack(version, folder / "program")
    url = server.url(server.create())
    earlier = ProgramMachine(folder / "earlier", url, folder / "program", **VARIABLES)
    later = ProgramMachine(folder / "later", url, ROOT, **VARIABLES)
    begun = time.monotonic()
    with stopping(earlier, later):
        size = Size(services=2, workers=2, users=4, runs=runs)
        result = RollingUpdate(earlier, later, folder / "code", size).go()
    show(version, result, time.monotonic() - begun)
    if result.violations:
        result.evidence.save(folder / "evidence.json")
        print(f"evidence and logs: {folder}", file=sys.stderr)
    return not result.violations


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--from",
        dest="version",
        default="",
        help="commit or tag of the earlier program; without it, the newest released one and the last one that cannot go back",
    )
    parser.add_argument("--runs", type=int, default=20, help="runs between two changes")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kneo-upgrade-"))
    server = start_server()
    try:
        versions = [options.version] if options.version else [earlier_version(), last_before(PROMISE)]
        held = [upgrade(version, options.runs, folder / f"{n}", server) for n, version in enumerate(versions)]
    except HistoryMissing as error:
        print(f"The history of this clone is not enough: {error}", file=sys.stderr)
        print("Fetch it: git fetch --unshallow --tags", file=sys.stderr)
        return 2
    finally:
        server.stop()
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
