"""The example of an extension: built, installed into a folder of its own without a network, and used as a channel of tasks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from engine import Engine
from example_extension import install_example, on_path

from kneo import extension_points
from kneo.errors import Invalid
from kneo.notify.channel_kinds import CHANNEL_KINDS, open_channels
from kneo.notify.delivery import Courier
from kneo.settings import Settings, from_env, process_environment
from kneo.store.engine import Store
from kneo.store.outbox import Message
from kneo.tasks.lifecycle import is_asked


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_example(tmp_path_factory.mktemp("installed"))


@pytest.fixture
def _on_path(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with on_path(installed, monkeypatch):
        yield


def settings_of(folder: Path, address: str) -> Settings:
    return from_env({"KNEO_SERV_CHANNEL_OPS": address}, cwd=folder)


@pytest.mark.usefixtures("_on_path")
def test_a_task_is_notified_through_the_channel_of_the_package(store: Store, tmp_path: Path) -> None:
    notes = tmp_path / "notes.jsonl"
    settings = settings_of(tmp_path, f"file:{notes}")
    engine = Engine(store, tmp_path / "steps", "")
    asked = {"description": "Release?", "assignee": "ann@example.com", "notify": ["ops"]}
    engine.run([{"id": "q", "kind": "human", "ref": "asked"}], "the secret plan", asked=asked)
    courier = Courier(store, settings, channels=open_channels(settings, store, is_asked))
    assert courier.deliver_due() == 1
    assert courier.deliver_due() == 0
    (note,) = (json.loads(line) for line in notes.read_text().splitlines())
    assert note["id"].startswith("msg_")
    assert "Question: Release?" in note["text"]
    assert "secret plan" not in note["text"]


@pytest.mark.usefixtures("_on_path")
def test_a_delivery_that_fails_is_tried_again(store: Store, tmp_path: Path) -> None:
    channels = open_channels(settings_of(tmp_path, f"file:{tmp_path}"), store, is_asked)
    outcome = channels["ops"].deliver(Message(id="msg_1", channel="ops", payload=_NOTICE, attempts=0), 1)
    assert outcome.problem == "the file cannot be written: Is a directory"


_NOTICE = {"environment": "prod", "bundle": "b", "version": "1", "phase": "promoted", "message": "", "reason": ""}


@pytest.mark.usefixtures("_on_path")
def test_a_process_does_not_start_with_an_address_that_is_not_valid(store: Store, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no absolute path"):
        open_channels(settings_of(tmp_path, "file:notes.jsonl"), store, is_asked)


def test_without_the_package_the_message_waits_with_the_reason(store: Store, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, f"file:{tmp_path / 'notes.jsonl'}")
    assert not CHANNEL_KINDS.has("file")
    assert open_channels(settings, store, is_asked) == {}
    engine = Engine(store, tmp_path / "steps", "")
    asked = {"description": "Release?", "notify": ["ops"]}
    engine.run([{"id": "q", "kind": "human", "ref": "asked"}], "x", asked=asked)
    assert Courier(store, settings).deliver_due() == 1
    with store.read() as tx:
        (error,) = tx.connection.exec_driver_sql("SELECT error FROM outbox").one()
    assert "the kinds that installed packages add" in error


def test_a_process_with_a_key_of_web_push_needs_its_extension(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = from_env({}, cwd=tmp_path)
    settings = replace(settings, push=replace(settings.push, private_key="a key"))
    monkeypatch.setattr(extension_points, "_scan", dict)
    with pytest.raises(Invalid, match="no installed package delivers to browsers"):
        open_channels(settings, store, is_asked)


def test_the_doctor_lists_the_package_with_its_version(installed: Path, tmp_path: Path) -> None:
    environment = {"PATH": process_environment("PATH")["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-m", "kneo.cli.main", "doctor"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "kneo-example-extension 1.0.0: file (notification_channels), sqlite (tool_kinds)" in done.stdout
