"""API keys in a file of digests, which a running service reads again on SIGHUP."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from console_pages import Browser, signed_in
from kneo_process import Desk, Machine, Process, eventually

from kneo.service.auth import configured, key_digest, keyring
from kneo.settings import from_env

PATIENCE = 240
PAGE = (Path(__file__).parents[2] / "docs/operations/api-keys.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def entry(name: str, key: str, role: str) -> str:
    return f"{name}:{key_digest(key)}:{role}"


class Keys:
    """The file of API keys of a running service."""

    def __init__(self, process: Process, path: Path) -> None:
        self.process = process
        self.path = path

    def reload(self, *entries: str) -> None:
        """Replace the file, tell the service and wait until its log says what came of it."""
        self.path.write_text(";".join(entries) + "\n")
        before = self.reloads()
        self.process.popen.send_signal(signal.SIGHUP)
        eventually(lambda: self.reloads() > before)

    def reloads(self) -> int:
        return self.process.log.read_text().count(" reloaded")

    def get(self, path: str, key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.get(f"{self.process.url}{path}", headers=headers, timeout=PATIENCE).status_code

    @contextlib.contextmanager
    def stream(self, path: str, **headers: str) -> Iterator[Iterator[str]]:
        with httpx.stream("GET", f"{self.process.url}{path}", headers=headers, timeout=PATIENCE) as answer:
            assert answer.status_code == 200, answer.read()
            yield answer.iter_lines()


ANN, BEN = entry("viewer", "viewer-key", "viewer"), entry("ben", "key-of-ben", "admin")


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Keys]:
    (tmp_path / "keys").write_text(f"{ANN};{BEN}\n")
    machine = Machine(
        tmp_path,
        f"sqlite:///{tmp_path / 'kneo.sqlite'}",
        KNEO_SERV_API_KEYS_FILE="keys",
        KNEO_SERV_STREAM_HEARTBEAT_SECONDS="0.2",
    )
    try:
        yield Keys(machine.start("service", "serve", "--port", "0", "--workers", "0"), tmp_path / "keys")
    finally:
        Browser.close_all()
        machine.stop()


def test_sessions_and_streams_of_a_replaced_key_end_and_others_continue(keys: Keys) -> None:
    assert (keys.get("/v1/me", "viewer-key"), keys.get("/v1/me", key_digest("viewer-key"))) == (200, 401)
    browser = signed_in(keys.process.url, "viewer")
    cookie = "; ".join(f"{one.name}={one.value}" for one in browser.client.cookies.jar)
    with (
        keys.stream("/v1/human-tasks/stream", Authorization="Bearer viewer-key") as anns,
        keys.stream("/v1/human-tasks/stream", Authorization="Bearer key-of-ben") as bens,
        keys.stream("/console/live", Cookie=cookie) as lives,
    ):
        assert [next(anns), next(bens), next(lives)] == ["retry: 1000"] * 3
        keys.reload(entry("viewer", "another-key", "viewer"), BEN)
        for ended in (anns, lives):
            list(ended)
        assert ": still here" in [next(bens) for _ in range(20)]
    assert [keys.get("/v1/me", key) for key in ("viewer-key", "another-key", "key-of-ben")] == [401, 200, 200]
    assert browser.client.get("/console/inbox").status_code == 303
    events = keys.process.http.get("/audit-events", headers={"Authorization": "Bearer key-of-ben"}).json()
    assert "api_keys.reloaded" in [event["event_type"] for event in events["events"]]


def test_a_stream_ends_when_its_key_loses_the_scope(keys: Keys) -> None:
    with keys.stream("/v1/human-tasks/stream", Authorization="Bearer viewer-key") as lines:
        assert next(lines) == "retry: 1000"
        keys.reload(entry("viewer", "viewer-key", "specs:read"), BEN)
        list(lines)
    assert keys.get("/v1/me", "viewer-key") == 200


def test_the_same_keys_are_reported_as_a_copy_that_may_be_old(keys: Keys) -> None:
    keys.reload(ANN, BEN)
    assert "the API keys were reloaded and are the same" in keys.process.log.read_text()


@pytest.mark.parametrize("text", ["", ";", "viewer:sha256:abc:viewer", "ben:key-of-ben:king", f"{ANN};{ANN};x"])
def test_an_invalid_file_keeps_the_keys(keys: Keys, text: str) -> None:
    keys.reload(text)
    assert "not reloaded" in keys.process.log.read_text()
    assert "key-of-ben" not in keys.process.log.read_text()
    assert [keys.get("/v1/me", key) for key in ("viewer-key", "key-of-ben")] == [200, 200]
    keys.reload(BEN)
    assert [keys.get("/v1/me", key) for key in ("viewer-key", "key-of-ben")] == [401, 200]


def test_the_examples_of_the_page_are_valid(tmp_path: Path) -> None:
    blocks = dict(BLOCK.findall(PAGE))
    machine = Desk(tmp_path / "work", f"sqlite:///{tmp_path / 'kneo.sqlite'}")
    lines = blocks["bash"].splitlines()
    made = [machine.json(*line.split()[1:]) for line in lines]
    entries = blocks["text"]
    assert [str(one["entry"]).split(":", 3)[3] for one in made] == [one.split(":", 3)[3] for one in entries.split()]
    assert keyring(configured(from_env({"KNEO_SERV_API_KEYS": entries}, tmp_path))).names == {"ann", "ci"}
