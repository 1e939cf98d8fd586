"""Sealed bodies of journals: unreadable in the database, bound to their rows, opened by each key that is given."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_runs import AgentRuns
from model_server import Call, Reply, model_server
from sqlalchemy import select, update

from kneo.clock import ManualClock, SystemClock
from kneo.errors import Invalid, Untrusted
from kneo.records.conversation import ConversationEntry, EntryKind, EntryStatus
from kneo.records.run import RunStatus
from kneo.runtime.steps.code import CodeUnavailable
from kneo.store import agent_journal
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.store.tables import agent_journal as table
from kneo.trust.sealing import SEALED, DataKeys, JournalSealed

OLD, NEW = b"o" * 32, b"n" * 32
SECRET = "a very private sentence"


def entry(text: str = SECRET, name: str = "model:1") -> ConversationEntry:
    return ConversationEntry(
        conversation="draft~0",
        name=name,
        number=1,
        kind=EntryKind.MODEL,
        status=EntryStatus.DONE,
        body={"messages": [text]},
        started_at="2026-01-31T00:00:00Z",
    )


@pytest.fixture
def sealed(migrated_url: str, clock: ManualClock) -> Iterator[Store]:
    store = open_store(migrated_url, clock, data_keys=DataKeys([OLD]))
    yield store
    store.close()


def write(store: Store, *entries: ConversationEntry, run: str = "run_1") -> None:
    with store.write() as tx:
        agent_journal.append(tx, run, entries)


def load(store: Store, run: str = "run_1") -> tuple[ConversationEntry, ...]:
    with store.read() as tx:
        return agent_journal.load(tx, run, "draft~0")


def bodies(store: Store) -> list[bytes]:
    with store.read() as tx:
        return [bytes(row.body) for row in tx.connection.execute(select(table.c.body).order_by(table.c.key))]


@pytest.mark.parametrize("text", [SECRET, SECRET * 1_000], ids=["short", "compressed"])
def test_a_body_is_unreadable_in_the_database(sealed: Store, text: str) -> None:
    write(sealed, entry(text))
    [body] = bodies(sealed)
    assert body[:1] == SEALED
    assert SECRET.encode() not in body
    assert load(sealed)[0].body == {"messages": [text]}
    if sealed.is_sqlite:
        path = Path(str(sealed.engine.url.database))
        sealed.close()
        assert all(SECRET.encode() not in file.read_bytes() for file in path.parent.glob(f"{path.name}*"))


def test_a_new_key_seals_and_the_old_one_still_opens(sealed: Store, migrated_url: str, clock: ManualClock) -> None:
    write(sealed, entry())
    both = open_store(migrated_url, clock, data_keys=DataKeys([NEW, OLD]))
    only_new = open_store(migrated_url, clock, data_keys=DataKeys([NEW]))
    without = open_store(migrated_url, clock)
    try:
        write(both, entry(name="model:2"))
        assert [each.body["messages"] for each in load(both)] == [[SECRET], [SECRET]]
        for store in (sealed, only_new, without):
            with pytest.raises(JournalSealed):
                load(store)
        with without.read() as tx:
            assert len(agent_journal.list_facts(tx, "run_1")) == 2, "facts are no content"
    finally:
        for store in (both, only_new, without):
            store.close()


def test_plain_entries_from_before_stay_readable(migrated_url: str, clock: ManualClock, sealed: Store) -> None:
    plain = open_store(migrated_url, clock)
    write(plain, entry())
    plain.close()
    assert load(sealed) == (entry(),)


def test_a_body_is_bound_to_its_row(sealed: Store) -> None:
    write(sealed, entry("one"), entry("two", name="model:2"))
    first, second = bodies(sealed)
    with sealed.write() as tx:
        tx.connection.execute(update(table).where(table.c.body == first).values(body=second))
    with pytest.raises(Untrusted) as refused:
        load(sealed)
    assert refused.value.code == "journal_tampered"


def test_a_fork_gets_copies_that_are_sealed_for_it(sealed: Store) -> None:
    write(sealed, entry())
    with sealed.write() as tx:
        agent_journal.copy(tx, "run_1", "run_2", ["draft"])
    assert load(sealed, "run_2") == load(sealed, "run_1")
    assert len(set(bodies(sealed))) == 2


@pytest.mark.parametrize("text", ["short", "bm90IGEga2V5", "é", ",".join([base64.b64encode(OLD).decode()] * 21)])
def test_what_is_no_key_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(Invalid) as refused:
        DataKeys.read(text)
    assert text not in refused.value.message


def test_keys_are_read_from_text() -> None:
    keys = DataKeys.read(f" {base64.b64encode(NEW).decode()} , {base64.b64encode(OLD).decode()}")
    assert keys.open(DataKeys([OLD]).seal(b"{}", b"place"), b"place") == b"{}"
    assert DataKeys.read("").seal(b"{}", b"place") == b"{}"


def test_a_run_waits_for_a_worker_that_has_its_key(
    migrated_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = [Reply(calls=[Call("pay", {"amount": 5})]), Reply("Done.")]
    with model_server(replies) as server:
        stores = [open_store(migrated_url, SystemClock(), data_keys=DataKeys([key])) for key in (OLD, NEW)]
        here, elsewhere = (AgentRuns(store, tmp_path / "code", server, monkeypatch) for store in stores)
        elsewhere.module, elsewhere.log, elsewhere.code = here.module, here.log, here.code
        run = here.drive(here.begin())
        [task] = here.open(run)
        here.decide(task, "approved")
        requests = len(server.requests)
        with pytest.raises(CodeUnavailable) as released:
            elsewhere.drive(run)
        assert released.value.code == "journal_sealed"
        assert elsewhere.look(run).status is RunStatus.RUNNING
        assert (here.notes(), len(server.requests)) == ([], requests)
        assert here.drive(run).status is RunStatus.SUCCEEDED
        assert here.notes() == ["pay 5"]
        for store in stores:
            store.close()


def test_no_part_of_a_conversation_is_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kneo.sqlite"
    store = open_store(f"sqlite:///{path}", SystemClock(), data_keys=DataKeys([OLD]))
    replies = [Reply("thinking about zebras", calls=[Call("look", {"id": "giraffes"})]), Reply("Done.")]
    with model_server(replies) as server:
        agents = AgentRuns(store, tmp_path / "code", server, monkeypatch)
        run = agents.drive(agents.begin())
    assert run.status is RunStatus.SUCCEEDED
    assert any("giraffes" in json.dumps(dict(each.body)) for each in agents.journal(run))
    store.close()
    content = path.read_bytes()
    assert b"zebras" not in content
    assert b"giraffes" not in content
