"""The audit log: written with its change, sealed once, and found out when somebody tampers with it."""

from __future__ import annotations

import json

import pytest
from audit_log import hostile_admin, record, sealed
from processes import at_once, run_pythons
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from kneo.errors import Invalid
from kneo.records.audit import EMPTY_HEAD, Kept, head_of, leaf_of
from kneo.store import audit
from kneo.store.engine import Store
from kneo.store.tables import audit_chain, audit_events, audit_nodes, audit_pending

IMPORTS = """
from kneo.clock import SystemClock
from kneo.store import audit
from kneo.store.migrate import open_store
"""

RECORD_AND_SEAL = """
store = open_store(sys.argv[1], SystemClock())
sealed = 0
for number in range(40):
    with store.write() as tx:
        audit.record(tx, "thing.done", actor=sys.argv[2], metadata={"n": number})
    sealed += audit.seal(store)
print(sealed)
store.close()
"""


# ---- recording and sealing ---------------------------------------------------------------------------------------


def test_an_empty_log_is_a_valid_one(store: Store) -> None:
    verdict = audit.verify(store)
    assert verdict.valid
    assert (verdict.size, verdict.head, verdict.pending) == (0, EMPTY_HEAD, 0)
    assert audit.seal(store) == 0


def test_what_was_recorded_can_be_read_back(store: Store) -> None:
    (event_id,) = sealed(store, 1)
    with store.read() as tx:
        (found,) = audit.events(tx, event_type="thing.done", run_id="run_1")
        assert audit.seq_of(tx, event_id) == found.seq == 1
        assert audit.count(tx, run_id="run_1") == 1
        assert audit.count(tx, run_id="run_2") == 0
    assert found.event.id == event_id
    assert (found.event.actor, found.event.environment) == ("ann", "prod")
    assert found.event.metadata == {"n": 0, "ü": "≤"}
    assert found.leaf == leaf_of(found.event.canonical())


def test_the_chain_is_what_its_definition_says(store: Store) -> None:
    sealed(store)
    with store.read() as tx:
        events = list(reversed(audit.events(tx)))
        size, head = audit.chain_head(tx)
    expected = EMPTY_HEAD
    for found in sorted(events, key=lambda item: item.seq):
        expected = head_of(expected, leaf_of(found.event.canonical()))
    assert (size, head) == (5, expected)


def test_an_event_goes_with_its_transaction(store: Store) -> None:
    with pytest.raises(RuntimeError), store.write() as tx:  # noqa: PT012 - the block is what is tested
        audit.record(tx, "thing.done", actor="ann")
        raise RuntimeError
    assert audit.seal(store) == 0
    with store.read() as tx:
        assert audit.events(tx) == ()


def test_unsealed_events_are_counted_apart(store: Store) -> None:
    sealed(store, 2)
    record(store, 3)
    verdict = audit.verify(store)
    assert verdict.valid
    assert (verdict.size, verdict.pending) == (2, 3)


def test_more_events_than_one_batch_are_all_sealed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "SEAL_BATCH", 2)
    monkeypatch.setattr(audit, "WALK_BATCH", 3)
    sealed(store, 7)
    assert audit.verify(store).size == 7


@pytest.mark.parametrize("metadata", [{"n": 2**65}, {"n": float("nan")}, {"text": "\ud800"}, {"thing": object()}])
def test_an_event_that_could_never_be_sealed_is_refused_when_recorded(
    store: Store, metadata: dict[str, object]
) -> None:
    with pytest.raises(Invalid), store.write() as tx:
        audit.record(tx, "thing.done", actor="ann", metadata=metadata)
    sealed(store, 1)


def test_sealing_while_others_record_leaves_no_gap(store: Store) -> None:
    def work(number: int) -> int:
        if number % 2:
            record(store, 10)
            return 0
        return sum(audit.seal(store) for _ in range(20))

    at_once(6, work)
    audit.seal(store)
    verdict = audit.verify(store)
    assert verdict.valid
    assert (verdict.size, verdict.pending) == (30, 0)


def test_sealers_in_several_processes_share_one_chain(store: Store, migrated_url: str) -> None:
    people = ("ann", "ben", "cy")
    counts = run_pythons(IMPORTS, RECORD_AND_SEAL, [[migrated_url, person] for person in people])
    assert sum(int(count) for count in counts) == 120
    verdict = audit.verify(store)
    assert verdict.valid, verdict.problem
    assert (verdict.size, verdict.pending) == (120, 0)


# ---- append-only -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_events SET actor = 'nobody'",
        "UPDATE audit_chain SET head = leaf",
        "DELETE FROM audit_events",
        "DELETE FROM audit_chain WHERE seq = 5",
    ],
)
def test_the_log_can_only_be_added_to(store: Store, statement: str) -> None:
    sealed(store)
    with pytest.raises(DBAPIError, match="append-only"), store.write() as tx:
        tx.connection.execute(text(statement))
    assert audit.verify(store).size == 5


def test_the_log_cannot_be_truncated(store: Store) -> None:
    if store.is_sqlite:  # its only way to empty a table is DELETE
        return
    sealed(store)
    for table in ("audit_events", "audit_chain"):
        with pytest.raises(DBAPIError, match="append-only"), store.write() as tx:
            tx.connection.execute(text(f"TRUNCATE {table}"))


def test_an_insert_cannot_replace_an_event(store: Store) -> None:
    event_id = sealed(store)[2]
    row = {"id": event_id, "at": "now", "event_type": "thing.undone", "metadata": "{}"}
    replacing = insert(audit_events).prefix_with("OR REPLACE", dialect="sqlite").values(**row)
    with pytest.raises(DBAPIError), store.write() as tx:
        tx.connection.execute(replacing)
    with store.read() as tx:
        assert audit.count(tx, event_type="thing.undone") == 0


def test_an_event_cannot_be_sealed_twice(store: Store) -> None:
    event_id = sealed(store, 1)[0]
    with pytest.raises(IntegrityError), store.write() as tx:
        tx.connection.execute(insert(audit_chain).values(seq=2, event_id=event_id, leaf="0" * 64, head="0" * 64))


# ---- tampering, by somebody the triggers cannot stop -------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"actor": "ben"},
        {"actor": None},
        {"at": "2026-01-30T12:00:00.000000+00:00"},
        {"event_type": "thing.undone"},
        {"run_id": "run_2"},
        {"continuation_id": "cont_2"},
        {"environment": "dev"},
        {"metadata": json.dumps({"n": 99})},
        {"metadata": "not json"},
        {"metadata": '{"n": NaN}'},
        {"metadata": '["n"]'},
        {"metadata": "[" * 100_000},
    ],
)
def test_an_edited_event_is_found(store: Store, change: dict[str, object]) -> None:
    victim = sealed(store)[2]
    with hostile_admin(store) as tx:
        tx.connection.execute(update(audit_events).where(audit_events.c.id == victim).values(**change))
    verdict = audit.verify(store)
    assert not verdict.valid
    assert verdict.broken_at == 3
    assert victim in verdict.problem


def test_a_removed_event_is_found(store: Store) -> None:
    victim = sealed(store)[2]
    with hostile_admin(store) as tx:
        tx.connection.execute(delete(audit_events).where(audit_events.c.id == victim))
    verdict = audit.verify(store)
    assert (verdict.valid, verdict.broken_at) == (False, 3)
    assert "removed" in verdict.problem


def test_an_event_removed_together_with_its_link_is_found(store: Store) -> None:
    victim = sealed(store)[2]
    with hostile_admin(store) as tx:
        tx.connection.execute(delete(audit_events).where(audit_events.c.id == victim))
        tx.connection.execute(delete(audit_chain).where(audit_chain.c.event_id == victim))
    verdict = audit.verify(store)
    assert (verdict.valid, verdict.broken_at) == (False, 3)
    assert "missing" in verdict.problem


def test_an_inserted_event_is_found(store: Store) -> None:
    sealed(store)
    with store.write() as tx:
        event = audit.record(tx, "thing.done", actor="mallory")
        tx.connection.execute(delete(audit_pending).where(audit_pending.c.event_id == event.id))
    verdict = audit.verify(store)
    assert not verdict.valid
    assert event.id in verdict.problem


def test_an_event_removed_before_it_was_sealed_is_found(store: Store) -> None:
    sealed(store)
    with store.write() as tx:
        event = audit.record(tx, "thing.done", actor="ann")
    with hostile_admin(store) as tx:
        tx.connection.execute(delete(audit_events).where(audit_events.c.id == event.id))
    assert event.id in audit.verify(store).problem


def test_an_event_made_unreadable_while_it_waits_does_not_stop_the_others(store: Store) -> None:
    victim, _ = record(store, 2)
    with hostile_admin(store) as tx:
        tx.connection.execute(update(audit_events).where(audit_events.c.id == victim).values(metadata='{"n": 1e400}'))
    assert audit.seal(store) == 1
    verdict = audit.verify(store)
    assert (verdict.valid, verdict.pending) == (False, 1)
    assert victim in verdict.problem


def test_a_removed_event_that_hides_behind_a_made_up_one_is_found(store: Store) -> None:
    sealed(store)
    with store.write() as tx:
        event = audit.record(tx, "thing.done", actor="ann")
    with hostile_admin(store) as tx:
        tx.connection.execute(delete(audit_events).where(audit_events.c.id == event.id))
        tx.connection.execute(
            insert(audit_events).values(id="evt_x", at=tx.at, event_type="thing.done", actor="mallory", metadata="{}")
        )
    assert not audit.verify(store).valid


def test_events_that_changed_places_are_found(store: Store) -> None:
    ids = sealed(store)
    with hostile_admin(store) as tx:
        for event_id, seq in (("aside", 2), (ids[1], 4), (ids[3], 2)):
            tx.connection.execute(update(audit_chain).where(audit_chain.c.seq == seq).values(event_id=event_id))
    verdict = audit.verify(store)
    assert (verdict.valid, verdict.broken_at) == (False, 2)


@pytest.mark.parametrize("column", ["leaf", "head"])
def test_an_edited_link_is_found(store: Store, column: str) -> None:
    sealed(store)
    with hostile_admin(store) as tx:
        tx.connection.execute(update(audit_chain).where(audit_chain.c.seq == 3).values(**{column: "f" * 64}))
    verdict = audit.verify(store)
    assert (verdict.valid, verdict.broken_at) == (False, 3)


def test_an_event_relinked_with_a_leaf_that_fits_it_is_found(store: Store) -> None:
    victim = sealed(store)[2]
    with hostile_admin(store) as tx:
        tx.connection.execute(update(audit_events).where(audit_events.c.id == victim).values(actor="ben"))
        (edited,) = [item.event for item in audit.events(tx) if item.event.id == victim]
        tx.connection.execute(
            update(audit_chain).where(audit_chain.c.seq == 3).values(leaf=leaf_of(edited.canonical()))
        )
    verdict = audit.verify(store)
    assert (verdict.valid, verdict.broken_at) == (False, 3)
    assert "does not follow" in verdict.problem


def test_a_rewritten_chain_has_another_head(store: Store) -> None:
    """Nothing inside the database can show this; comparing with a head kept elsewhere does."""
    sealed(store)
    before = audit.verify(store).head
    with hostile_admin(store) as tx:
        tx.connection.execute(update(audit_events).values(actor="mallory"))
        tx.connection.execute(delete(audit_chain))
        tx.connection.execute(delete(audit_nodes))
        tx.connection.execute(insert(audit_pending).from_select(["event_id"], select(audit_events.c.id)))
    audit.seal(store)
    after = audit.verify(store)
    assert after.valid
    assert after.head != before
    kept = Kept(heads={5: before})
    assert "head over the first 5" in audit.verify(store, kept=kept).problem


def test_verifying_is_not_confused_by_what_is_written_meanwhile(store: Store) -> None:
    sealed(store)

    def work(number: int) -> bool:
        if number == 0:
            return all(audit.verify(store).valid for _ in range(15))
        for _ in range(15):
            record(store, 1)
            audit.seal(store)
        return True

    assert all(at_once(2, work))
