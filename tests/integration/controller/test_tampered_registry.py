"""Somebody who can write to the database, past all of us: what is served is found out, and nothing of it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from config_repo import announcement
from controller_bench import Bench
from sqlalchemy import delete, insert, select, update

from kneo.controller.environment import DRIFT_INTERVAL
from kneo.controller.stages.report import Ready, Stalled
from kneo.errors import Forbidden, KneoError
from kneo.records.release import ConditionType
from kneo.records.run import Run
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.start import Starter, StartRequest
from kneo.spec.models.spec import Spec
from kneo.store.engine import Store
from kneo.store.tables import metadata
from kneo.trust.dsse import Envelope, parse_envelope, serialise, sign
from kneo.trust.hmac_bundle import sign_hmac_bundle
from kneo.trust.root import TRUST_ROOT_TYPE
from kneo.trust.statement import PAYLOAD_TYPE
from kneo.trust.verify import VerifiedBundle, verify_bundle

Change = Callable[[Bench], None]
SECRET = "a shared secret"


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    bench = Bench(store, tmp_path)
    for version in ("1.0.0", "1.1.0"):
        bench.repo.release("prod", "mail", version)
        bench.reconcile()
    return bench


def _start(bench: Bench, bundle: str = "mail", hmac_key: str = "") -> Run:
    starter = Starter(bench.store, Spec.model_validate, pin=bench.repo.pin, hmac_key=hmac_key)
    return starter.start(StartRequest(input="x", requester="ann", bundle=bundle, environment="prod"))


def _refused(bench: Bench, bundle: str = "mail", hmac_key: str = "") -> str:
    with pytest.raises(KneoError) as caught:
        _start(bench, bundle, hmac_key)
    return caught.value.code


def _write(bench: Bench, table: str, where: dict[str, object], **values: object) -> None:
    """Change rows as somebody with a database client would."""
    rows = metadata.tables[table]
    with bench.store.write() as tx:
        condition = [rows.c[name] == value for name, value in where.items()]
        assert tx.connection.execute(update(rows).where(*condition).values(**values)).rowcount


def _envelope(bench: Bench, version: str = "1.1.0") -> Envelope:
    return parse_envelope((bench.repo.folder / f"bundles/mail/{version}.dsse.json").read_bytes())


def _evil(bench: Bench) -> bytes:
    return _envelope(bench).payload.replace(b"Publish this announcement?", b"Publish this announcemenT?")


# ---- what is served --------------------------------------------------------------------------------------------------


def other_bytes(bench: Bench) -> None:
    _write(bench, "bundles", {"version": "1.1.0"}, payload=_evil(bench))


def the_envelope_of_another_version(bench: Bench) -> None:
    _write(bench, "bundles", {"version": "1.1.0"}, envelope=serialise(_envelope(bench, "1.0.0")))


def an_envelope_without_its_signatures(bench: Bench) -> None:
    bare = json.loads(serialise(_envelope(bench)))
    bare["signatures"][0]["sig"] = "AAAA"
    _write(bench, "bundles", {"version": "1.1.0"}, envelope=json.dumps(bare).encode())


def no_bundle_at_all(bench: Bench) -> None:
    rows = metadata.tables["bundles"]
    with bench.store.write() as tx:
        tx.connection.execute(delete(rows).where(rows.c.version == "1.1.0"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (other_bytes, "BundleTampered"),
        (the_envelope_of_another_version, "SubjectMismatch"),
        (an_envelope_without_its_signatures, "SignatureInvalid"),
        (no_bundle_at_all, "BundleTampered"),
    ],
)
def test_what_was_changed_does_not_run_and_is_shown_within_the_interval(
    bench: Bench, change: Change, reason: str
) -> None:
    _start(bench)
    reconciler, lease = bench.reconciler(), bench.lease()
    assert reconciler.reconcile(lease).outcomes["prod"] == Ready(0)
    change(bench)
    assert _refused(bench) == reason
    assert not reconciler.drift_due()
    bench.store.clock.advance(DRIFT_INTERVAL)
    assert reconciler.drift_due()
    outcome = reconciler.reconcile(bench.lease()).outcomes["prod"]
    assert isinstance(outcome, Stalled)
    assert outcome.reason == reason
    assert bench.condition(ConditionType.DRIFT_DETECTED) == (True, reason)
    assert _refused(bench) == reason


def test_a_release_that_was_never_accepted_does_not_run_and_is_taken_away(bench: Bench) -> None:
    evil = sign(PAYLOAD_TYPE, _evil(bench), bench.repo.stranger)
    rows = metadata.tables["bundles"]
    with bench.store.write() as tx:
        good = tx.connection.execute(select(rows).where(rows.c.version == "1.1.0")).mappings().one()
        row = {**good, "digest": evil.digest, "payload": evil.payload, "envelope": serialise(evil), "seq": 3}
        tx.connection.execute(insert(rows).values(row))
    _write(bench, "releases", {"bundle": "mail"}, digest=evil.digest)
    assert _refused(bench) == "SignatureInvalid"
    assert bench.reconcile().outcomes["prod"] == Ready(1)
    assert bench.release("mail").digest == _envelope(bench).digest
    assert _start(bench).release is not None


def test_a_release_that_was_moved_is_moved_back(bench: Bench) -> None:
    _write(bench, "releases", {"bundle": "mail"}, version="1.0.0", digest=_envelope(bench, "1.0.0").digest)
    assert bench.reconcile().outcomes["prod"] == Ready(1)
    assert bench.served() == {"mail": "1.1.0"}
    assert len(bench.events("release.promoted")) == 3


def test_rules_that_were_loosened_are_put_back(bench: Bench) -> None:
    loose = announcement()
    order = StartRequest(input="x", requester="eve", spec=loose, environment="prod")
    starter = Starter(bench.store, Spec.model_validate, pin=bench.repo.pin)
    rows = metadata.tables["environments"]
    with bench.store.read() as tx:
        text = tx.connection.execute(select(rows.c.declaration).where(rows.c.name == "prod")).scalar_one()
    _write(bench, "environments", {"name": "prod"}, declaration=text + b"  inlineSpecs: true\n")
    bench.reconcile()
    with pytest.raises(Forbidden):
        starter.start(order)


def test_another_trust_root_is_not_believed(bench: Bench) -> None:
    document = parse_envelope((bench.repo.folder / "environments/trust.json").read_bytes()).payload
    mine = sign(TRUST_ROOT_TYPE, document.replace(b'"ann"', b'"eve"'), bench.repo.stranger)
    _write(bench, "trust_roots", {"version": 1}, envelope=serialise(mine), digest=mine.digest)
    assert _refused(bench) == "RootNotPinned"


def test_the_spec_of_a_run_that_waits_is_not_run_when_it_was_changed(bench: Bench) -> None:
    run = _start(bench)
    other = json.dumps(bench.repo.other_spec()).encode()
    _write(bench, "specs", {"digest": run.spec_digest}, body=other)
    with pytest.raises(KneoError) as caught:
        ProgramLoader(bench.store).load(run)
    assert caught.value.code == "spec_tampered"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (other_bytes, "BundleTampered"),
        (the_envelope_of_another_version, "BundleTampered"),
        (an_envelope_without_its_signatures, "SignatureInvalid"),
        (no_bundle_at_all, "BundleTampered"),
    ],
)
def test_the_bundle_of_a_run_is_checked_whenever_the_run_is_driven(bench: Bench, change: Change, reason: str) -> None:
    run = _start(bench)
    loader = ProgramLoader(bench.store)
    loader.load(run)
    rows = metadata.tables["bundles"]
    with bench.store.read() as tx:
        before = tx.connection.execute(select(rows).where(rows.c.version == "1.1.0")).mappings().one()
    change(bench)
    for each in (loader, ProgramLoader(bench.store)):
        with pytest.raises(KneoError) as caught:
            each.load(run)
        assert caught.value.code == reason
    with bench.store.write() as tx:
        tx.connection.execute(delete(rows).where(rows.c.version == "1.1.0"))
        tx.connection.execute(insert(rows).values(**before))
    loader.load(run)


def test_an_approval_that_nobody_gave_counts_for_nothing(bench: Bench) -> None:
    people = {"bob": {"roles": ["approver"]}}
    bench.repo.bundle("mail", "1.2.0")
    bench.repo.environment("prod", {"mail": "1.2.0"}, approvals={"required": 1, "roles": ["approver"]}, people=people)
    bench.repo.commit("Release 1.2.0")
    assert bench.reconcile().outcomes["prod"].state == "AwaitingApproval"
    key, bench.service_key = bench.service_key, bench.repo.stranger
    bench.decide("bob")
    bench.service_key = key
    assert bench.reconcile().outcomes["prod"].state == "AwaitingApproval"
    assert bench.served() == {"mail": "1.1.0"}


# ---- what was verified once --------------------------------------------------------------------------------------------


def an_earlier_acceptance(bench: Bench) -> None:
    _write(bench, "bundles", {"version": "1.1.0"}, first_seen_at="2020-01-01T00:00:00.000000Z")


def a_second_signature(bench: Bench) -> None:
    bench.repo.environment("prod", {"mail": "1.1.0"}, signatures={"roles": ["release"], "threshold": 2})
    bench.repo.commit("Require two signatures")
    bench.reconcile()


def another_payload(bench: Bench) -> None:
    _write(bench, "bundles", {"version": "1.1.0"}, payload=_evil(bench))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (another_payload, "BundleTampered"),
        (the_envelope_of_another_version, "SubjectMismatch"),
        (an_earlier_acceptance, "NotYetValid"),
        (a_second_signature, "ThresholdNotMet"),
    ],
)
def test_a_bundle_is_verified_once_and_again_when_what_was_verified_changes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, change: Change, reason: str
) -> None:
    verifications: list[str] = []

    def counted(envelope: bytes, **rest: Any) -> VerifiedBundle:
        verifications.append(rest["path"])
        return verify_bundle(envelope, **rest)

    module = import_module("kneo.registry.resolve")
    monkeypatch.setattr(module, "verify_bundle", counted)
    monkeypatch.setattr(module, "_verified_bundles", {})
    for _ in range(3):
        _start(bench)
    assert verifications == ["bundles/mail/1.1.0.dsse.json"]
    change(bench)
    assert _refused(bench) == reason
    assert _refused(bench) == reason


def test_a_revocation_refuses_the_next_start_of_a_bundle_that_was_verified_before(bench: Bench) -> None:
    eve = bench.repo.person("eve", "release")
    bench.repo.commit("Trust eve")
    bench.reconcile()
    bench.repo.bundle("mail", "1.2.0", keys=[eve])
    bench.repo.environment("prod", {"mail": "1.2.0"})
    bench.repo.commit("Release by eve")
    assert bench.reconcile().outcomes["prod"] == Ready(1)
    assert _start(bench).release is not None
    bench.repo.revoke("eve", compromised_since=bench.store.clock.now() - timedelta(days=1))
    bench.repo.commit("Revoke the key of eve")
    bench.reconcile()
    assert _refused(bench) == "KeyRevoked"


# ---- the older format ------------------------------------------------------------------------------------------------


def test_a_bundle_in_the_older_format_runs_where_that_is_accepted_and_only_with_the_key(bench: Bench) -> None:
    data = sign_hmac_bundle(
        announcement(), approved_by="ann", environment="prod", created_at=bench.repo.now, key=SECRET, key_id="K"
    )
    bench.repo.write("bundles/fax/1.0.0.json", data)
    signatures = {"accept": ["dsse", "hmac-v1"], "roles": ["release"], "threshold": 1}
    bench.repo.environment("prod", {"mail": "1.1.0"}, signatures=signatures)
    bench.repo.commit("Accept the older format")
    assert bench.reconcile().outcomes["prod"] == Ready(0)
    bench.repo.environment("prod", {"fax": "1.0.0", "mail": "1.1.0"}, signatures=signatures)
    bench.repo.commit("Release in the older format")
    assert bench.reconcile().outcomes["prod"].state == "PolicyDenied"
    with_key = bench.reconciler()
    with_key.config = replace(with_key.config, hmac_key=SECRET)
    assert with_key.reconcile(bench.lease()).outcomes["prod"] == Ready(1)
    assert _start(bench, "fax", SECRET).release is not None
    assert _refused(bench, "fax") == "PolicyDenied"
    assert _refused(bench, "fax", "another secret") == "SignatureInvalid"
