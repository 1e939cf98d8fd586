"""A repository, a registry, and a controller between them."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
from collections.abc import Collection, Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import uvicorn
from builders import failed_run
from config_repo import ConfigRepo
from fastapi import FastAPI
from sqlalchemy import select, update

from kneo import registry
from kneo.clock import ManualClock, SystemClock
from kneo.controller.loop import Controller
from kneo.controller.reconcile import Reconciler, ReconcileResult
from kneo.controller.source.mirror import Mirror
from kneo.digest import Digest
from kneo.records.audit import SealedEvent
from kneo.records.release import ConditionType, Pending, Release
from kneo.store import audit, releases, requests, runs
from kneo.store.engine import Store
from kneo.store.requests import Lease
from kneo.store.tables import metadata
from kneo.trust.dsse import TrustedKey, serialise, sign
from kneo.trust.keys import PrivateKey
from kneo.trust.statement import PAYLOAD_TYPE, ApprovalDecision, build_approval, rewrite_subject


class Bench:
    """A repository, a registry, and a controller between them."""

    def __init__(self, store: Store, folder: Path) -> None:
        # Bundles are signed at the real time, so the registry's clock has to know it too.
        assert isinstance(store.clock, ManualClock)
        store.clock.advance(SystemClock().now() - store.clock.now())
        self.store = store
        self.repo = ConfigRepo(folder / "repo")
        self.folder = folder
        self.service_key = PrivateKey.generate()
        self.channels: tuple[str, ...] = ()

    def reconcile(self, pin: Digest | None = None) -> ReconcileResult:
        return self.reconciler(pin).reconcile(self.lease())

    def reconciler(self, pin: Digest | None = None) -> Reconciler:
        mirror = Mirror(str(self.repo.folder), "main", self.folder / "mirrors")
        return Reconciler(
            self.store, mirror, pin or self.repo.pin, service_key=self.service_key.public, channels=self.channels
        )

    def lease(self, owner: str = "me") -> Lease:
        with self.store.write() as tx:
            fence = requests.take_lease(tx, "controller", owner, timedelta(minutes=5))
        assert fence is not None
        return Lease("controller", owner, fence)

    def served(self, environment: str = "prod") -> dict[str, str]:
        with self.store.read() as tx:
            return {item.bundle: item.version for item in releases.list_releases(tx, environment)}

    def release(self, bundle: str, environment: str = "prod") -> Release:
        with self.store.read() as tx:
            found = releases.release(tx, environment, bundle)
        assert found is not None
        return found

    def condition(self, kind: ConditionType, environment: str = "prod") -> tuple[bool, str] | None:
        with self.store.read() as tx:
            found = releases.list_conditions(tx, registry.environment_subject(environment))
        return next(((item.status, item.reason) for item in found if item.type is kind), None)

    def reconcile_by(self, controller: Controller) -> None:
        """Let a running controller look, and wait for it."""
        requests.ask(self.store, "reconcile", {}, actor="test")
        assert controller is not None

    def followed(self) -> bool:
        """Whether a controller is at work."""
        with self.store.read() as tx:
            return requests.lease_holder(tx, "controller") is not None

    def take_over(self, owner: str) -> None:
        """Drop the lease of somebody who is dead, as time would."""
        with self.store.write() as tx:
            requests.drop_lease(tx, "controller", owner)

    def drop_lease(self) -> None:
        with self.store.write() as tx:
            requests.drop_lease(tx, "controller", "me")

    def sealed(self, kind: str) -> list[SealedEvent]:
        with self.store.read() as tx:
            return list(audit.events(tx, event_type=kind))

    def rows(self, but: Collection[str] = ("leases",)) -> dict[str, list[tuple[object, ...]]]:
        """Everything in the database but some tables."""
        with self.store.read() as tx:
            tables = [table for table in metadata.sorted_tables if table.name not in but]
            return {table.name: [tuple(row) for row in tx.connection.execute(select(table))] for table in tables}

    def events(self, kind: str) -> list[dict[str, object]]:
        with self.store.read() as tx:
            return [dict(item.event.metadata) for item in audit.events(tx, event_type=kind)]

    def pending(self, environment: str = "prod") -> tuple[Pending, ...]:
        with self.store.read() as tx:
            return releases.pending(tx, environment)

    def decide(
        self, person: str, environment: str = "prod", decision: ApprovalDecision = ApprovalDecision.APPROVE
    ) -> None:
        """Record, as our service would, that somebody it authenticated decided about the first thing that waits."""
        waits = self.pending(environment)[0]
        with self.store.write() as tx:
            decided = registry.prepare_decision(tx, environment, waits, decision, tx.now + timedelta(days=7))
            registry.record_decision(tx, decided, approver=person, service_key=self.service_key)

    def failed_run(self, bundle: str, environment: str) -> None:
        release = self.release(bundle, environment)
        with self.store.write() as tx:
            run = failed_run(release, tx.at)
            runs.insert_run(tx, run)
            tx.connection.execute(
                update(metadata.tables["runs"]).values(completed_at=tx.at).where(metadata.tables["runs"].c.id == run.id)
            )

    def forget_mirror(self) -> None:
        shutil.rmtree(self.folder / "mirrors")

    def accept_rewrite(self, old: str, new: str, key: PrivateKey) -> None:
        about = rewrite_subject(old, new)
        with self.store.write() as tx:
            statement = build_approval(
                bundle_name=about.name,
                bundle_digest=about.digest,
                about=about,
                environment="source",
                policy_digest=self.repo.pin,
                decision=ApprovalDecision.APPROVE,
                issued_at=tx.now,
                expires=tx.now + timedelta(days=1),
            )
            envelope = serialise(sign(PAYLOAD_TYPE, statement.payload, key))
            who = "ann" if key is self.repo.key else "mallory"
            registry.record_signed_decision(tx, envelope, {key.keyid: TrustedKey(key.public, who)})


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[httpx.Client]:
    """Answer HTTP on a free port, and a client for it."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=240) as client:
        yield client
    server.should_exit = True
    thread.join()
    listener.close()
