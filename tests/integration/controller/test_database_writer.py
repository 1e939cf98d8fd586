"""A person who can write to the database: what they serve does not run, is not kept, and is seen.

The person has a database client, knows the schema and every value in it, and does not have the service key.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from audit_log import hostile_admin
from controller_bench import Bench
from sqlalchemy import delete, insert, select, update

from kneo import registry
from kneo.clock import isoformat
from kneo.controller.environment import DRIFT_INTERVAL
from kneo.controller.stages.report import Ready, Stalled
from kneo.errors import KneoError
from kneo.records.release import ConditionType, Hold, Suspension
from kneo.records.run import Run
from kneo.runtime.engine.start import Starter, StartRequest
from kneo.spec.models.spec import Spec
from kneo.store import audit, releases
from kneo.store.engine import Store
from kneo.store.tables import metadata
from kneo.trust.statement import ApprovalDecision

pytestmark = pytest.mark.both_databases

PEOPLE = {"bob": {"roles": ["approver"]}, "cy": {"roles": ["approver"]}}
RULES: dict[str, Any] = {"approvals": {"required": 1, "roles": ["approver"]}, "people": PEOPLE}

NOT_PROMOTED = "ReleaseNotPromoted"


@dataclass
class Writer:
    """The person at the database."""

    bench: Bench

    def rows(self, table: str, **where: object) -> list[dict[str, Any]]:
        found = metadata.tables[table]
        with self.bench.store.read() as tx:
            condition = [found.c[name] == value for name, value in where.items()]
            return [dict(row) for row in tx.connection.execute(select(found).where(*condition)).mappings()]

    def write(self, table: str, where: dict[str, object], **values: object) -> None:
        rows = metadata.tables[table]
        with self.bench.store.write() as tx:
            condition = [rows.c[name] == value for name, value in where.items()]
            assert tx.connection.execute(update(rows).where(*condition).values(**values)).rowcount

    def add(self, table: str, **values: object) -> None:
        with self.bench.store.write() as tx:
            tx.connection.execute(insert(metadata.tables[table]).values(**values))

    def remove(self, table: str, **where: object) -> None:
        rows = metadata.tables[table]
        with self.bench.store.write() as tx:
            condition = [rows.c[name] == value for name, value in where.items()]
            assert tx.connection.execute(delete(rows).where(*condition)).rowcount


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    """1.0.0 is served, 1.1.0 is declared and signed, and bob has rejected it."""
    bench = Bench(store, tmp_path)
    bench.repo.bundle("mail", "1.0.0")
    bench.repo.environment("prod", {"mail": "1.0.0"}, **RULES)
    bench.repo.commit("Release 1.0.0")
    bench.reconcile()
    for _ in range(2):  # the file, then the release
        if bench.pending():
            bench.decide("bob")
            bench.reconcile()
    assert bench.served() == {"mail": "1.0.0"}
    bench.repo.bundle("mail", "1.1.0", bench.repo.other_spec())
    bench.repo.environment("prod", {"mail": "1.1.0"}, **RULES)
    bench.repo.commit("Release 1.1.0")
    assert bench.reconcile().outcomes["prod"].state == "AwaitingApproval"
    bench.decide("bob", decision=ApprovalDecision.REJECT)
    assert bench.reconcile().outcomes["prod"].state == "Rejected"
    return bench


@pytest.fixture
def writer(bench: Bench) -> Writer:
    return Writer(bench)


def start(bench: Bench, bundle: str = "mail") -> Run:
    starter = Starter(bench.store, Spec.model_validate, pin=bench.repo.pin)
    return starter.start(StartRequest(input="x", requester="ann", bundle=bundle, environment="prod"))


def refused(bench: Bench, bundle: str = "mail") -> str:
    with pytest.raises(KneoError) as caught:
        start(bench, bundle)
    return caught.value.code


def rejected_bundle(bench: Bench, writer: Writer) -> dict[str, Any]:
    """Return the row of the rejected bundle, which the person adds where the controller has not accepted it."""
    known = writer.rows("bundles", version="1.1.0")
    if known:
        return known[0]
    from kneo.controller.stages.verify import candidate_of
    from kneo.trust.verify import SignatureRule, bundle_path, verify_bundle

    data = (bench.repo.folder / bundle_path("mail", "1.1.0")).read_bytes()
    with bench.store.read() as tx:
        root = registry.trust_root(tx, bench.repo.pin)
        verified = verify_bundle(
            data,
            root=root,
            signatures=SignatureRule(roles=("release",)),
            path=bundle_path("mail", "1.1.0"),
            environment="prod",
            now=tx.now,
        )
        record = replace(candidate_of(verified, "main@x").record, first_seen_at=tx.at)
    (row,) = writer.rows("bundles", version="1.0.0")
    row |= {name: value for name, value in vars(record).items() if name in row}
    writer.add("bundles", **row | {"signers": list(record.signers), "envelope_digest": None})
    return row


def forged_promotion(writer: Writer, digest: str, **more: object) -> dict[str, Any]:
    """Return the row of a promotion that looks like the controller's."""
    (real,) = writer.rows("promotions", environment="prod", bundle="mail")
    name = f"prom_zz{secrets.token_hex(8)}"
    return real | {"id": name, "to_digest": digest, "version": "1.1.0", "from_digest": real["to_digest"], **more}


def serve(writer: Writer, digest: str, **more: object) -> None:
    writer.write("releases", {"environment": "prod", "bundle": "mail"}, version="1.1.0", digest=digest, **more)


def one_row(bench: Bench, writer: Writer) -> None:
    serve(writer, rejected_bundle(bench, writer)["digest"])


def a_row_and_a_promotion(bench: Bench, writer: Writer) -> None:
    digest = rejected_bundle(bench, writer)["digest"]
    promotion = forged_promotion(writer, digest)
    writer.add("promotions", **promotion)
    serve(writer, digest, promotion_id=promotion["id"], since=promotion["at"])


def a_row_a_promotion_and_an_audit_event(bench: Bench, writer: Writer) -> None:
    """The sealer takes the event into the chain, as it does with every waiting event."""
    digest = rejected_bundle(bench, writer)["digest"]
    (event,) = writer.rows("audit_events", event_type="release.promoted")
    event_id = f"evt_{secrets.token_hex(12)}"
    promotion = forged_promotion(writer, digest, audit_event_id=event_id)
    text = event["metadata"]
    for before, after in (
        (writer.rows("promotions")[0]["id"], promotion["id"]),
        (writer.rows("promotions")[0]["to_digest"], digest),
        ("1.0.0", "1.1.0"),
    ):
        text = text.replace(before, after)
    writer.add("audit_events", **event | {"id": event_id, "metadata": text})
    writer.add("audit_pending", event_id=event_id)
    audit.seal(bench.store)
    writer.add("promotions", **promotion)
    serve(writer, digest, promotion_id=promotion["id"], since=promotion["at"])


def the_promotion_itself(bench: Bench, writer: Writer) -> None:
    """The promotion of 1.0.0 and its audit event name 1.1.0 instead, with the code of the former."""
    digest = rejected_bundle(bench, writer)["digest"]
    (real,) = writer.rows("promotions", environment="prod", bundle="mail")
    writer.write("promotions", {"id": real["id"]}, to_digest=digest, version="1.1.0")
    serve(writer, digest)


@pytest.mark.parametrize("attack", [one_row, a_row_and_a_promotion, a_row_a_promotion_and_an_audit_event])
def test_a_rejected_version_that_a_row_serves_does_not_run_and_is_seen(
    bench: Bench, writer: Writer, attack: Callable[[Bench, Writer], None]
) -> None:
    start(bench)
    follower = bench.reconciler()
    follower.reconcile(bench.lease())
    attack(bench, writer)
    assert refused(bench) == NOT_PROMOTED
    with bench.store.read() as tx:
        status = registry.find_status(tx, "prod")
        why = registry.explain.why(tx, "prod", "mail")
    # Before any reconciliation.
    shown = {item.type: (item.status, item.reason) for item in status.conditions}
    assert shown[ConditionType.READY] == (False, NOT_PROMOTED)
    assert shown[ConditionType.DRIFT_DETECTED] == (True, NOT_PROMOTED)
    assert status.releases == ()
    assert NOT_PROMOTED in {gate.reason for gate in why.gates}
    # The controller restores what the latest promotion says; gates are evaluated, and the rejection holds.
    bench.store.clock.advance(DRIFT_INTERVAL)
    outcome = follower.reconcile(bench.lease()).outcomes["prod"]
    assert isinstance(outcome, Stalled)
    assert outcome.reason == NOT_PROMOTED
    assert bench.condition(ConditionType.DRIFT_DETECTED) == (True, NOT_PROMOTED)
    assert {item.reason for item in bench.pending()} == {"Rejected"}
    assert bench.served() == {"mail": "1.0.0"}
    (restored,) = bench.events("release.restored")
    assert (restored["version"], restored["found_version"]) == ("1.0.0", "1.1.0")
    run = start(bench)
    assert run.release is not None
    assert run.release.version == "1.0.0"
    # A promotion that was added stays, and is seen as long as it is there.
    bench.store.clock.advance(DRIFT_INTERVAL)
    expected = "PromotionsLost" if attack is a_row_and_a_promotion else "Rejected"
    assert follower.reconcile(bench.lease()).outcomes["prod"].state == expected


def test_a_changed_promotion_serves_nothing(bench: Bench, writer: Writer) -> None:
    the_promotion_itself(bench, writer)
    assert refused(bench) == NOT_PROMOTED
    assert bench.reconcile().outcomes["prod"].state == NOT_PROMOTED
    assert refused(bench) == "bundle_not_approved"
    assert bench.served() == {}
    assert {item.reason for item in bench.pending()} == {"Rejected"}


def test_a_release_that_was_retired_does_not_come_back(bench: Bench, writer: Writer) -> None:
    bench.repo.environment("prod", {}, **RULES)
    bench.repo.commit("Retire it")
    bench.reconcile()
    bench.decide("cy")
    assert bench.reconcile().outcomes["prod"] == Ready(1)
    assert bench.served() == {}
    writer.write("releases", {"environment": "prod", "bundle": "mail"}, retired_at=None)
    assert refused(bench) == NOT_PROMOTED
    assert bench.reconcile().outcomes["prod"].state == NOT_PROMOTED
    assert bench.served() == {}


def test_a_promotion_that_is_missing_is_seen(bench: Bench, writer: Writer) -> None:
    """Without the latest promotion an earlier release would be the one to serve."""
    bench.store.clock.advance(timedelta(minutes=1))
    bench.decide("bob")
    assert bench.reconcile().outcomes["prod"] == Ready(1)
    (before, after) = sorted(writer.rows("promotions"), key=lambda row: row["id"])
    writer.remove("promotions", id=after["id"])
    serve(writer, before["to_digest"], promotion_id=before["id"], since=before["at"], revision=before["revision"])
    writer.write("releases", {"environment": "prod", "bundle": "mail"}, version="1.0.0")
    outcome = bench.reconcile().outcomes["prod"]
    assert (outcome.state, bench.condition(ConditionType.DRIFT_DETECTED)) == (
        "PromotionsLost",
        (True, "PromotionsLost"),
    )


# ---- decisions that keep a release from changing ---------------------------------------------------------------------


@pytest.fixture
def approved_later(bench: Bench) -> Bench:
    """Nothing but what a test adds keeps 1.1.0 from being served: bob has changed his mind."""
    bench.store.clock.advance(timedelta(minutes=1))
    bench.decide("bob")
    return bench


def hold_by(actor: str, since: str, until: str | None = None) -> Hold:
    facts = {"reason": "incident", "since": since, "until": until}
    return Hold(environment="prod", bundle="mail", digest=None, actor=actor, **facts)


def suspension_by(actor: str, since: str, until: str | None = None) -> Suspension:
    return Suspension(environment="prod", actor=actor, reason="incident", since=since, until=until)


def hold_it(bench: Bench) -> None:
    with bench.store.write() as tx:
        registry.hold(tx, hold_by("cy", tx.at))


def suspend_it(bench: Bench) -> None:
    with bench.store.write() as tx:
        registry.suspend(tx, suspension_by("cy", tx.at))


CONTROLS = [
    pytest.param(hold_it, "holds", "hold.set", "hold.cleared", "Held", id="hold"),
    pytest.param(
        suspend_it, "suspensions", "environment.suspended", "environment.unsuspended", "Suspended", id="suspension"
    ),
]


@pytest.mark.parametrize("also", ["nothing", "code", "end", "another"])
@pytest.mark.parametrize(("make", "table", "started", "ended", "state"), CONTROLS)
def test_what_holds_a_release_does_so_without_its_row(
    approved_later: Bench,
    writer: Writer,
    make: Callable[[Bench], None],
    table: str,
    started: str,
    ended: str,
    state: str,
    also: str,
) -> None:
    bench = approved_later
    make(bench)
    audit.seal(bench.store)
    writer.remove(table, environment="prod")
    (event,) = writer.rows("audit_events", event_type=started)
    if also == "code":
        with hostile_admin(bench.store) as tx:
            rows = metadata.tables["audit_events"]
            tx.connection.execute(update(rows).where(rows.c.id == event["id"]).values(mac=None))
    elif also in {"end", "another"}:
        facts = event["metadata"].replace('"until": null', '"until": "2020-01-01T00:00:00.000000+00:00"')
        kind = ended if also == "end" else started
        name = "evt_" + "7zzzzzzzzz" + secrets.token_hex(4)  # after all others
        writer.add("audit_events", **event | {"id": name, "event_type": kind, "metadata": facts})
        writer.add("audit_pending", event_id=name)
    assert bench.reconcile().outcomes["prod"].state == state
    assert bench.served() == {"mail": "1.0.0"}


def test_a_hold_is_not_shortened_because_its_row_is_gone(approved_later: Bench, writer: Writer) -> None:
    """Who may set a hold, and not lift one, does not replace it by one that ends at once."""
    bench = approved_later
    hold_it(bench)
    suspend_it(bench)
    writer.remove("holds", environment="prod")
    writer.remove("suspensions", environment="prod")
    soon = isoformat(bench.store.clock.now() + timedelta(seconds=1))
    asked: list[str] = []
    with bench.store.write() as tx:
        registry.hold(tx, hold_by("eve", tx.at, soon), lambda: asked.append("hold"))
        registry.suspend(tx, suspension_by("eve", tx.at, soon), lambda: asked.append("suspend"))
    assert asked == ["hold", "suspend"]


@pytest.mark.parametrize("also", ["nothing", "code"])
def test_a_rejection_that_is_removed_stops_its_environment(bench: Bench, writer: Writer, also: str) -> None:
    audit.seal(bench.store)
    writer.remove("approvals", decision="reject")
    if also == "code":
        with hostile_admin(bench.store) as tx:
            rows = metadata.tables["audit_events"]
            tx.connection.execute(update(rows).where(rows.c.event_type == "release.rejected").values(mac=None))
    bench.reconcile()
    if bench.pending():
        bench.decide("cy")
    assert bench.reconcile().outcomes["prod"].state == "RejectionLost"
    assert bench.served() == {"mail": "1.0.0"}


def test_a_version_is_not_known_here_because_a_promotion_says_so(bench: Bench, writer: Writer) -> None:
    """A version that an environment has served before needs no soak time and no earlier environment."""
    digest = rejected_bundle(bench, writer)["digest"]
    writer.add("promotions", **forged_promotion(writer, digest))
    with bench.store.read() as tx:
        assert releases.served_before(tx, "prod", [digest]) == frozenset()
        assert [item.version for item in releases.list_promotions(tx, "prod", "mail")] == ["1.0.0"]
