"""The key that a service makes for itself is written whole, to a file of its own that nobody else can read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from os import getpid
from pathlib import Path

from kneo.settings import from_env
from kneo.store.service_key import service_key


def test_files_and_links_put_there_before_are_not_written_to(tmp_path: Path) -> None:
    folder, victim = tmp_path / ".kneo", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("mine")
    for number in range(getpid() - 5, getpid() + 6):
        planted = folder / f"service_key.pem.{number}"
        planted.symlink_to(victim) if number % 2 else planted.write_text("readable")
    key = service_key(from_env({}, tmp_path))
    assert victim.read_text() == "mine"
    made = folder / "service_key.pem"
    assert (made.stat().st_mode & 0o777, made.stat().st_nlink) == (0o600, 1)
    assert service_key(from_env({}, tmp_path)).keyid == key.keyid


def test_of_several_that_begin_at_once_one_key_is_left(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        keys = list(threads.map(lambda _: service_key(from_env({}, tmp_path)).keyid, range(8)))
    assert len(set(keys)) == 1
    assert [path.name for path in (tmp_path / ".kneo").iterdir()] == ["service_key.pem"]
