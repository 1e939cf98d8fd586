"""Copies taken under load are whole, come back into either kind of database, and never over one that is in use."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from engine import Engine, step
from gates.asking import answer
from gates.signing import signed, trust
from installation_key import find_key
from sqlalchemy import inspect, text
from sqlalchemy.exc import DBAPIError

from kneo import registry
from kneo.clock import SystemClock
from kneo.errors import Conflict, Invalid, NotFound
from kneo.maintenance import backup, backup_sqlite_database, restore, restore_sqlite_database, vacuum
from kneo.records.run import RunStatus
from kneo.records.sign_in import PushSubscription
from kneo.records.task import DecisionKind
from kneo.service.auth import APIKeyRecord, AuthConfig, keyring
from kneo.service.callers import Callers
from kneo.service.console.session import Sessions, end, make_link
from kneo.service.events import Streams
from kneo.service.metrics import Metrics
from kneo.settings import Settings, from_env
from kneo.store import audit, push_subscriptions, receipts, runs
from kneo.store.adoption import Adoption, adopt
from kneo.store.engine import WORKER_LOCK, Store
from kneo.store.migrate import open_store
from kneo.tasks import links
from kneo.tasks.decisions import DecisionRequest
from kneo.trust.answer import ReviewerKeys
from kneo.trust.dsse import parse_envelope
from kneo.trust.keys import PrivateKey
from kneo.trust.receipt import ReceiptFile
from kneo.trust.receipt_check import PresentedReceipt, check_receipts
from kneo.trust.record_mac import RecordMacs

HUMAN = {"id": "q", "kind": "human", "ref": "ann"}
SOURCE = "def a(text): return text + '>a'\n"


@pytest.fixture
def engine(store: Store, tmp_path: Path) -> Engine:
    return Engine(store, tmp_path / "code", SOURCE)


@pytest.fixture(params=["sqlite", "postgresql"])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings that name an empty database of each kind."""
    url = f"sqlite:///{tmp_path}/there/kneo.sqlite"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    return replace(from_env({"HOME": str(tmp_path)}, tmp_path), database_url=url)


@pytest.fixture
def load(engine: Engine, store: Store) -> Iterator[Callable[[], int]]:
    """Runs that keep being started and sealed while the test goes on; called, it waits for one more."""
    stopping, done = threading.Event(), threading.Semaphore(0)
    count = 0

    def work() -> None:
        while not stopping.is_set():
            engine.start([step("a"), HUMAN])
            audit.seal(store)
            done.release()

    def one_more() -> int:
        nonlocal count
        assert done.acquire(timeout=240)
        count += 1
        return count

    thread = threading.Thread(target=work)
    thread.start()
    yield one_more
    stopping.set()
    thread.join()


def test_a_copy_taken_under_load_goes_on_elsewhere(
    engine: Engine, load: Callable[[], int], elsewhere: Settings, tmp_path: Path
) -> None:
    paused, begun = engine.run([step("a"), HUMAN]), engine.start([step("a")])
    with engine.store.write() as tx:
        assert runs.acquire(tx, begun.id, "somebody who is dead by then") is not None
    for _ in range(3):
        load()
    kept = tmp_path / "backups" / "kneo.sqlite"
    copied = backup(engine.store, kept)
    load()
    assert copied["audit"]["valid"]
    assert kept.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in kept.parent.iterdir()] == [kept.name]

    assert restore(elsewhere, kept) == {"source": str(kept), "audit": copied["audit"]}
    with closing(open_store(elsewhere.database_url, SystemClock(), find_key)) as store:
        engine.store = store
        assert audit.verify(store, waiting=None).valid
        assert engine.answer(engine.open(paused)[0], "approved")
        assert engine.drive(paused).output_text == "in>a"
        assert engine.drive(begun).status is RunStatus.SUCCEEDED
        audit.seal(store)
        assert audit.verify(store).size > copied["audit"]["size"]


def test_every_row_comes_back_as_it_was(engine: Engine, elsewhere: Settings, tmp_path: Path) -> None:
    run = engine.run([step("a"), HUMAN])
    backup(engine.store, tmp_path / "copy")
    restore(elsewhere, tmp_path / "copy")
    with closing(open_store(elsewhere.database_url, SystemClock())) as store:
        backup(store, tmp_path / "again")
        with store.read() as tx, engine.store.read() as before:
            assert runs.get(tx, run.id) == runs.get(before, run.id)
    first, second = (sqlite3.connect(tmp_path / name) for name in ("copy", "again"))
    with closing(first), closing(second):
        names = [row[0] for row in first.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for name in names:
            rows = [sorted(map(repr, file.execute(f"SELECT * FROM {name}"))) for file in (first, second)]
            if name == "runs":  # Nobody drives them any more.
                rows = [len(found) for found in rows]
            assert rows[0] == rows[1], name


def test_proof_comes_back_and_goes_on_and_links_do_not(migrated_url: str, elsewhere: Settings, tmp_path: Path) -> None:
    service, key_of_old = PrivateKey.generate(), PrivateKey.generate()
    with closing(open_store(migrated_url, SystemClock(), lambda: key_of_old)) as store:
        engine = Engine(store, tmp_path / "code", SOURCE)
        trust(store)
        run = engine.run([HUMAN, {**HUMAN, "id": "r"}, {**HUMAN, "id": "s"}], ann={"description": "Fine?"})
        first = engine.open(run)[0]
        answer(store, first, "ann", statement=signed(store, first, "ann"))
        engine.drive(run)
        with store.write() as tx:
            _, token = links.make_link(tx, engine.open(run)[0].id, "ben", actor="ann")
        backup(store, tmp_path / "copy")
        # What the copy knows nothing of.
        links.answer(
            store, token, DecisionRequest(request_id=engine.open(run)[0].request_id, decision=DecisionKind.APPROVED)
        )
    restore(elsewhere, tmp_path / "copy")
    with closing(open_store(elsewhere.database_url, SystemClock(), lambda: service)) as store:
        adopt(store, Adoption(former=[RecordMacs(lambda: key_of_old)]))
        engine.store = store
        second = engine.open(run)[0]
        said = DecisionRequest(request_id=second.request_id, decision=DecisionKind.APPROVED)
        with pytest.raises(NotFound):
            links.answer(store, token, said)
        with store.write() as tx:
            _, token = links.make_link(tx, second.id, "ben", actor="ann")
        links.answer(store, token, said)
        with store.read() as tx:
            kept = receipts.of_run(tx, run.id)
            root = registry.trust_root(tx, None)
    handed = tuple(
        PresentedReceipt(
            envelope=parse_envelope(one.envelope),
            statements=tuple(parse_envelope(text.encode()) for text in one.statements),
        )
        for one in kept
    )
    # What was proved before is, with the key of before; what is decided now goes on from there.
    reviewers = ReviewerKeys(keys=root.keys, void=root.void)
    chain = check_receipts(ReceiptFile(handed, is_chain=True), [key_of_old.public, service.public], reviewers)
    assert (chain.problems, [one.signed_by for one in chain.checked]) == ((), [("ann",), ()])
    assert not check_receipts(ReceiptFile(handed, is_chain=True), [service.public]).valid


def test_sign_ins_that_ended_after_the_backup_do_not_come_back(
    migrated_url: str, elsewhere: Settings, tmp_path: Path
) -> None:
    keys = keyring(AuthConfig(True, (APIKeyRecord("ann", "ann-key", roles=("admin",)),)))

    def person(store: Store, session: str | None) -> str | None:
        found = Sessions(store, Callers(keys)).find({"kneo_session": str(session)}, secure=False)
        return found.principal.name if found else None

    with closing(open_store(migrated_url, SystemClock())) as store:
        sessions = Sessions(store, Callers(keys))
        session, other = (sessions.sign_in_with_key("ann-key", "::1") for _ in range(2))
        link = str(make_link(store, keys, operator="op")).rpartition("/")[2]
        signed_in = sessions.find({"kneo_session": str(session)}, secure=False)
        assert signed_in is not None
        with store.write() as tx:
            push_subscriptions.lock(tx)
            push_subscriptions.put(tx, subscription(str(signed_in.token_hash), tx.at), replaced="")
        backup(store, tmp_path / "copy")
        # What the copy knows nothing of.
        end(store, signed_in)
        assert (person(store, session), person(store, other)) == (None, "ann")
        assert sessions.sign_in_with_link(link, "::1") is not None
    restore(elsewhere, tmp_path / "copy")
    with closing(open_store(elsewhere.database_url, SystemClock())) as store:
        assert [person(store, each) for each in (session, other)] == [None, None]
        assert Sessions(store, Callers(keys)).sign_in_with_link(link, "::1") is None
        with store.read() as tx:
            assert not push_subscriptions.exist(tx)
        assert person(store, Sessions(store, Callers(keys)).sign_in_with_key("ann-key", "::1")) == "ann"


def subscription(session_hash: str, at: str) -> PushSubscription:
    return PushSubscription(
        id="psh_1",
        browser_hash="browser",
        session_hash=session_hash,
        person="ann",
        key_hash=None,
        endpoint="https://push.example/1",
        p256dh="B",
        auth="A",
        created_at=at,
    )


def test_a_database_in_use_is_left_alone(engine: Engine, tmp_path: Path) -> None:
    url = engine.store.engine.url.render_as_string(hide_password=False)
    settings = replace(from_env({"HOME": str(tmp_path)}, tmp_path), database_url=url)
    run = engine.run([HUMAN])
    backup(engine.store, tmp_path / "copy")
    with engine.store.shared(WORKER_LOCK), pytest.raises(Conflict) as refused:
        restore(settings, tmp_path / "copy", replace=True)
    assert refused.value.code == "store_in_use"
    with pytest.raises(Conflict):
        restore(settings, tmp_path / "copy")
    assert engine.look(run).status is RunStatus.PAUSED
    if engine.store.is_sqlite:
        engine.start([HUMAN])
        engine.store.close()
        restore(settings, tmp_path / "copy", replace=True)
        with closing(open_store(url, SystemClock())) as store, store.read() as tx:
            assert [found.id for found in runs.list_runs(tx)] == [run.id]


def test_what_is_no_whole_backup_changes_nothing(sqlite_url: str, elsewhere: Settings, tmp_path: Path) -> None:
    other, broken, edited = tmp_path / "other", tmp_path / "broken", tmp_path / "edited"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE t (x)")
    broken.write_bytes(b"not a database " * 1000)
    with closing(open_store(sqlite_url, SystemClock())) as store:
        with store.write() as tx:
            audit.record(tx, "run.created", actor="ann")
        audit.seal(store)
        backup(store, edited)
        backup(store, tmp_path / "newer")
    with closing(sqlite3.connect(edited)) as connection, connection:
        connection.execute("DROP TRIGGER audit_events_no_update")
        connection.execute("UPDATE audit_events SET actor = 'bob'")
    with closing(sqlite3.connect(tmp_path / "newer")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'kneo_9999'")
    for name, code in (
        ("other", "backup_damaged"),
        ("broken", "backup_damaged"),
        ("edited", "backup_damaged"),
        ("newer", "schema_too_new"),
    ):
        with pytest.raises(Invalid) as refused:
            restore(elsewhere, tmp_path / name)
        assert refused.value.code == code
    with pytest.raises(NotFound):
        restore(elsewhere, tmp_path / "none")
    if elsewhere.database_url.startswith("sqlite"):
        there = Path(elsewhere.database_url.removeprefix("sqlite:///"))
        assert not any(there.parent.glob("*"))


@pytest.mark.parametrize("at", [100, 3 * 4096, 40 * 4096])
def test_a_backup_with_a_damaged_page_is_refused(sqlite_url: str, elsewhere: Settings, tmp_path: Path, at: int) -> None:
    with closing(open_store(sqlite_url, SystemClock())) as store:
        backup(store, tmp_path / "copy")
    with (tmp_path / "copy").open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * 3000)
    with pytest.raises(Invalid) as refused:
        restore(elsewhere, tmp_path / "copy")
    assert refused.value.code == "backup_damaged"


CRAFTED = {
    "a trigger that swallows approvals": (
        """CREATE TRIGGER t BEFORE INSERT ON audit_events WHEN NEW.event_type = 'release.approved'
        BEGIN SELECT RAISE(IGNORE); END""",
    ),
    "a trigger that deletes holds": ("CREATE TRIGGER t AFTER INSERT ON holds BEGIN DELETE FROM holds; END",),
    "a view in the place of a table": (
        "ALTER TABLE audit_pending RENAME TO hidden",
        "CREATE VIEW audit_pending AS SELECT * FROM hidden WHERE 0",
    ),
    "a log that may be changed": (
        "DROP TRIGGER audit_events_no_update",
        "DROP TRIGGER audit_chain_no_delete",
        "DROP TRIGGER receipts_no_update",
    ),
    "a table that drops rows": (
        "DROP TABLE audit_pending",
        "CREATE TABLE audit_pending (event_id TEXT PRIMARY KEY ON CONFLICT IGNORE, unsealable BOOLEAN DEFAULT 0)",
    ),
    "a table of its own": ("CREATE TABLE loot (x)", "INSERT INTO loot VALUES (1)"),
}


@pytest.mark.parametrize("what", CRAFTED)
def test_of_a_crafted_backup_only_the_rows_come_back(
    sqlite_url: str, elsewhere: Settings, tmp_path: Path, what: str
) -> None:
    crafted = tmp_path / "crafted"
    with closing(open_store(sqlite_url, SystemClock())) as store:
        with store.write() as tx:
            audit.record(tx, "run.created", actor="ann")
        audit.seal(store)
        backup(store, crafted)
    with closing(sqlite3.connect(crafted)) as connection, connection:
        for statement in CRAFTED[what]:
            connection.execute(statement)
    assert restore(elsewhere, crafted)["audit"]["size"] == 1
    with closing(open_store(elsewhere.database_url, SystemClock())) as store:
        assert audit.verify(store).valid
        with store.write() as tx:
            audit.record(tx, "release.approved", actor="ben")
            tx.connection.execute(
                text("INSERT INTO holds (environment, bundle, actor, reason, since) VALUES ('e', 'b', 'a', 'r', 's')")
            )
        assert audit.seal(store) == 1
        with store.read() as tx:
            assert tx.connection.execute(text("SELECT count(*) FROM holds")).scalar_one() == 1
            tables = inspect(tx.connection).get_table_names()
        assert "loot" not in tables
        assert "hidden" not in tables
        for table in ("audit_events", "audit_chain"):
            with pytest.raises(DBAPIError, match="append-only"), store.write() as tx:
                tx.connection.execute(text(f"DELETE FROM {table}"))
    if elsewhere.database_url.startswith("sqlite"):
        there = Path(elsewhere.database_url.removeprefix("sqlite:///"))
        assert {file.name for file in there.parent.iterdir()} <= {there.name, f"{there.name}-wal", f"{there.name}-shm"}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE runs SET metadata = 'no JSON'",
        "INSERT INTO holds (environment, bundle, actor, reason, since) VALUES (NULL, 'b', 'a', 'r', 's')",
    ],
)
def test_rows_that_no_database_of_ours_has_are_refused(
    engine: Engine, elsewhere: Settings, tmp_path: Path, statement: str
) -> None:
    engine.run([HUMAN])
    backup(engine.store, tmp_path / "spoiled")
    with closing(sqlite3.connect(tmp_path / "spoiled")) as connection, connection:
        connection.execute("CREATE TABLE other AS SELECT * FROM holds")
        connection.execute("DROP TABLE holds")
        connection.execute("ALTER TABLE other RENAME TO holds")
        connection.execute(statement)
    with pytest.raises(Invalid) as refused:
        restore(elsewhere, tmp_path / "spoiled")
    assert refused.value.code == "backup_damaged"


def test_the_published_names(tmp_path: Path) -> None:
    source, copy, back = tmp_path / "a.sqlite", tmp_path / "copies" / "a.sqlite", tmp_path / "b.sqlite"
    open_store(f"sqlite:///{source}", SystemClock()).close()
    for call, target in ((backup_sqlite_database, copy), (restore_sqlite_database, back)):
        found = source if call is backup_sqlite_database else copy
        expected = {"source": str(found), "destination": str(target)}
        assert call(found, target) == expected | {"bytes_copied": target.stat().st_size}
    for call in (backup_sqlite_database, restore_sqlite_database):
        with pytest.raises(NotFound):
            call(tmp_path / "none", back)
        with pytest.raises(Invalid):
            call(source, source)


def test_space_is_given_back(engine: Engine) -> None:
    answer = vacuum(engine.store)
    assert answer["bytes_after"] > 0
    if engine.store.is_sqlite:
        with engine.store.write() as tx:
            tx.connection.execute(text("CREATE TABLE big AS SELECT zeroblob(1000000) AS x"))
        with engine.store.write() as tx:
            tx.connection.execute(text("DROP TABLE big"))
        answer = vacuum(engine.store)
        assert answer["bytes_before"] - answer["bytes_after"] > 900_000


def test_a_finished_backup_is_recorded_for_the_metric(store: Store, tmp_path: Path) -> None:
    def recorded() -> float:
        text = Metrics(store, Streams(1, 1, 1.0)).text().decode()
        (line,) = [line for line in text.splitlines() if line.startswith("kneo_backup_last_success_timestamp ")]
        return float(line.split()[1])

    assert recorded() == 0
    with pytest.raises(FileExistsError):
        backup(store, Path("/dev/null/copy.sqlite"))
    assert recorded() == 0
    began = store.clock.now().timestamp()
    backup(store, tmp_path / "copy.sqlite")
    assert recorded() >= began - 0.001
