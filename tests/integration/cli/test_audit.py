"""``kneo audit``, as an auditor uses it: what a service says is checked, and what was kept is compared."""

from __future__ import annotations

import base64
import sqlite3
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from kneo.api.audit import AuditProofView, prove
from kneo.cli.audit import check_proof
from kneo.clock import SystemClock
from kneo.errors import KneoError
from kneo.store import audit
from kneo.store.engine import Store
from kneo.store.migrate import open_store
from kneo.trust.checkpoint import read_checkpoint
from kneo.trust.keys import PrivateKey

KEY, OTHER = PrivateKey.generate(), PrivateKey.generate()


def written(store: Store, count: int = 6, actor: str = "ann") -> None:
    with store.write() as tx:
        for number in range(count):
            audit.record(tx, "release.rejected", actor=actor, environment="prod", metadata={"n": number})
    audit.seal(store)


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A database beside the commands, with events and a service key."""
    url = f"sqlite:///{tmp_path}/kneo.sqlite"
    monkeypatch.setenv("KNEO_SERV_DATABASE_URL", url)
    monkeypatch.setenv("KNEO_SERV_SERVICE_KEY", KEY.dump().decode())
    (tmp_path / "service.pem").write_text(KEY.public.pem)
    (tmp_path / "other.pem").write_text(OTHER.public.pem)
    store = open_store(url, SystemClock())
    written(store)
    yield store
    store.close()


def refused(proof: AuditProofView, seq: int = 3, **more: object) -> str:
    with pytest.raises(KneoError) as caught:
        check_proof(proof, seq, **more)
    return caught.value.code


def test_a_proof_shows_what_is_proved_and_nothing_else(database: Store) -> None:
    honest = prove(database, KEY, 3, None)
    lie = replace(honest.event, actor="mallory", event_type="release.approved")
    forged = replace(honest, event=lie, size=99, root="f" * 64, leaf="e" * 64)
    shown = check_proof(forged, 3, keys=[KEY.public])
    assert (shown["event"]["actor"], shown["event"]["event_type"]) == ("ann", "release.rejected")
    assert (shown["size"], shown["root"], shown["leaf"]) == (6, honest.root, honest.leaf)


def test_lies_about_a_proof_are_refused(database: Store) -> None:
    honest = prove(database, KEY, 3, None)
    other = prove(database, KEY, 5, None)
    assert refused(honest, 5) == "ProofInvalid"
    assert refused(replace(honest, seq=5), 5) == "ProofInvalid"
    assert refused(replace(other, seq=3)) == "ProofInvalid"
    assert refused(replace(honest, canonical=honest.canonical.replace("ann", "bob"))) == "ProofInvalid"
    assert refused(replace(honest, path=honest.path[1:])) == "ProofInvalid"
    assert refused(replace(honest, path=("zz",))) == "Malformed"
    assert refused(replace(honest, path=honest.path * 40)) == "Malformed"
    form = TypeAdapter(AuditProofView)
    for spoiled in ({"path": "x"}, {"seq": "three"}, {"checkpoint": None}, {"canonical": 1}, {"key": 7}):
        with pytest.raises(ValidationError):
            form.validate_python(asdict(honest) | spoiled)


def test_another_log_with_another_key_is_refused_by_the_key_that_was_kept(database: Store) -> None:
    forged = prove(database, OTHER, 3, None)
    assert check_proof(forged, 3)["seq"] == 3
    assert refused(forged, keys=[KEY.public]) == "SignatureInvalid"
    assert check_proof(forged, 3, keys=[KEY.public, OTHER.public])["seq"] == 3


def test_another_log_with_the_same_key_is_refused_by_the_checkpoint_that_was_kept(
    database: Store, tmp_path: Path
) -> None:
    kept = read_checkpoint(prove(database, KEY, 1, None).checkpoint, KEY.public)
    second = open_store(f"sqlite:///{tmp_path}/second.sqlite", SystemClock())
    written(second, actor="mallory")
    forged = prove(second, KEY, 3, None)
    second.close()
    assert check_proof(forged, 3, keys=[KEY.public])["event"]["actor"] == "mallory"
    assert refused(forged, keys=[KEY.public], kept=kept) == "ProofInvalid"
    written(database, 3)
    later = prove(database, KEY, 3, kept.size)
    assert check_proof(later, 3, keys=[KEY.public], kept=kept)["root"] == kept.root


def test_an_auditor_keeps_a_head_and_a_checkpoint_and_compares(kneo, database: Store, tmp_path: Path) -> None:
    first = kneo("audit", "verify", "--json").json
    assert (first["valid"], first["size"], first["signatures"]) == (True, 6, True)
    head = f"{first['size']}:{first['head']}"
    assert head in kneo("audit", "verify").out.replace("\n", "")
    (tmp_path / "kept.txt").write_text(kneo("audit", "checkpoint").out)
    kept = ("--head", head, "--checkpoint", "kept.txt", "--key", "service.pem")
    written(database, 4)
    assert kneo("audit", "verify", *kept).status == 0
    shown = kneo("audit", "prove", "3", "--checkpoint", "kept.txt", "--key", "service.pem", "--json").json
    assert (shown["size"], shown["event"]["actor"]) == (6, "ann")
    assert kneo("audit", "prove", "8", "--checkpoint", "kept.txt", "--key", "service.pem").status == 2
    wrong = kneo("audit", "verify", "--head", f"6:{'f' * 64}", "--json")
    assert (wrong.status, wrong.json["valid"]) == (3, False)
    assert kneo("audit", "verify", "--head", "6:zz").status == 2
    assert kneo("audit", "verify", "--head", head, "--head", f"6:{'f' * 64}").status == 2
    (tmp_path / "no.pem").write_text("no key")
    assert "no.pem" in kneo("audit", "verify", "--key", "no.pem").err
    other = kneo("audit", "prove", "3", "--key", "other.pem", "--json")
    assert (other.status, other.json["error"]) == (3, "SignatureInvalid")


def test_a_checkpoint_that_was_not_signed_is_not_taken(kneo, database: Store, tmp_path: Path) -> None:
    note = kneo("audit", "checkpoint").out
    lines = note.splitlines()
    lines[2] = base64.b64encode(b"x" * 32).decode()
    (tmp_path / "kept.txt").write_text("\n".join(lines) + "\n")
    answer = kneo("audit", "verify", "--checkpoint", "kept.txt", "--key", "service.pem", "--json")
    assert (answer.status, answer.json["error"]) == (3, "SignatureInvalid")
    (tmp_path / "kept.txt").write_text("hello")
    assert (
        kneo("audit", "verify", "--checkpoint", "kept.txt", "--key", "service.pem", "--json").json["error"]
        == "Malformed"
    )
    assert kneo("audit", "prove", "3", "--checkpoint", "kept.txt").status == 2
    assert database.is_sqlite


@pytest.mark.parametrize("gone", [True, False])
def test_the_proof_of_an_event_that_was_removed_or_changed_is_a_clear_error(
    kneo, database: Store, tmp_path: Path, *, gone: bool
) -> None:
    database.disconnect()
    with closing(sqlite3.connect(tmp_path / "kneo.sqlite")) as connection, connection:
        for change in ("update", "delete"):
            connection.execute(f"DROP TRIGGER audit_events_no_{change}")
        which = "id = (SELECT event_id FROM audit_chain WHERE seq = 3)"
        changed = "UPDATE audit_events SET metadata = '{\"n\": 1e400}' WHERE "
        connection.execute(f"{'DELETE FROM audit_events WHERE ' if gone else changed}{which}")
    answer = kneo("audit", "prove", "3", "--json")
    assert (answer.status, answer.json["error"]) == (4, "audit_event_changed")
    assert answer.json["hint"]
