"""Commands run in process, in a home of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from installation_key import SERVICE_KEY

from kneo.cli.main import run
from kneo.clock import ManualClock
from kneo.settings import from_env
from kneo.store.migrate import open_store

if TYPE_CHECKING:
    from grant_house import GrantHouse


@dataclass(frozen=True)
class Answer:
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, object]:
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


Kneo = Callable[..., Answer]


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user who never set anything up, standing in an empty folder."""
    folder = tmp_path / "home"
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in ("KNEO_SERV_TRUST_ROOT", "KNEO_SERV_KEY_PASSPHRASE", "KNEO_SERV_KNOWN_ROOTS_PATH", "KNEO_SERV_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def kneo(capsys: pytest.CaptureFixture[str]) -> Kneo:
    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Answer(status, captured.out, captured.err)

    return call


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: ManualClock) -> Iterator[GrantHouse]:
    """A released bundle on the local database, and the keys of those who grant its calls in files."""
    from grant_house import grant_house  # the libraries of agents, which few commands need

    monkeypatch.setenv("KNEO_SERV_SERVICE_KEY", SERVICE_KEY.dump().decode())
    store = open_store(from_env().database_url, clock, lambda: SERVICE_KEY)
    with grant_house(store, tmp_path, monkeypatch) as made:
        made.release()
        for name, key in made.keys.items():
            (tmp_path / f"{name}.pem").write_bytes(key.dump())
            (tmp_path / f"{name}.pub").write_text(key.public.pem)
        (tmp_path / "service.pub").write_text(SERVICE_KEY.public.pem)
        yield made
    store.close()
