"""The reader that stays: what it answers, and what becomes of it when something goes wrong."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kneo.controller.source.address import parse_address
from kneo.controller.source.git import Git, SourceLimits
from kneo.controller.source.objects import ObjectReader
from kneo.errors import Invalid, Transient
from kneo.settings import GitCredentials


@pytest.fixture
def git(tmp_path: Path) -> Git:
    subprocess.run(["git", "init", "-q", "--bare", tmp_path / "m.git"], check=True)
    return Git(tmp_path / "m.git", parse_address(str(tmp_path)), GitCredentials(), SourceLimits())


def put(git: Git, content: bytes) -> str:
    done = subprocess.run(
        ["git", "--git-dir", git.mirror, "hash-object", "-w", "--stdin"], input=content, check=True, capture_output=True
    )
    return done.stdout.decode().strip()


def pid_of(reader: ObjectReader) -> int:
    assert reader._talk is not None
    return reader._talk._process.pid


def test_many_objects_come_in_the_order_they_were_asked_for(git: Git) -> None:
    contents = [b"", b"\n", b"x" * 700_000, b"missing\n", *(b"%d" % number for number in range(50))]
    ids = [put(git, content) for content in contents]
    reader = ObjectReader(git)
    assert [found.content for found in reader.read("blob", ids * 20, 100_000_000)] == contents * 20
    assert reader.sizes(ids) == [len(content) for content in contents]
    assert reader.read("blob", [], 0) == []


def test_what_came_later_is_seen_by_the_same_process(git: Git) -> None:
    reader = ObjectReader(git)
    assert reader.find(["refs/heads/x^{commit}", "a" * 40], "commit") == [None, None]
    first = pid_of(reader)
    late = put(git, b"late")
    assert reader.read("blob", [late], 10)[0].content == b"late"
    assert pid_of(reader) == first


def test_what_is_missing_or_something_else_is_told(git: Git) -> None:
    reader, blob = ObjectReader(git), put(git, b"x")
    for names in (["a" * 40], [blob, "a" * 40]):
        with pytest.raises(Transient):
            reader.read("blob", names, 10)
    with pytest.raises(Transient):
        reader.read("tree", [blob], 10)
    assert reader.read("blob", [blob], 10)[0].content == b"x"


def test_too_much_is_refused_before_it_is_read_and_the_next_answer_is_right(git: Git) -> None:
    reader, large, small = ObjectReader(git), put(git, b"x" * 3_000_000), put(git, b"small")
    with pytest.raises(Invalid) as refused:
        reader.read("blob", [small, large, small], 1_000_000)
    assert refused.value.code == "LimitExceeded"
    assert reader.read("blob", [small], 10)[0].content == b"small"


def test_a_process_that_was_killed_is_started_again(git: Git) -> None:
    reader, blob = ObjectReader(git), put(git, b"x")
    reader.sizes([blob])
    killed = pid_of(reader)
    os.kill(killed, signal.SIGKILL)
    os.waitid(os.P_PID, killed, os.WEXITED | os.WNOWAIT)
    assert reader.sizes([blob]) == [1]
    assert pid_of(reader) != killed


def test_a_process_that_hangs_is_given_up(git: Git) -> None:
    slow = Git(git.mirror, git.address, git.credentials, SourceLimits(read_seconds=0.2))
    reader, blob = ObjectReader(slow), put(git, b"x")
    reader.sizes([blob])
    os.kill(pid_of(reader), signal.SIGSTOP)
    with pytest.raises(Transient):
        reader.sizes([blob])
    assert reader.sizes([blob]) == [1]


def test_threads_do_not_get_each_others_answers(git: Git) -> None:
    ids = {put(git, b"%d" % number): b"%d" % number for number in range(40)}
    reader = ObjectReader(git)
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda oid: (oid, reader.read("blob", [oid], 10)[0].content), list(ids) * 5)
        assert all(ids[oid] == content for oid, content in answers)


def test_nothing_is_left_running(git: Git) -> None:
    reader, blob = ObjectReader(git), put(git, b"x")
    reader.sizes([blob])
    pids = [pid_of(reader)]
    reader.close()
    reader.sizes([blob])
    pids.append(pid_of(reader))
    del reader
    gc.collect()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
