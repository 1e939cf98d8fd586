"""A mirror that was damaged, by a full disk or a power cut, is made again; nothing else is a reason to throw one away."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from controller_bench import Bench

from kneo.clock import ManualClock
from kneo.controller import metrics
from kneo.controller.source.git import MirrorDamaged, SourceLimits
from kneo.controller.source.mirror import REBUILD_EVERY, Mirror
from kneo.controller.stages.report import Ready
from kneo.errors import Invalid, Transient
from kneo.settings import process_environment
from kneo.store.engine import Store


class Origin:
    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.git("init", "-q", "-b", "main")

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        env = {**process_environment("PATH"), "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
        command = ["git", "-C", str(self.path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout.strip()

    def release(self, version: str, size: int = 100) -> str:
        file = self.path / "bundles" / "a" / f"{version}.dsse.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(size).hex().encode())
        self.git("add", "-A")
        self.git("commit", "-qm", version)
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    return Origin(tmp_path / "origin")


@pytest.fixture
def open_mirror(origin: Origin, tmp_path: Path, clock: ManualClock) -> Callable[[], Mirror]:
    """Opens the mirror as a process that starts does."""
    return lambda: Mirror(str(origin.path), "main", tmp_path / "state", clock=clock)


def follow(mirror: Mirror, base: str | None = None) -> str:
    """Fetch, read and accept what the branch names, as a pass does."""
    snapshot = mirror.fetch(base=base)
    content = snapshot.read(snapshot.files)
    mirror.accept(snapshot)
    assert len(content) == len(snapshot.files) > 0
    return snapshot.commit


def accepted_twice(origin: Origin, mirror: Mirror) -> str:
    origin.release("1.0.0")
    follow(mirror)
    origin.release("1.1.0")
    commit = follow(mirror)
    mirror.close()
    return commit


FILES = {
    "head": "HEAD",
    "config": "config",
    "accepted": "refs/kneo/accepted",
    "candidate": "refs/kneo/candidate",
    "kept": "refs/kneo/keep/*",
    "packs": "objects/pack/*.pack",
    "indexes": "objects/pack/*.idx",
    "promisors": "objects/pack/*.promisor",
    "packed refs": "packed-refs",
}
FOLDERS = ("refs", "objects", "objects/pack", ".")


def overwrite(file: Path) -> None:
    file.chmod(0o600)
    file.write_bytes(b"\x13 not what it was\n" * 20)


def empty(file: Path) -> None:
    file.chmod(0o600)
    file.write_bytes(b"")


def truncate(file: Path) -> None:
    file.chmod(0o600)
    os.truncate(file, file.stat().st_size // 2)


def heals(origin: Origin, open_mirror: Callable[[], Mirror], base: str) -> None:
    """Follow one more commit, as processes do that start again after each failure."""
    newest = origin.release("1.2.0")
    for attempt in range(3):
        mirror = open_mirror()
        try:
            assert mirror.poll() == newest
            assert follow(mirror, base) == newest
        except Transient:
            assert attempt < 2
            continue
        finally:
            mirror.close()
        break
    mirror = open_mirror()
    found = mirror.accepted()
    assert found is not None
    assert (found.commit, len(found.read(found.files))) == (newest, 3)
    mirror.close()


@pytest.mark.parametrize("damage", [overwrite, empty, truncate, Path.unlink], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("which", FILES)
def test_a_damaged_file_heals(
    origin: Origin, open_mirror: Callable[[], Mirror], which: str, damage: Callable[[Path], None]
) -> None:
    mirror = open_mirror()
    base = accepted_twice(origin, mirror)
    if which == "packed refs":
        subprocess.run(["git", "--git-dir", str(mirror.path), "pack-refs", "--all"], check=True)
    files = sorted(mirror.path.glob(FILES[which]))
    assert files
    for file in files:
        damage(file)
    heals(origin, open_mirror, base)


@pytest.mark.parametrize("which", ["packs", "indexes"])
@pytest.mark.parametrize("damage", [overwrite, empty, Path.unlink], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("number", [0, 1], ids=["first", "second"])
def test_one_damaged_pack_of_several_heals(
    origin: Origin, open_mirror: Callable[[], Mirror], which: str, number: int, damage: Callable[[Path], None]
) -> None:
    mirror = open_mirror()
    base = accepted_twice(origin, mirror)
    damage(sorted(mirror.path.glob(FILES[which]), key=lambda file: file.stat().st_mtime_ns)[number])
    heals(origin, open_mirror, base)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_that_is_gone_heals(origin: Origin, open_mirror: Callable[[], Mirror], folder: str) -> None:
    mirror = open_mirror()
    base = accepted_twice(origin, mirror)
    shutil.rmtree(mirror.path / folder)
    heals(origin, open_mirror, base)


@pytest.mark.parametrize("name", ["gitconfig", "askpass", "lock", "rebuilt"])
@pytest.mark.parametrize("damage", [overwrite, empty], ids=lambda damage: damage.__name__)
def test_a_file_beside_the_mirror_heals(
    origin: Origin, open_mirror: Callable[[], Mirror], name: str, damage: Callable[[Path], None]
) -> None:
    mirror = open_mirror()
    base = accepted_twice(origin, mirror)
    file = mirror.path.with_suffix(".d") / name
    file.touch()
    damage(file)
    heals(origin, open_mirror, base)


@pytest.mark.parametrize("name", ["packed-refs", "refs/kneo/candidate", "refs/kneo/accepted", "shallow", "config"])
def test_a_lock_that_a_killed_git_left_behind_heals(
    origin: Origin, open_mirror: Callable[[], Mirror], name: str
) -> None:
    mirror = open_mirror()
    base = accepted_twice(origin, mirror)
    (mirror.path / f"{name}.lock").touch()
    heals(origin, open_mirror, base)


def test_rebuilding_is_counted_logged_and_keeps_the_damaged_one_aside(
    origin: Origin, open_mirror: Callable[[], Mirror], caplog: pytest.LogCaptureFixture
) -> None:
    mirror = open_mirror()
    base = accepted_twice(origin, mirror)
    empty(mirror.path / "HEAD")
    before = metrics.MIRROR_REBUILT._value.get()
    assert follow(mirror, base) == base
    assert metrics.MIRROR_REBUILT._value.get() == before + 1
    [record] = [record for record in caplog.records if getattr(record, "event", "") == "mirror_rebuilt"]
    assert "not a git repository" in record.getMessage()
    assert (mirror.path.with_suffix(".damaged") / "HEAD").read_bytes() == b""
    mirror.close()


def test_history_is_still_checked_against_what_the_registry_accepted(
    origin: Origin, open_mirror: Callable[[], Mirror]
) -> None:
    mirror = open_mirror()
    base = accepted_twice(origin, mirror)
    empty(mirror.path / "HEAD")
    origin.git("commit", "-q", "--amend", "-m", "Another past")
    with pytest.raises(Invalid) as refused:
        mirror.fetch(base=base)
    assert refused.value.code == "HistoryRewritten"
    mirror.close()


def test_a_mirror_is_made_again_once_an_hour(
    origin: Origin, open_mirror: Callable[[], Mirror], clock: ManualClock
) -> None:
    mirror = open_mirror()
    base = accepted_twice(origin, mirror)
    for _ in range(2):
        empty(mirror.path / "HEAD")
        assert follow(mirror, base) == base
        empty(mirror.path / "HEAD")
        with pytest.raises(MirrorDamaged):
            follow(mirror, base)
        later = open_mirror()
        with pytest.raises(MirrorDamaged):
            follow(later, base)
        clock.advance(REBUILD_EVERY)
        assert follow(later, base) == base
        later.close()
        clock.advance(REBUILD_EVERY)
    mirror.close()


def test_a_host_that_is_away_is_no_reason_to_throw_a_mirror_away(
    origin: Origin, open_mirror: Callable[[], Mirror], tmp_path: Path
) -> None:
    mirror = open_mirror()
    base = accepted_twice(origin, mirror)
    empty(mirror.path / "HEAD")
    origin.path.rename(tmp_path / "away")
    with pytest.raises(Transient):
        mirror.fetch(base=base)
    assert mirror.path.is_dir()
    assert not mirror.path.with_suffix(".damaged").exists()
    (tmp_path / "away").rename(origin.path)
    assert follow(mirror, base) == base
    mirror.close()


def test_a_file_that_is_too_large_is_no_damage(origin: Origin, tmp_path: Path, clock: ManualClock) -> None:
    limits = SourceLimits(blob_bytes=1_000)
    mirror = Mirror(str(origin.path), "main", tmp_path / "state", limits=limits, clock=clock)
    origin.release("1.0.0")
    follow(mirror)
    origin.release("2.0.0", size=2_000)
    for _ in range(2):
        with pytest.raises(Invalid, match=r"2\.0\.0"):
            mirror.fetch()
    assert not mirror.path.with_suffix(".damaged").exists()
    mirror.close()


def test_a_controller_goes_on_with_a_mirror_that_was_damaged(store: Store, tmp_path: Path) -> None:
    bench = Bench(store, tmp_path)
    bench.repo.release("prod", "mail", "1.0.0")
    reconciler, lease = bench.reconciler(), bench.lease()
    assert reconciler.reconcile(lease).outcomes["prod"] == Ready(1)
    empty(reconciler.mirror.path / "HEAD")
    assert reconciler.is_current()
    bench.repo.release("prod", "mail", "1.1.0")
    assert reconciler.reconcile(lease).outcomes["prod"] == Ready(1)
    assert bench.served() == {"mail": "1.1.0"}
