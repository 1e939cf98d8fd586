"""A rolling update of a database in use: the earlier version serves, the later one migrates and takes over, and back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kneo_process import Machine, eventually
from soak.collect import count_jobs, read_database
from soak.evidence import Evidence, read_effects
from soak.laws import Violation, violations
from soak.program import MODULE, SOURCE
from sqlalchemy import func, select
from upgrade.clients import API_KEYS, Clients
from upgrade.deployment import Deployment

from kneo.clock import SystemClock
from kneo.store import receipts
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.tables import runs
from kneo.trust.dsse import parse_envelope
from kneo.trust.keys import PrivateKey
from kneo.trust.receipt import PresentedReceipt, ReceiptFile
from kneo.trust.receipt_check import check_receipts

SERVICE_KEY = PrivateKey.generate()

VARIABLES = {
    "KNEO_SERV_MIGRATE": "never",
    "KNEO_SERV_SERVICE_KEY": SERVICE_KEY.dump().decode(),
    "KNEO_SERV_API_KEYS": API_KEYS,
    "KNEO_SERV_LOG_LEVEL": "WARNING",
}
"""Settings of all processes of an update."""


FIRST_WITH_CODES = "kneo_0015"
"""The first schema whose records have message authentication codes."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much an update has to carry.

    Attributes:
        services: Services of each version.
        workers: Workers of each version.
        users: Clients that start runs at the same time.
        runs: Runs that are started between two changes of the deployment.
    """

    services: int
    workers: int
    users: int
    runs: int


@dataclass(frozen=True, kw_only=True)
class UpdateResult:
    """What an update did and what it broke.

    Attributes:
        migrated: The schema before and after.
        went_back: Whether the earlier version took the migrated database over again.
        decided_later: Tasks of one version that were decided with the other one.
        evidence: Everything that the clients and the database have.
        receipts: The number of receipts that verify.
        wrong_receipts: What is wrong with others.
    """

    migrated: tuple[str, str]
    went_back: bool
    decided_later: int
    evidence: Evidence
    receipts: int
    wrong_receipts: tuple[str, ...]

    @property
    def violations(self) -> list[Violation]:
        wrong = [Violation("every receipt verifies", text) for text in self.wrong_receipts]
        return [*violations(self.evidence), *wrong]


class RollingUpdate:
    """An update of a database from one version to another under load.

    Args:
        earlier: A machine with the earlier version.
        later: A machine with the later version, on the same database.
        code: A folder for the functions of the runs.
        size: How much it has to carry.
    """

    def __init__(self, earlier: Machine, later: Machine, code: Path, size: Size) -> None:
        self.earlier, self.later, self.size = earlier, later, size
        code.mkdir(parents=True)
        (code / f"{MODULE}.py").write_text(SOURCE)
        self.deployment = Deployment(code)
        self.clients = Clients(self.deployment.rotation, size.users)

    def go(self) -> UpdateResult:
        """Migrate and replace all processes while clients use them; where the later version permits it, go back."""
        begin_database(self.earlier)
        for _ in range(self.size.services):
            self.deployment.serve(self.earlier)
        for _ in range(self.size.workers):
            self.deployment.work(self.earlier)
        with self.clients:
            self.clients.wait_for_more(self.size.runs)
            change = self.later.json("maintenance", "migrate")
            if str(change["from"]) < FIRST_WITH_CODES:
                self.later.env["KNEO_SERV_RECORD_MACS"] = "write"
            self.clients.wait_for_more(self.size.runs)
            before, after, oldest = (str(change[name]) for name in ("from", "to", "compatible_from"))
            goes_back = before >= oldest
            if goes_back:
                # A replica that restarts during the update.
                self.deployment.replace_service(self.earlier)
            else:
                refused = self.earlier.kneo("runs", "list", "--json", expect=1)
                assert "schema_too_new" in refused.stdout + refused.stderr
            decided = self._replace_all(self.later)
            if goes_back:
                decided += self._replace_all(self.earlier)
            self.clients.wait_for_more(self.size.runs)
        decided += self.clients.decide_waiting()
        with contextlib.closing(open_store(self.later.env["KNEO_SERV_DATABASE_URL"], SystemClock())) as store:
            eventually(lambda: left(store) == 0)
            self.deployment.stop()
            self._adopt()
            found, wrong = check_all_receipts(store)
            evidence = replace(
                read_database(store),
                started=tuple(self.clients.started),
                sent=tuple(self.clients.sent),
                effects=read_effects(self.deployment.code / "effects.jsonl"),
                failures=tuple(self.clients.failures),
            )
        return UpdateResult(
            migrated=(before, after),
            went_back=goes_back,
            decided_later=decided,
            evidence=evidence,
            receipts=found,
            wrong_receipts=wrong,
        )

    def _adopt(self) -> None:
        """Authenticate the records of the earlier version, as the page about upgrades describes."""
        if self.later.env.pop("KNEO_SERV_RECORD_MACS", None) is None:
            return
        self.later.kneo("maintenance", "adopt", "--changed")
        verified = self.later.json("audit", "verify")
        assert verified["unauthenticated_records"] == {}, verified

    def _replace_all(self, machine: Machine) -> int:
        """Replace each process by one of a machine; then decide what waits since before, and return how much that was."""
        for _ in range(self.size.services):
            self.deployment.replace_service(machine)
            self.clients.wait_for_more(self.size.runs)
        for _ in range(self.size.workers):
            self.deployment.replace_worker(machine)
            self.clients.wait_for_more(self.size.runs)
        return self.clients.decide_waiting()


def begin_database(machine: Machine) -> None:
    """Create the schema of a machine's version in an empty database."""
    machine.env["KNEO_SERV_MIGRATE"] = "auto"
    machine.kneo("runs", "list")
    machine.env["KNEO_SERV_MIGRATE"] = "never"


def left(store: Store) -> int:
    """Return how many runs have not ended and how many jobs are in the queue."""
    with store.read() as tx:
        active = select(func.count()).select_from(runs).where(runs.c.status.in_(["pending", "running", "paused"]))
        return int(tx.connection.execute(active).scalar_one()) + count_jobs(tx)


def check_all_receipts(store: Store) -> tuple[int, tuple[str, ...]]:
    """Return the number of receipts, and what is wrong with them, checked as the chain of each run."""
    count, wrong = 0, []
    with store.read() as tx:
        for run_id in tx.connection.execute(select(runs.c.id)).scalars().all():
            records = receipts.of_run(tx, run_id)
            presented = tuple(PresentedReceipt(envelope=parse_envelope(record.envelope)) for record in records)
            verdict = check_receipts(ReceiptFile(presented, is_chain=True), [SERVICE_KEY.public])
            wrong += [f"{run_id}: {problem.field}: {problem.message}" for problem in verdict.problems]
            count += len(records)
    return count, tuple(wrong)


@contextlib.contextmanager
def stopping(*machines: Machine) -> Iterator[None]:
    """Kill what machines have started when a block ends."""
    try:
        yield
    finally:
        for machine in machines:
            machine.stop()
