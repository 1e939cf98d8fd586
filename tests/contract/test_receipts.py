"""Receipts are written with the decision and stay as they were written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from builders import build_run, build_task
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError

from kneo.cli.compose import make_store
from kneo.clock import ManualClock, isoformat
from kneo.errors import KneoError
from kneo.records.run import Run, RunError, RunStatus
from kneo.records.task import DecisionKind, HumanTask, ReceiptRecord
from kneo.runtime.engine.assemble import working
from kneo.settings import from_env
from kneo.store import audit, prune, receipts, runs, tasks
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.tables import receipts as table
from kneo.tasks.decisions import DecisionRequest
from kneo.tasks.inbox import decide
from kneo.tasks.lifecycle import process_due
from kneo.trust.dsse import parse_envelope
from kneo.trust.keys import PrivateKey
from kneo.trust.receipt import Receipt, ReceiptFile, content_digest, parse_receipt
from kneo.trust.receipt_check import PresentedReceipt, check_receipts

KEY = PrivateKey.generate()


@pytest.fixture
def signing(migrated_url: str, clock: ManualClock) -> Iterator[Store]:
    """A store that signs what is decided."""
    opened = open_store(migrated_url, clock, lambda: KEY)
    yield opened
    opened.close()


def paused(store: Store, *questions: HumanTask) -> Run:
    run = build_run(id="run_1", status=RunStatus.PAUSED)
    with store.write() as tx:
        runs.insert_run(tx, run)
        for task in questions or (build_task(id="cont_1"),):
            tasks.insert_task(tx, replace(task, run_id=run.id))
    return run


def say(store: Store, task_id: str = "cont_1", kind: str = "approved", **more: object) -> HumanTask:
    with store.read() as tx:
        found = tasks.get(tx, task_id)
    assert found is not None
    answer = DecisionRequest(request_id=found.request_id, decision=DecisionKind(kind), **more)  # type: ignore[arg-type]
    return decide(store, task_id, answer, actor="ann")


def kept(store: Store, task_id: str = "cont_1") -> ReceiptRecord:
    with store.read() as tx:
        found = receipts.of_task(tx, task_id)
    assert found is not None
    return found


def said(record: ReceiptRecord) -> Receipt:
    return parse_receipt(parse_envelope(record.envelope).payload).receipt


def test_a_decision_leaves_a_receipt_that_its_key_signed(signing: Store) -> None:
    run = paused(signing)
    task = say(signing, kind="edited", content="better")
    record = kept(signing)
    handed = ReceiptFile((PresentedReceipt(envelope=parse_envelope(record.envelope)),), is_chain=True)
    assert check_receipts(handed, [KEY.public]).valid
    found = said(record)
    assert (found.task, found.run, found.request) == (task.id, run.id, task.request_id)
    assert (found.gate, found.subject_digest) == (task.key, task.subject_digest)
    assert (found.decision, found.by, found.actor) == ("edited", "person", "ann")
    assert found.content_digest == content_digest({"content": "better"})
    assert [voter.actor for voter in found.voters] == ["ann"]
    assert (found.sequence, found.previous) == (1, None)
    assert b"better" not in record.envelope


def test_a_receipt_names_its_event_in_the_audit_log(signing: Store) -> None:
    paused(signing)
    audit.seal(signing)
    with signing.read() as tx:
        size, head = audit.chain_head(tx)
    say(signing)
    audit.seal(signing)
    found = said(kept(signing))
    with signing.read() as tx:
        event = audit.event(tx, found.audit_event)
    assert event is not None
    assert (event.event.event_type, event.leaf) == ("human.decision", found.audit_leaf)
    assert (found.audit_size, found.audit_head) == (size, head)


def test_a_deadline_leaves_a_receipt_too(signing: Store, clock: ManualClock) -> None:
    soon = isoformat(clock.now() + timedelta(seconds=5))
    paused(signing, build_task(id="cont_1", deadline_at=soon, next_at=soon, on_timeout="approve", timeout_seconds=5))
    clock.advance(timedelta(seconds=6))
    assert process_due(signing) == 1
    found = said(kept(signing))
    assert (found.decision, found.by, found.actor, found.voters) == (
        "approved", "policy:timeout", "policy:timeout", (),
    )  # fmt: skip


def test_a_deadline_that_ends_the_run_leaves_a_receipt_too(signing: Store, clock: ManualClock) -> None:
    soon = isoformat(clock.now() + timedelta(seconds=5))
    paused(signing, build_task(id="cont_1", deadline_at=soon, next_at=soon, on_timeout="fail", timeout_seconds=5))
    clock.advance(timedelta(seconds=6))
    assert process_due(signing) == 1
    assert (said(kept(signing)).decision, said(kept(signing)).effect) == ("expired", "fail")


def test_receipts_of_a_run_are_a_chain(signing: Store) -> None:
    run = paused(signing, *(build_task(id=f"cont_{n}", request_id=f"req_{n}") for n in range(3)))
    for number in (2, 0, 1):
        say(signing, f"cont_{number}")
    with signing.read() as tx:
        found = receipts.of_run(tx, run.id)
    assert [item.task_id for item in found] == ["cont_2", "cont_0", "cont_1"]
    presented = tuple(PresentedReceipt(envelope=parse_envelope(item.envelope)) for item in found)
    assert check_receipts(ReceiptFile(presented, is_chain=True), [KEY.public]).valid
    assert not check_receipts(ReceiptFile(presented[::2], is_chain=True), [KEY.public]).valid


def test_a_refused_answer_leaves_none(signing: Store) -> None:
    paused(signing)
    say(signing)
    with pytest.raises(KneoError):
        say(signing, kind="rejected")
    with signing.read() as tx:
        assert len(receipts.of_run(tx, "run_1")) == 1


def test_without_a_key_there_is_a_decision_and_no_receipt(keyless_store: Store) -> None:
    store = keyless_store
    paused(store)
    assert say(store).decision is not None
    with store.read() as tx:
        assert receipts.of_task(tx, "cont_1") is None


def test_a_key_that_is_none_stops_a_worker_before_any_deadline(migrated_url: str, tmp_path: Path) -> None:
    settings = from_env({"HOME": str(tmp_path), "KNEO_SERV_SERVICE_KEY": "garbage"}, tmp_path).on(migrated_url)
    with closing(make_store(settings)) as store, pytest.raises(KneoError) as caught, working(settings, store, 1):
        pass
    assert caught.value.code == "invalid_key"


def test_receipts_outlive_their_run(signing: Store, clock: ManualClock) -> None:
    run = paused(signing)
    say(signing)
    with signing.write() as tx:
        error = RunError(type="boom", message="boom")
        runs.end(tx, run.id, RunStatus.FAILED, error, allowed=[RunStatus.PAUSED, RunStatus.RUNNING])
    clock.advance(timedelta(days=4000))
    assert prune.prune_runs(signing, timedelta(days=1)) == 1
    assert kept(signing).run_id == run.id


@pytest.mark.parametrize("statement", ["UPDATE receipts SET task_id = 'cont_2'", "DELETE FROM receipts"])
def test_receipts_can_only_be_added(signing: Store, statement: str) -> None:
    paused(signing)
    say(signing)
    with pytest.raises(DBAPIError, match="append-only"), signing.write() as tx:
        tx.connection.execute(text(statement))


def test_an_insert_cannot_replace_a_receipt(signing: Store) -> None:
    paused(signing)
    say(signing)
    before = kept(signing)
    with signing.read() as tx:
        row = dict(tx.connection.execute(select(table)).one()._mapping)
    replacing = insert(table).prefix_with("OR REPLACE", dialect="sqlite").values(**row | {"envelope": b"{}"})
    with pytest.raises(DBAPIError), signing.write() as tx:
        tx.connection.execute(replacing)
    assert kept(signing) == before


def test_receipts_cannot_be_truncated(signing: Store) -> None:
    if signing.is_sqlite:  # its only way to empty a table is DELETE
        return
    with pytest.raises(DBAPIError, match="append-only"), signing.write() as tx:
        tx.connection.execute(text("TRUNCATE receipts"))


def test_what_is_kept_is_an_envelope(signing: Store) -> None:
    paused(signing)
    say(signing)
    assert set(json.loads(kept(signing).envelope)) == {"payloadType", "payload", "signatures"}
