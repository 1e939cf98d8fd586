import json
import os
from pathlib import Path

import pytest

from kneo.cli.files import read_bytes, write_secret, write_whole
from kneo.cli.repository import KnownRoots
from kneo.digest import digest_of
from kneo.errors import Conflict, Invalid, NotFound


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_secret_is_private_from_its_first_moment_and_never_overwritten(tmp_path: Path):
    old = os.umask(0)
    try:
        path = tmp_path / "keys" / "release.pem"
        write_secret(path, b"first")
    finally:
        os.umask(old)
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    with pytest.raises(Conflict):
        write_secret(path, b"second")
    assert path.read_bytes() == b"first"


def test_a_secret_does_not_follow_a_link(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Conflict):
        write_secret(tmp_path / "link", b"secret")
    assert not (tmp_path / "elsewhere").exists()


def test_writing_whole_leaves_no_draft_behind(tmp_path: Path):
    write_whole(tmp_path / "a" / "b.json", b"1")
    write_whole(tmp_path / "a" / "b.json", b"2")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.json"]
    assert (tmp_path / "a" / "b.json").read_bytes() == b"2"
    assert mode(tmp_path / "a" / "b.json") == 0o644
    with pytest.raises(Invalid):
        write_whole(tmp_path / "a" / "b.json" / "c", b"3")


def test_reading_is_bounded_and_names_the_file(tmp_path: Path):
    (tmp_path / "big").write_bytes(b"x" * 11)
    with pytest.raises(Invalid, match="larger than 10 bytes"):
        read_bytes(tmp_path / "big", max_bytes=10)
    with pytest.raises(NotFound, match="no bundle at"):
        read_bytes(tmp_path / "none", max_bytes=10, what="bundle")
    with pytest.raises(Invalid):
        read_bytes(tmp_path, max_bytes=10)


def test_pins_are_kept_by_resolved_path(tmp_path: Path):
    store = tmp_path / "home" / "known_roots.json"
    repository, link = tmp_path / "config", tmp_path / "link"
    repository.mkdir()
    link.symlink_to(repository)
    first, second = digest_of(b"1"), digest_of(b"2")
    roots = KnownRoots(store)
    assert roots.lookup(repository) is None
    roots.remember(repository, first)
    roots.remember(tmp_path / "other", second)
    assert mode(store) == 0o600
    assert KnownRoots(store).lookup(link) == first
    assert json.loads(store.read_text()) == {str(repository): first, str(tmp_path / "other"): second}
    roots.forget(repository)
    assert roots.lookup(repository) is None
    assert roots.lookup(tmp_path / "other") == second


@pytest.mark.parametrize("content", ["[]", "{", '{"/a": 1}', '{"/a": "sha256:zz"}', '{"/a":"x","/a":"y"}'])
def test_a_damaged_pin_is_not_a_missing_pin(content: str, tmp_path: Path):
    store = tmp_path / "known_roots.json"
    store.write_text(content)
    with pytest.raises(Invalid):
        KnownRoots(store).lookup(Path("/a"))
    with pytest.raises(Invalid):
        KnownRoots(store).remember(tmp_path, digest_of(b"1"))
    assert store.read_text() == content
