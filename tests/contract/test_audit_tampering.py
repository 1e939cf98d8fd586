"""Tampering by the owner of the database, who also rebuilds what the log itself would show: found all the same."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta

import pytest
from audit_log import hostile_admin, record, sealed
from installation_key import find_key
from sqlalchemy import delete, func, insert, select, text, update

from kneo.api.audit import checkpoint
from kneo.clock import ManualClock
from kneo.maintenance import adopt
from kneo.records.audit import EMPTY_HEAD, Kept, head_of
from kneo.store import append_only, audit, audit_tree
from kneo.store.engine import Store, Tx
from kneo.store.migrate import open_store
from kneo.store.tables import audit_chain, audit_checkpoints, audit_events, audit_nodes, audit_pending
from kneo.trust.keys import PrivateKey

KEY = PrivateKey.generate()


def problem(store: Store, **more: object) -> str:
    verdict = audit.verify(store, **more)
    assert not verdict.valid
    assert verdict.problem is not None
    return verdict.problem


def rebuild(tx: Tx) -> None:
    """Make chain, tree and checkpoint roots anew, from the events as they are now."""
    events = {item.event.id: item for item in audit.events(tx, limit=1000)}
    order = [row.event_id for row in tx.connection.execute(select(audit_chain).order_by(audit_chain.c.seq))]
    for table in (audit_chain, audit_nodes):
        tx.connection.execute(delete(table))
    head, leaves = EMPTY_HEAD, []
    for seq, event_id in enumerate((one for one in order if one in events), start=1):
        leaf = audit.leaf_of(events[event_id].event.canonical())
        head = head_of(head, leaf)
        leaves.append(leaf)
        tx.connection.execute(insert(audit_chain).values(seq=seq, event_id=event_id, leaf=leaf, head=head))
    audit_tree.extend(tx, 1, leaves)
    for item in audit_tree.checkpoints(tx):
        root = audit_tree.root(tx, min(item.size, len(leaves)))
        tx.connection.execute(update(audit_checkpoints).where(audit_checkpoints.c.size == item.size).values(root=root))


def test_an_honest_log_with_checkpoints_holds_under_its_key(store: Store) -> None:
    for count in (1, 4, 8):
        sealed(store, count) if count == 1 else record(store, count)
        checkpoint(store, KEY)
    verdict = audit.verify(store, keys=[KEY.public])
    assert (verdict.valid, verdict.size, verdict.signatures) == (True, 13, True)
    assert not audit.verify(store).signatures


def test_a_log_rewritten_with_chain_tree_and_roots_contradicts_the_signed_note(store: Store) -> None:
    victim = sealed(store)[2]
    checkpoint(store, KEY)
    with hostile_admin(store) as tx:
        tx.connection.execute(update(audit_events).where(audit_events.c.id == victim).values(actor="mallory"))
        rebuild(tx)
    assert "another root than the one that was signed" in problem(store)
    assert "another root than the one that was signed" in problem(store, keys=[KEY.public])


def test_a_note_signed_by_somebody_else_is_found(store: Store) -> None:
    sealed(store)
    made = checkpoint(store, PrivateKey.generate())
    assert audit.verify(store).valid
    assert "not signed with a key" in problem(store, keys=[KEY.public])
    with hostile_admin(store) as tx:
        tx.connection.execute(update(audit_checkpoints).values(note="nonsense"))
    assert "cannot be read" in problem(store)
    assert made.size == 5


def test_the_key_before_the_present_one_can_be_given_too(store: Store) -> None:
    former = PrivateKey.generate()
    sealed(store)
    checkpoint(store, former)
    record(store, 3)
    checkpoint(store, KEY)
    assert audit.verify(store, keys=[KEY.public, former.public]).valid
    assert "--key" in problem(store, keys=[KEY.public])


def test_a_cut_off_end_is_found_by_what_the_tree_still_has(store: Store) -> None:
    victims = sealed(store, 8)[5:]
    with hostile_admin(store) as tx:
        tx.connection.execute(delete(audit_chain).where(audit_chain.c.seq > 5))
        tx.connection.execute(delete(audit_events).where(audit_events.c.id.in_(victims)))
    assert "cut off" in problem(store)


def test_events_that_were_inserted_or_lost_their_code_are_counted(store: Store) -> None:
    victim = sealed(store)[2]
    assert audit.verify(store).unauthenticated == 0
    with hostile_admin(store) as tx:
        row = tx.connection.execute(select(audit_events).where(audit_events.c.id == victim)).one()
        tx.connection.execute(insert(audit_events).values(**row._asdict() | {"id": "evt_forged"}))
        tx.connection.execute(insert(audit_pending).values(event_id="evt_forged"))
    audit.seal(store)
    verdict = audit.verify(store)
    assert (verdict.valid, verdict.unauthenticated) == (True, 1)
    with hostile_admin(store) as tx:
        tx.connection.execute(update(audit_events).where(audit_events.c.id == victim).values(mac=None))
    assert audit.verify(store).unauthenticated == 2
    adopt(store, actor="ann")
    audit.seal(store)
    assert audit.verify(store).unauthenticated == 0


def test_events_from_before_the_service_key_are_not_counted(
    keyless_store: Store, clock: ManualClock, migrated_url: str
) -> None:
    sealed(keyless_store)
    assert audit.verify(keyless_store).unauthenticated == 0
    with closing(open_store(migrated_url, clock, find_key)) as keyed:
        record(keyed, 3)
        audit.seal(keyed)
        assert audit.verify(keyed).unauthenticated == 0
        record(keyless_store, 2)
        audit.seal(keyless_store)
        assert audit.verify(keyed).unauthenticated == 2


@pytest.mark.parametrize("gone", [True, False])
def test_changed_or_missing_nodes_of_the_tree_are_found(store: Store, *, gone: bool) -> None:
    sealed(store, 9)
    of = (audit_nodes.c.level == 2) & (audit_nodes.c.position == 1)
    with hostile_admin(store) as tx:
        tx.connection.execute(
            delete(audit_nodes).where(of) if gone else update(audit_nodes).where(of).values(hash="f" * 64)
        )
    assert f"node 1 of level 2 is {'missing' if gone else 'not'}" in problem(store)


def test_a_tree_whose_nodes_are_all_gone_is_found(store: Store) -> None:
    sealed(store, 2)
    with hostile_admin(store) as tx:
        tx.connection.execute(delete(audit_nodes))
    assert "node 0 of level 1 is missing" in problem(store)


def test_many_unsealable_events_do_not_stop_the_others(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "SEAL_BATCH", 3)
    victims = record(store, 7)
    with hostile_admin(store) as tx:
        tx.connection.execute(update(audit_events).values(metadata='{"n": 1e400}'))
    honest = record(store, 4)
    assert audit.seal(store) == 4
    with store.read() as tx:
        assert all(audit.seq_of(tx, one) for one in honest)
    assert any(victim in problem(store) for victim in victims)
    assert audit.seal(store) == 0


def test_events_that_nobody_seals_are_reported(store: Store, clock: ManualClock) -> None:
    record(store, 2)
    assert audit.verify(store).valid
    clock.advance(timedelta(seconds=61))
    assert "has waited for more than 60 seconds" in problem(store)
    assert audit.verify(store, waiting=None).valid
    audit.seal(store)
    assert audit.verify(store).valid


SWALLOW = {
    "sqlite": (
        """CREATE TRIGGER harmless BEFORE INSERT ON audit_events WHEN NEW.event_type = 'release.approved'
        BEGIN SELECT RAISE(IGNORE); END""",
        "CREATE TRIGGER holds_go AFTER INSERT ON holds BEGIN DELETE FROM holds; END",
        "CREATE VIEW everything AS SELECT * FROM audit_events",
        "DROP TRIGGER audit_events_no_update",
        "DROP TRIGGER receipts_no_delete",
    ),
    "postgresql": (
        """CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
        CREATE TRIGGER harmless BEFORE INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION swallow()""",
        "CREATE RULE holds_go AS ON INSERT TO holds DO INSTEAD NOTHING",
        "CREATE VIEW everything AS SELECT * FROM audit_events",
        "ALTER TABLE audit_events DISABLE TRIGGER USER",
        "CREATE OR REPLACE FUNCTION kneo_receipts_stay() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN OLD; END $$",
        "ALTER TABLE audit_events ENABLE ROW LEVEL SECURITY",
    ),
}


@pytest.mark.parametrize("number", range(6))
def test_triggers_views_and_rules_that_are_not_ours_are_found(store: Store, dialect: str, number: int) -> None:
    sealed(store, 2)
    if number >= len(SWALLOW[dialect]):
        pytest.skip("this kind of database has fewer ways")
    with store.write() as tx:
        tx.connection.exec_driver_sql(SWALLOW[dialect][number])
    assert "trigger" in problem(store) or "that Kneo did not create" in problem(store)


def test_a_table_made_anew_so_that_it_swallows_rows_is_found(store: Store) -> None:
    if not store.is_sqlite:
        pytest.skip("only SQLite has constraints that drop rows in silence")
    with store.write() as tx:
        sql = tx.connection.execute(text("SELECT sql FROM sqlite_master WHERE name = 'audit_pending'")).scalar_one()
        tx.connection.execute(text("DROP TABLE audit_pending"))
        tx.connection.execute(text(sql.replace("PRIMARY KEY (event_id)", "PRIMARY KEY (event_id) ON CONFLICT IGNORE")))
    assert "conflict clause of audit_pending" in problem(store)


def test_a_new_database_has_exactly_the_expected_triggers(store: Store) -> None:
    with store.read() as tx:
        assert append_only.find_problem(tx) is None
        assert set(append_only.triggers(tx.dialect.name)) == set(append_only._found(tx))


def test_what_an_auditor_has_kept_is_compared(store: Store) -> None:
    sealed(store, 5)
    made = checkpoint(store, KEY)
    first = audit.verify(store)
    kept = Kept(heads={5: first.head}, roots={5: made.root})
    record(store, 4)
    audit.seal(store)
    assert audit.verify(store, kept=kept).valid
    assert "head over the first 5" in problem(store, kept=Kept(heads={5: "f" * 64}))
    assert "checkpoint that was kept" in problem(store, kept=Kept(roots={4: made.root}))
    assert "kept head of 10 events exists" in problem(store, kept=Kept(heads={10: "f" * 64}))
    assert "kept checkpoint of 10 events exists" in problem(store, kept=Kept(roots={10: "f" * 64}))
    assert "empty log" in problem(store, kept=Kept(heads={0: "f" * 64}))


def test_a_rewrite_of_everything_with_the_key_is_found_by_what_was_kept(store: Store) -> None:
    victim = sealed(store)[2]
    made = checkpoint(store, KEY)
    with hostile_admin(store) as tx:
        tx.connection.execute(update(audit_events).where(audit_events.c.id == victim).values(actor="mallory"))
        tx.connection.execute(delete(audit_checkpoints))
        rebuild(tx)
    checkpoint(store, KEY)
    assert audit.verify(store, keys=[KEY.public]).valid
    assert "checkpoint that was kept" in problem(store, kept=Kept(roots={5: made.root}))


def test_what_is_marked_as_unsealable_by_somebody_is_reported(store: Store) -> None:
    (one,) = record(store, 1)
    with store.write() as tx:
        tx.connection.execute(update(audit_pending).values(unsealable=True))
        assert tx.connection.execute(select(func.count()).select_from(audit_pending)).scalar_one() == 1
    assert audit.seal(store) == 0
    assert one in problem(store)
