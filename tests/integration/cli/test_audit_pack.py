"""``kneo audit pack``: one archive that an auditor verifies on a machine without the service, its database or its repository."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from config_house import RULES, House, released
from kneo_process import Desk
from service_bench import Json

from kneo.api.audit_pack import write_pack
from kneo.clock import parse_time
from kneo.errors import KneoError
from kneo.records.audit import EMPTY_ROOT, Frontier, edge_of, parent_of
from kneo.store.audit_pack import PackReader
from kneo.store.service_key import service_key
from kneo.trust.checkpoint import make_checkpoint, read_checkpoint
from kneo.trust.keys import PrivateKey, PublicKey

REASON = "Too | long\nfor `us`"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A service with an approved release, a hold, and a decision of a person in a run of prod."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RULES, "inlineSpecs", True)
        with released(tmp_path_factory.mktemp("pack"), workers=4) as house:
            house.enforce()
            house.approve(house.release())
            house.bench.post("/environments/prod/reconcile", role="operator")
            house.bench.post("/environments/prod/hold", {"bundle": "announcement", "reason": REASON}, role="operator")
            house.bench.answer(house.bench.paused(environment="prod"))
            yield house


@pytest.fixture(scope="module")
def archive(house: House, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(house, tmp_path_factory.mktemp("archive") / "prod.zip")


@pytest.fixture
def auditor(house: House, tmp_path: Path) -> Desk:
    desk = Desk(tmp_path / "auditor", f"sqlite:///{tmp_path / 'none.sqlite'}")
    (desk.folder / "service.pem").write_text(str(house.bench.get("/receipts/key")["key"]))
    (desk.folder / "other.pem").write_text(PrivateKey.generate().public.pem)
    return desk


def made(house: House, path: Path, since: str | None = None, environment: str = "prod") -> Path:
    with path.open("w+b") as stream:
        key = service_key(house.bench.settings)
        write_pack(house.bench.store, key, stream, environment, since=parse_time(since) if since else None)
    return path


def verify(auditor: Desk, archive: Path, *options: str, expect: int = 0) -> Json:
    return auditor.json("audit", "verify", "--pack", str(archive), "--key", "service.pem", *options, expect=expect)


def changed(archive: Path, target: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    """Copy a pack with one file changed."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w") as copy:
        for entry in source.namelist():
            data = source.read(entry)
            copy.writestr(entry, change(data) if entry == name else data)
    return target


def test_a_pack_is_verified_with_the_public_key_alone(house: House, archive: Path, auditor: Desk) -> None:
    verdict = verify(auditor, archive, "--trust-root", house.repo.pin)
    assert verdict["valid"] is True, verdict
    assert (verdict["first"], verdict["root_before"], verdict["trust_root"]) == (1, EMPTY_ROOT, house.repo.pin)
    promotions = house.bench.get("/environments/prod/history")["promotions"]
    assert (verdict["promotions"], verdict["decisions"]) == (len(promotions), 1)
    assert not (auditor.folder.parent / "none.sqlite").exists()
    said = auditor.kneo("audit", "verify", "--pack", str(archive), "--key", "service.pem")
    assert "complete" in said.stdout
    assert f"Check the digest of the first trust root, {house.repo.pin}" in (said.stdout + said.stderr).replace(
        "\n", " "
    )


def test_the_summary_says_who_approved_what_and_who_intervened(house: House, archive: Path) -> None:
    with zipfile.ZipFile(archive) as pack:
        summary, report = json.loads(pack.read("summary.json")), pack.read("report.md").decode()
        names = set(pack.namelist())
    newest = summary["releases"][-1]
    assert (newest["bundle"], newest["approvals"]) == ("announcement", ["approver"])
    assert newest["commit"] == f"main@sha1:{house.repo.head()}"
    assert f"bundles/{newest['digest'].removeprefix('sha256:')}.dsse.json" in names
    assert [one["decision"] for one in summary["decisions"]] == ["approved"]
    assert [(one["event"], one["by"], one["reason"]) for one in summary["break_glass"]] == [
        ("hold.set", "operator", REASON)
    ]
    assert any(one["event"] == "environment.changed" for one in summary["rules"])
    assert "Too \\| long\\u000afor `us`" in report, "a reason is one cell of its table"


@pytest.mark.parametrize("name", ["events.jsonl", "decisions.jsonl", "promotions.jsonl", "report.md", "checkpoint.txt"])
def test_a_changed_file_is_named(archive: Path, auditor: Desk, tmp_path: Path, name: str) -> None:
    tampered = changed(archive, tmp_path / "changed.zip", name, lambda data: data.replace(b"a", b"b", 1))
    refused = verify(auditor, tampered, expect=3)
    assert refused["error"] in {"PackTampered", "SignatureInvalid"}
    assert name in refused["message"] or name == "checkpoint.txt"


def test_a_damaged_archive_is_refused(archive: Path, auditor: Desk, tmp_path: Path) -> None:
    """Each byte of each header: names, flags that claim a password, methods of compression."""
    key = PublicKey.load((auditor.folder / "service.pem").read_bytes())
    whole, damaged = archive.read_bytes(), tmp_path / "damaged.zip"
    with zipfile.ZipFile(archive) as pack:
        headers = [entry.header_offset + at for entry in pack.infolist() for at in range(30)]
    refused: Counter[str] = Counter()
    for position in [*headers, *range(len(whole) - 400, len(whole))]:
        damaged.write_bytes(whole[:position] + bytes([whole[position] ^ 0x41]) + whole[position + 1 :])
        try:
            reader = PackReader(damaged, [key])
            for name in reader.index.files:
                reader.read(name)
        except KneoError as error:
            refused[error.code] += 1
    assert refused["PackTampered"] > 100
    assert refused["Malformed"] > 20


def test_a_removed_or_added_file_and_another_key_are_refused(archive: Path, auditor: Desk, tmp_path: Path) -> None:
    more = shutil.copy(archive, tmp_path / "more.zip")
    with zipfile.ZipFile(more, "a") as pack:
        pack.writestr("notes.txt", "hello")
    assert verify(auditor, more, expect=3)["error"] == "PackTampered"
    refused = auditor.json("audit", "verify", "--pack", str(archive), "--key", "other.pem", expect=3)
    assert refused["error"] == "SignatureInvalid"
    (tmp_path / "text.zip").write_text("no archive")
    assert verify(auditor, tmp_path / "text.zip", expect=1)["error"] == "Malformed"
    assert verify(auditor, tmp_path / "none.zip", expect=4)["error"] == "not_found"


def test_a_later_pack_continues_what_the_auditor_kept(
    house: House, archive: Path, auditor: Desk, tmp_path: Path
) -> None:
    note = str(house.bench.get("/audit/checkpoint", role="auditor")["note"])
    (auditor.folder / "kept.txt").write_text(note)
    since = house.bench.store.clock.now().isoformat()
    house.bench.post("/environments/prod/hold", {"bundle": "announcement", "reason": "Later"}, role="operator")
    later = made(house, tmp_path / "later.zip", since)
    verdict = verify(auditor, later, "--checkpoint", "kept.txt")
    assert verdict["valid"] is True
    kept = read_checkpoint(note, service_key(house.bench.settings).public)
    assert (verdict["first"], verdict["root_before"]) == (kept.size + 1, kept.root)
    with zipfile.ZipFile(later) as pack:
        assert "hold.set" in pack.read("events.jsonl").decode()


def test_a_pack_of_another_log_than_the_kept_one_is_refused(archive: Path, auditor: Desk, house: House) -> None:
    key = service_key(house.bench.settings)
    (auditor.folder / "kept.txt").write_text(make_checkpoint("kneo", 3, "ab" * 32, key))
    refused = verify(auditor, archive, "--checkpoint", "kept.txt", expect=3)
    assert "does not continue the kept checkpoint of 3 events" in str(refused["message"])


def test_there_is_no_pack_of_an_environment_that_does_not_exist(house: House, tmp_path: Path) -> None:
    with pytest.raises(KneoError) as caught:
        made(house, tmp_path / "other.zip", environment="nowhere")
    assert caught.value.code == "environment_not_found"


@pytest.mark.parametrize("size", range(20))
def test_the_edge_of_a_tree_is_what_it_grows_from(size: int) -> None:
    leaves = [f"{number:064x}" for number in range(32)]

    def node(level: int, position: int) -> str:
        if level == 0:
            return leaves[position]
        return parent_of(node(level - 1, 2 * position), node(level - 1, 2 * position + 1))

    whole, continued = Frontier(), Frontier.after(size, edge_of(size, node))
    for leaf in leaves[:size]:
        whole.add(leaf)
    assert continued.root() == whole.root()
    for leaf in leaves[size:]:
        whole.add(leaf)
        continued.add(leaf)
        assert continued.root() == whole.root()


def test_the_command_writes_a_pack_beside_the_database(house: House, tmp_path: Path) -> None:
    environment = {"KNEO_SERV_STATE_DIR": str(house.bench.settings.state_dir)}
    desk = Desk(tmp_path, house.bench.settings.database_url, **environment)
    answer = desk.json("audit", "pack", "--env", "prod", "--since", "90d", "--output", "prod.zip")
    assert (tmp_path / "prod.zip").is_file()
    assert answer["releases"]
    desk.json("audit", "pack", "--env", "nowhere", "--output", "nowhere.zip", expect=4)
    refused = desk.json("audit", "pack", "--env", "prod", "--since", "2026-01-02", "--until", "2026-01-01", expect=2)
    assert "not before" in str(refused["message"])
    assert sorted(path.name for path in tmp_path.iterdir() if "nowhere" in path.name) == []
