"""What lists cost a caller who reads 3 of 500 environments, among two million runs, on both databases.

    python -m benchmarks.scale.access --runs 2000000 --database sqlite

Each list is called as an operation, with the check of access, its rows and its total. The best of some turns counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

import databases
from gates.asking import declare
from operation_context import operation_context

from benchmarks.scale.__main__ import HOT_MS, NOW
from benchmarks.scale.populate import SEVERAL, fill, report
from kneo import registry
from kneo.api.audit import list_audit_events
from kneo.api.environments import list_environments
from kneo.api.operation import Operation, Principal
from kneo.api.runs import list_runs
from kneo.api.tasks import list_human_tasks
from kneo.clock import ManualClock
from kneo.roles import scopes_of
from kneo.store.engine import Store
from kneo.store.migrate import open_store

ENVIRONMENTS, QUIET_ROWS = 500, 60
TURNS = 15
CALLERS = {"busy": ("env-7", "env-8", "env-9"), "quiet": ("quiet-0", "quiet-1", "quiet-2")}
"""The callers, each with the environments that the caller reads. The rows of the quiet ones are the first ones of all."""

ENVIRONMENT = f"CASE WHEN n <= {QUIET_ROWS} THEN 'quiet-' || (n % 3) ELSE 'env-' || (n % {ENVIRONMENTS - 3}) END"

LISTS: Mapping[str, tuple[Operation[..., object], Mapping[str, object]]] = {
    "runs": (list_runs, {}),
    "runs by creation": (list_runs, {"sort_by": "created_at"}),
    "runs by status": (list_runs, {"sort_by": "status"}),
    "running runs": (list_runs, {"status": "running"}),
    "failed runs": (list_runs, {"status": "failed"}),
    "failed runs by creation": (list_runs, {"status": "failed", "sort_by": "created_at"}),
    "runs with an error": (list_runs, {"has_error": True}),
    "runs of a bundle": (list_runs, {"bundle": "bundle-7"}),
    "runs of a workflow": (list_runs, {"workflow_name": "workflow-7"}),
    "runs of an environment": (list_runs, {"environment": ""}),
    "tasks": (list_human_tasks, {}),
    "tasks by priority": (list_human_tasks, {"sort_by": "priority"}),
    "audit events": (list_audit_events, {}),
    "audit events of a type": (list_audit_events, {"event_type": "run.created"}),
    "environments": (list_environments, {}),
}


def declare_all(store: Store) -> None:
    """Declare the environments; each caller reads some of them."""
    reader = {name: who for who, names in CALLERS.items() for name in names}
    others = (f"env-{number}" for number in range(ENVIRONMENTS - 3))
    for name in (*others, *CALLERS["quiet"]):
        who = reader.get(name)
        access = [{"who": {"users": [who]}, "may": ["viewer", "auditor"]}] if who is not None else []
        declare(store, environment=name, team=f"team-{name}", access=access)


def measure(store: Store) -> Iterator[tuple[str, str, int, float, float]]:
    """Yield each list, its caller, the rows of its page, and its milliseconds as ``_best`` returns them."""
    for who, environments in CALLERS.items():
        principal = Principal(who, scopes_of(("viewer", "auditor")))
        context = replace(operation_context(store), principal=principal, find_access=registry.find_access)
        for name, (operation, parameters) in LISTS.items():
            chosen = {"environment": environments[0]} if "environment" in parameters else {}
            page = {} if operation is list_environments else {"limit": 50}
            read = partial(operation, context, **{**parameters, **chosen, **page})
            rows = next(value for value in vars(read()).values() if isinstance(value, list))
            yield name, who, len(rows), *_best(read)


def _best(work: Callable[[], object]) -> tuple[float, float]:
    """Return the least milliseconds of some turns, and the least of processor time in this process."""
    taken = []
    for _ in range(TURNS):
        begun = time.perf_counter(), time.process_time()
        work()
        taken.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    elapsed, processor = zip(*taken, strict=True)
    return round(min(elapsed) * 1000, 1), round(min(processor) * 1000, 1)


@contextmanager
def opened(database: str) -> Iterator[Store]:
    """Open an empty database."""
    with ExitStack() as ends:
        if database == "sqlite":
            url = f"sqlite:///{ends.enter_context(tempfile.TemporaryDirectory())}/kneo.sqlite"
        else:
            databases.SPEED.update(shared_buffers="512MB", autovacuum="on")
            server = databases.start_server(Path(tempfile.gettempdir()))
            ends.callback(server.stop)
            url = server.url(server.create())
        store = open_store(url, ManualClock(NOW))
        ends.callback(store.close)
        yield store


def main() -> int:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=2_000_000)
    parser.add_argument("--database", choices=databases.DIALECTS, action="append")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    late = []
    for database in arguments.database or databases.DIALECTS:
        with opened(database) as store:
            report(f"{database}: environments")
            declare_all(store)
            fill(store, arguments.runs, ENVIRONMENT, SEVERAL)
            for name, who, rows, ms, processor_ms in measure(store):
                late += [f"{database} {name} {who}"] if ms > HOT_MS else []
                line = {
                    "database": database,
                    "list": name,
                    "caller": who,
                    "rows": rows,
                    "ms": ms,
                    "processor_ms": processor_ms,
                }
                print(
                    json.dumps(line)
                    if arguments.json
                    else f"  {database:<12}{who:<8}{name:<32}{rows:>4}{ms:>8}{processor_ms:>8}",
                    flush=True,
                )
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
