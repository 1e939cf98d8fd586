"""One measurement of a fleet of the checkout that PYTHONPATH names: ``benchmarks.fleet`` starts it, once for each side of a pair.

A service, workers and a controller on a PostgreSQL that writes to the disk, and clients that start runs, read the inbox and decide. Prints
JSON. Only what every commit of the last months has is used: the fleet of the soaks.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import databases
import httpx
import psycopg
from kneo_process import eventually
from soak import fleet as fleets
from soak.costs import ProcessorTime
from soak.program import MODULE
from soak.program import spec as human_spec

import kneo.spec.policy

CLIENTS = 8
WARM_UP = 8
LOGGED = 16
"""Runs whose statements are counted: the log of every statement costs time, so they are others than those that are measured."""


def three_steps() -> dict[str, object]:
    steps = [{"id": name, "kind": "function", "ref": "effect"} for name in ("one", "two", "three")]
    return {
        "version": "v1",
        "agent": {"name": "three", "model": {"provider": "dummy", "name": "dummy"}},
        "workflow": {"type": "sequential", "name": "three", "steps": steps},
        "components": {"functions": {"effect": {"implementation": f"{MODULE}.effect"}}},
    }


def rules_in_worker() -> dict[str, object]:
    """Return the rules with which functions run in the worker; earlier commits know no others."""
    known = hasattr(kneo.spec.policy, "SandboxRules")
    return {"tools": {"sandbox": {"required": "none"}}} if known else {}


@contextmanager
def temporal(log: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Serve Temporal in memory; yield the id of the process and the settings with which runs are dispatched through it."""
    from temporal_server import serving

    with serving(log) as address:
        (pid,) = (pid for pid in children() if b"start-dev" in Path(f"/proc/{pid}/cmdline").read_bytes())
        yield pid, {"KNEO_SERV_DISPATCH": "temporal", "KNEO_SERV_TEMPORAL_ADDRESS": address}


def children() -> list[int]:
    """Return the ids of the processes that this one has started."""
    lists = Path("/proc/self/task").glob("*/children")
    return [int(pid) for found in lists for pid in found.read_text(encoding="ascii").split()]


class Site:
    """A running fleet, and its users.

    Args:
        folder: For all files.
        workers: How many workers.
        database_core: The core of PostgreSQL; the others belong to all other processes.
        sandboxes: Whether functions run in sandboxes.
        settings: Further settings of all processes.
        helpers: Further processes whose time counts, with their kinds.
    """

    def __init__(
        self,
        folder: Path,
        workers: int,
        database_core: int | None,
        *,
        sandboxes: bool,
        settings: Mapping[str, str],
        helpers: Mapping[int, str],
    ) -> None:
        fleets.SIZES.update(service=1, worker=workers, controller=1)
        databases.SPEED.update(fleets.DURABLE | {"fsync": "on"})
        self.server = databases.start_server(folder)
        if database_core is not None:
            os.sched_setaffinity(self.server.process.pid, {database_core})
            os.sched_setaffinity(0, os.sched_getaffinity(0) - {database_core})
        self.fleet = fleets.Fleet(folder / "fleet", self.server)
        self.rules = {} if sandboxes else rules_in_worker()
        path = os.environ["PYTHONPATH"]  # noqa: TID251 - of the side that is measured
        self.fleet.machine.env |= {"PYTHONPATH": path, "KNEO_SERV_TOOLS_SANDBOX": "none", **settings}
        self.helpers, self.helper_costs = helpers, ProcessorTime()
        self.fleet.start()
        self._declare()
        self.admin = psycopg.connect(self._dsn(), autocommit=True)
        headers = [{"Authorization": f"Bearer {fleets.key_of(name)}"} for name in (fleets.REQUESTER, fleets.PEOPLE[0])]
        self.requester, self.person = (
            httpx.Client(base_url=f"{self.fleet.urls()[0]}/v1", headers=header, timeout=240) for header in headers
        )

    def _dsn(self) -> str:
        return self.fleet.url.replace("+psycopg", "")

    def _declare(self) -> None:
        repo = self.fleet.repo
        repo.bundle(fleets.BUNDLE, "1.1.0", {**human_spec(fleets.BUNDLE), "metadata": {"version": "1.1.0"}})
        repo.bundle("three", "1.0.0", three_steps())
        repo.environment("dev", {fleets.BUNDLE: "1.1.0", "three": "1.0.0"}, **self.rules)
        commit = repo.commit("Declare what is measured")
        self.fleet.push()
        header = {"Authorization": f"Bearer {fleets.key_of(fleets.PEOPLE[-1])}"}
        address = f"{self.fleet.urls()[0]}/v1/environments/dev"
        eventually(lambda: commit in httpx.get(address, headers=header, timeout=240).text)

    # ---- runs -----------------------------------------------------------------------------------------------------

    def three(self, _number: int) -> dict[str, float]:
        begun = time.perf_counter()
        self._start("three")
        return {"start to end": (time.perf_counter() - begun) * 1000}

    def human(self, _number: int) -> dict[str, float]:
        begun = time.perf_counter()
        run = self._start(fleets.BUNDLE)
        asked = time.perf_counter()
        found = self.person.get("/human-tasks", params={"run_id": run["run_id"]}).raise_for_status().json()["tasks"]
        body = {"request_id": found[0]["pending_human_request_id"], "decision": "approved"}
        answer = self.person.post(
            f"/human-tasks/{found[0]['id']}/resume", json=body, headers={"Idempotency-Key": uuid.uuid4().hex}
        )
        answer.raise_for_status()
        return {"start to question": (asked - begun) * 1000, "decision": (time.perf_counter() - asked) * 1000}

    def _start(self, bundle: str) -> dict[str, Any]:
        body = {"input": "x", "bundle": bundle, "environment": "dev", "async_mode": False}
        answer = self.requester.post("/runs?wait=60s", json=body, headers={"Idempotency-Key": uuid.uuid4().hex})
        return dict(answer.raise_for_status().json())

    def drive(self, flow: Callable[[int], dict[str, float]], count: int) -> dict[str, list[float]]:
        """Let clients take so many runs through a flow, and wait until all have ended."""
        found: dict[str, list[float]] = {}
        with ThreadPoolExecutor(CLIENTS) as clients:
            for taken in clients.map(flow, range(count)):
                for name, value in taken.items():
                    found.setdefault(name, []).append(value)
        eventually(lambda: not self._ask("SELECT count(*) FROM runs WHERE status IN ('queued', 'running', 'paused')"))
        return found

    def _ask(self, statement: str) -> Any:  # noqa: ANN401 - whatever the statement selects
        row = self.admin.execute(statement.encode()).fetchone()
        return row[0] if row is not None else None

    # ---- measures -------------------------------------------------------------------------------------------------

    def measure(self, flow: Callable[[int], dict[str, float]], count: int) -> dict[str, object]:
        """Return what a run of a flow costs."""
        self.drive(flow, WARM_UP)
        before, wal, begun = self._used(), self._ask("SELECT pg_current_wal_lsn() - '0/0'"), time.perf_counter()
        latencies = self.drive(flow, count)
        seconds = time.perf_counter() - begun
        used = {kind: (value - before[kind]) * 1000 / count for kind, value in self._used().items()}
        written = float(self._ask("SELECT pg_current_wal_lsn() - '0/0'")) - float(wal)
        with self._logging() as statements:
            self.drive(flow, LOGGED)
        return {
            "processor_ms": round(sum(used.values()), 1),
            "processor_ms_of": {kind: round(value, 1) for kind, value in sorted(used.items())},
            "statements": round(statements.count / LOGGED, 1),
            "wal_kib": round(written / 1024 / count, 1),
            "runs_per_second": round(count / seconds, 1),
            "p50_ms": {name: round(statistics.median(values)) for name, values in latencies.items()},
            "p95_ms": {name: round(statistics.quantiles(values, n=20)[-1]) for name, values in latencies.items()},
        }

    def idle(self, seconds: float) -> dict[str, object]:
        """Return what processes without work cost."""
        time.sleep(2)
        before = self._used()
        time.sleep(seconds)
        used = {kind: (value - before[kind]) * 100 / seconds for kind, value in self._used().items()}
        with self._logging() as statements:
            time.sleep(seconds)
        return {
            "percent_of_a_core": {kind: round(value, 2) for kind, value in sorted(used.items())},
            "statements_per_second": round(statements.count / seconds, 1),
        }

    def _used(self) -> dict[str, float]:
        self.fleet.measure()
        self.helper_costs.sample(self.helpers)
        found = self.fleet.costs.seconds | self.helper_costs.seconds
        return {kind: value for kind, value in found.items() if kind != "load"}

    def _logging(self) -> StatementLog:
        return StatementLog(self.admin, self.server.folder / "log")

    def close(self) -> None:
        self.requester.close()
        self.person.close()
        self.admin.close()
        self.fleet.machine.stop()
        self.server.stop()


class StatementLog:
    """Counts the statements of a block in the log of the server, BEGIN and COMMIT included."""

    def __init__(self, admin: psycopg.Connection, log: Path) -> None:
        self.admin, self.log, self.count = admin, log, 0

    def __enter__(self) -> Self:
        self._set("all")
        self._begun = self.log.stat().st_size
        return self

    def __exit__(self, *_: object) -> None:
        text = self.log.read_bytes()[self._begun :]
        self._set("none")
        own = text.count(b"SELECT count(*) FROM runs WHERE status IN")
        self.count = text.count(b"LOG:  execute ") + text.count(b"LOG:  statement: ") - own

    def _set(self, value: str) -> None:
        self.admin.execute(f"ALTER SYSTEM SET log_statement = '{value}'".encode())
        self.admin.execute("SELECT pg_reload_conf()")
        time.sleep(0.3)  # each backend reads it between two statements


def main(options: Mapping[str, Any]) -> None:
    """Measure, and print."""
    with tempfile.TemporaryDirectory(prefix="kneo-fleet-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        helpers, settings = dict[int, str](), dict[str, str]()
        with ExitStack() as stack:
            if options["temporal"]:
                pid, settings = stack.enter_context(temporal(folder / "temporal.log"))
                helpers[pid] = "temporal"
            site = Site(
                folder,
                options["workers"],
                options["database_core"],
                sandboxes=options["sandboxes"],
                settings=settings,
                helpers=helpers,
            )
            stack.callback(site.close)
            found = {
                "human": site.measure(site.human, options["runs"]),
                "three": site.measure(site.three, options["runs"]),
                "idle": site.idle(options["idle"]),
            }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
