from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from kneo_process import eventually
from processes import is_executing

from kneo.controller.source.git import STDERR_BYTES, Bounds, Finished, SaidTooMuch, TookTooLong, run_bounded

ENV = {"PATH": os.defpath}


def sh(script: str, folder: Path, stdin: bytes = b"", **bounds: float) -> Finished:
    limits = Bounds(
        seconds=bounds.get("seconds", 20.0),
        stdout_bytes=int(bounds.get("stdout_bytes", 10_000_000)),
        file_bytes=int(bounds.get("file_bytes", 1_000_000)),
    )
    return run_bounded(["/bin/sh", "-c", script], env=ENV, cwd=folder, bounds=limits, stdin=stdin)


def test_a_command_says_what_it_says(tmp_path: Path) -> None:
    assert sh("echo out; echo err >&2; exit 3", tmp_path) == Finished(3, b"out\n", b"err\n")
    assert sh("cat", tmp_path, b"x" * 3_000_000).stdout == b"x" * 3_000_000
    assert sh("exit 0", tmp_path, b"x" * 3_000_000) == Finished(0, b"", b"")
    assert sh('test "$#" = 0 && pwd', tmp_path).stdout.decode().strip() == str(tmp_path.resolve())


def test_nothing_of_our_surroundings_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    assert b"s3cret" not in sh("env", tmp_path).stdout


def test_what_takes_too_long_is_killed_with_all_it_started(tmp_path: Path) -> None:
    # On a busy machine the shell may not even have begun after the shortest of these times.
    for seconds in (0.3, 3, 30):
        with pytest.raises(TookTooLong):
            sh("echo $$ >pid; sleep 60 & echo $! >child; wait", tmp_path, seconds=seconds)
        if (tmp_path / "child").is_file() and (tmp_path / "child").read_text():
            break
    for name in ("pid", "child"):
        # Killed at once, and gone when the process that inherits it has taken note.
        eventually(lambda name=name: not is_executing(int((tmp_path / name).read_text())))


def test_what_closes_its_mouth_and_stays_is_killed_too(tmp_path: Path) -> None:
    with pytest.raises(TookTooLong):
        sh("exec >&- 2>&- <&-; sleep 60", tmp_path, seconds=0.3)


def test_what_says_too_much_is_killed(tmp_path: Path) -> None:
    with pytest.raises(SaidTooMuch):
        sh("yes", tmp_path, stdout_bytes=1000)


def test_complaints_are_kept_short_and_kill_nothing(tmp_path: Path) -> None:
    finished = sh(
        "i=0; while [ $i -lt 4000 ]; do echo ................................ >&2; i=$((i+1)); done", tmp_path
    )
    assert finished.status == 0
    assert len(finished.stderr) == STDERR_BYTES


def test_the_kernel_stops_a_file_that_grows_too_large(tmp_path: Path) -> None:
    finished = sh("dd if=/dev/zero of=large bs=1000 count=5000", tmp_path, file_bytes=1_000_000)
    assert finished.status != 0
    assert (tmp_path / "large").stat().st_size <= 1_000_000


def test_it_works_beside_threads(tmp_path: Path) -> None:
    results: list[Finished] = []
    threads = [threading.Thread(target=lambda: results.append(sh("echo x", tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [Finished(0, b"x\n", b"")] * 8
